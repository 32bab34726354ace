"""Image files: which there are in a folder, and each as an array of the size that a network reads."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps

from jaxcnn.config.experiment import Resize
from jaxcnn.data.decode import Decoded, decode_image
from jaxcnn.errors import InputError, reason

_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""What systems leave among images, beside names that begin with a dot."""


class Listing(NamedTuple):
    """The files of a folder, in the order in which they become images."""

    files: list[Path]
    labels: np.ndarray | None
    """int32 (N,); None where no folders name classes."""
    class_names: tuple[str, ...]


class Entry(NamedTuple):
    """A file or folder, as a listing finds it."""

    name: str
    """Relative to the folder listed."""
    is_folder: bool
    size: int
    mtime_ns: int


def list_images(folder: Path) -> Listing:
    """The files in `folder/<class>/`, by class and then by name, both alphabetical; classes may have subfolders.

    Every file counts, whatever its name, unless it is hidden or a system's litter. Where there are no subfolders, the
    files in `folder` itself are listed, without labels.

    Raises:
        InputError: when the folder cannot be read.
    """
    inside = entries(folder)
    classes = [each.name for each in inside if each.is_folder]
    if not classes:
        return Listing([folder / each.name for each in inside], None, ())
    by_class = [list(walk(folder / name)) for name in classes]
    files = [folder / name / each.name for name, found in zip(classes, by_class, strict=True) for each in found]
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(found) for found in by_class])
    return Listing(files, labels, tuple(classes))


def entries(folder: Path) -> list[Entry]:
    """What is directly in a folder, by name; symbolic links count as what they lead to, or as empty files.

    Raises:
        InputError: when the folder cannot be read.
    """
    try:
        with os.scandir(folder) as found:
            return sorted(_entry(each) for each in found if each.name[0] != "." and each.name not in _LITTER)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {reason(error)}; give another folder") from error


def walk(folder: Path) -> Iterator[Entry]:
    """All files below a folder, by their relative names. A link to a folder that it is in is not followed."""
    return iter(sorted(_walk(folder, "", frozenset())))


def _walk(folder: Path, prefix: str, above: frozenset[tuple[int, int]]) -> Iterator[Entry]:
    inside = entries(folder)
    if any(each.is_folder for each in inside):
        at = folder.stat()
        above = above | {(at.st_dev, at.st_ino)}
    for each in inside:
        if not each.is_folder:
            yield each._replace(name=prefix + each.name)
        else:
            below = (folder / each.name).stat()
            if (below.st_dev, below.st_ino) not in above:
                yield from _walk(folder / each.name, f"{prefix}{each.name}/", above)


def _entry(found: "os.DirEntry[str]") -> Entry:
    try:
        stat = found.stat()
    except OSError:  # a link to nowhere: a file that will be refused by its name
        return Entry(found.name, False, 0, 0)
    return Entry(found.name, found.is_dir(), stat.st_size, stat.st_mtime_ns)


def read_image(
    file: Path | bytes | bytearray | memoryview | Image.Image,
    *,
    size: int,
    channels: int,
    resize: Resize = "squash",
    name: str = "the image",
) -> np.ndarray:
    """An image as a network of this input reads it, uint8 (size, size, channels), turned as its metadata says.

    Args:
        file: path, content of a file, or an image that Pillow has opened.
        size: height and width.
        channels: 3, or 1 for grey.
        resize: how other sizes and shapes become squares.
        name: what messages call what is no path.

    Raises:
        InputError: when it cannot be decoded, or colour would have to be thrown away; the message names the file.
    """
    return fit_decoded(decode_file(file, name), size, channels, resize, str(file) if isinstance(file, Path) else name)


def decode_file(file: Path | bytes | bytearray | memoryview | Image.Image, name: str) -> Decoded:
    """An image as it is, turned as its metadata says."""
    source = bytes(file) if isinstance(file, (bytearray, memoryview)) else file
    return decode_image(source, str(file) if isinstance(file, Path) else name, upright=True)


def fit_decoded(decoded: Decoded, size: int, channels: int, resize: Resize, name: str) -> np.ndarray:
    """`fit_image`, whose message names the image."""
    try:
        return fit_image(decoded.pixels, size, channels, resize)
    except InputError as error:
        raise InputError(f"{name} does not fit the network: {error}") from error


def fit_image(image: np.ndarray, size: int, channels: int, resize: Resize = "squash") -> np.ndarray:
    """Resizes an image to (size, size, channels), bilinearly; grey is repeated to make RGB.

    Args:
        image: uint8 (height, width, 1 or 3), or (height, width) for grey.
        size: height and width wanted.
        channels: 3, or 1 for grey.
        resize: squash ignores the proportions; crop and pad are Pillow's `ImageOps.fit` and `ImageOps.pad`.

    Raises:
        InputError: when colour would have to be thrown away, or the image is neither grey nor RGB bytes.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"an image has {image.dtype} values and shape {image.shape}; grey or RGB bytes are needed")
    if image.shape[2] > channels:
        raise InputError(f"the images are RGB, but model.in_channels={channels}; give 3, or weights that read RGB")
    if image.shape[:2] != (size, size):
        picture = Image.fromarray(image.squeeze(2) if image.shape[2] == 1 else image)
        image = np.asarray(_SQUARED[resize](picture, size)).reshape(size, size, -1)
    return np.broadcast_to(image, (size, size, channels))


def _squash(picture: Image.Image, size: int) -> Image.Image:
    return picture.resize((size, size), Image.Resampling.BILINEAR)


def _crop(picture: Image.Image, size: int) -> Image.Image:
    return ImageOps.fit(picture, (size, size), Image.Resampling.BILINEAR)


def _pad(picture: Image.Image, size: int) -> Image.Image:
    longer = max(picture.size)
    if min(picture.size) * size < longer:  # of which Pillow would leave nothing
        width, height = (max(1, round(side * size / longer)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR)


_SQUARED = {"squash": _squash, "crop": _crop, "pad": _pad}
