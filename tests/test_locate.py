"""Folders without a prepared set, or with one in another place: the message says what the folder is."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import message
from test_data import load, make_set, noise

from experiments.checks import make_archives as archives
from jaxcnn.data.locate import recognise
from jaxcnn.data.prepare import prepare


@pytest.fixture(autouse=True)
def no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def touch(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def photographs(folder: Path) -> None:
    for name in ("ant", "bee", "cow"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(noise(4, 4, 3)).save(folder / name / "1.JPG")


def by_split(folder: Path) -> None:
    for split in ("train", "val"):
        photographs(folder / split)


def hub_parquet(folder: Path) -> None:
    touch(folder / "README.md", folder / "data/train-00000-of-00001.parquet")


def saved_dict(folder: Path) -> None:
    (folder / "train").mkdir(parents=True)
    (folder / "dataset_dict.json").write_text('{"splits": ["train"]}')
    touch(folder / "train/state.json", folder / "train/dataset_info.json", folder / "train/data-00000-of-00001.arrow")


def saved_split(folder: Path) -> None:
    touch(folder / "state.json", folder / "dataset_info.json", folder / "data-00000-of-00001.arrow")


def hub_cache(folder: Path) -> None:
    touch(folder / "datasets--zalando--fashion_mnist/refs/main")


def mnist(folder: Path) -> None:
    touch(folder / "MNIST/raw/train-images-idx3-ubyte")


FOREIGN: dict[str, tuple[Callable[[Path], None], str]] = {
    "class folders": (photographs, "a folder of image files by class (ant, bee, cow)"),
    "splits of class folders": (by_split, "a folder of image files by split and class (train, val)"),
    "parquet": (hub_parquet, "a data set in Hugging Face's layout"),
    "saved dict": (saved_dict, "a data set in Hugging Face's layout"),
    "saved split": (saved_split, "a data set in Hugging Face's layout"),
    "hub cache": (hub_cache, "a data set in Hugging Face's layout"),
    "torchvision's MNIST": (mnist, "a folder of torchvision's archives of other sets"),
    "an info file": (
        lambda folder: touch(folder / "dataset_info.json"),
        "a folder with the dataset_info.json of another program",
    ),
}
BY_TFDS = "prepare it with a tfds builder that yields its images (file_format='array_record'), and give that folder"


@pytest.mark.parametrize("case", FOREIGN)
def test_layouts_of_other_programs(case: str, tmp_path: Path) -> None:
    make, what = FOREIGN[case]
    folder = tmp_path / "home/other"
    folder.mkdir(parents=True)
    make(folder)
    remedy = BY_TFDS
    if "image files" in what:
        remedy = f"give --data.name folder --data.dir {folder}"
    elif case in ("parquet", "saved dict", "saved split"):
        remedy = f"give --data.name hf:{folder}"
    before = sorted(folder.rglob("*"))
    for name in ("cifar10", "other"):  # the one would be prepared there
        told = message(lambda name=name: load(name=name, dir=folder))
        assert told == f"data.dir={folder} is {what}, where a folder of prepared sets is needed; {remedy}"
    told = message(lambda: load(8, name="other", dir=folder.parent))
    assert what in told
    told = message(lambda: prepare("svhn_cropped", tmp_path / "sets", folder))
    assert told.startswith(f"data.archives={folder} is {what} and holds no train_32x32.mat and no test_32x32.mat; down")
    assert sorted(folder.rglob("*")) == before
    assert not (tmp_path / "sets").exists()


def test_a_foreign_folder_of_the_sets_name_beside_prepared_sets(tmp_path: Path) -> None:
    pictures = [(noise(8, 8, 3, seed=i), i % 3) for i in range(9)]
    make_set(tmp_path, {"train": pictures, "test": pictures})
    photographs(tmp_path / "photos")
    told = message(lambda: load(8, name="photos", dir=tmp_path))
    assert told == (
        f"{tmp_path / 'photos'} is a folder of image files by class (ant, bee, cow), no prepared set; "
        f"give --data.name folder --data.dir {tmp_path / 'photos'}"
    )
    saved_split(tmp_path / "hub/1.0.0")
    (tmp_path / "hub/1.0.0/dataset_info.json").write_text('{"builder_name": "parquet", "splits": {}}')
    assert message(lambda: load(8, name="hub", dir=tmp_path)).startswith(
        f"{tmp_path / 'hub/1.0.0'} is no whole prepared data set: "
    )
    (tmp_path / "hub/1.0.0/dataset_info.json").unlink()
    assert message(lambda: load(8, name="hub", dir=tmp_path)) == (
        f"{tmp_path / 'hub/1.0.0'} is a data set in Hugging Face's layout, no prepared data set; "
        "choose another --data.dir"
    )
    assert "is not prepared in" in message(lambda: load(8, name="unknown", dir=tmp_path))


def test_folders_inside_a_prepared_set(tmp_path: Path) -> None:
    pictures = [(noise(8, 8, 3, seed=i), i % 3) for i in range(9)]
    make_set(tmp_path, {"train": pictures, "test": pictures})
    make_set(tmp_path, {"train": pictures, "test": pictures}, name="many", config="small")
    inside = {
        "toys": ("the folder of one prepared set", "toys"),
        "toys/1.0.0": ("one version of a prepared set", "toys:1.0.0"),
        "many": ("the folder of one prepared set", "many/small"),
        "many/small": ("the folder of one prepared set", "many/small"),
        "many/small/1.0.0": ("one version of a prepared set", "many/small:1.0.0"),
    }
    for path, (what, name) in inside.items():
        remedy = f"give --data.dir {tmp_path} --data.name {name}"
        for asked in ("toys", "cifar10", "many/small"):
            told = message(lambda asked=asked, path=path: load(8, name=asked, dir=tmp_path / path))
            assert told == f"data.dir={tmp_path / path} is {what}, where a folder of prepared sets is needed; {remedy}"
        told = message(lambda path=path: prepare("cifar10", tmp_path / "sets", tmp_path / path))
        assert told.startswith(f"data.archives={tmp_path / path} is {what} and holds no cifar-10-binary.tar.gz and no ")
        assert told.endswith(f"; {remedy}")
        assert len(load(8, name=name, dir=tmp_path).test.labels) == 9  # the advice is right
    told = message(lambda: prepare("cifar10", tmp_path / "sets", tmp_path))
    assert told.startswith(f"data.archives={tmp_path} is a folder of prepared sets and holds no cifar-10-binary.tar.gz")
    assert f"; give --data.dir {tmp_path}, or download " in told


def test_archives_given_as_prepared_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checksums = archives.write_official(tmp_path / "official", "cifar10", archives.cifar10())
    archives.write_python(tmp_path / "python", "cifar10", archives.cifar10(), unpacked=True)
    for folder in (tmp_path / "official", tmp_path / "python"):  # beside what else a folder of torchvision's has
        mnist(folder)
        (folder / "cifar-100-binary").mkdir()
    needed = "where a folder of prepared sets is needed"
    for folder in (tmp_path / "official", tmp_path / "python"):
        for name in ("cifar10", "svhn", "other"):
            told = message(lambda name=name, folder=folder: load(name=name, dir=folder))
            assert told == f"data.dir={folder} is a folder of archives, {needed}; give it by --data.archives {folder}"
    # With archives given, that is where they are kept and where the sets are prepared.
    monkeypatch.setattr(prepare, "__defaults__", (None, checksums))
    assert len(load(dir=tmp_path / "official", archives=tmp_path / "official").test.labels) == 20

    unpacked = tmp_path / "python/cifar-10-batches-py"
    told = message(lambda: load(dir=unpacked))
    assert told == (
        f"data.dir={unpacked} is an unpacked archive, {needed}; "
        f"give the folder that it is in: --data.archives {unpacked.parent}"
    )
    told = message(lambda: prepare("cifar10", tmp_path / "sets", unpacked))
    assert told.endswith(f"; give the folder that it is in: --data.archives {unpacked.parent}")
    (tmp_path / "binary/cifar-10-batches-bin").mkdir(parents=True)
    for folder in (tmp_path / "binary", tmp_path / "binary/cifar-10-batches-bin"):
        told = message(lambda folder=folder: prepare("cifar10", tmp_path / "sets", folder))
        assert told.startswith(f"data.archives={folder} is an unpacked archive and holds no cifar-10-binary.tar.gz and")
        assert told.endswith("; give a folder with cifar-10-binary.tar.gz by --data.archives")


def test_files_given_as_folders(tmp_path: Path) -> None:
    archive, other = tmp_path / "cifar-10-python.tar.gz", tmp_path / "photos.zip"
    touch(archive, other)
    needed = "where a folder of prepared sets is needed"
    into = f"give the folder that it is in: --data.archives {tmp_path}"
    assert message(lambda: load(dir=archive)) == f"data.dir={archive} is an archive, {needed}; {into}"
    told = message(lambda: prepare("cifar10", tmp_path / "sets", archive))
    assert told.startswith(f"data.archives={archive} is an archive and holds no cifar-10-binary.tar.gz")
    assert told.endswith(f"; {into}")
    told = message(lambda: load(name="other", dir=other))
    assert told == f"data.dir={other} is a file, {needed}; give a folder, such as {tmp_path}"
    told = message(lambda: load(name="other", dir=tmp_path / "gone"))
    assert told.startswith(f"data.name='other' is not prepared in {tmp_path / 'gone'}, a folder that does not exist; ")


def test_ordinary_folders_are_taken_as_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one/pictures").mkdir(parents=True)
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(tmp_path / "one/pictures/a.png")  # no classes
    touch(tmp_path / "one/b.png", tmp_path / "one/notes.txt", tmp_path / "one/downloads/x")
    for folder in (tmp_path, tmp_path / "one", tmp_path / "gone"):
        assert recognise(folder) is None

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert recognise(tmp_path) is None


def test_an_unreadable_description_does_not_hide_what_a_folder_is(tmp_path: Path) -> None:
    for text in ("{", "[]", json.dumps({"configName": 3})):
        (tmp_path / "set/1.0.0").mkdir(parents=True, exist_ok=True)
        (tmp_path / "set/1.0.0/dataset_info.json").write_text(text)
        mistaken = recognise(tmp_path / "set")
        assert mistaken is not None
        assert mistaken[:2] == ("the folder of one prepared set", f"give --data.dir {tmp_path} --data.name set")
