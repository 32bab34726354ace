"""Hostile files in one table: each is refused without side effects. Code in a file would create the file `canary`."""

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from test_cli import contents

from experiments.checks import make_archives as archives
from jaxcnn.cli.config_file import read_config
from jaxcnn.config import DataConfig, ExperimentConfig
from jaxcnn.data.prepare import prepare
from jaxcnn.data.sets import load_dataset
from jaxcnn.errors import InputError
from jaxcnn.runs.reading import read_summary
from jaxcnn.weights.files import read_state_dict
from jaxcnn.weights.source import read_source


class Song(NamedTuple):
    """A call that unpickling would make."""

    function: Callable[..., object]
    arguments: tuple[Any, ...]

    def __reduce__(self) -> Any:
        return self.function, self.arguments


def song(folder: Path) -> Song:
    return Song(Path.touch, (folder / "canary",))


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def pth(folder: Path, value: object, **options: Any) -> Path:
    torch.save(value, folder / "model.pth", **options)
    return folder / "model.pth"


def zip_bomb(folder: Path) -> Path:
    """Says of itself that it is a model.pth, and unpacks to a gigabyte."""
    whole = pth(folder, {"blocks.0.0.weight": torch.zeros(2)})
    bomb = folder / "bomb.pth"
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            data = source.read(name)
            with target.open(name, "w", force_zip64=True) as file:
                file.write(data)
                if name.endswith("data.pkl"):
                    for _ in range(256):
                        file.write(bytes(2**20))
    return bomb


def absurd_storage(folder: Path) -> Path:
    """A tensor of 2**60 values over a storage of two."""
    path = pth(folder, {"blocks.0.0.weight": torch.zeros(2)})
    with zipfile.ZipFile(path) as source:
        members = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, data in members.items():
            target.writestr(name, data.replace(b"K\x02\x85", b"\x8a\x08" + struct.pack("<q", 2**60) + b"\x85"))
    return path


def safetensors(folder: Path, header: bytes, size: int | None = None) -> Path:
    return write(folder / "a.safetensors", struct.pack("<Q", len(header) if size is None else size) + header)


def prepared(path: Path) -> object:
    return load_dataset(DataConfig("cifar10", dir=path), input_size=32, in_channels=3, seed=0)


def features(folder: Path, described: object) -> Path:
    """A prepared set whose description names a module; tfds would import it, and that would touch the canary."""
    checksums = archives.write_official(folder / "archives", "cifar10", archives.cifar10(2))
    prepare("cifar10", folder / "sets", folder / "archives", checksums)
    (folder / "songbird.py").write_text(f"from pathlib import Path\nPath({str(folder / 'canary')!r}).touch()\n")
    write(folder / "sets" / "cifar10" / "3.0.2" / "features.json", json.dumps(described).encode())
    return folder / "sets"


def config(path: Path) -> object:
    return read_config(path, ExperimentConfig)


def deep(folder: Path, opening: str = "[") -> Path:
    return write(folder / "config.json", (opening * 200_000).encode())


HOSTILE: dict[str, tuple[Callable[[Path], Path], Callable[[Path], object]]] = {
    "pth: runs code": (lambda folder: pth(folder, {"fc3.bias": song(folder)}), read_state_dict),
    "pth: runs code, old format": (
        lambda folder: pth(folder, {"fc3.bias": song(folder)}, _use_new_zipfile_serialization=False),
        read_state_dict,
    ),
    "pth: a bare pickle that runs code": (
        lambda folder: write(folder / "a.pth", pickle.dumps(song(folder))),
        read_state_dict,
    ),
    "pth: runs a shell": (
        lambda folder: write(folder / "a.pth", pickle.dumps(Song(os.system, (f"touch {folder}/canary",)))),
        read_state_dict,
    ),
    "pth: in a run's folder": (lambda folder: pth(folder, {"fc3.bias": song(folder)}).parent, read_source),
    "pth: a bomb": (zip_bomb, read_state_dict),
    "pth: an absurd shape": (absurd_storage, read_state_dict),
    "pth: under the name of safetensors": (
        lambda folder: write(folder / "a.safetensors", pickle.dumps(song(folder))),
        read_state_dict,
    ),
    "safetensors: a header of 2**62 bytes": (lambda folder: safetensors(folder, b"{}", 2**62), read_state_dict),
    "safetensors: an absurd shape": (
        lambda folder: safetensors(
            folder, b'{"fc3.bias":{"dtype":"F32","shape":[1152921504606846976],"data_offsets":[0,4]}}' + bytes(4)
        ),
        read_state_dict,
    ),
    "safetensors: offsets outside of the file": (
        lambda folder: safetensors(
            folder, b'{"fc3.bias":{"dtype":"F32","shape":[1024],"data_offsets":[1000000000,1000004096]}}'
        ),
        read_state_dict,
    ),
    "features: import code": (lambda folder: features(folder, {"pythonClassName": "songbird.Feature"}), prepared),
    "features: import code, by the other name": (
        lambda folder: features(folder, {"python_class_name": "songbird.Feature"}),
        prepared,
    ),
    "features: import code, old form within the new": (
        lambda folder: features(
            folder,
            {
                "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
                "featuresDict": {
                    "features": {
                        "image": {
                            "pythonClassName": "tensorflow_datasets.core.features.features_dict.FeaturesDict",
                            "jsonFeature": {"json": json.dumps({"x": {"type": "songbird.Feature", "content": {}}})},
                        }
                    }
                },
            },
        ),
        prepared,
    ),
    "json: nested without end": (deep, config),
    "json: nested without end, by name": (lambda folder: deep(folder, '{"train":'), config),
    "json: a number of 10**5 digits": (
        lambda folder: write(folder / "config.json", b'{"seed": 1' + b"0" * 10**5 + b"}"),
        config,
    ),
    "json: a summary nested without end": (deep, read_summary),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_without_effect(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make, read = HOSTILE[name]
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.syspath_prepend(home)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = make(home)
    before = contents(tmp_path)
    with pytest.raises(InputError) as refused:
        read(path)
    assert str(home) in str(refused.value)
    assert "\n" not in str(refused.value)
    if name.startswith("features"):  # tfds stumbles over some of them too, but not before it imports others
        assert "'songbird.Feature', code that is not tfds's own" in str(refused.value)
    assert contents(tmp_path) == before  # no canary, nothing beside it, nothing removed
    assert not (home / "canary").exists()


def test_the_canary_sings_where_nothing_stops_it(tmp_path: Path) -> None:
    for name in ("pth: a bare pickle that runs code", "pth: runs a shell"):
        data = HOSTILE[name][0](tmp_path).read_bytes()
        assert not (tmp_path / "canary").exists()
        pickle.loads(data)
        assert (tmp_path / "canary").exists()
        (tmp_path / "canary").unlink()


def test_the_songbird_sings_where_tfds_is_left_to_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow_datasets as tfds

    folder = features(tmp_path, {"pythonClassName": "songbird.Feature"})
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Exception, match="songbird"):
        str(tfds.builder_from_directory(folder / "cifar10" / "3.0.2").info)  # reading it is what imports
    assert (tmp_path / "canary").exists()


def test_an_archive_is_not_opened_before_its_checksum_is_compared(tmp_path: Path) -> None:
    archives.write_python(tmp_path / "python", "cifar10", archives.cifar10(2), unpacked=True)
    checksums = archives.md5s(tmp_path / "python")
    write(tmp_path / "python" / "cifar-10-batches-py" / "data_batch_2", pickle.dumps({b"data": song(tmp_path)}))
    before = contents(tmp_path)
    with pytest.raises(InputError, match="data_batch_2 is not the official file"):
        prepare("cifar10", tmp_path / "sets", tmp_path / "python", checksums)
    assert contents(tmp_path) == before


def test_a_cache_of_pickled_objects_is_not_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10(4))
    prepare("cifar10", tmp_path / "sets", tmp_path / "archives", checksums)
    data = DataConfig("cifar10", dir=tmp_path / "sets")
    wanted = load_dataset(data, input_size=32, in_channels=3, seed=0)
    (entry,) = (tmp_path / "cache" / "jaxcnn").iterdir()
    objects = np.empty(1, object)
    objects[0] = song(tmp_path)
    np.save(entry / "train_images.npy", objects, allow_pickle=True)
    meta = json.loads((entry / "meta.json").read_text())
    meta["sizes"]["train_images.npy"] = (entry / "train_images.npy").stat().st_size
    (entry / "meta.json").write_text(json.dumps(meta))
    found = load_dataset(data, input_size=32, in_channels=3, seed=0)
    np.testing.assert_array_equal(found.train.images, wanted.train.images)
    assert not (tmp_path / "canary").exists()
