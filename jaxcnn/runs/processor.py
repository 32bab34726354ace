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
    return f"{name}, {count_processors()} cores"


def count_processors() -> int:
    """Number of processors that this process may use. XLA splits its work among them, which affects rounding."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
