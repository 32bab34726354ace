"""Prepared sets and their cache: what is damaged is named, or made again."""

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import message
from test_data import assert_same_split, load

from experiments.checks import make_archives as archives
from jaxcnn.data import reader
from jaxcnn.data.prepare import prepare


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/jaxcnn"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A prepared CIFAR-10 that a test may spoil; its folder is own/cifar10/3.0.2."""
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10())
    prepare("cifar10", tmp_path / "own", tmp_path / "archives", checksums)
    return tmp_path / "own"


# Damaged prepared sets.

TRAIN = "cifar10-train.array_record-00000-of-00001"


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        (TRAIN, None),
        (TRAIN, lambda data: b""),
        (TRAIN, lambda data: data[: len(data) // 2]),
        (TRAIN, lambda data: data[:1000] + bytes(1000) + data[2000:]),
        ("cifar10-test.array_record-00000-of-00001", None),
        ("dataset_info.json", None),
        ("dataset_info.json", lambda data: b"{"),
        ("dataset_info.json", lambda data: b"\xff\xfe"),
        ("dataset_info.json", lambda data: b"{}"),
        ("dataset_info.json", lambda data: data.replace(b'"100"', b'"101"')),
        ("features.json", None),
        ("features.json", lambda data: b"[]"),
    ],
)
def test_damaged_sets_are_named(file: str, spoil: Callable[[bytes], bytes] | None, own: Path) -> None:
    load(dir=own)
    path = own / "cifar10/3.0.2" / file
    data = path.read_bytes()
    path.unlink()
    if spoil is not None:
        path.write_bytes(spoil(data))
        assert path.read_bytes() != data
    told = message(lambda: load(dir=own))
    assert told.startswith(f"{path.parent} is no whole prepared data set: ")
    assert told.endswith("; delete the folder and have it prepared again")


@pytest.mark.parametrize(
    ("file", "data", "what"),
    [
        (TRAIN, None, f"{TRAIN} is missing"),
        (TRAIN, b"", f"{TRAIN} is empty"),
        ("dataset_info.json", b'{"builder_name": "cifar10"}', "its dataset_info.json is another program's"),
        ("dataset_info.json", b"[]", "its dataset_info.json is another program's"),
        ("label.labels.txt", b"cat\ndog\n", "label.labels.txt names 2 classes of 10"),
    ],
)
def test_what_is_wrong_with_a_set_is_told(file: str, data: bytes | None, what: str, own: Path) -> None:
    path = own / "cifar10/3.0.2" / file
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    told = message(lambda: load(dir=own))
    assert told == (
        f"{path.parent} is no whole prepared data set: {what}; delete the folder and have it prepared again"
    )


def test_a_set_that_does_not_fit_in_memory_is_not_called_damaged(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(reader.np, "empty", refuse)
    with pytest.raises(MemoryError):
        load(dir=own)


@pytest.mark.parametrize("stored", ["tfrecord", "riegeli"])
def test_formats_that_need_tensorflow(stored: str, own: Path) -> None:
    info = own / "cifar10/3.0.2/dataset_info.json"
    info.write_text(info.read_text().replace("array_record", stored))
    told = message(lambda: load(dir=own))
    assert told.startswith(f"{info.parent} is stored as {stored}, which only TensorFlow reads; prepare it again")


# The cache.


def refuse_to_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: object) -> None:
        raise AssertionError("the cache was not used")

    monkeypatch.setattr(reader, "_read", read)


def test_the_second_time_images_are_mapped(own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(dir=own, validation=0)
    (entry,) = cache.iterdir()
    refuse_to_read(monkeypatch)
    second = load(dir=own, validation=0)
    assert isinstance(second.train.images.base, np.memmap)
    assert not isinstance(second.train.images, np.memmap)
    assert not second.train.images.flags.writeable
    for split in ("train", "test"):
        assert_same_split(getattr(second, split), getattr(first, split))
    assert (second.class_names, second.standardisation) == (first.class_names, first.standardisation)
    monkeypatch.chdir(own.parent)
    assert_same_split(load(dir=Path(own.name), validation=0).test, first.test)
    assert entry.name.startswith("cifar10-32x32x3-")


def test_the_cache_follows_the_prepared_set(own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load(dir=own)
    load(16, dir=own)
    assert len(list(cache.iterdir())) == 2
    before = load(dir=own, validation=0)
    shard = own / "cifar10/3.0.2" / TRAIN
    os.utime(shard, ns=(0, 0))
    with monkeypatch.context() as patch:
        refuse_to_read(patch)
        with pytest.raises(AssertionError, match="the cache was not used"):
            load(dir=own)
    checksums = archives.write_official(own.parent / "b", "cifar10", archives.cifar10(30))
    other = prepare("cifar10", own.parent / "other", own.parent / "b", checksums)
    (own / "cifar10/3.0.2").rename(own.parent / "away")
    other.rename(own / "cifar10/3.0.2")
    after = load(dir=own, validation=0)
    assert (len(before.train.labels), len(after.train.labels)) == (100, 150)
    assert len(list(cache.iterdir())) == 2  # the outdated entry was replaced


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "meta.json"])
@pytest.mark.parametrize("keep", [None, 0, 10, 100])
def test_a_damaged_cache_is_rebuilt(file: str, keep: int | None, own: Path, cache: Path) -> None:
    first = load(dir=own, validation=0)
    (entry,) = cache.iterdir()
    path = entry / file
    data = path.read_bytes()
    path.unlink()
    if keep is not None:
        path.write_bytes(data[:keep])
    assert_same_split(load(dir=own, validation=0).train, first.train)
    assert path.read_bytes() == data
    assert [each.name for each in cache.iterdir()] == [entry.name]


@pytest.mark.parametrize(
    ("at", "byte"),
    [
        (10, b'"'),
        (10, b"("),
        (22, b"f"),
        (-1, b"\x7f"),
        (-4, b"\x0b"),
    ],  # header without end; float32; labels 2**31 and 11
)
def test_a_cache_of_the_right_size_and_of_other_contents_is_rebuilt(
    at: int, byte: bytes, own: Path, cache: Path
) -> None:
    first = load(dir=own, validation=0)
    (entry,) = cache.iterdir()
    path = entry / "test_labels.npy"
    data = bytearray(path.read_bytes())
    data[at] = byte[0]
    path.write_bytes(data)
    assert_same_split(load(dir=own, validation=0).test, first.test)
    assert path.read_bytes() != data


@pytest.mark.parametrize("meta", ["null", "[]", "{}", '{"fingerprint": 0, "sizes": 3}', "[" * 100_000])
def test_a_foreign_meta_file_is_no_cache(meta: str, own: Path, cache: Path) -> None:
    first = load(dir=own, validation=0)
    (entry,) = cache.iterdir()
    (entry / "meta.json").write_text(meta)
    assert_same_split(load(dir=own, validation=0).train, first.train)
    assert json.loads((entry / "meta.json").read_text())["class_names"][3] == "cat"


def test_a_cache_that_cannot_be_written(
    own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    cache.parent.write_text("a file where the folder should be")
    data = load(dir=own, validation=0)
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith(f"The decoded images are not cached in {cache}: ")
    cache.parent.unlink()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", full)
        assert_same_split(load(dir=own, validation=0).train, data.train)
    assert "No space left on device" in capfd.readouterr().err
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize(("umask", "folder", "file"), [(0o027, 0o750, 0o640), (0o002, 0o775, 0o664), (0, 0o777, 0o666)])
def test_others_may_do_with_the_cache_what_the_umask_says(
    umask: int, folder: int, file: int, own: Path, cache: Path
) -> None:
    before = os.umask(umask)
    try:
        load(dir=own)
    finally:
        os.umask(before)
    (entry,) = cache.iterdir()
    assert {path.stat().st_mode & 0o777 for path in (cache, entry)} == {folder}
    assert {path.stat().st_mode & 0o777 for path in entry.iterdir()} == {file}


@pytest.mark.parametrize("unreadable", ["meta.json", "test_images.npy"])
def test_a_cache_that_may_not_be_read(
    unreadable: str, own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    first = load(dir=own, validation=0)
    (entry,) = cache.iterdir()
    files = {path: path.stat().st_ino for path in entry.iterdir()}
    stat = Path.stat

    def refuse(path: Path, **options: Any) -> os.stat_result:  # to root, everything is readable
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    with monkeypatch.context() as patch:
        opener = Path.read_text if unreadable == "meta.json" else np.load
        where = (Path, "read_text") if unreadable == "meta.json" else (np, "load")

        def open_or_refuse(path: Path, *args: Any, **options: Any) -> Any:
            return refuse(path) if Path(path) == entry / unreadable else opener(path, *args, **options)

        patch.setattr(*where, open_or_refuse)
        assert_same_split(load(dir=own, validation=0).train, first.train)
    assert capfd.readouterr().err == (
        f"The decoded images cached in {cache} cannot be read: "
        f"[Errno 13] Permission denied: '{entry / unreadable}'; they are decoded again\n"
    )
    assert {path: stat(path).st_ino for path in entry.iterdir()} == files
    assert [each.name for each in cache.iterdir()] == [entry.name]


def test_an_outdated_cache_of_another_user_stays(
    own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    load(dir=own)
    (entry,) = cache.iterdir()
    meta = (entry / "meta.json").read_bytes()
    os.utime(own / "cifar10/3.0.2" / TRAIN, ns=(0, 0))
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != entry)
    assert len(load(dir=own, validation=0).train.labels) == 100
    assert capfd.readouterr().err == (
        f"The decoded images are not cached in {cache}: [Errno 13] outdated, and another user's: '{entry}'\n"
    )
    assert (entry / "meta.json").read_bytes() == meta
    assert [each.name for each in cache.iterdir()] == [entry.name]


@pytest.mark.parametrize("moment", ["images are saved", "the old one is moved", "the new one is moved"])
@pytest.mark.parametrize("outdated", [False, True])
def test_two_processes_that_write_the_same_cache(
    moment: str,
    outdated: bool,
    own: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    if outdated:
        load(dir=own)
        os.utime(own / "cifar10/3.0.2" / TRAIN, ns=(0, 0))
    save, replace, moves = np.save, os.replace, 0

    def other() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(np, "save", save)
            patch.setattr(os, "replace", replace)
            load(dir=own)

    def save_beside(path: Path, array: np.ndarray) -> None:
        save(path, array)
        if path.name == "test_images.npy" and moment == "images are saved":
            other()

    def replace_beside(source: Path, target: Path) -> None:
        nonlocal moves
        moves += 1
        if moves == ["", "the old one is moved", "the new one is moved"].index(moment):
            other()
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", save_beside)
        patch.setattr(os, "replace", replace_beside if moment != "images are saved" else replace)
        first = load(dir=own, validation=0)
    assert capfd.readouterr() == ("", "")
    assert len(list(cache.iterdir())) == 1
    refuse_to_read(monkeypatch)
    assert_same_split(load(dir=own, validation=0).train, first.train)


def test_an_interrupted_write_leaves_no_cache(own: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = np.save

    def interrupt(path: Path, array: np.ndarray) -> None:
        save(path, array)
        if path.name == "test_images.npy":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "save", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load(dir=own)
    assert list(cache.iterdir()) == []
    assert len(load(dir=own, validation=0).train.labels) == 100


def test_loading_says_nothing(own: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(dir=own)
    assert capfd.readouterr() == ("", "")
