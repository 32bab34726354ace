"""Folders of image files as data sets: layouts, odd files, what is left out, and what a cache must notice."""

import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from refusals import message
from test_data import noise
from test_decode import encode, png

from jaxcnn.config import DataConfig
from jaxcnn.data import image_reader
from jaxcnn.data.images import read_image, walk
from jaxcnn.data.sets import load_dataset
from jaxcnn.data.splits import Dataset, stratified_split

SIZE = 8
RGB = Image.fromarray(noise(12, 17, 3))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def fill(folder: Path, count: int = 3, seed: int = 0) -> list[np.ndarray]:
    """Small images of noise, as large as they are read."""
    folder.mkdir(parents=True, exist_ok=True)
    images = [noise(SIZE, SIZE, 3, seed=100 * seed + i) for i in range(count)]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    return images


def make(root: Path, **splits: dict[str, int]) -> Path:
    for number, (split, classes) in enumerate(splits.items()):
        for label, (name, count) in enumerate(classes.items()):
            fill(root / ("" if split == "flat" else split) / name, count, seed=10 * number + label)
    return root


def load(folder: Path, channels: int = 3, **settings: Any) -> Dataset:
    config = DataConfig("folder", dir=folder, **{"validation": 0, **settings})
    return load_dataset(config, input_size=SIZE, in_channels=channels, seed=0)


def test_folders_of_splits_and_classes(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", train={"b": 3, "a": 2}, test={"a": 1, "b": 2}, val={"a": 1})
    for litter in (".DS_Store", "train/a/.hidden.png", "train/Thumbs.db", "test/a/Thumbs.db", "readme.txt"):
        (root / litter).write_text("no image")
    (root / "__MACOSX").mkdir()
    found = load(root, validation=0.1)
    assert (found.name, found.class_names, found.origin) == ("photos", ("a", "b"), str(root))
    assert found.test_origin == "test"
    assert found.train.labels.tolist() == [0, 0, 1, 1, 1]
    pixels = [np.asarray(Image.open(path)) for path in sorted((root / "train").glob("[ab]/[0-9].png"))]
    np.testing.assert_array_equal(found.train.images, pixels)
    assert found.validation is not None
    np.testing.assert_array_equal(found.validation.images[0], np.asarray(Image.open(root / "val/a/0.png")))
    assert found.test.labels.tolist() == [0, 1, 1]
    assert load(root).validation is None  # data.validation=0 steers by nothing


def test_folders_of_classes_alone_are_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = make(tmp_path / "photos", flat={"a": 10, "b": 10})
    (root / "a" / "more").mkdir()
    (root / "a" / "9.png").rename(root / "a" / "more" / "0.png")
    found = load(root)
    kept, held = stratified_split(np.repeat([0, 1], 10), 0.2, seed=0)
    files = [root / name / each for name in "ab" for each, _, _ in walk(root / name)]
    np.testing.assert_array_equal(found.test.images, [np.asarray(Image.open(files[i])) for i in held])
    np.testing.assert_array_equal(found.train.images, [np.asarray(Image.open(files[i])) for i in kept])
    told = "4 of the 20 images of photos (20 %, stratified)"
    assert found.test_origin == told
    assert f"photos has no labelled test split: {told} serve as one" in capsys.readouterr().err


def test_a_changed_folder_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(tmp_path / "photos", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    first = load(root)
    with monkeypatch.context() as patch:
        patch.setattr(image_reader.ImageReader, "read", None)
        again = load(root)
        np.testing.assert_array_equal(again.train.images, first.train.images)
        assert (again.standardisation, again.class_names) == (first.standardisation, first.class_names)
    assert load(root, resize="crop").standardisation == first.standardisation  # images that fit
    changed = np.asarray(noise(SIZE, SIZE, 3, seed=77))
    old = (root / "train/a/0.png").stat()
    Image.fromarray(changed).save(root / "train/a/0.png")
    os.utime(root / "train/a/0.png", ns=(old.st_atime_ns, old.st_mtime_ns + 1))
    np.testing.assert_array_equal(load(root).train.images[0], changed)
    (root / "train/a/0.png").rename(root / "train/a/zero.png")
    np.testing.assert_array_equal(load(root).train.images[1], changed)


def test_workers_decode_as_this_process_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "photos", train={"a": 3, "b": 3}, test={"a": 1, "b": 1})
    (root / "train/a/1.png").write_bytes(encode(RGB.convert("CMYK"), "JPEG"))
    (root / "train/b/2.png").write_bytes(b"broken")
    here = load(root, skip_broken=True)
    said = capsys.readouterr().err
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    monkeypatch.setattr(image_reader, "_FEW_BYTES", 0)
    monkeypatch.setattr(image_reader, "_CHUNK", 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)  # one worker
    there = load(root, skip_broken=True)
    assert capsys.readouterr().err == said
    assert "CMYK to RGB (1)" in said
    np.testing.assert_array_equal(here.train.images, there.train.images)
    assert here.train.labels.tolist() == there.train.labels.tolist() == [0, 0, 0, 1, 1]
    monkeypatch.setattr(sys, "executable", "/bin/false")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a third"))
    assert "ended the process" in message(lambda: load(root))


def broken(root: Path) -> str:
    (root / "train/a/x.jpg").write_bytes(encode(RGB, "JPEG")[:-300])
    return "train/a/x.jpg cannot be decoded"


def empty(root: Path) -> str:
    (root / "train/a/x.png").touch()
    return "train/a/x.png cannot be decoded: it is no whole image"


def text(root: Path) -> str:
    (root / "test/b/notes.jpg").write_text("a note")
    return "test/b/notes.jpg cannot be decoded: it is no whole image"


def nowhere(root: Path) -> str:
    (root / "train/b/link.png").symlink_to(root / "gone.png")
    return "train/b/link.png cannot be decoded"


def bomb(root: Path) -> str:
    (root / "train/a/bomb.png").write_bytes(png(30_000, 30_000, 8, 0, bytes(30_000)))
    return "train/a/bomb.png cannot be decoded"


def newline(root: Path) -> str:
    (root / "train/a/two\nlines.png").write_text("no image")
    return "train/a/two\\nlines.png' cannot be decoded"


def empty_class(root: Path) -> str:
    (root / "train/c").mkdir()
    return "train/c is a class without images"


def foreign_class(root: Path) -> str:
    fill(root / "test/z", 1)
    return "test/z is a class that "


SPOILT: list[Callable[[Path], str]] = [broken, empty, text, nowhere, bomb, newline, empty_class, foreign_class]


@pytest.mark.parametrize("spoil", SPOILT)
def test_what_cannot_be_used_is_named_or_skipped(
    spoil: Callable[[Path], str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make(tmp_path / "photos", train={"a": 2, "b": 2}, test={"a": 1, "b": 1})
    whole = load(root)
    told = spoil(root)
    refused = message(lambda: load(root))
    assert told in refused
    assert refused.endswith(", or give --data.skip-broken to go on without it")
    assert "\n" not in refused
    for _ in range(2):  # decoded, and from the cache
        capsys.readouterr()
        found = load(root, skip_broken=True)
        (line,) = [each for each in capsys.readouterr().err.splitlines() if each.startswith("left out: ")]
        assert told in line
        assert found.class_names == ("a", "b")
        for mine, wanted in ((found.train, whole.train), (found.test, whole.test)):
            np.testing.assert_array_equal(mine.images, wanted.images)
            assert mine.labels.tolist() == wanted.labels.tolist()
    assert told in message(lambda: load(root))


def test_layouts_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    for root, why in (
        (tmp_path / "gone", "is a folder that does not exist"),
        (make(tmp_path / "one", flat={"a": 2}), "has one class"),
        (make(tmp_path / "named", Training={"a": 1, "b": 1}, Testing={"a": 1, "b": 1}), "name the folder to train on"),
        (make(tmp_path / "testing", test={"a": 1, "b": 1}), "name the folder to train on"),
        (make(tmp_path / "twice", train={"a": 2, "b": 2}, val={"a": 1}, valid={"a": 1}), "keep one for validation"),
        (make(tmp_path / "few", flat={"a": 1, "b": 1}), "too few training images"),
        (make(tmp_path / "line", train={"a\nb": 1, "c": 1}), "which would not print; rename its folder"),
    ):
        assert why in message(lambda root=root: load(root))
    (tmp_path / "file").touch()
    assert "is no folder" in message(lambda: load(tmp_path / "file"))
    assert "needs --data.dir FOLDER" in message(
        lambda: load_dataset(DataConfig("folder"), input_size=8, in_channels=3, seed=0)
    )
    root = make(tmp_path / "colour", train={"a": 2, "b": 2}, test={"a": 1})
    assert "colour/test/a/0.png does not fit the network: the images are RGB" in message(lambda: load(root, 1))
    assert "does not fit" in message(lambda: load(root, 1, skip_broken=True))  # it is not broken
    for path in (root / "train/a").iterdir():
        path.write_text("")
    assert "no image of the class a that can be used" in message(lambda: load(root, skip_broken=True))


def test_a_link_to_a_folder_above_ends(tmp_path: Path) -> None:
    root = make(tmp_path / "photos", train={"a": 2, "b": 2}, test={"a": 1})
    (root / "train/a/again").symlink_to(root / "train/a")
    assert [name for name, _, _ in walk(root / "train/a")] == ["0.png", "1.png"]
    assert load(root).train.labels.tolist() == [0, 0, 1, 1]


def oriented(value: object, format: str = "JPEG") -> bytes:
    exif = Image.Exif()
    exif[0x0112] = value
    return encode(RGB, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))


def frames(format: str) -> bytes:
    others = [Image.fromarray(noise(12, 17, 3, seed=i)) for i in (1, 2)]
    return encode(RGB, format, save_all=True, append_images=others)


ODD = {
    **{f"orientation {value}": oriented(value) for value in range(10)},
    "orientation in a PNG": oriented(6, "PNG"),
    "orientation in a WebP": oriented(8, "WEBP"),
    "orientation in a TIFF": oriented(6, "TIFF"),
    "damaged EXIF": encode(RGB, "JPEG", exif=b"Exif\0\0MM\0*\0\0\xff\xff" + bytes(9)),
    "animated GIF": frames("GIF"),
    "animated PNG": frames("PNG"),
    "animated WebP": frames("WEBP"),
    "TIFF of pages": frames("TIFF"),
    "MPO": frames("MPO"),
    "1x1": encode(Image.new("RGB", (1, 1), (7, 8, 9)), "PNG"),
    "20000x10": encode(Image.fromarray(noise(10, 20_000, 3)), "BMP"),
    "10x20000": encode(Image.fromarray(noise(20_000, 10, 3)), "BMP"),
    "1-bit": encode(RGB.convert("1"), "BMP"),
    "grey": encode(RGB.convert("L"), "JPEG"),
    "palette": encode(RGB.quantize(9), "PNG"),
    "palette with alpha": encode(RGB.quantize(9), "PNG", transparency=bytes(range(9))),
    "grey-alpha": encode(RGB.convert("LA"), "PNG"),
    "alpha": encode(RGB.convert("RGBA"), "TIFF"),
    "CMYK": encode(RGB.convert("CMYK"), "JPEG"),
    "YCbCr": encode(RGB.convert("YCbCr"), "TIFF"),
    "progressive JPEG": encode(RGB, "JPEG", progressive=True),
    "JPEG 2000": encode(RGB, "JPEG2000"),
}


@pytest.mark.parametrize("resize", ["squash", "crop", "pad"])
def test_odd_files_are_what_pillow_makes_of_them(resize: Any, tmp_path: Path) -> None:
    for case, content in ODD.items():
        path = tmp_path / f"{case} ü.bin"
        path.write_bytes(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged metadata
            image = ImageOps.exif_transpose(Image.open(path))
        image = image.convert("RGBA").convert("RGB") if image.mode in ("P", "PA") else image.convert("RGB")
        squared = {
            "squash": lambda image=image: image.resize((SIZE, SIZE), Image.Resampling.BILINEAR),
            "crop": lambda image=image: ImageOps.fit(image, (SIZE, SIZE), Image.Resampling.BILINEAR),
            "pad": lambda image=image: padded(image),
        }[resize]()
        for source in (path, content, memoryview(content)):
            read = read_image(source, size=SIZE, channels=3, resize=resize)
            assert read.tobytes() == squared.tobytes(), case
        assert (read.shape, read.dtype) == ((SIZE, SIZE, 3), np.uint8)


def padded(image: Image.Image) -> Image.Image:
    if max(image.size) < 1000:
        return ImageOps.pad(image, (SIZE, SIZE), Image.Resampling.BILINEAR)
    line = (SIZE, 1) if image.width > image.height else (1, SIZE)  # of which Pillow would leave nothing
    out = Image.new("RGB", (SIZE, SIZE))
    out.paste(image.resize(line, Image.Resampling.BILINEAR), (round((SIZE - line[0]) / 2), round((SIZE - line[1]) / 2)))
    return out


def test_read_image_takes_pillows_images_and_names_what_it_refuses(tmp_path: Path) -> None:
    wanted = np.asarray(RGB.resize((SIZE, SIZE), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(read_image(RGB, size=SIZE, channels=3), wanted)
    with Image.open(io.BytesIO(oriented(6))) as image:
        assert (
            read_image(image, size=SIZE, channels=3).tobytes()
            == read_image(oriented(6), size=SIZE, channels=3).tobytes()
        )
    (tmp_path / "x.png").touch()
    assert message(lambda: read_image(tmp_path / "x.png", size=8, channels=3)).startswith(str(tmp_path / "x.png"))
    assert message(lambda: read_image(b"", size=8, channels=3, name="upload")).startswith("upload cannot be decoded")
    assert "does not fit the network: the images are RGB" in message(lambda: read_image(RGB, size=8, channels=1))
    grey = read_image(RGB.convert("L"), size=8, channels=1)
    assert grey.shape == (8, 8, 1)


def in_mode(mode: str) -> Image.Image:
    """A small image of one of Pillow's modes, by way of others where there is no direct one."""
    if mode in ("LAB", "I;16", "I;16L", "I;16B", "I;16N"):
        return Image.frombytes(mode, (SIZE, SIZE), noise(SIZE, SIZE, 3).tobytes())
    between = {"RGBa": "RGBA", "La": "LA"}.get(mode)
    image = RGB.resize((SIZE, SIZE))
    image = image.quantize(9) if mode == "PA" else image.convert(between) if between else image
    return image.convert(mode)


MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "RGBX", "RGBa")


@pytest.mark.parametrize("mode", MODES)
def test_modes_that_pillow_converts(mode: str) -> None:
    image = in_mode(mode)
    read = read_image(image, size=SIZE, channels=3)
    np.testing.assert_array_equal(read, np.asarray(image.convert("RGB")))


@pytest.mark.parametrize(("mode", "order"), [("I;16", "<"), ("I;16L", "<"), ("I;16B", ">"), ("I;16N", "=")])
def test_sixteen_bits_keep_their_upper_eight(mode: str, order: str) -> None:
    read = read_image(in_mode(mode), size=SIZE, channels=1)
    values = np.frombuffer(noise(SIZE, SIZE, 3).tobytes(), f"{order}u2", SIZE * SIZE)
    np.testing.assert_array_equal(read.ravel(), values >> 8)


@pytest.mark.parametrize(
    ("mode", "why"), [("I", "32-bit integers of unknown range"), ("F", "floats of unknown range"), ("La", "La")]
)
def test_modes_without_a_known_range_are_refused(mode: str, why: str) -> None:
    refused = message(lambda: read_image(in_mode(mode), size=SIZE, channels=3))
    assert refused.startswith("the image cannot be decoded: ")
    assert why in refused
