"""What every measurement shares: the network, the batch, the images. Imports neither JAX nor PyTorch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config import PRESETS, DataConfig, FreezeConfig, Mask, ModelConfig, OptimConfig
from jaxcnn.data.locate import find_prepared
from jaxcnn.data.sets import CIFAR10_STANDARDISATION, load_dataset
from jaxcnn.data.splits import Dataset, Split, take
from jaxcnn.errors import InputError, require_int

OPTIM = OptimConfig(schedule="constant")
"""Adam with L2, as the original has it; without a validation split nothing would cut the rate."""

MASKS: tuple[Mask, ...] = ("full", "partial", "frozen")
"""The masks that have rows of their own."""


@dataclass(frozen=True)
class Setting:
    """One network under measurement, and how much work a measurement is.

    Raises:
        InputError: when a number is below 1.
    """

    preset: str = "shallow"
    batch_size: int = 256
    rounds: int = 5
    steps: int = 4
    """Steps that are timed together."""
    images: int = 1024
    """Of an epoch."""
    data_dir: str | None = None
    """Folder with a prepared CIFAR-10; noise of its shape if None."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "steps", "images"):
            require_int(name, getattr(self, name), least=1)

    @property
    def model(self) -> ModelConfig:
        """The network."""
        return PRESETS[self.preset]

    @property
    def processes(self) -> int:
        """How often a program is measured in a process of its own, which takes long and varies less."""
        return max(1, self.rounds // 2)

    def work(self) -> dict[str, Any]:
        """The same as it is kept with a figure: paths of a machine say nothing on another."""
        kept = {name: value for name, value in self.to_dict().items() if name != "data_dir"}
        return {**kept, "data": "noise" if self.data_dir is None else "CIFAR-10"}

    def to_dict(self) -> dict[str, Any]:
        """What `Setting(**values)` takes back, in another process."""
        return asdict(self)


def load_images(setting: Setting, count: int) -> Split:
    """The first so many images: of the prepared set, or noise; both programs get the same ones.

    Raises:
        InputError: when the prepared set cannot be read.
    """
    if setting.data_dir is not None:
        images, labels = open_prepared(setting.data_dir, validation=0).train
        if len(labels) >= count:
            return Split(images[:count], labels[:count])
        return take(Split(images, labels), np.arange(count) % len(labels))
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (count, 32, 32, 3), np.uint8)
    labels = random.integers(0, setting.model.num_classes, count, np.int32)
    return take(Split(images, labels), np.arange(count))


def open_prepared(folder: str, *, validation: float) -> Dataset:
    """CIFAR-10 as it is prepared in a folder; never downloads it.

    Raises:
        InputError: when it is not there or cannot be read.
    """
    if find_prepared("cifar10", Path(folder)) is None:
        raise InputError(f"data.dir={folder!r} holds no prepared CIFAR-10; drop the flag to measure on noise")
    config = DataConfig(dir=Path(folder), validation=validation)
    return load_dataset(config, input_size=32, in_channels=3, seed=0)


def as_dataset(split: Split, num_classes: int) -> Dataset:
    """A data set that trains on all of `split`, standardised as CIFAR-10 is."""
    names = tuple(str(i) for i in range(num_classes))
    return Dataset("benchmark", split, None, split, names, CIFAR10_STANDARDISATION)


def freeze(mask: Mask) -> FreezeConfig:
    """The mask with the original's choice of what `partial` freezes: blocks 0 and 1."""
    return FreezeConfig(mask=mask)
