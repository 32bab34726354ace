"""What a measurement was made on: processor, GPU, versions, commit and date."""

import os
import platform
import shutil
import subprocess
from datetime import date
from importlib.metadata import distributions, version
from pathlib import Path
from typing import Any

from experiments.bench.setting import Device
from jaxcnn import __version__

ROOT = Path(__file__).parents[2]
"""This checkout."""
CPUINFO = Path("/proc/cpuinfo")
FEATURES = {"AVX2": "avx2", "AVX-512": "avx512f", "AMX": "amx_bf16"}
"""Instruction sets that affect speed, with their names in /proc/cpuinfo."""


def facts(device: Device = "cpu") -> dict[str, Any]:
    """The machine, the versions and the date, as JSON values."""
    processor, features = read_processor(CPUINFO)
    packages = {name: version(name) for name in ("jax", "flax", "torch", "pillow", "numpy")}
    gpu = {"gpu": find_gpu()} if device == "gpu" else {}
    return {
        "date": date.today().isoformat(),
        "project": __version__,
        "commit": commit(ROOT),
        "processor": processor,
        "cores": cores(),
        "features": features,
        **gpu,
        "versions": {"python": platform.python_version(), **packages},
    }


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def find_gpu() -> dict[str, Any]:
    """JAX's first GPU: name, memory and driver as nvidia-smi gives them, and the CUDA libraries of both programs."""
    import jax
    import torch

    device = jax.devices()[0]
    return {
        "name": device.device_kind,
        **query_gpu(getattr(device, "local_hardware_id", None) or 0),
        "torch_cuda": torch.version.cuda,
        "cuda_packages": cuda_packages(),
    }


def query_gpu(index: int) -> dict[str, str]:
    """What nvidia-smi says of a card; empty if there is no nvidia-smi, or it fails."""
    fields = {"name": "name", "driver": "driver_version", "memory": "memory.total", "power_limit": "power.limit"}
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    card = visible[index].strip() if index < len(visible) and visible[index].strip() else str(index)
    command = ["nvidia-smi", f"--id={card}", f"--query-gpu={','.join(fields.values())}", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return {}
    return dict(zip(fields, map(str.strip, done.stdout.splitlines()[0].split(",")), strict=False))


def cuda_packages() -> dict[str, str]:
    """Installed packages of JAX's CUDA plugin and of NVIDIA's libraries that it computes with."""
    wanted = ("jax-cuda", "nvidia-cudnn", "nvidia-cublas", "nvidia-nccl")
    found = {each.name.replace("_", "-").lower(): each.version for each in distributions() if each.name}
    return {name: number for name, number in sorted(found.items()) if name.startswith(wanted)}


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
    return f"{accelerator(machine)}{hardware(machine)}; {revision(machine)}, {machine['date']}; {versions}"


def accelerator(machine: dict[str, Any]) -> str:
    """The GPU with its memory, driver and CUDA libraries, if the measurement was made on one; else empty."""
    if (gpu := machine.get("gpu")) is None:
        return ""
    cuda = [f"CUDA {gpu['torch_cuda']} in torch"] if gpu["torch_cuda"] else []
    cuda += [f"{name} {number}" for name, number in gpu["cuda_packages"].items()]
    parts = [gpu.get("memory"), f"driver {gpu['driver']}" if "driver" in gpu else None, *cuda]
    return f"{gpu['name']} ({', '.join(filter(None, parts))}), with "


def hardware(machine: dict[str, Any]) -> str:
    """Processor, number of usable cores, and instruction sets."""
    features = machine["features"]
    if features is None:
        known = "instruction sets unknown"
    else:
        known = ", ".join(name if there else f"no {name}" for name, there in features.items())
    return f"{machine['cores']} cores of {machine['processor']} ({known})"


def revision(machine: dict[str, Any]) -> str:
    """Version, and commit if known."""
    commit = f" ({machine['commit']})" if machine["commit"] else ""
    return f"jaxcnn {machine['project']}{commit}"
