"""The setting of a measurement: network, batch size and images. Imports neither JAX nor PyTorch."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxcnn.config import PRESETS, DataConfig, FreezeConfig, Mask, ModelConfig, OptimConfig
from jaxcnn.data.locate import find_prepared
from jaxcnn.data.sets import CIFAR10_STANDARDISATION, load_dataset
from jaxcnn.data.splits import Dataset, Split, take
from jaxcnn.errors import InputError, require_int

OPTIM = OptimConfig(schedule="constant")
"""The original's Adam with L2. The learning rate is constant, because there are no validation images."""

MASKS: tuple[Mask, ...] = ("full", "partial", "frozen")
"""The masks that have rows of their own."""


Device = Literal["cpu", "gpu"]
"""What both programs compute on."""


@dataclass(frozen=True)
class Setting:
    """The network to measure, and the amount of work per measurement.

    Raises:
        InputError: when a number is below 1.
    """

    preset: str = "shallow"
    batch_size: int = 256
    rounds: int = 5
    steps: int = 4
    """Steps that are timed together."""
    images: int = 1024
    """Images per epoch."""
    data_dir: str | None = None
    """Folder with a prepared CIFAR-10; if None, the images are noise of the same shape."""
    device: Device = "cpu"

    def __post_init__(self) -> None:
        for name in ("batch_size", "rounds", "steps", "images"):
            require_int(name, getattr(self, name), least=1)

    @property
    def model(self) -> ModelConfig:
        """The network."""
        return PRESETS[self.preset]

    @property
    def processes(self) -> int:
        """Number of measurements in new processes, which take longer and vary less."""
        return max(1, self.rounds // 2)

    def work(self) -> dict[str, Any]:
        """The setting as stored with a figure: without paths, which mean nothing on another machine."""
        kept = {name: value for name, value in self.to_dict().items() if name != "data_dir"}
        return {**kept, "data": "noise" if self.data_dir is None else "CIFAR-10"}

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON values, for `Setting(**values)` in another process.

        The CPU is left out: it is the default, and older checkouts (`--against`) have no such field.
        """
        return {name: value for name, value in asdict(self).items() if (name, value) != ("device", "cpu")}


def load_images(setting: Setting, count: int) -> Split:
    """The first `count` images of the prepared set, or noise. Both programs get the same images.

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
    """Loads the CIFAR-10 that is prepared in a folder, without downloading.

    Raises:
        InputError: when it does not exist or cannot be read.
    """
    if find_prepared("cifar10", Path(folder)) is None:
        raise InputError(f"data.dir={folder!r} has no prepared CIFAR-10; without the flag, noise is used")
    config = DataConfig(dir=Path(folder), validation=validation)
    return load_dataset(config, input_size=32, in_channels=3, seed=0)


def as_dataset(split: Split, num_classes: int) -> Dataset:
    """A data set with `split` as training and test images, and CIFAR-10's mean and std."""
    names = tuple(str(i) for i in range(num_classes))
    return Dataset("benchmark", split, None, split, names, CIFAR10_STANDARDISATION)


def freeze(mask: Mask) -> FreezeConfig:
    """The freezing of a mask. As in the original, `partial` freezes blocks 0 and 1."""
    return FreezeConfig(mask=mask)
