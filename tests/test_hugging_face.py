"""Data sets of Hugging Face's `datasets`, made here and read from local folders, as the extra [hf] allows."""

import sys
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image
from refusals import message
from test_data import noise

from jaxcnn.config import DataConfig
from jaxcnn.data import hugging_face
from jaxcnn.data.sets import load_dataset
from jaxcnn.data.splits import Dataset

IMAGES, LABELS = noise(12, 8, 8, 3), np.arange(12) % 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)


def rows(**other: Any) -> Any:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["ant", "bee", "cow"])}
    features |= {name: datasets.ClassLabel(num_classes=3) for name in other}
    columns = {"image": [Image.fromarray(each) for each in IMAGES], "label": LABELS.tolist(), **other}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def load(name: object, **settings: Any) -> Dataset:
    config = DataConfig(f"hf:{name}", **{"validation": 0, **settings})
    return load_dataset(config, input_size=8, in_channels=3, seed=0)


def save(kind: str, root: Path) -> Path:
    made = rows()
    if kind == "saved":
        datasets.DatasetDict({"train": made, "test": made.select(range(6))}).save_to_disk(root / "saved")
    elif kind == "parquet":
        made.to_parquet(root / "parquet/train-00000.parquet")
        made.select(range(6)).to_parquet(root / "parquet/test-00000.parquet")
    else:
        for split, count in (("train", 12), ("test", 6)):
            for i in range(count):
                place = root / "folder" / split / ("ant", "bee", "cow")[LABELS[i]]
                place.mkdir(parents=True, exist_ok=True)
                Image.fromarray(IMAGES[i]).save(place / f"{i:02}.png")
    return root / kind


@pytest.mark.parametrize("kind", ["saved", "parquet", "folder"])
def test_local_sets(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "parquet").mkdir()
    place = save(kind, tmp_path)
    found = load(place)
    assert (found.name, found.class_names, found.test_origin) == (kind, ("ant", "bee", "cow"), "test")
    order = np.argsort(LABELS, kind="stable") if kind == "folder" else np.arange(12)
    np.testing.assert_array_equal(found.train.images, IMAGES[order])
    assert found.train.labels.tolist() == LABELS[order].tolist()
    assert sorted(found.test.labels.tolist()) == sorted(LABELS[:6].tolist())
    with monkeypatch.context() as patch:
        patch.setattr(hugging_face, "_read", None)
        np.testing.assert_array_equal(load(place).train.images, found.train.images)


def test_columns_are_named_where_there_are_several(tmp_path: Path) -> None:
    rows(fine=LABELS[::-1].tolist()).save_to_disk(tmp_path / "two")
    told = message(lambda: load(tmp_path / "two"))
    assert "has the columns image (Image), label (ClassLabel), fine (ClassLabel)" in told
    assert told.endswith("name one by --data.label-column")
    assert load(tmp_path / "two", label_column="fine").class_names == ("0", "1", "2")
    assert "holds no images" in message(lambda: load(tmp_path / "two", label_column="fine", image_column="label"))


def test_what_cannot_be_had_is_named(tmp_path: Path) -> None:
    assert "cannot be had" in message(lambda: load("nobody/nothing"))
    (tmp_path / "file.txt").touch()
    assert "is a file; give a folder" in message(lambda: load(tmp_path / "file.txt"))
    made = rows().cast_column("image", datasets.Image(decode=False)).to_list()
    made[3]["image"]["bytes"] = b"broken"
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    datasets.Dataset.from_list(made, features=features).save_to_disk(tmp_path / "broken")
    assert "image 3 of hf:" in message(lambda: load(tmp_path / "broken"))
    assert len(load(tmp_path / "broken", skip_broken=True).train.labels) < 11


def test_numbers_are_classes_where_a_column_is_named_and_a_split_without_labels_is_left_out(tmp_path: Path) -> None:
    images = [Image.fromarray(each) for each in IMAGES]

    def numbered(labels: list[int], count: int = 12) -> Any:
        features = datasets.Features({"image": datasets.Image(), "kind": datasets.Value("int64")})
        return datasets.Dataset.from_dict({"image": images[:count], "kind": labels}, features=features)

    splits = {"train": numbered([10, 30] * 6), "test": numbered([-1] * 6, 6), "more": numbered([10] * 3, 3)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "numbers")
    found = load(tmp_path / "numbers", label_column="kind")
    assert found.class_names == ("10", "30")
    assert found.test_origin != "test"  # held out of train
    assert len(found.train.labels) + len(found.test.labels) == 12
    datasets.DatasetDict({**splits, "test": numbered([20] * 6, 6)}).save_to_disk(tmp_path / "other")
    told = message(lambda: load(tmp_path / "other", label_column="kind"))
    assert told.endswith("test has the label 20, which is no class of train")


def test_a_single_split_is_for_training_and_of_several_one_must_be(tmp_path: Path) -> None:
    datasets.DatasetDict({"all": rows()}).save_to_disk(tmp_path / "one")
    found = load(tmp_path / "one")
    assert len(found.train.labels) + len(found.test.labels) == 12
    datasets.DatasetDict({"a": rows(), "b": rows()}).save_to_disk(tmp_path / "two")
    assert message(lambda: load(tmp_path / "two")).endswith("has the splits a, b; a split train is needed")


def test_a_set_in_memory_is_read_without_a_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hugging_face, "_load", lambda *_: rows())
    found = load("memory")
    assert len(found.train.labels) + len(found.test.labels) == 12


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert message(lambda: load("any")).endswith("needs a package: pip install 'jaxcnn[hf]'")
