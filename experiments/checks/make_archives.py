"""Small archives of noise in the official layouts and in torchvision's, and their checksums."""

import hashlib
import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from jaxcnn.data.official import CHECKSUMS

CIFAR10_NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE_NAMES = [f"fine_{i:02d}" for i in range(100)]
COARSE_NAMES = [f"coarse_{i:02d}" for i in range(20)]

Batches = dict[str, dict[str, np.ndarray]]
"""For each file name: images (N, 32, 32, 3) under "image", and labels (N,) under their tfds feature."""


def noise(files: Mapping[str, int], classes: Mapping[str, int], seed: int = 0) -> Batches:
    rng = np.random.default_rng(seed)
    return {
        name: {
            "image": rng.integers(0, 256, (n, 32, 32, 3), np.uint8),
            **{feature: np.arange(n) * 7 % count for feature, count in classes.items()},
        }
        for name, n in files.items()
    }


def cifar10(n: int = 20) -> Batches:
    files = {f"data_batch_{i}": n for i in range(1, 6)} | {"test_batch": n}
    return noise(files, {"label": 10})


def cifar100(n: int = 120) -> Batches:
    return noise({"train": n, "test": n // 2}, {"coarse_label": 20, "label": 100})


def svhn(n: int = 30) -> Batches:
    return noise({"train": n, "test": n // 2, "extra": 5}, {"label": 10})


def rows(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 3, 1, 2).reshape(len(images), -1)


def write_tar(path: Path, members: Mapping[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz", compresslevel=1) as tar:
        folder = tarfile.TarInfo(next(iter(members)).partition("/")[0])  # as the official archives have it
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def binary_members(batches: Batches) -> dict[str, bytes]:
    """The files of the binary archive, by path. Labels are in the order of the features."""
    fine = "train" in batches
    folder = "cifar-100-binary" if fine else "cifar-10-batches-bin"
    members = {}
    for name, batch in batches.items():
        labels = [values.astype(np.uint8)[:, None] for feature, values in batch.items() if feature != "image"]
        members[f"{folder}/{name}.bin"] = np.hstack([*labels, rows(batch["image"])]).tobytes()
    lists = (
        {"coarse_label_names.txt": COARSE_NAMES, "fine_label_names.txt": FINE_NAMES}
        if fine
        else {"batches.meta.txt": CIFAR10_NAMES}
    )
    # The official list of CIFAR-10 ends in an empty line.
    members |= {f"{folder}/{name}": ("\n".join(names) + "\n\n").encode() for name, names in lists.items()}
    return members | {f"{folder}/readme.html": b"<html>"}


def python_members(batches: Batches) -> dict[str, dict[str, Any]]:
    """The content of the pickles of the Python layout, by path."""
    fine = "train" in batches
    folder, meta = ("cifar-100-python", "meta") if fine else ("cifar-10-batches-py", "batches.meta")
    key = {"coarse_label": "coarse_labels", "label": "fine_labels" if fine else "labels"}
    members: dict[str, dict[str, Any]] = {}
    for name, batch in batches.items():
        labels = {key[feature]: values.tolist() for feature, values in batch.items() if feature != "image"}
        filenames = [f"{i}.png".encode() for i in range(len(batch["image"]))]
        members[f"{folder}/{name}"] = {
            "batch_label": b"noise",
            **labels,
            "data": rows(batch["image"]),
            "filenames": filenames,
        }
    names = (
        {"fine_label_names": FINE_NAMES, "coarse_label_names": COARSE_NAMES}
        if fine
        else {"num_cases_per_batch": 20, "label_names": CIFAR10_NAMES, "num_vis": 3072}
    )
    members[f"{folder}/{meta}"] = names
    return members


def python2_pickle(value: object) -> bytes:
    """A pickle as Python 2 wrote the official files: protocol 2, str as bytes, and arrays that refer to numpy.core."""
    return b"\x80\x02" + _python2(value) + b"."


def _python2(value: object) -> bytes:
    match value:
        case None:
            return b"N"
        case False:
            return b"\x89"
        case int():
            return b"J" + struct.pack("<i", value)
        case str():
            return _python2(value.encode())
        case bytes() if len(value) < 256:
            return b"U" + bytes([len(value)]) + value
        case bytes():
            return b"T" + struct.pack("<i", len(value)) + value
        case list():
            return b"](" + b"".join(map(_python2, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(_python2, value)) + b"t"
        case dict():
            return b"}(" + b"".join(_python2(part) for item in value.items() for part in item) + b"u"
        case np.ndarray():
            made = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n" + _python2((0,)) + b"U\x01btR"
            dtype = b"cnumpy\ndtype\n" + _python2(("u1", 0, 1)) + b"R"
            dtype += _python2((3, "|", None, None, None, -1, -1, 0)) + b"b"
            shape = _python2(1) + _python2(value.shape)
            return made + b"(" + shape + dtype + _python2(False) + _python2(value.tobytes()) + b"tb"
    raise TypeError(value)


def write_mat(path: Path, batch: dict[str, np.ndarray]) -> None:
    digits = np.where(batch["label"] == 0, 10, batch["label"]).astype(np.uint8)[:, None]
    savemat(path, {"X": np.moveaxis(batch["image"], 0, -1), "y": digits}, do_compression=True)


def write_official(folder: Path, name: str, batches: Batches) -> dict[str, str]:
    """Writes the archives that tfds would download; returns their checksums."""
    folder.mkdir(parents=True, exist_ok=True)
    if name == "svhn_cropped":
        for split, batch in batches.items():
            write_mat(folder / f"{split}_32x32.mat", batch)
    else:
        archive = {"cifar10": "cifar-10-binary.tar.gz", "cifar100": "cifar-100-binary.tar.gz"}[name]
        write_tar(folder / archive, binary_members(batches))
    return sha256s(folder)


def write_python(folder: Path, name: str, batches: Batches, *, unpacked: bool) -> dict[str, str]:
    """Writes torchvision's archive, or its unpacked folder; returns their checksums."""
    members = {path: python2_pickle(content) for path, content in python_members(batches).items()}
    for path, data in members.items() if unpacked else ():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    if not unpacked:
        folder.mkdir(parents=True, exist_ok=True)
        archive = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[name]
        write_tar(folder / archive, members)
    return md5s(folder)


def sha256s(folder: Path) -> dict[str, str]:
    found = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    return {**CHECKSUMS, **found}


def md5s(folder: Path) -> dict[str, str]:
    files = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    found = {name: hashlib.md5(path.read_bytes()).hexdigest() for name, path in files.items()}
    return {**CHECKSUMS, **found}
