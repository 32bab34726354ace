"""The tfds builders: equal to stock tfds, and closed to what is not the official archives."""

import contextlib
import functools
import io
import json
import pickle
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from refusals import message
from tensorflow_datasets.core.features import image_feature
from tensorflow_datasets.image_classification import cifar

from experiments.checks import make_archives as archives
from jaxcnn.data.official import CHECKSUMS, SETS
from jaxcnn.data.prepare import Builder, prepare
from jaxcnn.data.sets import _PREPARABLE
from jaxcnn.errors import InputError

BATCHES = {"cifar10": archives.cifar10, "cifar100": archives.cifar100, "svhn_cropped": archives.svhn}
VERSIONS = {"cifar10": "3.0.2", "cifar100": "3.0.2", "svhn_cropped": "3.1.0"}


def as_stock_reads(name: str, data_dir: Path) -> dict[str, list[dict[str, Any]]]:
    sources = tfds.builder(name, data_dir=data_dir).as_data_source()
    return {split: list(source) for split, source in sources.items() if split != "extra"}


def assert_same_sets(name: str, one: Path, other: Path) -> None:
    """Compares what stock tfds reads, not bytes: protobuf orders a record's features as it pleases."""
    found, wanted = as_stock_reads(name, one), as_stock_reads(name, other)
    assert found.keys() == wanted.keys()
    for split, examples in wanted.items():
        assert [e["id"] for e in found[split]] == [e["id"] for e in examples]
        for mine, example in zip(found[split], examples, strict=True):
            assert mine.keys() == example.keys()
            for feature in example:
                np.testing.assert_array_equal(mine[feature], example[feature])
    folders = [data_dir / name / VERSIONS[name] for data_dir in (one, other)]
    files = [sorted(path.name for path in folder.iterdir() if "extra" not in path.name) for folder in folders]
    assert files[0] == files[1]
    for file in files[0]:
        texts = [(folder / file).read_text() for folder in folders if "array_record" not in file]
        if file == "features.json":
            assert json.loads(texts[0]) == json.loads(texts[1])
        elif file.endswith(".txt"):
            assert texts[0] == texts[1]


def prepare_by_stock(name: str, data_dir: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs tfds's own builder, with Python's means where it uses TensorFlow: for files, archives and PNGs."""

    def extract(self: Any, url: str) -> Path:
        with tarfile.open(self.download(url)) as tar:
            tar.extractall(data_dir / "extracted", filter="data")
        return data_dir / "extracted"

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", extract)
    monkeypatch.setattr(
        image_feature._ImageEncoder,
        "_encode_image",
        lambda self, array: self._encode_pil_image(Image.fromarray(array)),
    )
    stock = tfds.builder_cls(name)
    gfile = SimpleNamespace(io=SimpleNamespace(gfile=SimpleNamespace(GFile=open)))
    monkeypatch.setattr(cifar if name.startswith("cifar") else sys.modules[stock.__module__], "tf", gfile)
    checksums = archives.sha256s(folder)
    make = tfds.core.download.checksums.UrlInfo
    files = SETS[name].files + (("extra_32x32.mat",) if name == "svhn_cropped" else ())
    infos = {SETS[name].home + f: make((folder / f).stat().st_size, checksums[f], f) for f in files}
    monkeypatch.setattr(stock, "url_infos", infos)
    builder = stock(data_dir=data_dir, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))


@pytest.mark.parametrize("name", BATCHES)
def test_equals_what_stock_tfds_prepares(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_network: None
) -> None:
    checksums = archives.write_official(tmp_path / "archives", name, BATCHES[name]())
    prepare_by_stock(name, tmp_path / "stock", tmp_path / "archives", monkeypatch)
    ours = prepare(name, tmp_path / "ours", tmp_path / "archives", checksums)
    assert ours == tmp_path / "ours" / name / VERSIONS[name]
    assert_same_sets(name, tmp_path / "ours", tmp_path / "stock")
    stock = tmp_path / "stock" / name / VERSIONS[name]
    infos = [json.loads((folder / "dataset_info.json").read_text()) for folder in (ours, stock)]
    for key in ("name", "version", "fileFormat", "supervisedKeys"):
        assert infos[0][key] == infos[1][key]
    assert tfds.builder_from_directory(ours).info.supervised_keys == ("image", "label")


@pytest.mark.parametrize("name", BATCHES)
def test_holds_the_archives_images_and_labels(name: str, tmp_path: Path) -> None:
    batches = BATCHES[name]()
    checksums = archives.write_official(tmp_path / "archives", name, batches)
    prepare(name, tmp_path, tmp_path / "archives", checksums)
    digits = 6 if name == "svhn_cropped" else 5
    for split, found in as_stock_reads(name, tmp_path).items():
        files = [
            batch for file, batch in batches.items() if file.startswith(split) or (split, file[:4]) == ("train", "data")
        ]
        wanted = {key: np.concatenate([batch[key] for batch in files]) for key in files[0]}
        by_id = {example["id"].decode(): example for example in found}
        assert len(by_id) == len(wanted["image"]) == len(found)
        for i in range(len(found)):
            for key, values in wanted.items():
                np.testing.assert_array_equal(by_id[f"{split}_{i:0{digits}d}"][key], values[i])


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
@pytest.mark.parametrize("unpacked", [False, True])
def test_torchvisions_layouts_give_the_same_set(name: str, unpacked: bool, tmp_path: Path) -> None:
    batches = BATCHES[name]()
    official = archives.write_official(tmp_path / "official", name, batches)
    python = archives.write_python(tmp_path / "python", name, batches, unpacked=unpacked)
    prepare(name, tmp_path / "a", tmp_path / "official", official)
    prepare(name, tmp_path / "b", tmp_path / "python", python)
    assert_same_sets(name, tmp_path / "b", tmp_path / "a")


def test_python2_pickles_are_such_as_numpy_reads() -> None:
    for content in archives.python_members(archives.cifar10()).values():
        read = pickle.loads(archives.python2_pickle(content), encoding="latin1")
        np.testing.assert_array_equal(read.get("data", 0), content.get("data", 0))
        assert read.get("labels") == content.get("labels")


def test_a_prepared_set_is_left_alone(tmp_path: Path) -> None:
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10())
    folder = prepare("cifar10", tmp_path, tmp_path / "archives", checksums)
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert prepare("cifar10", tmp_path, tmp_path / "nowhere") == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_official_checksums_are_those_of_tfds() -> None:
    folder = tfds.core.utils.tfds_path()
    files = [folder / "url_checksums/cifar10.txt", folder / "url_checksums/cifar100.txt"]
    files.append(folder / "datasets/svhn_cropped/checksums.tsv")
    for path in files:
        for url, info in tfds.core.download.checksums.load_url_infos(path).items():
            if info.filename != "extra_32x32.mat":
                assert CHECKSUMS[info.filename] == info.checksum
                assert any(source.home + info.filename == url for source in SETS.values())
    assert tuple(SETS) == _PREPARABLE


# What must be refused.


def assert_nothing_left(data_dir: Path) -> None:
    assert not data_dir.exists()


@pytest.mark.parametrize("name", BATCHES)
def test_wrong_checksum_of_an_official_archive(name: str, tmp_path: Path, no_network: None) -> None:
    archives.write_official(tmp_path / "archives", name, BATCHES[name]())
    file = SETS[name].files[0]
    told = message(lambda: prepare(name, tmp_path / "data", tmp_path / "archives"))
    found = archives.sha256s(tmp_path / "archives")[file]
    assert str(tmp_path / "archives" / file) in told
    assert f"checksum {CHECKSUMS[file]} expected, {found} found" in told
    assert f"delete it and download {SETS[name].home}{file} again" in told
    assert_nothing_left(tmp_path / "data")


@pytest.mark.parametrize("unpacked", [False, True])
def test_wrong_checksum_of_torchvisions_files(unpacked: bool, tmp_path: Path) -> None:
    write = functools.partial(archives.write_python, unpacked=unpacked)
    checksums = write(tmp_path / "archives", "cifar10", archives.cifar10())
    told = message(lambda: prepare("cifar10", tmp_path / "data", tmp_path / "archives"))
    file = "cifar-10-batches-py/batches.meta" if unpacked else "cifar-10-python.tar.gz"
    assert str(tmp_path / "archives" / file) in told
    assert f"checksum {CHECKSUMS[file]} expected, {checksums[file]} found; delete it" in told
    assert_nothing_left(tmp_path / "data")


def test_truncated_archives_fail_their_checksum(tmp_path: Path) -> None:
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10())
    path = tmp_path / "archives/cifar-10-binary.tar.gz"
    path.write_bytes(path.read_bytes()[:1000])
    assert "checksum" in message(lambda: prepare("cifar10", tmp_path / "data", path.parent, checksums))
    assert_nothing_left(tmp_path / "data")


@pytest.mark.parametrize(
    ("name", "lacks"),
    [
        (
            "cifar10",
            "no cifar-10-binary.tar.gz and no cifar-10-python.tar.gz and no cifar-10-batches-py/batches.meta",
        ),
        ("svhn_cropped", "no train_32x32.mat and no test_32x32.mat"),
    ],
)
def test_archives_folder_without_archives(name: str, lacks: str, tmp_path: Path) -> None:
    told = message(lambda: prepare(name, tmp_path / "data", tmp_path))
    assert told.startswith(f"data.archives={tmp_path} holds {lacks}; download {SETS[name].home}")
    told = message(lambda: prepare(name, tmp_path / "data", tmp_path / "none"))
    assert told.startswith(f"data.archives={tmp_path / 'none'} is no folder; download {SETS[name].home}")
    assert_nothing_left(tmp_path / "data")


def test_a_missing_batch_is_named(tmp_path: Path) -> None:
    write = functools.partial(archives.write_python, unpacked=True)
    checksums = write(tmp_path, "cifar10", archives.cifar10())
    (tmp_path / "cifar-10-batches-py/data_batch_3").unlink()
    told = message(lambda: prepare("cifar10", tmp_path / "data", tmp_path, checksums))
    assert "cifar-10-batches-py/data_batch_3 cannot be read" in told


def test_a_data_dir_that_takes_nothing(tmp_path: Path) -> None:
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10())
    (tmp_path / "file").write_text("")
    told = message(lambda: prepare("cifar10", tmp_path / "file", tmp_path / "archives", checksums))
    assert told.startswith(f"cifar10 cannot be prepared in {tmp_path / 'file'}: ")
    assert told.endswith("free space or pass another --data.dir")


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
def test_broken_off_preparation_leaves_nothing(error: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10())
    generate = Builder._generate_examples

    def broken_off(self: Builder, split: str, examples: Any) -> Iterator[Any]:
        for i, example in enumerate(generate(self, split, examples)):
            if split == "test" and i == 3:
                raise error
            yield example

    with monkeypatch.context() as patch:
        patch.setattr(Builder, "_generate_examples", broken_off)
        with pytest.raises((KeyboardInterrupt, InputError)):
            prepare("cifar10", tmp_path / "data", tmp_path / "archives", checksums)
    assert_nothing_left(tmp_path / "data")
    assert prepare("cifar10", tmp_path / "data", tmp_path / "archives", checksums).is_dir()


@pytest.mark.slow
def test_works_without_tensorflow_and_says_nothing(tmp_path: Path) -> None:
    archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10())
    code = """if True:
        import sys
        from pathlib import Path
        from importlib.machinery import PathFinder

        find = PathFinder.find_spec
        hidden = lambda name, *rest: None if name.split(".")[0] == "tensorflow" else find(name, *rest)
        PathFinder.find_spec = staticmethod(hidden)
        from jaxcnn.data.sets import load_dataset
        slow = {"tensorflow_datasets", "sklearn", "scipy", "jax", "torch"} & set(sys.modules)
        assert not slow, slow
        from experiments.checks import make_archives
        from jaxcnn.config import DataConfig
        from jaxcnn.data.prepare import prepare
        root = Path(sys.argv[1])
        prepare("cifar10", root, root / "archives", make_archives.sha256s(root / "archives"))
        data = load_dataset(DataConfig(dir=root), input_size=32, in_channels=3, seed=0)
        assert len(data.train.labels) == 90
        assert "tensorflow" not in sys.modules
    """
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code, str(tmp_path)],
        env={"PATH": "", "HOME": str(tmp_path), "PYTHONPATH": f"{here}:{here.parent}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
