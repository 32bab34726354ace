"""Continuing interrupted runs."""

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_run import TINY, assert_same_run, rows, scalars, send, weights

from jaxcnn.cli.main import main
from jaxcnn.config import TrainConfig
from jaxcnn.errors import InputError
from jaxcnn.runs import kept, results
from jaxcnn.runs.display import Bar
from jaxcnn.runs.run import run_experiment
from jaxcnn.training.records import EpochRecord
from jaxcnn.weights.checkpoint import Checkpoints

pytestmark = pytest.mark.usefixtures("own_cache", "every_epoch_saved")


def interrupt_between_epochs(patch: pytest.MonkeyPatch) -> None:
    original = Bar.epoch

    def epoch(self: Any, record: EpochRecord, *, is_best: bool) -> None:
        original(self, record, is_best=is_best)
        if record.epoch == 1:
            raise KeyboardInterrupt

    patch.setattr(Bar, "epoch", epoch)


def within_the_second_epoch(patch: pytest.MonkeyPatch, happens: Callable[[], None]) -> None:
    original = Bar.step

    def step(self: Any, seen: int, total: Any) -> None:
        original(self, seen, total)
        if self._done == 1:
            happens()

    patch.setattr(Bar, "step", step)


def interrupt_within_the_second_epoch(patch: pytest.MonkeyPatch) -> None:
    within_the_second_epoch(patch, stop)


def interrupt_before_the_second_checkpoint(patch: pytest.MonkeyPatch) -> None:
    original = Checkpoints.save

    def save(self: Any, state: Any, records: Any, part: Any = None) -> None:
        if len(records) == 2:
            raise KeyboardInterrupt
        original(self, state, records)

    patch.setattr(Checkpoints, "save", save)


def signal_within_the_second_epoch(patch: pytest.MonkeyPatch) -> None:
    within_the_second_epoch(patch, lambda: send(signal.SIGTERM))


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "interrupt",
    [
        interrupt_within_the_second_epoch,
        pytest.param(interrupt_between_epochs, marks=pytest.mark.slow),
        pytest.param(interrupt_before_the_second_checkpoint, marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    interrupt: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path, name="cut")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch)
        with pytest.raises(SystemExit) as end:
            main(lambda: run_experiment(config))
    assert end.value.code == 130
    assert capsys.readouterr().err == "stopped by SIGINT; the same command, without --overwrite, continues\n"
    assert len(rows(tmp_path / "cut" / "metrics.csv")) == 1
    assert not (tmp_path / "cut" / "summary.json").exists()
    run_experiment(config)
    assert "continuing after epoch 1" in capsys.readouterr().out
    assert_same_run(tmp_path / "cut", finished)
    assert scalars(tmp_path / "cut" / "logs")["Loss/train"].keys() == {1, 2, 3}
    assert len(rows(tmp_path / "experiment_logs.csv")) == 1


@pytest.mark.slow
def test_an_interruption_between_checkpoint_and_weights_leaves_those_of_the_best_epoch(tmp_path: Path) -> None:
    two = replace(TINY, runs_dir=tmp_path, train=TrainConfig(2, 64))
    assert run_experiment(replace(two, name="whole"))["best_epoch"] == 2
    write = kept.write_state_dict

    def first_alone(path: Path, *rest: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt
        write(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kept, "write_state_dict", first_alone)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(replace(two, name="cut"))
    assert not torch.equal(weights(tmp_path / "cut")["fc3.bias"], weights(tmp_path / "whole")["fc3.bias"])
    run_experiment(replace(two, name="cut"))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


@pytest.mark.slow
def test_weights_that_are_gone_come_back_from_the_checkpoint_or_are_missed(finished: Path, tmp_path: Path) -> None:
    for interrupt in (interrupt_between_epochs, signal_within_the_second_epoch):
        config = replace(TINY, runs_dir=tmp_path, name=interrupt.__name__)
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch)
            with pytest.raises(KeyboardInterrupt):
                run_experiment(config)
        (tmp_path / config.name / "model.pth").unlink()
    run_experiment(replace(TINY, runs_dir=tmp_path, name="interrupt_between_epochs"))
    assert_same_run(tmp_path / "interrupt_between_epochs", finished)
    told = r"second_epoch has lost its best epoch: .*model\.pth does not exist.*; --overwrite starts the run again"
    with pytest.raises(InputError, match=told):
        run_experiment(config)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "name"), [(Bar, "step"), (results, "write_npy")])
def test_an_interruption_before_the_first_checkpoint_or_after_training_costs_nothing_but_time(
    place: Any, name: str, finished: Path, tmp_path: Path
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, name, stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config)
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)
