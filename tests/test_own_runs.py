"""Runs on a user's own images: as on a prepared set of the same images, and as the target of a transfer."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import message
from test_data import make_set, noise
from tiny_run import TINY, assert_same_run, rows

from jaxcnn.cli import transfer
from jaxcnn.config import DataConfig, TrainConfig
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.runs.run import run_experiment

CLASSES = ("ant", "bee", "cow")  # as make_set names them


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
def test_a_run_on_a_folder_is_one_on_a_prepared_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxcnn.runs.run.present", lambda *_: None)  # pictures take long
    counts = {"train": (40, 30, 10), "test": (6, 6, 6)}
    splits: dict[str, list[tuple[np.ndarray, int]]] = {}
    for seed, (split, numbers) in enumerate(counts.items()):
        for label, count in enumerate(numbers):
            place = tmp_path / "shapes" / split / CLASSES[label]
            place.mkdir(parents=True)
            for i in range(count):
                image = noise(8, 8, seed=1000 * seed + 100 * label + i)
                Image.fromarray(image).save(place / f"{i:02}.png")
                splits.setdefault(split, []).append((image, label))
    make_set(tmp_path / "tfds", splits, name="shapes", shape=(None, None, 1), in_order=True)
    train = TrainConfig(epochs=1, batch_size=32, class_weights="balanced")
    for runs, data in (
        ("one", DataConfig("folder", dir=tmp_path / "shapes", augment="none")),
        ("other", DataConfig("shapes", dir=tmp_path / "tfds", augment="none")),
    ):
        run_experiment(replace(TINY, runs_dir=tmp_path / runs, name="", data=data, train=train))
    assert "training images by class: ant 36, bee 27, cow 9" in capsys.readouterr().out
    one, other = tmp_path / "one/shapes", tmp_path / "other/shapes"
    assert_same_run(one, other)
    scores = rows(one / "classes.csv")
    assert scores == rows(other / "classes.csv")
    assert [row["images"] for row in scores] == ["6"] * 3
    wanted = np.mean([float(row["accuracy"]) for row in scores])
    assert read_summary(one / "summary.json")["balanced_accuracy"] == pytest.approx(wanted)
    assert read_json(one / "config.json")["resolved"]["origin"] == str(tmp_path / "shapes")


def test_a_path_is_a_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my flowers").mkdir()
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "a.npz").touch()
    monkeypatch.chdir(tmp_path)
    for given, (name, place) in {
        "my flowers": ("folder", "my flowers"),
        str(tmp_path / "my flowers"): ("folder", tmp_path / "my flowers"),
        "a.npz": ("npz", "a.npz"),
        "cifar100": ("cifar100", None),
        "beans": ("beans", None),
    }.items():
        (config,), *_ = transfer.parse(["--target", given])
        assert (config.data.name, config.data.dir) == (name, None if place is None else Path(place))
    (config,), *_ = transfer.parse(["--target", "my flowers"])
    assert config.name == "transfer_cifar10_to_my_flowers_full"
    (config,), *_ = transfer.parse(["--data.name", "folder", "--data.dir", "my flowers", "--mask", "frozen"])
    assert config.name == "transfer_cifar10_to_my_flowers_frozen"
    (config,), *_ = transfer.parse(["--target", "cifar100", "--data.dir", "my flowers"])
    assert (config.data.name, config.data.dir) == ("cifar100", Path("my flowers"))
    assert "contradicts" in message(lambda: transfer.parse(["--target", "my flowers", "--data.name", "svhn"]))


def test_titles_are_those_of_folders_and_files(tmp_path: Path) -> None:
    for config, title in (
        (DataConfig("cifar10"), "cifar10"),
        (DataConfig("folder", dir=tmp_path / "two words"), "two_words"),
        (DataConfig("npz", dir=tmp_path / "blood.npz"), "blood"),
        (DataConfig("hf:user/name:plain"), "name_plain"),
        (DataConfig("hf:/a/b/"), "b"),
        (DataConfig("folder", dir=Path("/")), "images"),
    ):
        assert config.title == title
