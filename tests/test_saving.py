"""When epochs are saved, and in which order: the files are always those of a program that saves every epoch."""

import itertools
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from tiny_run import STEPS, TINY, assert_same_run, rows

from jaxcnn.errors import DivergedError
from jaxcnn.runs import saving
from jaxcnn.runs.metrics import Board
from jaxcnn.runs.run import run_experiment
from jaxcnn.runs.signals import SignalFlag
from jaxcnn.training import loop
from jaxcnn.training.decisions import kept_epoch
from jaxcnn.training.records import EpochRecord, Metrics, TrainState


def record(epoch: int, accuracy: float) -> EpochRecord:
    return EpochRecord(epoch, 1.0, 50.0, 1.0, accuracy, 0.001, 1.0, 1.0)


class Disk:
    """What is on disk after each write."""

    def __init__(self) -> None:
        self.checkpoint: tuple[int, list[EpochRecord]] | None = None
        self.weights = 0
        self.metrics = 0
        self.seen: list[tuple[int, list[EpochRecord], int]] = []

    def note(self) -> None:
        if self.checkpoint is not None:
            self.seen.append((*self.checkpoint, self.weights))

    def save(self, state: TrainState, records: Sequence[EpochRecord], part: Metrics | None) -> None:
        self.checkpoint = (int(state.step), list(records))
        self.note()

    def write_weights(self, variables: Any) -> None:
        self.weights = int(variables["params"]["w"][0])
        self.note()

    def write_metrics(self, records: Sequence[EpochRecord]) -> None:
        self.metrics = len(records)


def state_after(epoch: int) -> TrainState:
    empty = TrainState(*[None] * len(TrainState._fields))
    return empty._replace(step=np.int32(epoch), params={"w": jax.numpy.full(1, epoch)}, batch_stats={})


@pytest.mark.parametrize("accuracies", [*itertools.permutations([1.0, 2.0, 3.0, 4.0])])
def test_a_kill_at_any_point_finds_a_checkpoint_with_the_weights_that_belong_to_it(
    accuracies: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock[0])
    for waits in itertools.product([0.1, 2.0], repeat=4):  # seconds that each epoch takes
        disk = Disk()
        saver = saving.Saver(disk.save, disk.write_weights, disk.write_metrics)
        records: list[EpochRecord] = []
        for epoch, (accuracy, wait) in enumerate(zip(accuracies, waits, strict=True), 1):
            clock[0] += wait
            records.append(record(epoch, accuracy))
            state = state_after(epoch)
            is_best = kept_epoch(records, TINY) == epoch - 1
            saver.epoch(state, records, is_best=is_best, last=epoch == 4)
            for leaf in jax.tree.leaves(state.params):
                leaf.delete()  # as the next epoch does
            if wait > saving.SAVE_INTERVAL:
                assert disk.metrics == epoch
        assert disk.checkpoint is not None
        assert disk.checkpoint[0] == 4
        assert disk.weights == kept_epoch(records, TINY) + 1 == int(saver.best["params"]["w"][0])
        for step, known, weights in disk.seen:
            assert len(known) == step
            best = kept_epoch(known, TINY) + 1
            assert weights == best or step == best, (waits, step, weights)  # else the next start writes the state's


def test_a_signal_that_arrives_while_processes_compare_theirs_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    flag = SignalFlag()

    def largest(value: int) -> int:
        flag._handle(signal.SIGTERM, None)
        return value

    with monkeypatch.context() as patch:
        patch.setattr(saving, "largest", largest)
        assert not saving.is_any_set(flag)  # as on the other processes
    assert saving.is_any_set(flag)
    assert flag.number == signal.SIGTERM


def test_epochs_shorter_than_a_second_are_saved_with_the_last_one(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "SAVE_INTERVAL", 1e9)
    run_experiment(replace(TINY, runs_dir=tmp_path), figures=None)
    saved = sorted(int(path.name) for path in (tmp_path / "tiny/checkpoints").iterdir())
    assert saved == [3 * STEPS]  # its best epoch is the last one
    assert_same_run(tmp_path / "tiny", finished)


def test_a_run_that_diverges_saves_the_best_epoch_that_it_holds(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(saving, "SAVE_INTERVAL", 1e9)
    config = replace(TINY, runs_dir=tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "plateau_scale", lambda losses, optim: 1e30 if len(losses) == 2 else 1.0)
        with pytest.raises(DivergedError):
            run_experiment(config)
    kept = len(rows(tmp_path / "tiny/metrics.csv"))
    assert kept >= 1
    run_experiment(config)  # without the mishap
    assert f"continuing after epoch {kept}\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "tiny", finished)


def test_events_that_could_not_be_written_in_training_are_added_at_its_end(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    causes = iter([OSError("full")])

    def write(board: Board, event: bytes) -> None:
        for cause in causes:
            raise cause
        written(board, event)

    written = Board._write
    monkeypatch.setattr(Board, "_write", write)
    run_experiment(replace(TINY, runs_dir=tmp_path), figures=None)
    assert capsys.readouterr().err.count("no more events") == 1
    assert_same_run(tmp_path / "tiny", finished)
