"""One measurement in a process of its own: `python -m experiments.bench.child TASK`, TASK and answer being JSON.

A task names what to do, one of the two programs, the setting and when the process was started.
"""

import json
import resource
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from experiments.bench.setting import Setting, load_images, open_prepared


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # unlike getrusage, which on Linux begins with the peak of the process that started this one
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


class Clock:
    """Images a second between the first step and the last: without start-up and compilation."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []

    def __call__(self, seen: int, _: object = None) -> None:
        """Takes note of so many images."""
        self.marks.append((seen, time.perf_counter()))

    def rate(self) -> float | None:
        """None if there were no two steps."""
        if len(self.marks) < 2:
            return None
        (first, began), (last, ended) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - began)


def jax_epoch(setting: Setting, clock: Clock) -> None:
    """An epoch of full training with AutoAugment, by this project."""
    from experiments.bench import jax_program
    from jaxcnn.runs.device import select_device

    select_device("cpu")  # as every run does: this is where the cache of compiled programs is chosen
    jax_program.epochs(setting, "full", "autoaugment", clock)()


def torch_epoch(setting: Setting, clock: Clock) -> None:
    """The same by the PyTorch program."""
    from experiments.bench import pytorch_program as program

    split = load_images(setting, setting.images)
    loader = program.make_loader(split, setting.batch_size, augment=True)
    program.train(program.make_trainer(setting.model, frozen_blocks=0), program.watched(loader, clock))


def opening(setting: Setting) -> float:
    """Seconds that opening the prepared set takes, imports aside."""
    assert setting.data_dir is not None
    began = time.perf_counter()
    open_prepared(setting.data_dir, validation=0.1)
    return time.perf_counter() - began


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Does what the task says."""
    setting = Setting(**task["setting"])
    if task["do"] == "open":
        return {"seconds": opening(setting)}
    if task["do"] == "first_step":
        setting = replace(setting, images=setting.batch_size)
    clock = Clock()
    {"jaxcnn": jax_epoch, "pytorch": torch_epoch}[task["program"]](setting, clock)
    return {"seconds": time.time() - task["began"], "images_per_second": clock.rate(), "peak_mib": peak_mib()}


if __name__ == "__main__":
    print(json.dumps(perform(json.loads(sys.argv[1]))))
