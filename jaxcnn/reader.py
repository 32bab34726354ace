"""Prepared tfds data sets as arrays, read once and from then on mapped from a cache of .npy files.

Nothing here loads tensorflow_datasets unless records must be read: a cached set opens without it.
"""

import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.errors import InputError, reason
from jaxcnn.files import cache_folder

_FORMAT = 1
"""Of the cached arrays; another number makes every cached set be read again."""

_SPLITS = ("train", "test")


class Split(NamedTuple):
    """Images and their labels, or what a network makes of the images and their labels."""

    images: np.ndarray
    """uint8 (N, H, W, C); what a stage reads is floating, (N, H, W, C) or (N, C)."""
    labels: np.ndarray
    """int32 (N,)."""
    columns: np.ndarray | None = None
    """int32 (C,), ascending: which of the values that a dense stage reads are there, the others being 0; None: all."""


class Stored(NamedTuple):
    """The splits train and test of a prepared set, and the names of its classes."""

    train: Split
    test: Split
    class_names: tuple[str, ...]


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """The folder of a prepared set: of the version asked for, or else of the highest.

    Args:
        name: `set`, `set/config`, `set:version` or `set/config:version`.
        data_dir: folder of prepared tfds data sets.

    Raises:
        InputError: when the name is none, or one of several configurations must be chosen.
    """
    match = re.fullmatch(r"(\w+(?:/\w[\w.+-]*)?)(?::(\d+\.\d+\.\d+))?", name)
    if match is None:
        raise InputError(f"data.name={name!r} is no data set; give NAME, NAME/CONFIG or NAME:VERSION")
    home, wanted = data_dir / match[1], match[2]
    try:
        inside = sorted(path.name for path in home.iterdir() if path.is_dir()) if home.is_dir() else []
    except OSError as error:
        raise InputError(f"{home} cannot be read: {reason(error)}; pass another --data.dir") from error
    versions = [each for each in inside if re.fullmatch(r"\d+\.\d+\.\d+", each)]
    configs = [each for each in inside if not each.startswith((".", "incomplete.")) and each not in versions]
    if configs and not versions and "/" not in name:
        choices = ", ".join(f"{match[1]}/{config}" for config in configs)
        raise InputError(f"data.name={name!r} has several configurations in {data_dir}; name one of {choices}")
    if wanted is not None:
        versions = [each for each in versions if each == wanted]
    return max(
        (home / each for each in versions),
        key=lambda path: [int(part) for part in path.name.split(".")],
        default=None,
    )


def load_prepared(folder: Path, fit: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int]) -> Stored:
    """The arrays of a prepared set, from the cache if its files are unchanged.

    Args:
        folder: what `find_prepared` found.
        fit: brings an image (height, width, channels) of uint8 to `shape`.
        shape: height, width and channels of the images wanted.

    Raises:
        InputError: when the set is damaged, has no such splits or features, or needs TensorFlow.
    """
    fingerprint = _fingerprint(folder)
    place = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    home = cache_folder()
    entry = home / f"{folder.parent.name}-{'x'.join(map(str, shape))}-{place}"
    stored = _open_cache(entry, fingerprint, shape)
    if stored is None:
        stored = _read(folder, fit, shape)
        try:
            _write_cache(entry, fingerprint, stored)
        except OSError as error:
            print(f"The decoded images are not cached in {home}: {reason(error)}", file=sys.stderr)
    return stored


def _fingerprint(folder: Path) -> str:
    """Changes with the format, the description of the set, and the names, sizes and times of its files."""
    try:
        files = sorted((path.name, path.stat()) for path in folder.iterdir())
        described = [(folder / name).read_text() for name in ("dataset_info.json", "features.json")]
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(folder, reason(error)) from error
    facts = [_FORMAT, described, [(name, stat.st_size, stat.st_mtime_ns) for name, stat in files]]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _write_cache(entry: Path, fingerprint: str, stored: Stored) -> None:
    """Writes aside and renames, so that what is there is whole. An entry that no longer fits is replaced."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{entry.name}-", dir=entry.parent))
    try:
        for name, split in (("train", stored.train), ("test", stored.test)):
            for part, array in (("images", split.images), ("labels", split.labels)):
                np.save(temporary / f"{name}_{part}.npy", array)
        sizes = {path.name: path.stat().st_size for path in temporary.iterdir()}
        meta = {"fingerprint": fingerprint, "sizes": sizes, "class_names": stored.class_names}
        (temporary / "meta.json").write_text(json.dumps(meta))
        shutil.rmtree(entry, ignore_errors=True)
        os.replace(temporary, entry)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _open_cache(entry: Path, fingerprint: str, shape: tuple[int, int, int]) -> Stored | None:
    """The cached arrays, mapped and not read; None if there are none, or outdated or damaged ones."""
    try:
        meta = json.loads((entry / "meta.json").read_text())
        sizes = {name: (entry / name).stat().st_size for name in meta["sizes"]}
        if meta["fingerprint"] != fingerprint or meta["sizes"] != sizes:
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
        return Stored(**splits, class_names=names)
    except Exception:  # JSON and NumPy's own header each raise their own kinds, a tokenizer's among them
        return None


def _read(folder: Path, fit: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int, int]) -> Stored:
    import tensorflow_datasets as tfds

    from jaxcnn.prepare import quiet

    with quiet(), _reading(folder):
        _refuse_foreign_code(folder)
        builder = tfds.builder_from_directory(folder)
        info = builder.info
        if not set(_SPLITS) <= set(info.splits):
            raise InputError(f"{folder} has the splits {', '.join(sorted(info.splits))}; train and test are needed")
        image_key, label_key = _image_and_label(folder, info)
        try:
            sources = builder.as_data_source({name: name for name in _SPLITS})
        except NotImplementedError as error:  # what tfds raises for formats of TensorFlow's
            raise InputError(
                f"{folder} is stored as {info.file_format.value}, which only TensorFlow reads; prepare it "
                "again with file_format='array_record' (cifar10, cifar100 and svhn: it is enough to delete "
                "the folder or to pass another --data.dir)"
            ) from error
        splits = {}
        for name, source in sources.items():
            images = np.empty((len(source), *shape), np.uint8)
            labels = np.empty(len(source), np.int32)
            for i, example in enumerate(_examples(source, f"Reading {info.name} {name}")):
                images[i], labels[i] = fit(example[image_key]), example[label_key]
            if (labels < 0).any():
                raise InputError(f"{folder} has images without a label in {name}; choose another data set")
            splits[name] = Split(images, labels)
        return Stored(**splits, class_names=tuple(info.features[label_key].names))


def _refuse_foreign_code(folder: Path) -> None:
    """Refuses features that are not tfds's own: it imports whatever module a data set's features.json names."""
    found: list[Any] = [json.loads((folder / "features.json").read_text())]
    while found:
        node = found.pop()
        if isinstance(node, str) and node.lstrip().startswith(("{", "[")):
            with suppress(ValueError):  # an older form has JSON within JSON
                found.append(json.loads(node))
        if isinstance(node, dict):
            for key in ("pythonClassName", "python_class_name", "type"):
                name = node.get(key)
                if isinstance(name, str) and "." in name and not name.startswith("tensorflow_datasets.core.features."):
                    raise InputError(
                        f"{folder}/features.json names {name!r}, code that is not tfds's own; it was not loaded. "
                        "Choose another data set"
                    )
        found += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _examples(source: Any, title: str) -> Iterator[Any]:
    """All examples, by the thousand: twice as fast as one by one."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    starts = range(0, len(source), 1000)
    for start in track(starts, title, console=console, transient=True, disable=not console.is_terminal):
        yield from source.__getitems__(list(range(start, min(start + 1000, len(source)))))


def _image_and_label(folder: Path, info: Any) -> tuple[str, str]:
    """Names of the features to train on: the supervised keys, or else the only ones of their kind."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    features = dict(info.features.items())
    keys = info.supervised_keys
    if keys is None:
        found = [[key for key, feature in features.items() if isinstance(feature, kind)] for kind in kinds]
        keys = [names[0] for names in found if len(names) == 1]
    if len(keys) != 2 or not all(isinstance(features.get(k), kind) for k, kind in zip(keys, kinds, strict=True)):
        raise InputError(
            f"{folder} has the features {', '.join(sorted(features))}; an image and a class label are needed"
        )
    return keys[0], keys[1]


def _damaged(folder: Path, what: str) -> InputError:
    return InputError(f"{folder} is no whole prepared data set: {what}; delete the folder and have it prepared again")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (InputError, MemoryError):  # no damage
        raise
    except Exception as error:  # protobuf, JSON, array_record and tfds each raise their own kinds
        raise _damaged(folder, reason(error)) from error
