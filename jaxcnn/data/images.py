"""Image files: listing those of a folder, and reading one as an array of the size that a network needs."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageOps

from jaxcnn.data.decode import decode_image
from jaxcnn.errors import InputError, reason

if TYPE_CHECKING:
    from jaxcnn.config.network import Resize

_LITTER = ("__MACOSX", "Thumbs.db", "desktop.ini")
"""Names that operating systems add to folders. They are ignored, as are names that begin with a dot."""

File = tuple[str, int, int]
"""A file's name relative to the listed folder, its size in bytes, and its modification time in ns."""


def scan(folder: Path | str) -> tuple[list[File], list[str]]:
    """The files directly in a folder, and the names of the folders in it; both sorted, without hidden ones.

    A symbolic link counts as its target. A broken link counts as a file, so that reading it gives an error with its
    name.

    Raises:
        InputError: when the folder cannot be read.
    """
    files, folders = [], []
    try:
        with os.scandir(folder) as found:
            for each in found:
                name = each.name
                if name[0] == "." or name in _LITTER:
                    continue
                if each.is_dir():
                    folders.append(name)
                    continue
                try:
                    stat = each.stat()
                    files.append((name, stat.st_size, stat.st_mtime_ns))
                except OSError:
                    files.append((name, 0, 0))
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {reason(error)}; give another folder") from error
    return sorted(files), sorted(folders)


def walk(folder: Path) -> list[File]:
    """All files in and below a folder, sorted. A link to a folder that contains the link is not followed.

    Raises:
        InputError: when a folder cannot be read.
    """
    return sorted(_walk(str(folder), "", (os.stat(folder),)))


def _walk(folder: str, prefix: str, above: tuple[os.stat_result, ...]) -> list[File]:
    files, folders = scan(folder)
    if prefix:
        files = [(prefix + name, size, time) for name, size, time in files]
    for name in folders:
        at = os.stat(f"{folder}/{name}")
        if not any(os.path.samestat(at, each) for each in above):
            files += _walk(f"{folder}/{name}", f"{prefix}{name}/", (*above, at))
    return files


def read_image(
    file: Path | bytes | bytearray | memoryview | Image.Image,
    *,
    size: int,
    channels: int,
    resize: "Resize" = "squash",
    name: str = "the image",
) -> np.ndarray:
    """Reads an image as uint8 (size, size, channels), turned upright as its metadata says.

    Args:
        file: path, content of a file, or an image that Pillow has opened.
        size: height and width.
        channels: 3, or 1 for grey.
        resize: how images of other sizes become squares.
        name: of the image, for messages, if it is not a path.

    Raises:
        InputError: when it cannot be decoded, or has colour and `channels` is 1; the message names the file.
    """
    source = bytes(file) if isinstance(file, (bytearray, memoryview)) else file
    called = shown(file) if isinstance(file, Path) else name
    return fit_decoded(decode_image(source, called, upright=True).pixels, size, channels, resize, called)


def shown(path: Path | str) -> str:
    """A path as one printable line, for messages."""
    text = str(path)
    return text if text.isprintable() else repr(text)


def fit_decoded(pixels: np.ndarray, size: int, channels: int, resize: "Resize", name: str) -> np.ndarray:
    """`fit_image`, with the image's name in its error message."""
    try:
        return fit_image(pixels, size, channels, resize)
    except InputError as error:
        raise InputError(f"{name} does not fit the network: {error}") from error


def fit_image(image: np.ndarray, size: int, channels: int, resize: "Resize" = "squash") -> np.ndarray:
    """Resizes an image to (size, size, channels), bilinearly; grey is repeated to make RGB.

    Args:
        image: uint8 (height, width, 1 or 3), or (height, width) for grey.
        size: height and width of the result.
        channels: 3, or 1 for grey.
        resize: squash ignores the proportions; crop and pad are Pillow's `ImageOps.fit` and `ImageOps.pad`.

    Raises:
        InputError: when the image has colour and `channels` is 1, or it is neither grey nor RGB in bytes.
    """
    if image.ndim == 2:
        image = image[..., None]
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"an image has {image.dtype} values and shape {image.shape}; grey or RGB bytes are needed")
    if image.shape[2] > channels:
        raise InputError(f"the images are RGB, but model.in_channels={channels}; give 3, or weights that read RGB")
    if image.shape == (size, size, channels):
        return image
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
    if min(picture.size) * size < longer:  # Pillow would shrink the shorter side to 0
        width, height = (max(1, round(side * size / longer)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    return ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR)


_SQUARED = {"squash": _squash, "crop": _crop, "pad": _pad}
