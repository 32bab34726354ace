"""Decoded data sets on disk: `.npy` files that are mapped, and that every user of the folder may share."""

import errno
import hashlib
import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

import numpy as np

from jaxcnn.data.splits import Split, Stored

_FORMAT = 2
"""Of the arrays and of how images are decoded; another number makes every cached set be read again."""

_SPLITS = ("train", "test")


def fingerprint(folder: Path) -> str:
    """Changes with the format, the description of a prepared set, and the names, sizes and times of its files.

    Raises:
        OSError: when the set cannot be read.
        UnicodeDecodeError: when its description is no text.
    """
    files = sorted((path.name, path.stat()) for path in folder.iterdir())
    described = [(folder / name).read_text(encoding="utf-8") for name in ("dataset_info.json", "features.json")]
    facts = [_FORMAT, described, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def open_cache(entry: Path, wanted: str, shape: tuple[int, int, int]) -> Stored | None:
    """The cached arrays, mapped and not read; None if there are none, or outdated or damaged ones.

    Args:
        entry: folder of the cached set.
        wanted: fingerprint of the prepared set.
        shape: height, width and channels of the images.

    Raises:
        PermissionError: when another user's files may not be read.
    """
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        sizes = {name: (entry / name).stat().st_size for name in meta["sizes"]}
        if meta["fingerprint"] != wanted or meta["sizes"] != sizes:
            return None
        mapped = {name: np.asarray(np.load(entry / name, mmap_mode="r")) for name in sizes}
        splits = {name: Split(mapped[f"{name}_images.npy"], mapped[f"{name}_labels.npy"]) for name in _SPLITS}
        names = tuple(meta["class_names"])
        for images, labels, _ in splits.values():
            if images.shape != (len(labels), *shape) or [images.dtype, labels.dtype] != [
                np.dtype(np.uint8),
                np.dtype(np.int32),
            ]:
                return None
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
                return None
        return Stored(**splits, class_names=names, test_origin=str(meta["test_origin"]))
    except PermissionError:
        raise
    except Exception:  # JSON and NumPy's own header each raise their own kinds, a tokenizer's among them
        return None


def write_cache(entry: Path, made_of: str, stored: Stored) -> None:
    """Writes aside and renames, so that what is there is whole. An entry that no longer fits is replaced.

    Args:
        entry: folder of the cached set.
        made_of: fingerprint of the prepared set.
        stored: the arrays.

    Raises:
        OSError: when the folder cannot be written.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    if entry.exists() and not os.access(entry, os.W_OK):
        raise PermissionError(errno.EACCES, "outdated, and another user's", str(entry))
    temporary, outdated = (entry.parent / f".{entry.name}-{uuid.uuid4().hex}" for _ in range(2))
    temporary.mkdir()  # with the permissions that the umask gives, which tempfile would not
    try:
        for name, split in (("train", stored.train), ("test", stored.test)):
            for part, array in (("images", split.images), ("labels", split.labels)):
                np.save(temporary / f"{name}_{part}.npy", array)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        meta = {
            "fingerprint": made_of,
            "sizes": sizes,
            "class_names": stored.class_names,
            "test_origin": stored.test_origin,
        }
        (temporary / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
        if open_cache(entry, made_of, stored.train.images.shape[1:]) is not None:
            return  # another process was faster
        with suppress(FileNotFoundError):
            os.replace(entry, outdated)
        os.replace(temporary, entry)
    except OSError:
        if open_cache(entry, made_of, stored.train.images.shape[1:]) is None:
            raise
    finally:
        for folder in (temporary, outdated):
            shutil.rmtree(folder, ignore_errors=True)
