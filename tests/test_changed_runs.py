"""Runs that go on, or begin, under other conditions: more epochs, another source, other versions or images."""

import json
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import contents
from tiny_run import STEPS, TINY, assert_same_run, rows, send, weights

from jaxcnn.config import DataConfig, FreezeConfig, TrainConfig, TransferConfig
from jaxcnn.config.experiment import Existing
from jaxcnn.errors import InputError
from jaxcnn.runs import run
from jaxcnn.runs.display import Bar
from jaxcnn.runs.run import run_experiment
from jaxcnn.runs.signals import Interrupted

EXTEND, OVERWRITE = Existing(extend=True), Existing(overwrite=True)


pytestmark = pytest.mark.usefixtures("own_cache", "every_epoch_saved")


# More epochs


@pytest.mark.slow
def test_an_extended_run_is_the_run_that_was_begun_with_more_epochs(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    assert run_experiment(replace(config, train=replace(TINY.train, epochs=2)))["epochs"] == 2
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"train\.epochs=2 there, 3 here.*--extend to train it for longer"):
        run_experiment(config)
    assert contents(tmp_path) == before
    logs = contents(tmp_path / "tiny/logs")
    run_experiment(config, EXTEND)
    assert_same_run(tmp_path / "tiny", finished)
    assert [row["epochs"] for row in rows(tmp_path / "experiment_logs.csv")] == ["3"]
    assert json.loads((tmp_path / "tiny/config.json").read_text())["train"]["epochs"] == 3
    assert contents(tmp_path / "tiny/logs").items() > logs.items()  # for a TensorBoard that follows them
    before = contents(tmp_path)
    run_experiment(config)  # finished
    run_experiment(config, EXTEND)  # as far as that goes
    assert contents(tmp_path) == before  # not trained again


@pytest.mark.slow
def test_an_unfinished_run_can_be_extended_too(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", lambda *_: send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run_experiment(replace(config, train=replace(TINY.train, epochs=2)))
    run_experiment(config, EXTEND)
    assert_same_run(tmp_path / "tiny", finished)


# Transfers


@pytest.mark.slow
def test_a_transfer_whose_source_has_changed_is_refused(finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes((finished / "model.pth").read_bytes())
    config = TransferConfig(
        name="moved", runs_dir=tmp_path, source=source, input_size=8, data=DataConfig("digits", augment="none"),
        train=TrainConfig(1, 64), freeze=FreezeConfig(mask="frozen"),
    )  # fmt: skip
    run_experiment(config)
    changed = weights(finished)
    changed["fc1.bias"] = changed["fc1.bias"] + 1
    torch.save(changed, source)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"moved started from other weights than those in .*source\.pth"):
        run_experiment(config)
    assert contents(tmp_path) == before
    run_experiment(config, OVERWRITE)
    assert not np.array_equal(weights(tmp_path / "moved")["fc1.bias"], weights(finished)["fc1.bias"])


def test_a_transfer_does_not_overwrite_its_own_source(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    before = contents(tmp_path)
    for source in (tmp_path / "tiny", tmp_path / "tiny/model.pth", tmp_path / "tiny/../tiny/checkpoints"):
        config = TransferConfig(name="tiny", runs_dir=tmp_path, source=source, data=TINY.data, train=TINY.train)
        with pytest.raises(InputError, match=r"--overwrite would remove .*tiny, and with it the source"):
            run_experiment(config, OVERWRITE)
    assert contents(tmp_path) == before


def test_a_transfer_that_cannot_begin_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("these weights cannot be taken over")

    config = TransferConfig(name="new", runs_dir=tmp_path / "runs", source=finished, data=TINY.data, train=TINY.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "transplant", refuse)
        with pytest.raises(InputError, match="cannot be taken over"):
            run_experiment(config)
    assert not (tmp_path / "runs").exists()


# What else can have changed


def test_what_only_has_a_config_json_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text('{"architectures": ["Foreign"]}')
    with pytest.raises(InputError, match="tiny exists and is not a run of this program"):
        run_experiment(replace(TINY, runs_dir=tmp_path), OVERWRITE)
    assert len(contents(tmp_path)) == 2


def test_where_the_images_lie_is_no_part_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = replace(TINY, runs_dir=finished.parent, data=replace(TINY.data, archives=Path("elsewhere")))
    run_experiment(moved)
    assert "is finished" in capsys.readouterr().out


@pytest.mark.slow
def test_checkpoints_that_are_gone_are_missed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    run_experiment(replace(config, train=replace(TINY.train, epochs=2)))
    shutil.rmtree(tmp_path / "tiny" / "checkpoints" / str(2 * STEPS))
    capsys.readouterr()
    run_experiment(config, EXTEND)
    out = capsys.readouterr().out
    assert "the checkpoint after epoch 2 is missing\ncontinuing after epoch 1\n" in out
    assert_same_run(tmp_path / "tiny", finished)


@pytest.mark.slow
def test_other_versions_are_told_and_other_images_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(TINY, runs_dir=tmp_path, train=replace(TINY.train, epochs=1))
    run_experiment(config)
    path = tmp_path / "tiny" / "config.json"
    began = json.loads(path.read_text())
    capsys.readouterr()
    began["resolved"]["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(began))
    run_experiment(replace(config, train=replace(TINY.train, epochs=2)), EXTEND)
    assert "versions.jax was 0.0.1, is " in capsys.readouterr().out
    began["resolved"]["mean"][0] += 1e-3
    path.write_text(json.dumps(began))
    with pytest.raises(InputError, match=r"other images than digits has now: mean differ"):
        run_experiment(config)
