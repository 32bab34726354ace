"""Data sets without a labelled test split: another split or a part of the training images is used, and reported."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import message
from test_data import assert_same_split, load, make_set, noise

from jaxcnn.runs.folder import resolve


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def pictures(n: int, seed: int, label: int | None = None) -> list[tuple[np.ndarray, int]]:
    return [(noise(8, 8, 3, seed=1000 * seed + i), i % 3 if label is None else label) for i in range(n)]


def keys(*images: np.ndarray) -> set[bytes]:
    return {image.tobytes() for split in images for image in split}


def test_a_share_of_the_training_images(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path, {"train": pictures(60, 0)})
    data = load(8, name="toys", dir=tmp_path, validation=0)
    told = "toys has no labelled test split: 12 of the 60 images of train (20 %, stratified) serve as one\n"
    assert capsys.readouterr().err == told
    assert data.test_origin == "12 of the 60 images of train (20 %, stratified)"
    assert np.bincount(data.train.labels).tolist() == [16] * 3
    assert np.bincount(data.test.labels).tolist() == [4] * 3
    assert len(keys(data.train.images, data.test.images)) == 60
    assert keys(data.train.images, data.test.images) == {image.tobytes() for image, _ in pictures(60, 0)}
    np.testing.assert_allclose(data.standardisation.mean, (data.train.images / 255).mean((0, 1, 2)), rtol=1e-13)
    # Every run tests on the same images, whatever its seed and size, and every run says so.
    other = load(8, seed=7, name="toys", dir=tmp_path)
    assert_same_split(other.test, data.test)
    assert other.validation is not None
    assert capsys.readouterr().err == told
    np.testing.assert_array_equal(load(16, name="toys", dir=tmp_path).test.labels, data.test.labels)
    assert resolve(other)["images"] == {"train": 43, "validation": 5, "test": 12}
    assert resolve(other)["test_origin"] == data.test_origin
    chosen = load(8, name="toys", dir=tmp_path, validation=0, classes=(2, 0))
    assert (len(chosen.train.labels), len(chosen.test.labels)) == (32, 8)


@pytest.mark.parametrize("name", ["validation", "val", "valid"])
def test_a_validation_split_serves(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path, {"train": pictures(30, 0), name: pictures(9, 1), "extra": pictures(6, 2)})
    data = load(8, name="toys", dir=tmp_path, validation=0)
    assert capsys.readouterr().err == f"toys has no labelled test split: the 9 images of {name} serve as one\n"
    assert data.test_origin == f"the 9 images of {name}"
    assert keys(data.train.images) == {image.tobytes() for image, _ in pictures(30, 0)}
    assert keys(data.test.images) == {image.tobytes() for image, _ in pictures(9, 1)}


def test_a_labelled_test_split_is_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path, {"train": pictures(30, 0), "validation": pictures(9, 1), "test": pictures(6, 2)})
    data = load(8, name="toys", dir=tmp_path)
    assert keys(data.test.images) == {image.tobytes() for image, _ in pictures(6, 2)}
    assert (data.test_origin, capsys.readouterr().err) == ("test", "")
    assert resolve(data)["test_origin"] == "test"


def test_an_unlabelled_test_split_does_not_serve(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unlabelled = pictures(6, 2, label=-1)
    make_set(tmp_path, {"train": pictures(30, 0), "validation": pictures(9, 1), "test": unlabelled}, name="a")
    make_set(tmp_path, {"train": pictures(30, 0), "test": unlabelled}, name="b")
    make_set(tmp_path, {"train": pictures(30, 0), "validation": unlabelled, "test": unlabelled}, name="c")
    for name, count in (("a", 9), ("b", 6), ("c", 6)):
        assert len(load(8, name=name, dir=tmp_path).test.labels) == count
        origin = "the 9 images of validation" if name == "a" else "6 of the 30 images of train (20 %, stratified)"
        assert capsys.readouterr().err == f"{name} has no labelled test split: {origin} serve as one\n"
    folder = make_set(tmp_path, {"train": pictures(30, 0), "test": unlabelled + pictures(3, 3)}, name="d")
    told = message(lambda: load(8, name="d", dir=tmp_path))
    assert told == f"{folder} has 6 images without a label in test; prepare it without them"
    folder = make_set(tmp_path, {"train": unlabelled + pictures(3, 3), "test": pictures(3, 4)}, name="e")
    told = message(lambda: load(8, name="e", dir=tmp_path))
    assert told == f"{folder} has 6 images without a label in train; choose another data set"


@pytest.mark.parametrize("name", ["full", "data", "test"])
def test_the_only_split_is_divided(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_set(tmp_path, {name: pictures(30, 0)})
    data = load(8, name="toys", dir=tmp_path, validation=0)
    assert (len(data.train.labels), len(data.test.labels)) == (24, 6)
    assert keys(data.train.images, data.test.images) == {image.tobytes() for image, _ in pictures(30, 0)}
    assert capsys.readouterr().err == (
        f"toys has no labelled test split: 6 of the 30 images of {name} (20 %, stratified) serve as one\n"
    )


def without(folder: Path, *splits: str) -> None:
    """Has a set's description say that these splits are empty."""
    info: dict[str, Any] = json.loads((folder / "dataset_info.json").read_text())
    for split in info["splits"]:
        if split["name"] in splits:
            split["shardLengths"] = []
    (folder / "dataset_info.json").write_text(json.dumps(info))


def test_splits_that_do_not_serve(tmp_path: Path) -> None:
    folder = make_set(tmp_path, {"full": pictures(9, 0), "extra": pictures(9, 1)}, name="a")
    told = message(lambda: load(8, name="a", dir=tmp_path))
    assert told == f"{folder} has images in extra, full; a split train is needed"
    folder = make_set(tmp_path, {"train": pictures(3, 0)}, name="b")
    told = message(lambda: load(8, name="b", dir=tmp_path))
    assert told == f"{folder} has no test split, and too few training images to test on some of them"
    folder = make_set(tmp_path, {"train": pictures(30, 0), "test": pictures(9, 1)}, name="c")
    without(folder, "test")
    assert len(load(8, name="c", dir=tmp_path).test.labels) == 6
    without(folder, "test", "train")
    told = message(lambda: load(8, name="c", dir=tmp_path))
    assert told == f"{folder} has images in no split; a split train is needed"
    folder = make_set(tmp_path, {"train": pictures(30, 0), "test": pictures(9, 1)}, name="d")
    without(folder, "train")
    told = message(lambda: load(8, name="d", dir=tmp_path))
    assert told == f"{folder} has images in test; a split train is needed"
