"""What a measurement was made on: processor, versions, commit and date."""

import os
import platform
import shutil
import subprocess
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
"""This checkout."""
CPUINFO = Path("/proc/cpuinfo")
FEATURES = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_bf16"}
"""Instruction sets that affect speed, with their names in /proc/cpuinfo."""


def facts() -> dict[str, Any]:
    """The machine, the versions and the date, as JSON values."""
    processor, features = read_processor(CPUINFO)
    packages = {name: version(name) for name in ("jax", "flax", "torch", "pillow", "numpy")}
    return {
        "date": date.today().isoformat(),
        "project": project_version(),
        "commit": commit(ROOT),
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "features": features,
        "versions": {"python": platform.python_version(), **packages},
    }


def read_processor(cpuinfo: Path) -> tuple[str, dict[str, bool] | None]:
    """The processor's model name, and which of `FEATURES` it has (None if the system does not say)."""
    try:
        lines = [line.partition(":") for line in cpuinfo.read_text(encoding="utf-8").splitlines()]
    except OSError:  # not Linux
        lines = []
    fields = {key.strip(): value.strip() for key, _, value in reversed(lines)}
    flags = fields["flags"].split() if "flags" in fields else None
    features = None if flags is None else {name: flag in flags for name, flag in FEATURES.items()}
    return fields.get("model name") or platform.processor() or platform.machine(), features


def project_version() -> str | None:
    """This project's version; None if it is not installed."""
    try:
        return version("jaxcnn")
    except PackageNotFoundError:
        return None


def commit(checkout: Path) -> str | None:
    """The commit of a checkout, with "-dirty" if files have changed; None if it is not a git checkout."""
    git = shutil.which("git")
    if git is None or not (checkout / ".git").exists():  # an installed package may lie in another project's repository
        return None
    command = [git, "-C", str(checkout), "describe", "--always", "--dirty", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def where(machine: dict[str, Any]) -> str:
    """The facts in one line."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return f"{hardware(machine)}; {revision(machine)}, {machine['date']}; {versions}"


def hardware(machine: dict[str, Any]) -> str:
    """Processor, number of usable cores, and instruction sets."""
    features = machine["features"]
    if features is None:
        known = "instruction sets unknown"
    else:
        known = ", ".join(name if there else f"no {name}" for name, there in features.items())
    return f"{machine['cores']} cores of {machine['processor']} ({known})"


def revision(machine: dict[str, Any]) -> str:
    """Version and commit, if known."""
    parts = ["jaxcnn", machine["project"], f"({machine['commit']})" if machine["commit"] else None]
    return " ".join(filter(None, parts))
