"""One measurement in its own process: `python -m experiments.bench.child TASK`.

TASK is a JSON object with the keys `do`, `program` (a column, such as "pytorch_bf16"), `setting` and `began` (when the
process was started). The answer is one line of JSON on stdout.
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
    """Peak memory of this process, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # on Linux, getrusage would include the peak of the parent process
        fields = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return int(fields["VmHWM"].split()[0]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 1024


class Clock:
    """Measures images per second between the first step and the last, so without start-up and compilation."""

    def __init__(self) -> None:
        self.marks: list[tuple[int, float]] = []

    def __call__(self, seen: int, _: object = None) -> None:
        """Records the time at which `seen` images have been trained on."""
        self.marks.append((seen, time.perf_counter()))

    def rate(self) -> float | None:
        """Images per second; None if there were fewer than two steps."""
        if len(self.marks) < 2:
            return None
        (first, began), (last, ended) = self.marks[0], self.marks[-1]
        return (last - first) / (ended - began)


def jax_epoch(setting: Setting, column: str, clock: Clock) -> float | None:
    """Runs an epoch of full training with AutoAugment in this project. Returns the device's peak memory in MiB."""
    import jax

    from experiments.bench import jax_program
    from jaxcnn.runs.device import select_device

    select_device(setting.device)  # also turns on the cache of compiled programs, as in every run
    precision = "bfloat16" if column.endswith("bf16") else "float32"
    jax_program.epochs(setting, "full", "autoaugment", clock, precision=precision)()
    stats = jax.devices()[0].memory_stats()  # None on a CPU
    return stats["peak_bytes_in_use"] / 2**20 if stats else None


def torch_epoch(setting: Setting, column: str, clock: Clock) -> float | None:
    """Runs the same epoch in the PyTorch program. Returns the device's peak memory in MiB."""
    import torch

    from experiments.bench import pytorch_program as program
    from experiments.bench.forms import GPU_FORMS
    from experiments.bench.pytorch_device import Copied, torch_device

    device = torch_device(setting.device)
    loader = program.make_loader(load_images(setting, setting.images), setting.batch_size, augment=True)
    trainer = program.make_trainer(setting.model, frozen_blocks=0, form=GPU_FORMS[column], device=device)
    program.train(trainer, program.count_images(Copied(loader, device), clock))
    return torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None


def time_opening(setting: Setting) -> float:
    """Seconds to open the prepared data set, without imports."""
    assert setting.data_dir is not None
    began = time.perf_counter()
    open_prepared(setting.data_dir, validation=0.1)
    return time.perf_counter() - began


def perform(task: dict[str, Any]) -> dict[str, Any]:
    """Runs a task and returns its answer."""
    setting = Setting(**task["setting"])
    if task["do"] == "open":
        return {"seconds": time_opening(setting)}
    if task["do"] == "first_step":
        setting = replace(setting, images=setting.batch_size)
    clock = Clock()
    epoch = jax_epoch if task["program"].startswith("jaxcnn") else torch_epoch
    peak_device_mib = epoch(setting, task["program"], clock)
    return {
        "seconds": time.time() - task["began"],
        "images_per_second": clock.rate(),
        "peak_mib": peak_mib(),
        "peak_device_mib": peak_device_mib,
    }


if __name__ == "__main__":
    print(json.dumps(perform(json.loads(sys.argv[1]))))
