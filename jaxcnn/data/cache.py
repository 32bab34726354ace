"""Decoded data sets on disk: memory-mapped `.npy` files, which all users of the cache folder can share."""

import errno
import hashlib
import json
import os
import re
import shutil
import sys
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxcnn.config.standardisation import Standardisation
from jaxcnn.data.splits import Split, Stored
from jaxcnn.data.statistics import channel_statistics
from jaxcnn.errors import reason
from jaxcnn.files import cache_folder

if TYPE_CHECKING:
    from jaxcnn.config.network import Resize

_FORMAT = 2
"""Version of the arrays and of how images are decoded. A new number makes every cached set outdated."""

_SPLITS = ("train", "test", "validation")


def cache_title(name: str, resize: "Resize") -> str:
    """Name of a cached set's folder. It contains the kind of resizing, unless that is the default."""
    name = re.sub(r"[^\w.+-]+", "_", name)[:100]
    return name if resize == "squash" else f"{name}-{resize}"


def read_through_cache(
    place: Path, title: str, shape: tuple[int, int, int], made_of: str, read: Callable[[], Stored]
) -> Stored:
    """The arrays of a data set: from the cache if they come from the same files, else read now and cached.

    A cache that cannot be read or written is reported on stderr and not used.

    Args:
        place: file or folder of the set.
        title: name of the cached set's folder (`cache_title`).
        shape: height, width and channels of the images.
        made_of: fingerprint of the files, and of the settings that affect the pixels.
        read: decodes the set.
    """
    home = cache_folder()
    where = hashlib.sha256(str(place.resolve()).encode(errors="surrogateescape")).hexdigest()[:16]
    entry = home / f"{title}-{'x'.join(map(str, shape))}-{where}"
    try:
        stored = open_cache(entry, made_of, shape)
    except PermissionError as error:
        print(
            f"The decoded images cached in {home} cannot be read: {reason(error)}; they are decoded again",
            file=sys.stderr,
        )
        return read()
    if stored is None:
        stored = read()
        if len(stored.train.labels):
            stored = stored._replace(statistics=channel_statistics(stored.train.images))
        try:
            write_cache(entry, made_of, stored)
        except OSError as error:
            print(f"The decoded images are not cached in {home}: {reason(error)}", file=sys.stderr)
    return stored


def fingerprint(folder: Path) -> str:
    """A fingerprint of a prepared set: of its description, and of the names, sizes and times of its files.

    Raises:
        OSError: when the set cannot be read.
        UnicodeDecodeError: when its description is not text.
    """
    files = sorted((path.name, path.stat()) for path in folder.iterdir())
    described = [(folder / name).read_text(encoding="utf-8") for name in ("dataset_info.json", "features.json")]
    facts = [_FORMAT, described, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def file_fingerprint(file: Path) -> str:
    """A fingerprint of a file: of its size and time.

    Raises:
        OSError: when there is no such file.
    """
    stat = file.stat()
    return hashlib.sha256(repr((_FORMAT, stat.st_size, stat.st_mtime_ns)).encode()).hexdigest()


def open_cache(entry: Path, wanted: str, shape: tuple[int, int, int]) -> Stored | None:
    """The cached arrays, memory-mapped; None if they are missing, outdated or damaged.

    Args:
        entry: folder of the cached set.
        wanted: fingerprint that the entry must have.
        shape: height, width and channels of the images.

    Raises:
        PermissionError: when the files belong to another user who does not let others read them.
    """
    try:
        meta = json.loads((entry / "meta.json").read_text(encoding="utf-8"))
        sizes = {name: (entry / name).stat().st_size for name in meta["sizes"]}
        if meta["fingerprint"] != wanted or meta["sizes"] != sizes:
            return None
        mapped = {name: np.asarray(np.load(entry / name, mmap_mode="r")) for name in sizes}
        there = [name for name in _SPLITS if name != "validation" or f"{name}_images.npy" in mapped]
        splits = {name: Split(mapped[f"{name}_images.npy"], mapped[f"{name}_labels.npy"]) for name in there}
        names = tuple(meta["class_names"])
        for images, labels in splits.values():
            if images.shape != (len(labels), *shape) or [images.dtype, labels.dtype] != [
                np.dtype(np.uint8),
                np.dtype(np.int32),
            ]:
                return None
            if len(labels) and not 0 <= labels.min() <= labels.max() < len(names):
                return None
        left_out = tuple(map(str, meta.get("left_out", ())))
        statistics = Standardisation(*map(tuple, meta["statistics"])) if "statistics" in meta else None
        return Stored(
            **splits,
            class_names=names,
            test_origin=str(meta["test_origin"]),
            left_out=left_out,
            statistics=statistics,
        )
    except PermissionError:
        raise
    except Exception:  # JSON and NumPy's header parser raise many kinds
        return None


def write_cache(entry: Path, made_of: str, stored: Stored) -> None:
    """Writes an entry under a temporary name and renames it, so that it is always complete. Replaces an outdated entry.

    Args:
        entry: folder of the cached set.
        made_of: fingerprint of the set.
        stored: the arrays.

    Raises:
        OSError: when the folder cannot be written.
    """
    entry.parent.mkdir(parents=True, exist_ok=True)
    if entry.exists() and not os.access(entry, os.W_OK):
        raise PermissionError(errno.EACCES, "outdated, and another user's", str(entry))
    temporary, outdated = (entry.parent / f".{entry.name}-{uuid.uuid4().hex}" for _ in range(2))
    temporary.mkdir()  # with the umask's permissions; tempfile's would be private
    try:
        for name in _SPLITS:
            if (split := getattr(stored, name)) is None:
                continue
            for part, array in (("images", split.images), ("labels", split.labels)):
                np.save(temporary / f"{name}_{part}.npy", array)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        meta = {
            "fingerprint": made_of,
            "sizes": sizes,
            "class_names": stored.class_names,
            "test_origin": stored.test_origin,
            "left_out": stored.left_out,
            **({} if stored.statistics is None else {"statistics": stored.statistics}),
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
