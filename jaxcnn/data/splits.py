"""Images with their labels, and how they are divided: in ways that depend on the seed alone."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from jaxcnn.config.standardisation import Standardisation
from jaxcnn.errors import InputError

SPLIT_NAMES = {"train": "train", "test": "test", "val": "validation", "valid": "validation", "validation": "validation"}
"""Names of splits in folders, files and other data sets, and the split that each one means."""


class Split(NamedTuple):
    """Images and their labels."""

    images: Any
    """uint8 (N, H, W, C), or `ImageRows`. Training on cached features has `kernels.features.Features` instead."""
    labels: Any
    """int32 (N,)."""


class ImageRows:
    """Some images of a larger array, such as a memory-mapped file. They are copied only when they are indexed.

    It has what `Split.images` needs of an array: its length, shape, dtype and number of bytes, and indexing by rows.
    """

    def __init__(self, images: Any, rows: np.ndarray) -> None:
        self._images = images
        self._rows = rows
        self.shape = (len(rows), *images.shape[1:])
        self.dtype = images.dtype
        self.size = math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> np.ndarray:
        """The images at these places: a slice, or int (...). On a CPU, JAX uses the copy in place."""
        rows = self._rows[index]
        images = aligned_empty((*rows.shape, *self.shape[1:]), self.dtype)
        np.take(self._images, rows, axis=0, out=images, mode="clip")  # other modes use a buffer
        return images


class Stored(NamedTuple):
    """The training and test images of a data set, and the names of its classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]
    test_origin: str = "test"
    """Where the test images come from: the name of a split, or a description of what replaces it."""
    validation: Split | None = None
    """The set's own validation split, if it has one to use in training."""
    left_out: tuple[str, ...] = ()
    """Why images were skipped, one line for each."""
    statistics: Standardisation | None = None
    """Mean and deviation of the training images, where they are known."""


def stratified_split(labels: np.ndarray, share: float, seed: int | Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Holds out a share of the examples, with the same share of every class as far as whole numbers allow.

    Each class's number is rounded down first. Then the classes with the largest remainders get one more each, until the
    total is the rounded share of all examples. Every class keeps at least one example.

    Args:
        labels: int (N,).
        share: in [0, 1).
        seed: of the random choice.

    Returns:
        Sorted indices of the examples that are kept, and of those that are held out.
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
    """Divides a set that has no test split into training and test images.

    The test images are a stratified fifth. Their choice does not depend on a run's seed.

    Args:
        train: all images.
        name: of the split that they come from.
        place: folder or name of the set, for messages.

    Returns:
        Training images, test images, and a description of where the test images come from.

    Raises:
        InputError: when there are too few images.
    """
    kept, held = stratified_split(train.labels, _TEST_SHARE, seed=0)
    if not len(held):
        raise InputError(f"{place} has no test split, and too few training images to test on some of them")
    origin = f"{len(held):,} of the {len(train.labels):,} images of {name} ({100 * _TEST_SHARE:.0f} %, stratified)"
    return take(train, kept), take(train, held), origin


def take(split: Split, indices: np.ndarray) -> Split:
    """A copy of the images and labels at these indices, int (n,). On a CPU, JAX uses the copy in place."""
    return Split(ImageRows(split.images, indices)[:], split.labels[indices])


def select(split: Split, indices: np.ndarray, most_bytes: int | None) -> Split:
    """The images and labels at these indices, int (n,): `ImageRows` if they need more bytes than that, else a copy."""
    images = ImageRows(split.images, indices)
    if most_bytes is None or images.nbytes <= most_bytes:
        return take(split, indices)
    return Split(images, split.labels[indices])


def aligned_empty(shape: Sequence[int], dtype: npt.DTypeLike) -> np.ndarray:
    """An uninitialised array whose memory is aligned to 64 bytes: on a CPU, JAX uses it without a copy."""
    size = math.prod(shape) * np.dtype(dtype).itemsize
    memory = np.empty(size + 64, np.uint8)
    return memory[-memory.ctypes.data % 64 :][:size].view(dtype).reshape(shape)


@dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    `validation` is None if no images are held out. `standardisation` has the mean and standard deviation of all
    training images of the chosen classes, including those that `data.fraction` and `data.validation` take away.
    """

    name: str
    train: Split
    validation: Split | None
    test: Split
    class_names: tuple[str, ...]
    standardisation: Standardisation
    test_origin: str = "test"
    """Where the test images come from: the name of a split, or a description of what replaces it."""
    origin: str = ""
    """The folder, file or library that the images come from."""

    @property
    def num_classes(self) -> int:
        """Number of classes. Labels are 0 to `num_classes` - 1."""
        return len(self.class_names)


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of `n` images in an epoch, int32 (n,): a permutation that is the same on every machine."""
    return np.random.default_rng((seed, epoch)).permutation(n).astype(np.int32)
