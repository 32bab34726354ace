"""Images with their labels, divided and copied in ways that depend on nothing but the seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jaxcnn.config.network import Standardisation
from jaxcnn.errors import InputError

SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
"""What splits are called in folders, files and data sets of others, and which one each is."""


class Split(NamedTuple):
    """Images and their labels."""

    images: Any
    """uint8 (N, H, W, C). Training on cached features has `model.Features` in their place."""
    labels: np.ndarray
    """int32 (N,)."""


class Stored(NamedTuple):
    """The training and test images of a data set, and the names of its classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    test_origin: str = "test"
    """Where the test images come from: the split of that name, or what serves in its place."""
    validation: Split | None = None
    """The set's own validation split, if it steers training."""
    left_out: tuple[str, ...] = ()
    """What was skipped as it could not be used, a line for each."""
    statistics: Standardisation | None = None
    """Mean and deviation of the training images, where they are known."""


def stratified_split(labels: np.ndarray, share: float, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a share of the examples, the same share of every class as nearly as whole numbers allow.

    The total is right to the rounding: what rounding down leaves over goes to the classes with the largest
    remainders. Every class keeps at least one example.

    Args:
        labels: int (N,).
        share: in [0, 1).
        seed: of the random choice.

    Returns:
        Sorted indices of the examples kept, and of those held out.
    """
    random = np.random.default_rng(seed)
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    quotas = [share * len(indices) for indices in members]
    counts = [min(int(quota), len(indices) - 1) for quota, indices in zip(quotas, members, strict=True)]
    missing = int(share * len(labels) + 0.5) - sum(counts)
    order = sorted(range(len(members)), key=lambda i: counts[i] - quotas[i])
    while missing > 0 and (able := [i for i in order if counts[i] < len(members[i]) - 1][:missing]):
        for i in able:
            counts[i] += 1
        missing -= len(able)
    held = [random.permutation(indices)[:count] for indices, count in zip(members, counts, strict=True)]
    out = np.zeros(len(labels), bool)
    out[np.concatenate([np.empty(0, np.int64), *held])] = True
    return np.flatnonzero(~out), np.flatnonzero(out)


_TEST_SHARE = 0.2


def hold_out_test(train: Split, name: str, place: object) -> tuple[Split, Split, str]:
    """Training images, test images and their origin in words, of a set that has no split to test on.

    The test images are a stratified fifth, seeded by a constant: every run, whatever its seed, has the same ones.

    Args:
        train: all images.
        name: of their split.
        place: of the set, or its name, for messages.

    Raises:
        InputError: when there are too few images.
    """
    kept, held = stratified_split(train.labels, _TEST_SHARE, seed=0)
    if not len(held):
        raise InputError(f"{place} has no test split, and too few training images to test on some of them")
    origin = f"{len(held):,} of the {len(train.labels):,} images of {name} ({100 * _TEST_SHARE:.0f} %, stratified)"
    return take(train, kept), take(train, held), origin


def take(split: Split, indices: np.ndarray) -> Split:
    """The images and labels at these indices, int (n,), as arrays of their own.

    JAX uses the images on a CPU where they lie.
    """
    images = aligned_empty((len(indices), *split.images.shape[1:]), np.uint8)
    np.take(split.images, indices, axis=0, out=images, mode="clip")  # the other modes fill a buffer first
    return Split(images, split.labels[indices])


def aligned_empty(shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
    """An array that begins at a multiple of 64 bytes, as those of a cache do: others JAX copies, on a CPU too."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    `validation` is None where no images are held out. `standardisation` has the mean and the standard deviation over
    all training images of the chosen classes: before `fraction` and `validation` take any away.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    standardisation: Standardisation
    test_origin: str = "test"
    """Where the test images come from: the split of that name, or what serves in its place."""
    origin: str = ""
    """The folder, file or library that the images come from."""

    @property
    def num_classes(self) -> int:
        """Number of classes, which labels count from 0."""
        return len(self.class_names)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order, int32 (n,), in which an epoch visits `n` images: the same permutation on every machine."""
    return np.random.default_rng((seed, epoch)).permutation(n).astype(np.int32)
