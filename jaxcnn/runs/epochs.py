"""Training the epochs of a run, and saving what is needed to continue it."""

import time
from collections.abc import Sequence
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from rich.console import Console

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.data.splits import Dataset
from jaxcnn.errors import DivergedError
from jaxcnn.masks import frozen_stages, stages_to_unfreeze
from jaxcnn.runs.display import Bar
from jaxcnn.runs.kept import read_best, write_weights
from jaxcnn.runs.metrics import Board, count_metrics, write_metrics
from jaxcnn.runs.signals import SignalFlag, defer_signals
from jaxcnn.training.decisions import kept_epoch, reason_to_stop, validates
from jaxcnn.training.loop import Paused, fit
from jaxcnn.training.processes import is_first, largest
from jaxcnn.training.records import EpochRecord, Metrics, TrainState
from jaxcnn.training.step import init_state
from jaxcnn.weights.checkpoint import Checkpoints, Progress, open_checkpoints

SAVE_INTERVAL = 1.0
"""Seconds. An epoch that ends sooner after the last checkpoint is saved with a later one: a checkpoint of many small
files takes longer than an epoch of a small network."""


class _Saver:
    """Writes checkpoints, the best epoch's weights and `metrics.csv`.

    An epoch that is not saved at once is held in memory if it is the best so far, because later ones may be worse. It
    is then saved before them. So the files are always those that a program would leave that saves every epoch.
    """

    def __init__(self, folder: Path, config: ExperimentConfig, dataset: Dataset, checkpoints: Checkpoints) -> None:
        self._folder, self._config, self._dataset, self._checkpoints = folder, config, dataset, checkpoints
        self._held: tuple[TrainState, list[EpochRecord]] | None = None
        self._saved = time.monotonic()
        self.best: dict[str, Any] = {}
        """The variables of the best epoch, as NumPy arrays."""

    def resume(self, found: Progress) -> None:
        """Takes the best weights of an earlier process, and writes those that a kill between two files left out."""
        if not found.records:
            return
        if found.part is None and kept_epoch(found.records, self._config) == len(found.records) - 1:
            # A copy, because the next epoch reuses the buffers.
            self.best = jax.tree.map(np.array, variables_of(found.state))
            self._write("model.pth", "model.safetensors")
        else:
            self.best = read_best(self._folder, self._config)  # it may raise: better now than after training
            self._write("model.safetensors")

    def epoch(self, state: TrainState, records: Sequence[EpochRecord], *, last: bool) -> None:
        """Saves a finished epoch now or later; now if it is the last one."""
        now = bool(largest(last or time.monotonic() - self._saved >= SAVE_INTERVAL))  # on all processes, or on none
        if kept_epoch(records, self._config) == len(records) - 1:
            self._held = None
            if not now:
                self._held = jax.tree.map(np.array, state), list(records)
        if now:
            self.flush()
            self._save(state, records)

    def part(self, state: TrainState, records: Sequence[EpochRecord], part: Metrics) -> None:
        """Saves an epoch that was interrupted."""
        self.flush()
        self._checkpoints.save(state, records, part)
        if is_first():
            write_metrics(self._folder, records)

    def flush(self) -> None:
        """Saves the epoch that is held in memory, if there is one."""
        if self._held is not None:
            self._save(*self._held)
            self._held = None

    def _write(self, *names: str) -> None:
        if is_first():
            write_weights(self._folder, self.best, self._config, self._dataset, names)

    def _save(self, state: TrainState, records: Sequence[EpochRecord]) -> None:
        self._checkpoints.save(state, records)
        if kept_epoch(records, self._config) == len(records) - 1:
            self.best = jax.tree.map(np.array, variables_of(state))
            self._write("model.pth", "model.safetensors")
        if is_first():
            write_metrics(self._folder, records)
        self._saved = time.monotonic()


def train_epochs(
    folder: Path,
    config: ExperimentConfig,
    dataset: Dataset,
    variables: dict[str, Any],
    mesh: Mesh | None,
    console: Console,
) -> tuple[list[EpochRecord], dict[str, Any]]:
    """Trains all remaining epochs; returns all records, and the best weights, which are in `model.pth` too."""

    def state_in(epoch: int) -> TrainState:
        frozen = frozen_stages(config.freeze, config.model, epoch)
        return init_state(variables, config.model, config.optim, seed=config.seed, frozen_stages=frozen)

    images = len(dataset.train.labels)
    steps = -(-images // config.train.batch_size)
    with (
        defer_signals() as signals,
        open_checkpoints(folder / "checkpoints") as checkpoints,
    ):
        found = checkpoints.restore(state_in)
        state, records, part = found or Progress(state_in(0), [])
        if (lost := count_metrics(folder)) > len(records):
            console.print(f"the checkpoint after epoch {lost} is missing")
        saver = _Saver(folder, config, dataset, checkpoints)
        if found is not None:
            console.print(f"continuing after {_where(records, part, steps)}")
            saver.resume(found)
        behind = 0 if part is None else config.train.batch_size * len(part.loss)
        with (
            closing(Board(folder / "logs", records)) if is_first() else nullcontext() as board,
            Bar(console, config.train.epochs, images, len(records), behind) as bar,
        ):
            epochs = fit(
                state,
                config,
                dataset,
                history=records,
                part=part,
                on_step=bar.step,
                should_stop=partial(_is_any_set, signals),
                mesh=mesh,
            )
            try:
                for trained, record in epochs:
                    records.append(record)
                    part = None
                    is_best = kept_epoch(records, config) == len(records) - 1
                    ends = len(records) == config.train.epochs or reason_to_stop(records, config) is not None
                    stops = _is_any_set(signals)
                    saver.epoch(trained, records, last=ends or stops)
                    if board is not None:
                        board.add_record(record)
                    bar.epoch(record, is_best=is_best and validates(config, record))
                    if unfrozen := stages_to_unfreeze(config.freeze, config.model, len(records), config.train.epochs):
                        console.print(
                            f"from the next epoch on, these train too: {', '.join(unfrozen)}", highlight=False
                        )
                        bar.show_compiling()
                    if stops:
                        break
            except Paused as paused:
                part = paused.part
                saver.part(paused.state, records, part)
            except DivergedError:
                saver.flush()
                raise
            if signals.is_set():
                console.print(f"stopping after {_where(records, part, steps)}")
    return records, saver.best


def _is_any_set(signals: SignalFlag) -> bool:
    """Whether this or another process has got a signal. If so, the flag is set here too."""
    number = largest(signals.number or 0)
    if number:  # else a signal may have arrived just now; it counts next time, on every process
        signals.number = number
    return number > 0


def _where(records: Sequence[EpochRecord], part: Metrics | None, steps: int) -> str:
    return f"epoch {len(records)}" + (f" and {len(part.loss)} of {steps} steps" if part else "")


def variables_of(state: TrainState) -> dict[str, Any]:
    """The variables of the network in a state."""
    return {"params": state.params, "batch_stats": state.batch_stats}
