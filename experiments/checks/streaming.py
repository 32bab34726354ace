"""Train on more images than memory should hold: streamed from a file, beside the same images in memory.

    python -m experiments.checks.streaming          # 200,000 images of 64x64: a file of 2.4 GB
    python -m experiments.checks.streaming --images 20000 --steps 8

Both forms train the same steps from the same weights, in turn. It prints the rates, the most anonymous memory while
only streaming ran, and whether the weights have the same bits. A memory-mapped file is not anonymous memory: the system
drops its pages where memory is short. The images are noise.
"""

import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jax
import numpy as np
import tyro

from jaxcnn.config import ModelConfig, OptimConfig
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.data.splits import ImageRows, Split, epoch_order, take
from jaxcnn.model import init_variables, key_of
from jaxcnn.runs.device import select_device
from jaxcnn.training.epoch import TrainEpoch, default_steps_per_call, make_train_epoch
from jaxcnn.training.optim import make_schedule
from jaxcnn.training.step import init_state, make_train_step


@dataclass(frozen=True)
class Flags:
    """The size of the check."""

    images: int = 200_000
    """Images in the file."""
    size: int = 64
    """Their height and width."""
    steps: int = 16
    """Steps of a round."""
    rounds: int = 3
    """Rounds of each form."""
    batch_size: int = 256
    """Images of a step."""


def anonymous_memory() -> float:
    """Anonymous memory of this process now, in GB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon:")) / 1e6


def write_images(path: Path, flags: Flags) -> np.ndarray:
    """Writes noise, and returns it memory-mapped."""
    shape = (flags.images, flags.size, flags.size, 3)
    images = np.lib.format.open_memmap(path, "w+", np.uint8, shape)
    random = np.random.default_rng(0)
    for start in range(0, flags.images, 1000):
        images[start : start + 1000] = random.integers(0, 256, images[start : start + 1000].shape, np.uint8)
    images.flush()
    del images
    mapped: np.ndarray = np.load(path, mmap_mode="r")
    return np.asarray(mapped)


def measure(flags: Flags) -> None:
    """Trains both forms in turn, and prints what the module's docstring names."""
    select_device("auto")
    model, optim = ModelConfig(input_size=flags.size), OptimConfig()
    rows = np.arange(flags.images)
    labels = np.random.default_rng(1).integers(0, 10, flags.images).astype(np.int32)
    step = make_train_step(
        model=model, optim=optim, schedule=make_schedule(optim, steps_per_epoch=100, epochs=100),
        standardisation=CIFAR10_STANDARDISATION, augmentation="flipcrop",
    )  # fmt: skip
    variables = jax.device_get(init_variables(model, key_of(0)))
    used = flags.steps * flags.batch_size
    most = [0.0]

    def prepare(split: Split) -> TrainEpoch:
        return make_train_epoch(step, split, flags.batch_size, steps_per_call=default_steps_per_call() or 8)

    def run(train: TrainEpoch, part: int) -> tuple[float, Any]:
        state = init_state(variables, model, optim, seed=0)
        order = np.resize(epoch_order(0, 0, flags.images), (part + 1) * used)[part * used :]
        began = time.perf_counter()
        state, _ = train(state, order, 1.0, lambda *_: most.append(anonymous_memory()))
        return used / (time.perf_counter() - began), jax.device_get(state.params)

    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        images = write_images(Path(folder) / "images.npy", flags)
        print(f"{images.nbytes / 1e9:.2f} GB of images in a file")
        streamed = prepare(Split(ImageRows(images, rows), labels))
        cold = [run(streamed, part)[0] for part in range(flags.rounds)]
        print(f"streamed alone: at most {max(most):.2f} GB of anonymous memory, {median(cold):.0f} images/s")
        resident = prepare(take(Split(images, labels), rows))
        run(resident, 0)
        rates: tuple[list[float], list[float]] = [], []
        for part in range(flags.rounds):
            both = [run(train, part) for train in (streamed, resident)]
            for found, (rate, _) in zip(rates, both, strict=True):
                found.append(rate)
            same = jax.tree.map(np.array_equal, both[0][1], both[1][1])
            print(f"round {part + 1}: streamed {both[0][0]:.0f}, in memory {both[1][0]:.0f} images/s")
            if not all(jax.tree.leaves(same)):
                sys.exit("the weights differ")
    ratios = [a / b for a, b in zip(*rates, strict=True)]
    print(f"streamed / in memory: {median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}); the same bits")


if __name__ == "__main__":
    measure(tyro.cli(Flags, description=__doc__))
