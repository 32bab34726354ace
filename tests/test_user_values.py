"""Paths, numbers and permissions as a user's shell, programs and system give them."""

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from refusals import message

from experiments.bench.__main__ import Flags as BenchFlags
from jaxcnn import create_transfer_model
from jaxcnn.cli.config_file import read_config
from jaxcnn.cli.convert import Flags as ConvertFlags
from jaxcnn.cli.convert import convert
from jaxcnn.cli.flags import parse
from jaxcnn.cli.quickstart import Flags as QuickstartFlags
from jaxcnn.cli.transfer import parse as parse_transfer
from jaxcnn.config import (
    DataConfig,
    ExperimentConfig,
    FreezeConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    TransferConfig,
)
from jaxcnn.config.experiment import to_json
from jaxcnn.data.sets import load_dataset
from jaxcnn.errors import local_path
from jaxcnn.files import cache_folder, write_json, write_npy, write_text, write_whole

HOME: dict[str, Callable[[str], Path]] = {
    "runs_dir": lambda path: ExperimentConfig(runs_dir=Path(path)).runs_dir,
    "data.dir": lambda path: DataConfig(dir=Path(path)).dir or Path(),
    "data.archives": lambda path: DataConfig(archives=Path(path)).archives or Path(),
    "source": lambda path: TransferConfig(source=Path(path)).source,
    "--runs-dir": lambda path: parse(ExperimentConfig(), "", [f"--runs-dir={path}"])[0].runs_dir,
    "--source": lambda path: parse_transfer([f"--source={path}"])[0][0].source,
    "quickstart": lambda path: QuickstartFlags(runs_dir=Path(path)).runs_dir,
    "bench": lambda path: BenchFlags(json=Path(path)).json or Path(),
}


@pytest.mark.parametrize("name", HOME)
def test_a_path_may_begin_at_home(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["train.py"])
    assert HOME[name]("~/in/x") == tmp_path / "in/x"
    assert HOME[name]("in/~/x") == Path("in/~/x")  # elsewhere it is a name


@pytest.mark.parametrize("name", HOME)
def test_a_url_is_no_path(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["train.py"])
    for url in ("gs://bucket/x", "s3://bucket/x", "file:///data/x", "https://host/x"):
        assert "is a URL, which is not read or written" in message(lambda u=url: HOME[name](u))


def test_a_saved_configuration_may_begin_at_home_and_lie_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "saved.json").write_text('{"runs_dir": "~/runs", "data": {"archives": "~/archives"}}')
    config, *_ = parse(ExperimentConfig(), "", ["--config=~/saved.json"])
    assert (config.runs_dir, config.data.archives) == (tmp_path / "runs", tmp_path / "archives")
    assert "--config='hf://a/b' is a URL" in message(lambda: parse_transfer(["--config", "hf://a/b"]))


def test_the_cache_in_the_environment_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, wanted in (("~/cache", tmp_path / "cache/jaxcnn"), ("", tmp_path / ".cache/jaxcnn")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == wanted
    monkeypatch.setenv("XDG_CACHE_HOME", "s3://bucket")
    assert message(cache_folder).startswith("XDG_CACHE_HOME='s3://bucket' is a URL")


def test_the_folder_of_prepared_sets_in_the_environment_may_begin_at_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = DataConfig(name="my_set")
    for value in ("~/sets", ""):
        monkeypatch.setenv("TFDS_DATA_DIR", value)
        told = message(lambda: load_dataset(config, input_size=8, in_channels=3, seed=0))
        assert f"is not prepared in {tmp_path / (value.removeprefix('~/') or 'tensorflow_datasets')}," in told
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://tfds-data")
    told = message(lambda: load_dataset(config, input_size=8, in_channels=3, seed=0))
    assert told.startswith("TFDS_DATA_DIR='gs://tfds-data' is a URL")


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("~nobody-of-that-name/x", "'~nobody-of-that-name/x' is not usable"),
        (3, "=3 is not usable: give a path"),
        (None, "=None is not usable: give a path"),
        ("a\0b", "is not usable: give a path"),
        ("file:/data", "leave file: out"),
        (Path("gs://bucket"), "'gs:/bucket' is a URL"),
    ],
)
def test_what_is_no_path_of_this_machine_is_refused_by_name(value: object, told: str) -> None:
    refused = message(lambda: local_path("source", value))
    assert refused.startswith("source=")
    assert told in refused


@pytest.mark.parametrize("path", ["c:/x", "a:b", "run:1", "x/gs://y", "-", b"bytes"])
def test_what_only_looks_like_a_url_is_a_path(path: Any) -> None:
    assert local_path("source", path) == Path(os.fsdecode(path))


def test_numbers_of_other_libraries_become_pythons_own(tmp_path: Path) -> None:
    config = ExperimentConfig(
        seed=np.uint32(2**32 - 1),
        data=DataConfig(classes=np.arange(3), fraction=np.float64(0.5)),
        model=ModelConfig(
            num_classes=np.int64(7), hidden_dims=[np.int32(8), 8, 8, 8, np.uint8(16), 4], dropout_rate=np.float32(0.25),
            apply_bn=np.array([True, False, True, False]),
        ),
        optim=OptimConfig(learning_rate=torch.tensor(0.5), plateau_patience=np.int8(3)),
        train=TrainConfig(epochs=jnp.int32(3), batch_size=torch.tensor(64), early_stopping_patience=np.int64(2)),
        freeze=FreezeConfig("partial", freeze_until_block=np.int64(0), cache_features=np.bool_(False)),
    )  # fmt: skip
    plain = ExperimentConfig(
        seed=2**32 - 1,
        data=DataConfig(classes=(0, 1, 2), fraction=0.5),
        model=ModelConfig(
            num_classes=7, hidden_dims=(8, 8, 8, 8, 16, 4), dropout_rate=0.25, apply_bn=(1, 0, 1, 0)
        ),
        optim=OptimConfig(learning_rate=0.5, plateau_patience=3),
        train=TrainConfig(epochs=3, batch_size=64, early_stopping_patience=2),
        freeze=FreezeConfig("partial", freeze_until_block=0, cache_features=False),
    )  # fmt: skip
    assert repr(config) == repr(plain)
    assert to_json(config) == to_json(plain)
    write_json(tmp_path / "config.json", to_json(config))
    assert read_config(tmp_path / "config.json", ExperimentConfig) == plain


@pytest.mark.parametrize(
    "value", [np.float64(3.0), np.array([3]), np.array([[3]]), np.bool_(True), np.datetime64("2026-01-01"), "3"]
)
def test_what_is_no_whole_number_is_still_none(value: object) -> None:
    assert message(lambda: replace(TrainConfig(), epochs=value)).startswith("train.epochs=")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o027, 0o640)])
def test_files_have_the_permissions_that_the_umask_leaves(mask: int, mode: int, tmp_path: Path) -> None:
    (tmp_path / "old.json").write_text("{}")
    (tmp_path / "old.json").chmod(0o604)
    with umask(mask):
        write_whole(tmp_path / "text.pth", lambda path: path.write_text("x"))
        write_json(tmp_path / "old.json", {})
        write_npy(tmp_path / "folder/array.npy", np.zeros(1))
        write_text(tmp_path / "log.csv", "name\n")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) == 4
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in files} == {path.name: mode for path in files}


def test_what_is_converted_may_begin_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, told in (
        ("~/model.pth", f"{tmp_path}/model.pth does not exist"),
        ("gs://bucket/model.pth", "source='gs:/bucket/model.pth' is a URL"),
    ):
        for call in (
            lambda source=source: convert(ConvertFlags(Path(source), tmp_path / "checkpoint")),
            lambda source=source: create_transfer_model(Path(source), 10),
        ):
            assert told in message(call)
