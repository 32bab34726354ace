"""Runs one after the other: they are counted, timed, and do not stop at one that fails."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from rich.console import Console

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.errors import InputError, JaxcnnError, reason
from jaxcnn.runs.summary import Summary

Train = Callable[[ExperimentConfig], Summary]
Executor = Callable[[Sequence[ExperimentConfig], Train, "Turns"], Iterator["Outcome"]]
"""Trains configurations by a function; yields an outcome for each, in whatever order they end."""


class Outcome(NamedTuple):
    """How one of several runs ended."""

    config: ExperimentConfig
    summary: Summary | None
    error: str | None
    """What went wrong, in one line."""


class Turns:
    """Says which of several runs comes now, and how long those that are left will take."""

    def __init__(self, console: Console, total: int, *, done: int = 0, at_once: int = 1) -> None:
        """`done` of `total` runs were finished before; `at_once` is how many go on at the same time."""
        self._console, self._total, self._done, self._at_once = console, total, done, at_once
        self._begun, self._ended, self._since = 0, 0, time.perf_counter()

    def begin(self, config: ExperimentConfig) -> None:
        """A run begins."""
        self._begun += 1
        self._print(f"run {self._done + self._begun} of {self._total}: {config.run_name}{self._left()}")

    def end(self, outcome: Outcome) -> None:
        """A run has ended."""
        self._ended += 1
        if outcome.error is not None:
            print(f"error: {outcome.config.run_name}: {outcome.error}", file=sys.stderr)
        elif self._at_once > 1:
            done = f"{self._done + self._ended} of {self._total} runs are done: {outcome.config.run_name}"
            self._print(f"{done}{self._left()}")

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False)

    def _left(self) -> str:
        left = self._total - self._done - self._ended
        if not self._ended or not left:
            return ""
        seconds = (time.perf_counter() - self._since) / self._ended * left
        return f"; about {describe_time(seconds)} left"


def describe_time(seconds: float) -> str:
    """A duration as one says it: 40 s, 12 min, 3.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def require_all(failed: Sequence[str], total: int) -> None:
    """Refuses to end well where runs failed.

    Raises:
        InputError: naming them.
    """
    if failed:
        raise InputError(f"{len(failed)} of {total} runs failed: {', '.join(failed)}; see above")


def describe_error(error: Exception) -> str:
    """What a failed run says, in one line."""
    return str(error) if isinstance(error, JaxcnnError) else f"{type(error).__name__}: {reason(error)}"


def one_by_one(configs: Sequence[ExperimentConfig], train: Train, turns: Turns) -> Iterator[Outcome]:
    """Trains in this process, in order, going on past a run that fails for whatever reason."""
    for config in configs:
        turns.begin(config)
        try:
            outcome = Outcome(config, train(config), None)
        except Exception as error:  # a night's other runs must not end with it
            outcome = Outcome(config, None, describe_error(error))
        turns.end(outcome)
        yield outcome
