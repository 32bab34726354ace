"""Data sets from folders of image files: `train/<class>/*` with `test/` or `val/` beside it, or only `<class>/*`."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from jaxcnn.data.cache import cache_title, read_through_cache
from jaxcnn.data.images import File, scan, shown, walk
from jaxcnn.data.splits import SPLIT_NAMES, Stored, hold_out_test
from jaxcnn.errors import InputError

if TYPE_CHECKING:
    from jaxcnn.config.network import Resize
    from jaxcnn.data.image_reader import ImageReader

_FORMAT = 1
"""Version of how images become pixels. A new number makes every cached folder outdated."""

Classes = Mapping[str, list[File]]
"""The files of each class, by its name."""


def load_folder(
    folder: Path, title: str, shape: tuple[int, int, int], resize: "Resize", reader: "ImageReader"
) -> Stored:
    """The images of a folder; from the cache if no file has a new name, size or time.

    Args:
        folder: with `train/<class>/*` and `test/<class>/*`, `val/<class>/*` or both; or with `<class>/*`.
        title: of the set, for messages and the cache.
        shape: height, width and channels to convert the images to.
        resize: how images become squares.
        reader: decodes images to this shape, and refuses or skips those that cannot be used.

    Raises:
        InputError: when there is no such folder, it has no classes, or something in it cannot be used.
    """
    if not folder.is_dir():
        what = "no folder" if folder.exists() else "a folder that does not exist"
        raise InputError(f"data.dir={str(folder)!r} is {what}; give --data.dir a folder of image files by class")
    layout = _find_layout(folder)
    made_of = _fingerprint(layout, reader.skip_broken)

    return read_through_cache(
        folder, cache_title(title, resize), shape, made_of, lambda: _read(folder, title, layout, reader)
    )


def _find_layout(folder: Path) -> dict[str, Classes]:
    """The files by folder of a split and by class. The split is "" if the classes are in `folder` itself."""
    _, inside = scan(folder)
    below = {name: scan(folder / name) for name in inside}
    splits = [name for name in inside if name in SPLIT_NAMES and below[name][1]]
    if "train" in splits:
        given = [name for name in splits if SPLIT_NAMES[name] == "validation"]
        if len(given) > 1:
            raise InputError(f"{folder} has the folders {' and '.join(given)}; keep one for validation")
        return {split: {name: walk(folder / split / name) for name in below[split][1]} for split in splits}
    nested = [set(folders) for _, folders in below.values()]
    if splits or (len(nested) > 1 and len(set.intersection(*nested)) > 1):
        raise InputError(
            f"{folder} has {', '.join(inside[:3])} with folders of their own; name the folder to train on train, and "
            "the others test or val"
        )
    if len(inside) < 2:
        raise InputError(
            f"{folder} has {'one class' if inside else 'no folders of images'}; give a folder that has a folder for "
            "each class, or train/ with these"
        )
    # Folders that were listed to find the layout are not listed again.
    return {"": {name: walk(folder / name) if below[name][1] else below[name][0] for name in inside}}


def _fingerprint(layout: Mapping[str, Classes], skip_broken: bool) -> str:
    """A fingerprint of the names, sizes and times of the files, and of what is done about broken ones."""
    found = hashlib.sha256(repr((_FORMAT, skip_broken)).encode())
    for split, classes in layout.items():
        for name, files in classes.items():
            found.update(os.fsencode("\0".join([f"{split}/{name}", *(file for file, _, _ in files)])))
            found.update(np.array([each[1:] for each in files], np.int64).tobytes())
    return found.hexdigest()


def _read(folder: Path, title: str, layout: Mapping[str, Classes], reader: "ImageReader") -> Stored:
    training = layout["train" if "train" in layout else ""]
    names = tuple(name for name, files in training.items() if files)
    for name in names:
        if not name.isprintable():
            raise InputError(f"{folder} has a class called {name!r}, which would not print; rename its folder")
    splits = {}
    for split, classes in layout.items():
        place = folder / split
        for name, files in classes.items():
            if not files:
                reader.refuse(f"{shown(place / name)} is a class without images; remove it")
            elif name not in names:
                reader.refuse(f"{shown(place / name)} is a class that {folder / 'train'} does not have; remove it")
        there = [classes.get(name, []) for name in names]
        paths = [f"{place}/{name}/{file}" for name, files in zip(names, there, strict=True) for file, _, _ in files]
        read = reader.read(
            paths,
            [shown(path) for path in paths],
            np.repeat(np.arange(len(names), dtype=np.int32), [len(files) for files in there]),
            title=f"{title} {split}".strip(),
            total_bytes=sum(size for files in there for _, size, _ in files),
        )
        if not len(read.labels):
            raise InputError(f"{place} has no images that can be used; add some, or remove it")
        splits[SPLIT_NAMES.get(split, "train")] = read
    train = splits["train"]
    for label, name in enumerate(names):
        if not (train.labels == label).any():
            raise InputError(f"{folder} has no image of the class {name} that can be used; remove its folder")
    if "test" in splits:
        return Stored(train, splits["test"], names, "test", splits.get("validation"), tuple(reader.left_out))
    train, test, origin = hold_out_test(train, "train" if "train" in layout else title, folder)
    return Stored(train, test, names, origin, splits.get("validation"), tuple(reader.left_out))
