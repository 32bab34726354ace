"""Decoding images of every mode, against Pillow. Messages name damaged, too large and unusable images."""

import io
import pickle
import struct
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from refusals import message
from test_data import noise

from jaxcnn.data.decode import decode_image
from jaxcnn.data.image_reader import Wanted, serve
from jaxcnn.errors import InputError

RGB = Image.fromarray(noise(12, 17, 3))
PALETTE = RGB.quantize(64)
SIXTEEN = np.random.default_rng(0).integers(0, 65536, (12, 17)).astype(np.uint16)


def encode(image: Image.Image, format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(width: int, height: int, bits: int, colour: int, pixels: bytes) -> bytes:
    """A PNG of a kind that Pillow reads and does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">2I5B", width, height, bits, colour, 0, 0, 0)
    rows = len(pixels) // height
    lines = b"".join(b"\0" + pixels[i * rows :][:rows] for i in range(height))
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def tiff(width: int, height: int, bits: int, pixels: bytes, *, order: str = "<") -> bytes:
    """A grey TIFF of one strip."""
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 8 + 2 + 12 * 9 + 4, 277: 1, 278: height}
    tags[279] = len(pixels)
    entries = b"".join(struct.pack(f"{order}2HI2H", tag, 3, 1, value, 0) for tag, value in tags.items())
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, 8)
    return head + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + pixels


MODES = {
    "palette PNG": (encode(PALETTE, "PNG"), "RGB", "palette"),
    "palette PNG with a transparent colour": (encode(PALETTE, "PNG", transparency=3), "RGB", "palette"),
    "palette PNG with alpha": (encode(PALETTE, "PNG", transparency=bytes(range(64))), "RGB", "palette"),
    "palette PNG of 2 bits": (encode(RGB.quantize(4), "PNG", bits=2), "RGB", "palette"),
    "palette GIF": (encode(PALETTE, "GIF"), "RGB", "palette"),
    "palette BMP": (encode(PALETTE, "BMP"), "RGB", "palette"),
    "palette TIFF": (encode(PALETTE, "TIFF"), "RGB", "palette"),
    "1-bit PNG": (encode(RGB.convert("1"), "PNG"), "L", "1-bit"),
    "1-bit TIFF": (encode(RGB.convert("1"), "TIFF", compression="group4"), "L", "1-bit"),
    "grey PNG": (encode(RGB.convert("L"), "PNG"), "L", None),
    "grey PNG with a transparent value": (encode(RGB.convert("L"), "PNG", transparency=9), "L", None),
    "grey JPEG": (encode(RGB.convert("L"), "JPEG"), "L", None),
    "grey-alpha PNG": (encode(RGB.convert("LA"), "PNG"), "L", "grey-alpha"),
    "RGBA PNG": (encode(RGB.convert("RGBA"), "PNG"), "RGB", "RGBA"),
    "RGBA WebP": (encode(PALETTE.convert("RGBA"), "WEBP", lossless=True), "RGB", None),
    "RGB PNG": (encode(RGB, "PNG"), "RGB", None),
    "YCbCr JPEG": (encode(RGB, "JPEG"), "RGB", None),
    "CMYK JPEG": (encode(RGB.convert("CMYK"), "JPEG"), "RGB", "CMYK"),
    "CMYK TIFF": (encode(RGB.convert("CMYK"), "TIFF"), "RGB", "CMYK"),
    "YCbCr TIFF": (encode(RGB.convert("YCbCr"), "TIFF", compression="tiff_lzw"), "RGB", None),
    "RGB PPM": (encode(RGB, "PPM"), "RGB", None),
}


@pytest.mark.parametrize("case", MODES)
def test_pixels_are_those_that_pillow_converts_to(case: str) -> None:
    encoded, mode, was = MODES[case]
    image = Image.open(io.BytesIO(encoded))
    if "transparency" in image.info and image.mode == "P":
        image.info = {}  # or Pillow warns
    wanted = np.asarray(image.convert(mode)).reshape(12, 17, -1)
    pixels, converted, _ = decode_image(encoded, "x")
    np.testing.assert_array_equal(pixels, wanted)
    assert (pixels.dtype, converted) == (np.uint8, was)


def test_transparent_palette_colours_are_the_palettes() -> None:
    palette = np.array(PALETTE.getpalette()).reshape(-1, 3)
    wanted = palette[np.asarray(PALETTE)]
    for transparency in (None, 3, bytes(range(64))):
        options = {} if transparency is None else {"transparency": transparency}
        np.testing.assert_array_equal(decode_image(encode(PALETTE, "PNG", **options), "x").pixels, wanted)


@pytest.mark.parametrize(
    "encoded",
    [
        encode(Image.fromarray(SIXTEEN), "PNG"),
        encode(Image.fromarray(SIXTEEN), "TIFF"),
        tiff(17, 12, 16, SIXTEEN.astype(">u2").tobytes(), order=">"),
        b"P5\n17 12\n65535\n" + SIXTEEN.astype(">u2").tobytes(),
    ],
    ids=["PNG", "TIFF", "big-endian TIFF", "PGM"],
)
def test_sixteen_bits_keep_the_upper_eight(encoded: bytes) -> None:
    pixels, was, _ = decode_image(encoded, "x")
    np.testing.assert_array_equal(pixels[..., 0], SIXTEEN >> 8)
    assert (pixels.shape, pixels.dtype, was) == ((12, 17, 1), np.uint8, "16-bit grey")


def test_sixteen_bits_of_colour_and_twelve_bits_of_grey() -> None:
    colour = np.random.default_rng(1).integers(0, 65536, (4, 5, 3)).astype(">u2")
    np.testing.assert_array_equal(decode_image(png(5, 4, 16, 2, colour.tobytes()), "x").pixels, colour >> 8)
    alpha = np.random.default_rng(1).integers(0, 65536, (4, 5, 2)).astype(">u2")
    grey = np.repeat(alpha[..., :1] >> 8, 3, axis=2)
    np.testing.assert_array_equal(decode_image(png(5, 4, 16, 4, alpha.tobytes()), "x").pixels, grey)
    packed = bytes.fromhex("123 456 fff 000".replace(" ", ""))
    assert decode_image(tiff(4, 1, 12, packed), "x").pixels[0, :, 0].tolist() == [0x12, 0x45, 0xFF, 0]
    thousand = b"P5\n3 1\n1000\n" + struct.pack(">3H", 0, 500, 1000)
    assert decode_image(thousand, "x").pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.skipif(not features.check("littlecms2"), reason="this Pillow cannot convert from Lab")
def test_lab_is_converted() -> None:
    flat = Image.new("RGB", (3, 2), (100, 120, 140))
    encoded = encode(flat.convert("LAB"), "TIFF")
    pixels, was, _ = decode_image(encoded, "x")
    np.testing.assert_allclose(pixels, np.asarray(flat), atol=2)
    assert was == "LAB"


def test_the_first_frame_as_it_lies_and_from_a_file(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8, seed=i)) for i in range(3)]
    animation = encode(frames[0], "PNG", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode_image(animation, "x").pixels[..., 0], frames[0])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn, which tfds does not make either
    turned = encode(RGB, "PNG", exif=exif)
    np.testing.assert_array_equal(decode_image(turned, "x").pixels, RGB)
    (tmp_path / "a.jpg").write_bytes(turned)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.jpg", "x").pixels, RGB)


@pytest.mark.parametrize(
    ("encoded", "why"),
    [
        (encode(Image.fromarray(SIXTEEN.astype(np.int32)), "TIFF"), "its values are 32-bit integers of unknown range"),
        (encode(Image.fromarray(SIXTEEN.astype(np.float32)), "TIFF"), "its values are floats of unknown range"),
        (encode(Image.fromarray(np.full((3, 3), np.nan, np.float32)), "TIFF"), "its values are floats"),
        (encode(RGB, "JPEG")[:-99], "truncated"),
        (encode(RGB, "JPEG")[:-300], "Truncated"),
        (encode(RGB, "PNG")[:-300], "truncated"),
        (encode(RGB, "BMP")[:-300], "truncated"),
        (encode(PALETTE, "GIF")[:-100], "truncated"),
        (encode(RGB, "PPM")[:-100], "truncated"),
        (encode(RGB, "WEBP")[:-50], ""),
        (encode(RGB, "TIFF")[:100], ""),
        (encode(RGB, "PNG")[:200] + b"\xff" + encode(RGB, "PNG")[201:], "broken data stream"),
        (b"", "it is no whole image of PNG, JPEG, "),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "it is no whole image"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is no whole image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n", "it is no whole image"),
    ],
)
def test_what_cannot_be_decoded_is_named(encoded: bytes, why: str) -> None:
    told = message(lambda: decode_image(encoded, "image 3 of train"))
    assert told.startswith("image 3 of train cannot be decoded: ")
    assert told.endswith("; replace or remove it")
    assert why in told


def test_decompression_bombs_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = png(30_000, 30_000, 8, 0, bytes(30_000))
    assert "decompression bomb" in message(lambda: decode_image(bomb, "x"))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 150)
    for size, refused in ((12, False), (13, True), (20, True)):  # Pillow warns beyond the limit, fails beyond twice it
        image = encode(Image.fromarray(noise(size, size)), "PNG")
        if refused:
            assert "decompression bomb" in message(lambda image=image: decode_image(image, "x"))
        else:
            assert decode_image(image, "x").pixels.shape == (12, 12, 1)


def test_a_lack_of_memory_is_not_called_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(MemoryError):
        decode_image(b"", "x")


def test_a_worker_answers_each_request_until_its_input_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = noise(8, 8, 3)
    encoded = encode(Image.fromarray(pixels), "PNG")
    requests = [
        ([encoded, b"broken"], ["one", "two"], Wanted(8, 3, "squash")),
        ([encoded], ["one"], Wanted(8, 1, "squash")),
    ]
    stdin, stdout = io.BytesIO(b"".join(map(pickle.dumps, requests))), io.BytesIO()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stdin))
    monkeypatch.setattr("sys.stdout", SimpleNamespace(buffer=stdout))
    serve()
    stdout.seek(0)
    chunk, refused = pickle.load(stdout), pickle.load(stdout)
    np.testing.assert_array_equal(chunk.images[0], pixels)
    assert list(chunk.problems) == [1]
    assert "two" in chunk.problems[1]
    assert isinstance(refused, InputError)
    assert stdout.read() == b""
