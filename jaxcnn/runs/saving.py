"""When the epochs of a run are saved, and in which order."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxcnn.runs.signals import SignalFlag
from jaxcnn.training.processes import is_first, largest
from jaxcnn.training.records import EpochRecord, Metrics, TrainState

SAVE_INTERVAL = 1.0
"""Seconds. An epoch that ends sooner after the last checkpoint is saved with a later one: a checkpoint of many small
files takes longer than an epoch of a small network."""


class Saver:
    """Writes checkpoints, the best epoch's weights and the metrics.

    An epoch that is not saved at once is held in memory if it is the best so far, because later ones may be worse. It
    is then saved before them. So the files are always those that a program would leave that saves every epoch.
    """

    def __init__(
        self,
        save: Callable[[TrainState, Sequence[EpochRecord], Metrics | None], None],
        write_weights: Callable[[dict[str, Any]], None],
        write_metrics: Callable[[Sequence[EpochRecord]], None],
    ) -> None:
        self._write_checkpoint, self._write_weights, self._write_metrics = save, write_weights, write_metrics
        self._held: tuple[TrainState, list[EpochRecord]] | None = None
        self._saved = time.monotonic()
        self.best: dict[str, Any] = {}
        """The variables of the best epoch, as NumPy arrays."""

    def epoch(self, state: TrainState, records: Sequence[EpochRecord], *, is_best: bool, last: bool) -> None:
        """Saves a finished epoch now or later; now if it is the last one."""
        now = bool(largest(last or time.monotonic() - self._saved >= SAVE_INTERVAL))  # on all processes, or on none
        if is_best:
            self._held = None if now else (jax.tree.map(np.array, state), list(records))
        if now:
            self.flush()
            self._save(state, records, is_best=is_best)

    def part(self, state: TrainState, records: Sequence[EpochRecord], part: Metrics) -> None:
        """Saves an epoch that was interrupted."""
        self.flush()
        self._save(state, records, part)

    def flush(self) -> None:
        """Saves the epoch that is held in memory, if there is one."""
        if self._held is not None:
            self._save(*self._held, is_best=True)
            self._held = None

    def keep(self, state: TrainState) -> None:
        """Writes the weights of a state: those of the best epoch."""
        # A copy, because the next epoch reuses the buffers.
        self.best = jax.tree.map(np.array, {"params": state.params, "batch_stats": state.batch_stats})
        if is_first():
            self._write_weights(self.best)

    def _save(
        self, state: TrainState, records: Sequence[EpochRecord], part: Metrics | None = None, *, is_best: bool = False
    ) -> None:
        self._write_checkpoint(state, records, part)
        if is_best:
            self.keep(state)
        if is_first():
            self._write_metrics(records)
        self._saved = time.monotonic()


def is_any_set(signals: SignalFlag) -> bool:
    """Whether this or another process has got a signal. If so, the flag is set here too."""
    number = largest(signals.number or 0)
    if number:  # else a signal may have arrived just now; it counts next time, on every process
        signals.number = number
    return number > 0
