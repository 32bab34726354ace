"""Data sets as uint8 arrays in memory, split and counted in ways that depend on nothing but the seed."""

import os
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from jaxcnn.config.experiment import DataConfig
from jaxcnn.data.images import fit_image
from jaxcnn.data.locate import find_prepared, refuse_other_folders
from jaxcnn.data.reader import load_prepared
from jaxcnn.data.splits import Dataset, Stored, stratified_split
from jaxcnn.data.splits import Split as Split
from jaxcnn.data.splits import take as take
from jaxcnn.errors import InputError, local_path
from jaxcnn.files import is_there

_PREPARABLE = ("cifar10", "cifar100", "svhn_cropped")

_FRACTION, _VALIDATION = 2**31, 2**31 + 1
"""Numbers of random streams beyond those of any epoch, so that no two choices shuffle alike."""


def load_dataset(config: DataConfig, *, input_size: int, in_channels: int, seed: int) -> Dataset:
    """Loads, and if need be prepares, the data set that a configuration names.

    Args:
        config: names the set; its folder and archives; the classes and the shares to use.
        input_size: height and width to which images are resized as `config.resize` says, where they differ.
        in_channels: 3, or 1 for grey images.
        seed: decides which images `fraction` and `validation` take.

    Returns:
        Arrays that may be read-only: those of a cached set are mapped from disk.

    Raises:
        InputError: when the set cannot be had as asked for; the message names the remedy.
    """
    if in_channels not in (1, 3):
        raise InputError(f"model.in_channels={in_channels} fits no data set; give 3, or 1 for grey images")

    def fit(image: np.ndarray) -> np.ndarray:
        try:
            return fit_image(image, input_size, in_channels, config.resize)
        except InputError as error:
            raise InputError(f"data.name={config.name!r} does not fit the network: {error}") from error

    if config.name == "digits":
        stored = _load_digits(fit)
    else:
        stored = load_prepared(_prepared_folder(config), fit, (input_size, input_size, in_channels))
    if stored.test_origin != "test":
        print(f"{config.name} has no labelled test split: {stored.test_origin} serve as one", file=sys.stderr)
    stored = select_classes(stored, config.classes)
    for name, split in (("training", stored.train), ("test", stored.test)):
        if not len(split.labels):
            raise InputError(f"{config.name} has no {name} images of data.classes={config.classes}; choose others")
    mean, std = channel_statistics(stored.train.images)
    if not all(std):
        raise InputError(f"a channel of {config.name} has one value throughout; choose another data set")
    train, validation = _divide(stored.train, config, seed)
    return Dataset(config.name, train, validation, stored.test, stored.class_names, mean, std, stored.test_origin)


CIFAR10_MEAN = (0.4914, 0.4822, 0.4465)
CIFAR10_STD = (0.247, 0.2435, 0.2616)


def as_original(dataset: Dataset) -> Dataset:
    """The set as the original PyTorch program sees it: steered by its test split, with CIFAR-10's statistics."""
    return replace(dataset, validation=dataset.test, mean=CIFAR10_MEAN, std=CIFAR10_STD)


def select_classes(stored: Stored, classes: Sequence[int]) -> Stored:
    """Keeps the images of some labels, renumbered from 0 in the order given; everything if none are given.

    Raises:
        InputError: when a label is unknown.
    """
    if not classes:
        return stored
    count = len(stored.class_names)
    if unknown := [label for label in classes if not 0 <= label < count]:
        raise InputError(f"data.classes={tuple(classes)} asks for label {unknown[0]}; labels here are 0 to {count - 1}")
    new = np.full(count, -1, np.int32)
    new[list(classes)] = np.arange(len(classes))

    def keep(split: Split) -> Split:
        kept = np.flatnonzero(new[split.labels] >= 0)
        return take(Split(split.images, new[split.labels]), kept)

    names = tuple(stored.class_names[label] for label in classes)
    return stored._replace(train=keep(stored.train), test=keep(stored.test), class_names=names)


def channel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 images (N, H, W, C) divided by 255.

    The sums are of whole numbers, hence exact, whatever the order.
    """
    channels = images.shape[-1]
    sums = np.zeros((2, channels), np.uint64)
    for start in range(0, len(images), 128):
        pixels = images[start : start + 128].reshape(-1, np.prod(images.shape[1:])).astype(np.uint32)
        for total, values in zip(sums, (pixels, pixels * pixels), strict=True):
            # 128 squares of at most 255 fit in 32 bits, the sum over an image's pixels may not.
            columns = values.sum(axis=0, dtype=np.uint32)
            total += columns.reshape(-1, channels).sum(axis=0, dtype=np.uint64)
    count = images.size // channels
    means = [Fraction(int(total), count) for total in sums[0]]
    variances = [Fraction(int(total), count) - mean**2 for total, mean in zip(sums[1], means, strict=True)]
    return (
        tuple(float(mean / 255) for mean in means),
        tuple(float(variance) ** 0.5 / 255 for variance in variances),
    )


def _divide(split: Split, config: DataConfig, seed: int) -> tuple[Split, Split | None]:
    """What `fraction` leaves of the training images, and what `validation` then holds out."""
    kept = np.arange(len(split.labels))
    if config.fraction < 1:
        kept, _ = stratified_split(split.labels, 1 - config.fraction, (seed, _FRACTION))
    if config.validation == 0:
        whole = len(kept) == len(split.labels)
        return split if whole else take(split, kept), None
    rest, held = stratified_split(split.labels[kept], config.validation, (seed, _VALIDATION))
    if not len(held):
        raise InputError(
            f"data.validation={config.validation} of {len(kept)} training images leaves none to validate on; "
            f"raise it or data.fraction={config.fraction}, or give data.validation=0"
        )
    return take(split, kept[rest]), take(split, kept[held])


def _load_digits(fit: Callable[[np.ndarray], np.ndarray]) -> Stored:
    """scikit-learn's 1,797 digits of 8x8 pixels; a fifth is the test split, the same in every run."""
    rows = _digits_table()
    grey = np.rint(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images, labels = np.stack([fit(image) for image in grey]), rows[:, 64].astype(np.int32)
    train, test = (take(Split(images, labels), each) for each in stratified_split(labels, 0.2, seed=0))
    return Stored(train, test, tuple(str(digit) for digit in range(10)))


def _digits_table() -> np.ndarray:
    """The digits, float64 (1797, 65): 64 pixels from 0 to 16, then the label."""
    package = find_spec("sklearn")  # which is not loaded for it: with SciPy's statistics that takes two seconds
    for folder in (package and package.submodule_search_locations) or ():
        table = Path(folder) / "datasets/data/digits.csv.gz"
        if table.exists():
            return np.loadtxt(table, delimiter=",")
    from sklearn.datasets import load_digits  # of a release that keeps them elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def _prepared_folder(config: DataConfig) -> Path:
    """The folder of the prepared set, prepared now where that is possible and has not been done."""
    name = re.sub(r"^svhn\b", "svhn_cropped", config.name)
    data_dir = config.dir or local_path("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = find_prepared(name, data_dir)
    if folder is None:
        refuse_other_folders(name, data_dir, config.archives is not None)
    if folder is None and name in _PREPARABLE:
        from jaxcnn.data.prepare import prepare

        folder = prepare(name, data_dir, config.archives)
    if folder is None:
        gone = "" if is_there(data_dir) else ", a folder that does not exist"
        raise InputError(
            f"data.name={config.name!r} is not prepared in {data_dir}{gone}; prepare it there with tfds "
            "(file_format='array_record'), pass --data.dir, or choose cifar10, cifar100, svhn or digits"
        )
    return folder
