"""Encoded images as uint8 arrays, converted as Pillow converts them."""

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
"""What is decoded in this process. Pillow would hand others, such as EPS, to programs that interpret them."""

_SIXTEEN_BITS = "16-bit grey"
_KINDS = {"1": "1-bit", "P": "palette", "PA": "palette", "LA": "grey-alpha"}
"""Pillow's modes in words, where the mode is not the word itself."""


class Decoded(NamedTuple):
    """An image, and what it was."""

    pixels: np.ndarray
    """uint8 (height, width, 3) in RGB, or (height, width, 1) in grey."""
    converted: str | None
    """What the file held, such as "palette", where it was neither 8-bit grey nor RGB."""
    turned: bool = False
    """Whether the orientation in the metadata turned or mirrored the image."""


def decode_image(source: bytes | str | Path | Image.Image, name: str, *, upright: bool = False) -> Decoded:
    """Decodes an image. Grey stays one channel, every other colour space becomes RGB.

    The pixels are those of Pillow's `convert`: transparency is dropped, and so are colour profiles. Grey of 16 bits
    keeps its upper 8 (Pillow's own conversion would make 255 of everything above 255). Of several frames the first
    is taken.

    Args:
        source: content of a file, its path, or an image that Pillow has opened.
        name: what messages call the image.
        upright: applies the orientation in the metadata, as cameras write it. tfds does not.

    Raises:
        InputError: when the bytes are damaged or no image, the image is too large, or its values have no known range.
    """
    with pillow_warnings():
        return decode_quietly(source, name, upright)


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Silences Pillow's remarks on metadata, and makes an error of its warning of an image that is too large."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def decode_quietly(source: bytes | str | Path | Image.Image, name: str, upright: bool) -> Decoded:
    """`decode_image` for callers that decode many within one `pillow_warnings`."""
    try:
        if isinstance(source, Image.Image):
            return _decode(source, upright)
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS) as image:
            return _decode(image, upright)
    except MemoryError:
        raise
    except (UnidentifiedImageError, KeyError) as error:  # the latter from a Pillow that lacks one of the formats
        raise _undecodable(name, f"it is no whole image of {', '.join(_FORMATS[:-1])} or {_FORMATS[-1]}") from error
    except Exception as error:  # each of Pillow's formats raises its own kinds
        raise _undecodable(name, reason(error)) from error


def _decode(image: Image.Image, upright: bool) -> Decoded:
    if not (upright and image.info):  # without metadata nothing tells the orientation
        return _convert(image)
    image.load()  # which turns a TIFF already
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
            image = image.convert("RGBA")  # the same colours; Pillow warns of the direct way
        pixels, converted = np.asarray(image.convert("L" if mode in ("1", "LA") else "RGB")), _KINDS.get(mode, mode)
    return Decoded(pixels.reshape(*pixels.shape[:2], -1), converted)


def _extra_bits(image: Image.Image) -> int:
    """By how much the grey values exceed 8 bits: Pillow reads TIFF's 12 bits into 16 as they are."""
    bits_per_sample = 258
    twelve = getattr(image, "tag_v2", {}).get(bits_per_sample) == (12,)
    return 4 if twelve else 8


def tell_converted(title: str, converted: Counter[str]) -> None:
    """Says on stderr how many images of each kind were converted, if any were."""
    if converted:
        told = ", ".join(f"{change} ({count:,})" for change, count in sorted(converted.items()))
        print(f"Converted images of {title}: {told}", file=sys.stderr)


def _undecodable(name: str, why: str) -> InputError:
    return InputError(f"{name} cannot be decoded: {why}; replace or remove it")
