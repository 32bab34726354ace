"""Reads the archives that the authors of CIFAR and SVHN publish, and the folders that torchvision unpacks.

These functions trust their files. `data.prepare` compares the checksums with the official ones first. Nothing is
extracted to disk.
"""

import pickle
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

_PIXELS = 32 * 32 * 3


class Labels(NamedTuple):
    """One kind of label, and its names in the layouts."""

    feature: str
    """Name of the tfds feature."""
    classes: int
    """Number of classes."""
    names_file: str
    """Member of the binary archive that lists the classes."""
    names_key: str
    """Key of the list of classes in the Python archive's meta file."""
    key: str
    """Key of the labels in the Python archive's batches."""


class Cifar(NamedTuple):
    """The file names in a CIFAR set's two layouts. `labels` are in the order of the binary record."""

    binary: str
    binary_folder: str
    python: str
    python_folder: str
    splits: Mapping[str, Sequence[str]]
    meta: str
    labels: Sequence[Labels]

    @property
    def python_files(self) -> tuple[str, ...]:
        """The files of the Python layout."""
        return (self.meta, *(name for names in self.splits.values() for name in names))


CIFAR10 = Cifar(
    binary="cifar-10-binary.tar.gz",
    binary_folder="cifar-10-batches-bin",
    python="cifar-10-python.tar.gz",
    python_folder="cifar-10-batches-py",
    splits={"train": [f"data_batch_{i}" for i in range(1, 6)], "test": ["test_batch"]},
    meta="batches.meta",
    labels=[Labels("label", 10, "batches.meta.txt", "label_names", "labels")],
)

CIFAR100 = Cifar(
    binary="cifar-100-binary.tar.gz",
    binary_folder="cifar-100-binary",
    python="cifar-100-python.tar.gz",
    python_folder="cifar-100-python",
    splits={"train": ["train"], "test": ["test"]},
    meta="meta",
    labels=[
        Labels("coarse_label", 20, "coarse_label_names.txt", "coarse_label_names", "coarse_labels"),
        Labels("label", 100, "fine_label_names.txt", "fine_label_names", "fine_labels"),
    ],
)


class Examples(NamedTuple):
    """A split in the order of its files: uint8 images (N, 32, 32, 3), and labels (N,) by tfds feature."""

    images: np.ndarray
    labels: dict[str, np.ndarray]


class Contents(NamedTuple):
    """The contents of an archive: splits by name, and class names by tfds feature."""

    splits: dict[str, Examples]
    names: dict[str, list[str]]


def read_cifar_binary(path: Path, kind: Cifar) -> Contents:
    """Reads the official binary archive: records of one byte a label, then the red, green and blue planes."""
    data = _read_tar(path, kind.binary_folder)
    first = len(kind.labels)
    splits = {}
    for split, files in kind.splits.items():
        content = b"".join(data[f"{name}.bin"] for name in files)
        rows = np.frombuffer(content, np.uint8).reshape(-1, first + _PIXELS)
        labels = {label.feature: rows[:, i] for i, label in enumerate(kind.labels)}
        splits[split] = Examples(_planes_last(rows[:, first:]), labels)
    names = {label.feature: data[label.names_file].decode("ascii").split() for label in kind.labels}
    return Contents(splits, names)


def read_cifar_python(path: Path, kind: Cifar) -> Contents:
    """Reads the official Python archive, or the folder of pickles that torchvision unpacks from it."""
    if path.is_dir():
        data = {name: (path / name).read_bytes() for name in kind.python_files}
    else:
        data = _read_tar(path, kind.python_folder)
    # Python 2 wrote them, so keys and names are bytes.
    batches = {name: pickle.loads(data[name], encoding="bytes") for name in kind.python_files}
    splits = {}
    for split, files in kind.splits.items():
        rows = np.concatenate([batches[name][b"data"] for name in files])
        labels = {
            label.feature: np.concatenate([batches[name][label.key.encode()] for name in files])
            for label in kind.labels
        }
        splits[split] = Examples(_planes_last(rows), labels)
    names = {
        label.feature: [name.decode("ascii") for name in batches[kind.meta][label.names_key.encode()]]
        for label in kind.labels
    }
    return Contents(splits, names)


def read_svhn(path: Path) -> Examples:
    """Reads one of SVHN's cropped MATLAB files; the digit 0, stored as 10, gets the label 0."""
    from scipy.io import loadmat

    arrays = loadmat(path, variable_names=["X", "y"])
    images = np.ascontiguousarray(np.moveaxis(arrays["X"], -1, 0))
    return Examples(images, {"label": arrays["y"].reshape(-1).astype(np.int64) % 10})


def _read_tar(path: Path, folder: str) -> dict[str, bytes]:
    """The content of each file directly in `folder`, by its name."""
    with tarfile.open(path) as tar:
        streams = ((member.name, tar.extractfile(member)) for member in tar)  # None for a folder
        return {name.removeprefix(f"{folder}/"): stream.read() for name, stream in streams if stream}


def _planes_last(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
