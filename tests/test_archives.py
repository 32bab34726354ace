"""Hostile, damaged and wrong archives, read with a matching checksum: refused, without side effects."""

import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from refusals import message

from experiments.checks import make_archives as archives
from jaxcnn.data import archives as module
from jaxcnn.data.archives import CIFAR10, read_cifar_binary, read_cifar_python, read_svhn


def member(name: str, size: int = 0, **fields: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.size = size
    for field, value in fields.items():
        setattr(info, field, value)
    return info


def refused_tar(path: Path, *extra: tuple[tarfile.TarInfo, bytes], without: str = "") -> str:
    members = archives.binary_members(archives.cifar10(2))
    good = [(member(name, len(data)), data) for name, data in members.items() if not name.endswith(without or "-")]
    archives.write_tar(path, [*extra, *good])
    return message(lambda: read_cifar_binary(path, CIFAR10))


FOLDER = "cifar-10-batches-bin"


@pytest.mark.parametrize(
    "bad",
    [
        member("../escape.bin"),
        member(f"{FOLDER}/../../escape.bin"),
        member("/etc/escape.bin"),
        member("elsewhere/data_batch_1.bin"),
        member(f"{FOLDER}/data_batch_1.bin", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member(f"{FOLDER}/data_batch_1.bin", type=tarfile.LNKTYPE, linkname="test_batch.bin"),
        member(f"{FOLDER}/device", type=tarfile.CHRTYPE),
        member(f"{FOLDER}/fifo", type=tarfile.FIFOTYPE),
        member(
            f"{FOLDER}/data_batch_1.bin",
            pax_headers={"GNU.sparse.size": "99999999999", "GNU.sparse.map": "0,0"},
        ),
    ],
    ids=lambda info: f"{info.name}-{info.type!r}",
)
def test_members_that_do_not_belong(bad: tarfile.TarInfo, tmp_path: Path) -> None:
    told = refused_tar(tmp_path / "a.tar.gz", (bad, b""))
    assert told.startswith(f"{tmp_path / 'a.tar.gz'} is not usable: its member {bad.name!r} does not belong")
    assert told.endswith("delete it and download it again")


def test_a_member_twice_or_not_at_all(tmp_path: Path) -> None:
    twice = member(f"{FOLDER}/test_batch.bin", 3073)
    assert "does not belong" in refused_tar(tmp_path / "a.tar.gz", (twice, bytes(3073)))
    told = refused_tar(tmp_path / "b.tar.gz", without="data_batch_4.bin")
    assert f"it lacks {FOLDER}/data_batch_4.bin" in told


@pytest.mark.parametrize("size", [0, 3072, 3074, 3073 * 2 - 1])
def test_batches_that_are_no_whole_images(size: int, tmp_path: Path) -> None:
    batch = member(f"{FOLDER}/data_batch_1.bin", size)
    told = refused_tar(tmp_path / "a.tar.gz", (batch, bytes(size)), without="data_batch_1.bin")
    assert f"{size} bytes in data_batch_1.bin are no whole number of images" in told


def test_labels_and_names_out_of_range(tmp_path: Path) -> None:
    batch = member(f"{FOLDER}/data_batch_1.bin", 3073)
    told = refused_tar(tmp_path / "a.tar.gz", (batch, b"\x0a" + bytes(3072)), without="data_batch_1.bin")
    assert "the labels of train are not 0 to 9" in told
    names = member(f"{FOLDER}/batches.meta.txt", 4)
    told = refused_tar(tmp_path / "b.tar.gz", (names, b"cat\n"), without="batches.meta.txt")
    assert "it does not name 10 classes" in told


def test_bombs_are_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST", 1_000_000)
    told = refused_tar(tmp_path / "a.tar.gz", (member(f"{FOLDER}/readme", 2_000_000), bytes(2_000_000)))
    assert "it holds more than 1,000,000 bytes" in told
    # A size that the archive declares but does not hold.
    path = tmp_path / "b.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        assert tar.fileobj is not None
        tar.fileobj.write(member(f"{FOLDER}/data_batch_1.bin", 2**40).tobuf())
    assert "unexpected end of data" in message(lambda: read_cifar_binary(path, CIFAR10))


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.999])
def test_truncated_and_foreign_tars(keep: float, tmp_path: Path) -> None:
    path = archives.write_tar(tmp_path / "a.tar.gz", archives.binary_members(archives.cifar10(2)))
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    assert "a.tar.gz is not usable" in message(lambda: read_cifar_binary(path, CIFAR10))
    path.write_bytes(b"<html>not found</html>")
    assert "a.tar.gz is not usable" in message(lambda: read_cifar_binary(path, CIFAR10))


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


def refused_batch(folder: Path, batch: bytes) -> str:
    members = archives.python_members(archives.cifar10(2))
    home = folder / "cifar-10-batches-py"
    for name, content in members.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(archives.python2_pickle(content))
    (home / "data_batch_2").write_bytes(batch)
    told = message(lambda: read_cifar_python(home, CIFAR10))
    archives.write_tar(folder / "a.tar.gz", {f"{home.name}/{p.name}": p.read_bytes() for p in home.iterdir()})
    assert message(lambda: read_cifar_python(folder / "a.tar.gz", CIFAR10)).endswith(told[len(str(home)) :])
    return told


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_run_nothing(protocol: int, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    told = refused_batch(tmp_path, pickle.dumps({"data": Canary(canary)}, protocol))
    assert told.startswith(f"{tmp_path}/cifar-10-batches-py: data_batch_2 is not usable: it names ")
    assert "open, which no CIFAR batch does" in told
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary), protocol)).close()
    assert canary.exists()  # the canary sings where nothing stops it


@pytest.mark.parametrize(
    "named",
    [
        b"cos\nsystem\n",
        b"cbuiltins\neval\n",
        b"cnumpy\nload\n",
        b"cnumpy.core.multiarray\nscalar\n",
        b"c_codecs\ndecode\n",
    ],
)
def test_pickles_name_nothing_but_arrays(named: bytes, tmp_path: Path) -> None:
    told = refused_batch(tmp_path, b"\x80\x02" + named + b"(U\x04trueR.")
    assert f"it names {'.'.join(named.decode()[1:].split())}, which no CIFAR batch does" in told


def batch_of(data: object, labels: object = (0, 1)) -> bytes:
    return pickle.dumps({"data": data, "labels": list(labels) if isinstance(labels, tuple) else labels}, 2)


@pytest.mark.parametrize(
    ("batch", "why"),
    [
        (b"", "EOFError"),
        (b"\x80\x02}q", ""),
        (b"\x80\x02]r\xff\xff\xff\x7f.", "it is no dict"),
        (b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x0f.", ""),
        (b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x0f.", ""),
        (b"c_codecs\nencode\n(Vtext\nVbz2\ntR.", "it asks for the encoding 'bz2'"),
        (pickle.dumps([1, 2]), "it is no dict"),
        (pickle.dumps({}), "its data is no array of bytes with rows of 3072"),
        (batch_of([[0] * 3072] * 2), "its data is no array"),
        (batch_of(np.zeros((2, 3073), np.uint8)), "its data is no array"),
        (batch_of(np.zeros((2, 3072), np.float32)), "its data is no array"),
        (batch_of(np.zeros((2, 3072), np.int8)), "its data is no array"),
        (batch_of(np.asfortranarray(np.zeros((2, 3072), np.uint8))), "its data is no array"),
        (batch_of(np.zeros((0, 3072), np.uint8)), ""),
        (batch_of(np.zeros((2, 3072), object)), "its data is no array"),
        (batch_of(np.zeros((2, 3072), np.uint8), None), "its labels are missing or no plain list"),
        (batch_of(np.zeros((2, 3072), np.uint8), ("a", "b")), "its labels are missing or no plain list"),
        (batch_of(np.zeros((2, 3072), np.uint8), (1,)), "the labels of train are not 0 to 9, one an image"),
        (batch_of(np.zeros((2, 3072), np.uint8), (0, 10)), "the labels of train are not 0 to 9"),
        (batch_of(np.zeros((2, 3072), np.uint8), (0, -1)), "the labels of train are not 0 to 9"),
        (batch_of(np.zeros((2, 3072), np.uint8), (0, 2**80)), "the labels of train are not 0 to 9"),
    ],
)
def test_damaged_pickles(batch: bytes, why: str, tmp_path: Path) -> None:
    told = refused_batch(tmp_path, batch)
    assert "is not usable: " in told
    assert why in told


@pytest.mark.parametrize("keep", [0, 1, 100, 0.5, 0.999])
@pytest.mark.parametrize("compressed", [True, False])
def test_truncated_mats(keep: float, compressed: bool, tmp_path: Path) -> None:
    from scipy.io import savemat

    path = tmp_path / "train_32x32.mat"
    images, digits = archives.svhn()["train"]["image"], np.ones((30, 1), np.uint8)
    savemat(path, {"X": np.moveaxis(images, 0, -1), "y": digits}, do_compression=compressed)
    data = path.read_bytes()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(len(data) * keep)])
    told = message(lambda: read_svhn(path))
    assert told.startswith(f"{path} is not usable: ")
    assert told.endswith("delete it and download it again")


@pytest.mark.parametrize(
    ("x", "y", "why"),
    [
        (np.zeros((32, 32, 3, 2), np.uint8), np.ones((3, 1)), "not uint8 (32, 32, 3, N) and (N, 1)"),
        (np.zeros((32, 32, 3, 2), np.float64), np.ones((2, 1)), "X is double"),
        (np.zeros((2, 32, 32, 3), np.uint8), np.ones((2, 1)), "not uint8 (32, 32, 3, N)"),
        (np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [11]]), "y holds more than the digits 1 to 10"),
        (np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [0]]), "y holds more than the digits 1 to 10"),
        (np.zeros((32, 32, 3, 2), np.uint8), np.array([[1], [1.5]]), "y holds more than the digits 1 to 10"),
        (np.zeros((32, 32, 3, 2), np.uint8), np.array([["a"], ["b"]], object), "y holds more than"),
        (None, np.ones((2, 1)), "not uint8"),
    ],
)
def test_mats_of_something_else(x: Any, y: Any, why: str, tmp_path: Path) -> None:
    from scipy.io import savemat

    path = tmp_path / "test_32x32.mat"
    savemat(path, {"y": y} if x is None else {"X": x, "y": y})
    assert why in message(lambda: read_svhn(path))


def test_mats_that_declare_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LARGEST", 3072 * 10)
    archives.write_mat(tmp_path / "a.mat", archives.svhn()["train"])
    assert "not uint8 (32, 32, 3, N)" in message(lambda: read_svhn(tmp_path / "a.mat"))
