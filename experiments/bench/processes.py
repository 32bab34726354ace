"""Rows measured in new processes: the first step, peak memory, opening a data set, and scaling."""

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from experiments.bench.machine import ROOT
from experiments.bench.measure import Row, orders
from experiments.bench.setting import Setting, load_images
from jaxcnn.errors import InputError

PROGRAMS = ("jaxcnn", "pytorch")
IMAGE_COUNTS = (5_000, 20_000, 50_000)
BATCH_SIZES = (64, 256, 1_024)

Child = Callable[[Path], dict[str, Any]]
"""A function that runs a measurement in a new process, with its caches in the given folder, and returns the answer."""


def run_child(do: str, setting: Setting, cache: Path, program: str = "jaxcnn", checkout: Path = ROOT) -> dict[str, Any]:
    """Runs a task of `experiments.bench.child` in a new process, and returns its answer.

    Args:
        do: the task.
        setting: what to measure.
        cache: the folder for the process's caches.
        program: "jaxcnn" or "pytorch"; on a GPU also another form, by its column.
        checkout: the checkout whose code the process runs.

    Raises:
        InputError: when the process fails; the message ends with its last line of stderr.
    """
    task = {"do": do, "program": program, "setting": setting.to_dict(), "began": time.time()}
    command = [sys.executable, "-m", "experiments.bench.child", json.dumps(task)]
    done = subprocess.run(command, env=environment(checkout, cache), capture_output=True, text=True, check=False)
    if done.returncode:
        raise failure(f"{do} of {program}", checkout, done.stderr, done.returncode)
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def environment(checkout: Path, cache: Path) -> dict[str, str]:
    """Environment variables of a process that runs a checkout's code and has its caches in a folder."""
    left_out = ("JAX_COMPILATION_CACHE_DIR", "PYTHONDONTWRITEBYTECODE")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    path = os.pathsep.join(filter(None, (str(checkout), os.environ.get("PYTHONPATH"))))
    caches = {"XDG_CACHE_HOME": "", "TORCHINDUCTOR_CACHE_DIR": "inductor", "TRITON_CACHE_DIR": "triton"}
    kept |= {name: str(cache / folder) for name, folder in caches.items()}
    return kept | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}


def failure(what: str, checkout: Path, stderr: str, status: int) -> InputError:
    """The error to raise for a failed process, with the last line of its stderr."""
    last = (stderr.strip().splitlines() or [f"status {status}"])[-1]
    of = "" if checkout == ROOT else f" in {checkout}"
    return InputError(f"the process that measures {what}{of} failed: {last}")


@contextmanager
def temporary() -> Iterator[Path]:
    """A temporary folder, deleted on exit."""
    with tempfile.TemporaryDirectory(prefix="jaxcnn-bench-") as folder:
        yield Path(folder)


def first_step(setting: Setting, *, warm: bool) -> Row:
    """Seconds from the start of the process to the first updated weights. `warm`: the compilation cache is filled."""
    seconds = in_turn(_programs("first_step", setting), "seconds", setting.processes, warm=warm)
    name, cache = ("first_step_warm", "filled") if warm else ("first_step_cold", "empty")
    what = f"start of the process to the first updated weights, compilation cache {cache}"
    return Row(name, what, "s", seconds, more_is_better=False)


def peak_memory(setting: Setting, *, warm: bool) -> Row:
    """Peak memory over an epoch with AutoAugment. `warm`: the compilation cache is filled."""
    peaks = in_turn(_programs("epoch", setting), "peak_mib", setting.processes, warm=warm)
    name, cache = ("peak_memory_warm", "filled") if warm else ("peak_memory", "empty")
    what = f"peak memory of the process, an epoch of {setting.images:,} images, compilation cache {cache}"
    return Row(name, what, "MiB", peaks, more_is_better=False)


def _programs(do: str, setting: Setting) -> dict[str, Child]:
    return {program: partial(run_child, do, setting, program=program) for program in PROGRAMS}


def in_turn(children: Mapping[str, Child], figure: str, rounds: int, *, warm: bool) -> dict[str, list[float]]:
    """Runs all children once per round, and returns one figure of their answers by round."""
    values: dict[str, list[float]] = {name: [] for name in children}
    with temporary() as folder:
        for name, child in children.items():  # not counted: it compiles Python modules and fills the cache
            child(folder / name)
        for order in orders(list(children), rounds):
            for name in order:
                with temporary() as empty:
                    values[name].append(children[name](folder / name if warm else empty)[figure])
    return values


def measure_scaling(setting: Setting, name: str) -> list[Row]:
    """Two rows, speed and memory, of an epoch in a new process."""
    rates: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    peaks: dict[str, list[float]] = {program: [] for program in PROGRAMS}
    for program in PROGRAMS * setting.processes:
        with temporary() as empty:
            answer = run_child("epoch", setting, empty, program)
        if answer["images_per_second"] is not None:
            rates[program].append(answer["images_per_second"])
        peaks[program].append(answer["peak_mib"])
    what = f"epoch of {setting.images:,} images, batch {setting.batch_size}, AutoAugment, all trained"
    memory = Row(f"{name}_memory", f"peak memory, {what}", "MiB", peaks, more_is_better=False)
    return [Row(name, what, "images/s", rates), memory]


def scale_images(setting: Setting, count: int) -> list[Row]:
    """Speed and memory of an epoch of `count` images."""
    return measure_scaling(replace(setting, images=count), f"scale_images_{count}")


def scale_batch(setting: Setting, batch_size: int) -> list[Row]:
    """Speed and memory of an epoch with this batch size, of 5,120 images or 16 batches, whichever is more."""
    setting = replace(setting, images=max(5_120, 16 * batch_size), batch_size=batch_size)
    return measure_scaling(setting, f"scale_batch_{batch_size}")


def open_dataset(setting: Setting) -> Row:
    """Seconds to open 50,000 training images that are prepared and cached, in a new process each time."""
    with temporary() as folder:
        if setting.data_dir is None:
            setting = replace(setting, data_dir=str(prepare_noise(folder, setting)))
        run_child("open", setting, folder / "cache")  # fills the cache
        seconds = [run_child("open", setting, folder / "cache")["seconds"] for _ in range(setting.processes)]
    what = "opening a prepared and cached CIFAR-10, imports aside"
    return Row("open_dataset", what, "s", {"jaxcnn": seconds}, more_is_better=False, note="nothing equal in PyTorch")


def prepare_noise(folder: Path, setting: Setting) -> Path:
    """Writes an archive of noise in CIFAR-10's layout, prepares it, and returns the folder of the prepared set."""
    from jaxcnn.data.prepare import prepare

    split = load_images(setting, 60_000)
    planes = split.images.transpose(0, 3, 1, 2).reshape(len(split.labels), -1)
    parts = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    archive = folder / "archives" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz", compresslevel=0) as tar:

        def add(name: str, data: bytes) -> None:
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))

        for i, part in enumerate(parts):
            records = (
                bytes([label % 10]) + row.tobytes() for label, row in zip(split.labels[i::6], planes[i::6], strict=True)
            )
            add(f"{part}.bin", b"".join(records))
        add("batches.meta.txt", "\n".join(f"class_{i}" for i in range(10)).encode() + b"\n\n")
    checksums = {archive.name: hashlib.sha256(archive.read_bytes()).hexdigest()}
    prepare("cifar10", folder / "data", archive.parent, checksums)
    return folder / "data"
