"""Images out of the archives that the authors of CIFAR and SVHN publish, and out of what torchvision leaves.

Nothing is extracted to disk and nothing that a file names is run: tar members are read by their exact names
from memory, and a pickle gets stand-ins for the few things that the real ones name.
"""

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.errors import InputError, JaxcnnError, reason, unreadable

_LARGEST = 300_000_000
"""Bytes that no file of the official sets reaches once unpacked; a bomb is stopped here."""

_PIXELS = 32 * 32 * 3


class Labels(NamedTuple):
    """One kind of label, and what the layouts call it."""

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
    """Where a CIFAR set's two layouts keep what. `labels` are in the order of the binary record."""

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
    """What an archive holds: splits by name, and class names by tfds feature."""

    splits: dict[str, Examples]
    names: dict[str, list[str]]


def _refuse(where: object, what: str) -> InputError:
    return InputError(f"{where} is not usable: {what}; delete it and download it again")


def read_cifar_binary(path: Path, kind: Cifar) -> Contents:
    """Reads the official binary archive: records of one byte a label, then the red, green and blue planes.

    Raises:
        InputError: when the archive is damaged or its members are not the official ones.
    """
    files = {f"{name}.bin": split for split, names in kind.splits.items() for name in names}
    data = _unpack(path, kind.binary_folder, [*files, *(label.names_file for label in kind.labels)])
    first = len(kind.labels)
    batches: dict[str, list[np.ndarray]] = {split: [] for split in kind.splits}
    for name, split in files.items():
        if not data[name] or len(data[name]) % (first + _PIXELS):
            raise _refuse(path, f"{len(data[name])} bytes in {name} are no whole number of images")
        batches[split].append(np.frombuffer(data[name], np.uint8).reshape(-1, first + _PIXELS))
    splits = {}
    for split, parts in batches.items():
        rows = np.concatenate(parts)
        labels = {label.feature: rows[:, i] for i, label in enumerate(kind.labels)}
        splits[split] = Examples(_planes_last(rows[:, first:]), labels)
    names = {label.feature: data[label.names_file].decode("ascii", "replace").split("\n") for label in kind.labels}
    return _check_labels(path, kind, Contents(splits, names))


def read_cifar_python(path: Path, kind: Cifar) -> Contents:
    """Reads the official Python archive, or the folder of pickles that torchvision unpacks from it.

    Raises:
        InputError: when a file is damaged, missing, or a pickle names anything but a NumPy array.
    """
    if path.is_dir():
        data = {name: _read(path / name) for name in kind.python_files}
    else:
        data = _unpack(path, kind.python_folder, kind.python_files)
    batches = {name: _unpickle(f"{path}: {name}", data[name]) for name in kind.python_files}
    splits = {}
    for split, files in kind.splits.items():
        rows = np.concatenate([_pixels(f"{path}: {name}", batches[name].get("data")) for name in files])
        labels = {
            label.feature: np.array([v for name in files for v in _list(path, batches[name], label.key, int)])
            for label in kind.labels
        }
        splits[split] = Examples(_planes_last(rows), labels)
    names = {
        label.feature: [
            name.decode("ascii", "replace") if isinstance(name, bytes) else name
            for name in _list(path, batches[kind.meta], label.names_key, (str, bytes))
        ]
        for label in kind.labels
    }
    return _check_labels(path, kind, Contents(splits, names))


def read_svhn(path: Path) -> Examples:
    """Reads one of SVHN's cropped MATLAB files; the digit 0, stored as 10, gets the label 0.

    Raises:
        InputError: when the file is damaged or does not hold 32x32 RGB images and their digits.
    """
    from scipy.io import loadmat, whosmat

    try:
        # The headers come first: what declares more than SVHN holds is refused before memory is given to it.
        declared = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        (shape, kind), (labels_shape, _) = declared.get("X", ((), "")), declared.get("y", ((), ""))
        count = shape[-1] if shape else 0
        whole = shape == (32, 32, 3, count) and labels_shape == (count, 1) and 0 < count * _PIXELS < _LARGEST
        if not whole or kind != "uint8":
            raise _refuse(path, f"X is {kind} {shape}, y {labels_shape}, not uint8 (32, 32, 3, N) and (N, 1)")
        arrays = loadmat(path, variable_names=["X", "y"])
        images, digits = np.ascontiguousarray(np.moveaxis(arrays["X"], -1, 0)), arrays["y"].reshape(-1)
    except JaxcnnError:
        raise
    except Exception as error:  # a damaged file makes SciPy raise almost anything
        raise unreadable(path, error) or _refuse(path, reason(error)) from error
    if digits.dtype.kind not in "iuf" or not np.isin(digits, range(1, 11)).all():
        raise _refuse(path, "y holds more than the digits 1 to 10")
    return Examples(images, {"label": digits.astype(np.int64) % 10})


def _read(path: Path, opened: Callable[[Path], Any] = lambda path: path.open("rb")) -> bytes:
    try:
        with opened(path) as stream:
            data = bytes(stream.read(_LARGEST + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(path, error) or _refuse(path, reason(error)) from error
    if len(data) > _LARGEST:
        raise _refuse(path, f"it holds more than {_LARGEST:,} bytes")
    return data


def _unpack(path: Path, folder: str, wanted: Iterable[str]) -> dict[str, bytes]:
    """The wanted files of `folder` in a tar.gz, each by its exact name."""
    found: dict[str, bytes] = {}
    paths = {f"{folder}/{name}": name for name in wanted}
    data = io.BytesIO(_read(path, gzip.open))
    try:
        with tarfile.open(fileobj=data, mode="r:") as tar:
            for member in tar:
                # The size of a sparse file is not backed by bytes in the archive.
                kinds = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE)
                plain = member.type in kinds and not member.issparse()
                parts = PurePosixPath(member.name).parts
                if not plain or parts[:1] != (folder,) or ".." in parts or member.name in found:
                    raise _refuse(path, f"its member {member.name!r} does not belong in the official archive")
                if member.name in paths:
                    stream = tar.extractfile(member)
                    found[member.name] = stream.read() if stream else b""
    except tarfile.TarError as error:
        raise _refuse(path, reason(error)) from error
    if missing := paths.keys() - found.keys():
        raise _refuse(path, f"it lacks {', '.join(sorted(missing))}")
    return {paths[name]: content for name, content in found.items()}


class _StandIn:
    """What a pickle gets for NumPy's array and dtype: it keeps what it is given and does nothing."""

    def __init__(self, *arguments: object) -> None:
        self.arguments = arguments
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in pickles that Python 2 can read; latin1 is the only encoding it uses."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the encoding {encoding!r}")
    return text.encode("latin1")


_PERMITTED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _StandIn,
    ("numpy._core.multiarray", "_reconstruct"): _StandIn,
    ("numpy", "ndarray"): _StandIn,
    ("numpy", "dtype"): _StandIn,
    ("_codecs", "encode"): _encode,
}


# The unpickler written in Python: the one in C allocates whatever memo size a pickle asks for.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _PERMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no CIFAR batch does") from None


def _unpickle(where: str, data: bytes) -> dict[str, Any]:
    """A batch as a dict with str keys; strings that Python 2 wrote stay bytes, arrays are stand-ins."""
    try:
        batch = _Unpickler(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle makes the unpickler raise almost anything
        raise _refuse(where, reason(error)) from error
    if not isinstance(batch, dict):
        raise _refuse(where, "it is no dict")
    return {key.decode("ascii", "replace") if isinstance(key, bytes) else str(key): v for key, v in batch.items()}


def _pixels(where: str, array: object) -> np.ndarray:
    """The uint8 rows (N, 3072) that a stand-in describes."""
    match getattr(array, "state", None):
        case (_, (int(count), int(width)), _StandIn(arguments=(dtype, *_)), fortran, bytes(data)) if (
            width == _PIXELS and dtype in ("u1", b"u1") and not fortran and 0 < len(data) == count * width
        ):
            return np.frombuffer(data, np.uint8).reshape(count, width)
    raise _refuse(where, f"its data is no array of bytes with rows of {_PIXELS}")


def _list(where: object, batch: dict[str, Any], key: str, kind: Any) -> list[Any]:
    values = batch.get(key)
    if not isinstance(values, list) or not all(isinstance(value, kind) for value in values):
        raise _refuse(where, f"its {key} are missing or no plain list")
    return values


def _planes_last(rows: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))


def _check_labels(path: Path, kind: Cifar, contents: Contents) -> Contents:
    """The contents, once names and labels are as many, and in the range, that the set promises."""
    names = {feature: [name for name in listed if name] for feature, listed in contents.names.items()}
    for label in kind.labels:
        if len(set(names[label.feature])) != label.classes or len(names[label.feature]) != label.classes:
            raise _refuse(path, f"it does not name {label.classes} classes")
        for split, (images, labels) in contents.splits.items():
            values = labels[label.feature]
            if len(values) != len(images) or values.min() < 0 or values.max() >= label.classes:
                raise _refuse(path, f"the labels of {split} are not 0 to {label.classes - 1}, one an image")
    return Contents(contents.splits, names)
