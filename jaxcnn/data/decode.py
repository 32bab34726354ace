"""Decodes images to uint8 arrays, with Pillow's conversions."""

import io
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jaxcnn.errors import InputError, reason

_FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP", "JPEG2000", "AVIF")
"""The formats that are decoded. For others, such as EPS, Pillow would start an external interpreter."""

_SIXTEEN_BITS = "16-bit grey"
_KINDS = {"1": "1-bit", "P": "palette", "PA": "palette", "LA": "grey-alpha"}
"""Pillow's modes in words, for those that are not words themselves."""


class Decoded(NamedTuple):
    """A decoded image, and how it was converted."""

    pixels: np.ndarray
    """uint8 (height, width, 3) in RGB, or (height, width, 1) in grey."""
    converted: str | None
    """The kind of image in the file, such as "palette", if it was neither 8-bit grey nor RGB; else None."""
    turned: bool = False
    """Whether the image was turned or mirrored because its metadata says so."""


def decode_image(source: bytes | str | Path | Image.Image, name: str, *, upright: bool = False) -> Decoded:
    """Decodes an image. Grey images stay grey; every other colour space becomes RGB.

    The pixels are those of Pillow's `convert`, which drops transparency and colour profiles. 16-bit grey keeps its
    upper 8 bits (Pillow's own conversion would clip everything above 255). Of several frames, the first one is used.

    Args:
        source: content of a file, its path, or an image that Pillow has opened.
        name: of the image, for messages.
        upright: whether to apply the orientation that cameras write to the metadata. (tfds ignores it.)

    Raises:
        InputError: when the data are damaged or not an image, the image is too large, or the range of its values is
            unknown.
    """
    with pillow_warnings():
        return decode_quietly(source, name, upright)


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Ignores Pillow's warnings about metadata, and turns its warning about too large an image into an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_quietly(source: bytes | str | Path | Image.Image, name: str, upright: bool) -> Decoded:
    """`decode_image` for callers that decode many images inside one `pillow_warnings` block."""
    try:
        if isinstance(source, Image.Image):
            return _decode(source, upright)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            return _decode(image, upright)
    except MemoryError:
        raise
    except (UnidentifiedImageError, KeyError) as error:  # KeyError: this Pillow lacks one of the formats
        raise _undecodable(name, f"it is no whole image of {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from error
    except Exception as error:  # each of Pillow's decoders raises its own kinds
        raise _undecodable(name, reason(error)) from error


def _decode(image: Image.Image, upright: bool) -> Decoded:
    if not (upright and image.info):  # without metadata there is no orientation
        return _convert(image)
    image.load()  # this already turns a TIFF
    turned = image.getexif().get(ExifTags.Base.Orientation) in range(2, 9)
    return _convert(ImageOps.exif_transpose(image) if turned else image)._replace(turned=turned)


def _convert(image: Image.Image) -> Decoded:
    mode = image.mode
    if mode in ("L", "RGB"):
        pixels, converted = np.asarray(image), None
    elif mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):  # PGM is scaled to 16 bits
        pixels, converted = (np.asarray(image) >> _extra_bits(image)).astype(np.uint8), _SIXTEEN_BITS
    elif mode in ("I", "F"):
        raise ValueError(f"its values are {'32-bit integers' if mode == 'I' else 'floats'} of unknown range")
    else:
        if mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")  # gives the same colours as a direct conversion, without Pillow's warning
        pixels, converted = np.asarray(image.convert("L" if mode in ("1", "LA") else "RGB")), _KINDS.get(mode, mode)
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), converted)


def _extra_bits(image: Image.Image) -> int:
    """By how many bits the grey values exceed 8: Pillow reads 12-bit TIFF values into 16 bits unscaled."""
    bits_per_sample = 258
    twelve = getattr(image, "tag_v2", {}).get(bits_per_sample) == (12,)
    return 4 if twelve else 8


def tell_converted(title: str, converted: Counter[str]) -> None:
    """Reports on stderr how many images were converted in which way, if there are any."""
    if converted:
        told = ", ".join(f"{change} ({count:,})" for change, count in sorted(converted.items()))
        print(f"Converted images of {title}: {told}", file=sys.stderr)


def _undecodable(name: str, why: str) -> InputError:
    return InputError(f"{name} cannot be decoded: {why}; replace or remove it")
