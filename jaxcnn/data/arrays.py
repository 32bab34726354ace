"""Data sets from arrays: those of a `.npz` file, or a program's own."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config.network import Resize
from jaxcnn.data.cache import cache_title, file_fingerprint, read_through_cache
from jaxcnn.data.images import fit_image
from jaxcnn.data.progress import show_progress
from jaxcnn.data.splits import SPLIT_NAMES, Split, Stored, aligned_empty, hold_out_test
from jaxcnn.errors import InputError, reason

_NAMES = "train_images and train_labels (test_..., val_...), or images and labels (split, class_names)"


def load_npz(file: Path, title: str, shape: tuple[int, int, int], resize: Resize) -> Stored:
    """The images of a `.npz` file. If the file has not changed since it was last read, they come from the cache.

    The file has either MedMNIST's arrays (`train_images`, `train_labels`, and the same for `val` and `test`), or
    `images`, `labels` and optionally `split` ("train", "val" or "test" for each image; without it, a stratified fifth
    is the test split). Optionally, `class_names` gives the names of the labels 0, 1, ...

    Args:
        file: the `.npz` file. One with pickled arrays is refused.
        title: of the set, for messages and the cache.
        shape: height, width and channels to convert the images to.
        resize: how images become squares.

    Raises:
        InputError: when the file cannot be read, or its arrays are not labelled images.
    """
    try:
        made_of = file_fingerprint(file)
    except OSError as error:
        raise InputError(f"data.dir={str(file)!r} cannot be read: {reason(error)}; give a .npz file") from error
    return read_through_cache(
        file, cache_title(title, resize), shape, made_of, lambda: _read(file, title, shape, resize)
    )


def _read(file: Path, title: str, shape: tuple[int, int, int], resize: Resize) -> Stored:
    try:
        with np.load(file, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
    except MemoryError:
        raise
    except Exception as error:  # zipfile, zlib and NumPy each raise their own kinds
        raise InputError(f"{file} is no .npz file of plain arrays: {reason(error)}; save it by np.savez") from error
    names = tuple(map(str, arrays["class_names"])) if "class_names" in arrays else ()
    try:
        return stored_from_arrays(_pairs(arrays), names, shape, resize, title)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error


def _pairs(arrays: Mapping[str, np.ndarray]) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Images and labels, by split."""
    if "images" in arrays and "labels" in arrays:
        images, labels = arrays["images"], arrays["labels"]
        if "split" not in arrays:
            return {"train": (images, labels)}
        split = arrays["split"].reshape(-1).astype(str)
        if not len(images) == len(labels) == len(split):
            raise InputError(f"it has {len(images)} images, {len(labels)} labels and {len(split)} entries of split")
        if unknown := sorted(set(split.tolist()) - SPLIT_NAMES.keys()):
            raise InputError(f"split has {unknown[0]!r}; its values are {', '.join(SPLIT_NAMES)}")
        named = {name: split == name for name in SPLIT_NAMES}
        return {SPLIT_NAMES[name]: (images[chosen], labels[chosen]) for name, chosen in named.items() if chosen.any()}
    whole = {name: (f"{name}_images", f"{name}_labels") for name in SPLIT_NAMES}
    found = {SPLIT_NAMES[name]: (arrays[i], arrays[j]) for name, (i, j) in whole.items() if i in arrays and j in arrays}
    if "train" not in found:
        raise InputError(f"it has the arrays {', '.join(arrays) or 'none'}; {_NAMES} are needed")
    return found


def stored_from_arrays(
    pairs: Mapping[str, tuple[Any, Any]],
    class_names: Sequence[str],
    shape: tuple[int, int, int],
    resize: Resize,
    title: str,
) -> Stored:
    """A data set from images and labels by split: train, and optionally test and validation.

    Args:
        pairs: uint8 (N, H, W) or (N, H, W, 1 or 3), and labels (N,) or (N, 1): whole numbers or text.
        class_names: of the labels 0, 1, ...; if empty, the distinct training labels, sorted, are the classes.
        shape: height, width and channels to convert the images to.
        resize: how images become squares.
        title: of the set, for messages.

    Raises:
        InputError: when these are not labelled images.
    """
    plain = {name: (np.asarray(images), _flat(np.asarray(labels))) for name, (images, labels) in pairs.items()}
    classes = np.arange(len(class_names)) if class_names else np.unique(plain["train"][1])
    splits = {}
    for name, (images, labels) in plain.items():
        if images.ndim not in (3, 4) or len(images) != len(labels) or not len(labels):
            raise InputError(
                f"the {name} images have the shape {images.shape}, their labels {labels.shape}; (N, height, width) or "
                "(N, height, width, channels) and (N,) are needed"
            )
        if unknown := sorted(set(labels.tolist()) - set(classes.tolist())):
            there = "class_names has none for it" if class_names else "the training images have none of it"
            raise InputError(f"the {name} labels have {unknown[0]!r}, but {there}")
        fitted = aligned_empty((len(images), *shape), np.uint8)
        for i, image in enumerate(show_progress(images, f"Reading {title} {name}", len(images))):
            fitted[i] = fit_image(image, shape[0], shape[2], resize)
        splits[name] = Split(fitted, np.searchsorted(classes, labels).astype(np.int32))
    names = tuple(class_names) or tuple(map(str, classes.tolist()))
    if "test" in splits:
        return Stored(splits["train"], splits["test"], names, "test", splits.get("validation"))
    train, test, origin = hold_out_test(splits["train"], "train", title)
    return Stored(train, test, names, origin, splits.get("validation"))


def _flat(labels: np.ndarray) -> np.ndarray:
    """Labels as an array (N,) of whole numbers or text."""
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iuUS":
        raise InputError(
            f"the labels have {labels.dtype} values and the shape {labels.shape}; one whole number or text for each "
            "image is needed"
        )
    return labels.astype(str) if labels.dtype.kind == "S" else labels
