"""Images of every mode in a prepared set, and labels: read as what they are, or the one that cannot be is named."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from refusals import message
from test_data import assert_same_split, load, make_set, noise

from jaxcnn.data.decode import decode_image
from jaxcnn.data.images import fit_image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


CLASSES = tfds.features.ClassLabel(names=["ant", "bee", "cow"])
NAMED = {"picture": tfds.features.Image(), "kind": CLASSES, "file_name": tfds.features.Text()}
"""The features of a set whose records tell which file an image was."""


def files(folder: Path, images: dict[str, Image.Image]) -> list[tuple[str, int, dict[str, str]]]:
    """Image files as examples of `NAMED`, which are given to tfds as paths."""
    folder.mkdir(exist_ok=True)
    for name, image in images.items():
        image.save(folder / name)
    return [(str(folder / name), i % 3, {"file_name": name}) for i, name in enumerate(images)]


def pillow(path: Path, mode: str) -> bytes:
    """What a network of 8x8 RGB images gets of a file that Pillow opens and converts."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGBA").convert(mode) if image.mode == "P" else image.convert(mode))
    return fit_image(pixels, 8, 3).tobytes()


def test_paths_of_images_of_every_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rgb = [Image.fromarray(noise(9, 10, 3, seed=i)) for i in range(12)]
    sixteen = np.random.default_rng(0).integers(0, 65536, (2, 9, 10)).astype(np.uint16)
    modes = ("RGB", "RGB", "L", "LA", "RGBA", "CMYK", "1")
    images = {f"{i}.{'tif' if mode == 'CMYK' else 'png'}": rgb[i].convert(mode) for i, mode in enumerate(modes)}
    images |= {f"p{i}.png": rgb[i].quantize(50) for i in range(3)}
    images |= {f"s{i}.png": Image.fromarray(grey) for i, grey in enumerate(sixteen)}
    examples = files(tmp_path / "files", images)
    make_set(tmp_path, {"train": examples, "test": examples[:3]}, features=NAMED)
    data = load(8, name="toys", dir=tmp_path, validation=0)
    told = "1-bit to 8-bit grey (1), 16-bit grey to 8-bit grey (2), CMYK to RGB (1), RGBA to RGB (1), "
    told += "grey-alpha to 8-bit grey (1), palette to RGB (3)"
    assert capsys.readouterr().err == f"Converted images of toys train: {told}\n"
    found = {image.tobytes(): label for image, label in zip(data.train.images, data.train.labels, strict=True)}
    wanted = {}
    for path, label, _ in examples:
        if Path(path).name.startswith("s"):
            pixels = fit_image((sixteen[int(Path(path).stem[1:])] >> 8).astype(np.uint8), 8, 3).tobytes()
        else:
            pixels = pillow(Path(path), "L" if Path(path).stem in ("2", "3", "6") else "RGB")
        wanted[pixels] = label
    assert found == wanted
    assert len(wanted) == 12
    assert_same_split(load(8, name="toys", dir=tmp_path, validation=0).train, data.train)
    assert capsys.readouterr().err == ""  # from the cache


def test_one_image_that_cannot_be_used_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = {f"{i}.png": Image.fromarray(noise(8, 8, seed=i)) for i in range(5)}
    good = files(tmp_path / "files", grey)
    odd = tmp_path / "files/odd.png"

    def refusal(version: str, channels: int = 3) -> str:
        folder = make_set(
            tmp_path,
            {"train": [*good, (str(odd), 0, {"file_name": "odd.png"})], "test": good},
            features=NAMED,
            version=version,
        )
        source = tfds.builder_from_directory(folder).as_data_source(
            "train", decoders={"picture": tfds.decode.SkipDecoding()}
        )
        at = [example["file_name"] for example in source].index(b"odd.png")
        told = message(lambda: load(8, channels, name=f"toys:{version}", dir=tmp_path))
        assert f"image {at} of train (file_name odd.png)" in told
        return told.replace(f"{folder}: image {at} of train (file_name odd.png)", "IMAGE")

    odd.write_bytes((tmp_path / "files/0.png").read_bytes()[:-40])
    assert refusal("1.0.0").startswith("IMAGE cannot be decoded: image file is truncated")
    odd.write_bytes(b"<!DOCTYPE html>")
    assert refusal("1.0.1").startswith("IMAGE cannot be decoded: it is no whole image of PNG")
    Image.fromarray(np.full((8, 8), np.nan, np.float32)).save(odd, "TIFF")
    assert refusal("1.0.2") == ("IMAGE cannot be decoded: its values are floats of unknown range; replace or remove it")
    Image.fromarray(noise(8, 8, 3)).save(odd)
    assert "the images are RGB, but model.in_channels=1; give 3" in refusal("1.0.3", channels=1)
    Image.fromarray(noise(40, 40)).save(odd)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert "decompression bomb" in refusal("1.0.4")


def test_features_of_other_kinds(tmp_path: Path) -> None:
    sixteen = np.random.default_rng(0).integers(0, 65536, (6, 8, 8)).astype(np.uint16)
    examples = files(tmp_path / "files", {f"{i}.png": Image.fromarray(image) for i, image in enumerate(sixteen)})
    for example in examples:
        example[2]["mask"] = b"no image"  # what is not trained on is not decoded
    features = {
        **NAMED,
        "picture": tfds.features.Image(shape=(None, None, 1), dtype=np.uint16),
        "mask": tfds.features.Image(),
    }
    folder = make_set(tmp_path, {"train": examples, "test": examples}, features=features)
    data = load(8, 1, name="toys", dir=tmp_path, validation=0)
    found = {image.tobytes() for image in data.train.images}
    assert found == {(image >> 8).astype(np.uint8).tobytes() for image in sixteen}
    description = (folder / "features.json").read_text()
    (folder / "features.json").write_text(description.replace('"uint16"', '"float32"'))
    told = message(lambda: load(8, 1, name="toys", dir=tmp_path))
    assert told == (
        f"{folder} has images of float32 values and shape (None, None, 1); "
        "prepare it again with uint8 or uint16 images (height, width, channels)"
    )
    features = {"picture": tfds.features.Image(shape=(None, None, None, 3)), "kind": CLASSES}
    make_set(tmp_path, {"train": [(b"GIF", 0)], "test": [(b"GIF", 0)]}, features=features, name="films")
    assert "of uint8 values and shape (None, None, None, 3)" in message(lambda: load(8, name="films", dir=tmp_path))


@pytest.mark.parametrize("label", [3, -2, 2**31, 2**40, -(2**32)])
def test_labels_beyond_the_classes_are_refused(label: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tfds.features.ClassLabel, "encode_example", lambda _, value: value)  # or tfds refuses it
    pictures = [(noise(8, 8, 3, seed=i), i % 3) for i in range(8)]
    folder = make_set(tmp_path, {"train": [*pictures, (noise(8, 8, 3), label)], "test": pictures})
    labels = [example["kind"] for example in tfds.builder_from_directory(folder).as_data_source("train")]
    told = message(lambda: load(8, name="toys", dir=tmp_path))
    at = labels.index(label)
    assert (
        told == f"{folder}: image {at} of train has the label {label}, but there are 3 classes; prepare the set again"
    )


def test_names_of_classes_are_utf_8_whatever_the_locale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["Äpfel", "Öl", "日本"]
    features = {"picture": tfds.features.Image(), "kind": tfds.features.ClassLabel(names=names)}
    pictures = [(noise(8, 8, 3, seed=i), i % 3) for i in range(9)]
    make_set(tmp_path, {"train": pictures, "test": pictures}, features=features)

    def text(read: Any) -> Any:
        def checked(*args: Any, encoding: str | None = None, **options: Any) -> Any:
            assert encoding == "utf-8"
            return read(*args, encoding=encoding, **options)

        return checked

    # Under another locale, tfds fails to read the names, which it passes over.
    monkeypatch.setattr(tfds.features.ClassLabel, "load_metadata", lambda *_, **__: None)
    for method in ("read_text", "write_text"):
        monkeypatch.setattr(Path, method, text(getattr(Path, method)))
    for _ in ("read", "cached"):
        assert load(8, name="toys", dir=tmp_path).class_names == tuple(names)


def test_the_pixels_of_a_path_are_those_of_its_bytes(tmp_path: Path) -> None:
    examples = files(tmp_path / "files", {"a.png": Image.fromarray(noise(8, 8, 3)).quantize(30)})
    path = Path(examples[0][0])
    np.testing.assert_array_equal(decode_image(path, "x").pixels, decode_image(path.read_bytes(), "x").pixels)
