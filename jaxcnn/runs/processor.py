"""The processor that a run has."""

import contextlib
import os
import platform
from pathlib import Path


def describe_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name, as far as the system tells, and how many cores this process may use."""
    name = platform.processor() or platform.machine()
    with contextlib.suppress(OSError):  # as where the system is not Linux
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"
