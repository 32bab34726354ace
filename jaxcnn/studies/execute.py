"""Running several experiments in order, with the time left. If one fails, the others still run."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

from rich.console import Console

from jaxcnn.config.experiment import ExperimentConfig, TransferConfig
from jaxcnn.errors import InputError, JaxcnnError, reason
from jaxcnn.runs.summary import Summary
from jaxcnn.training.features import SharedFeatures


class Train(Protocol):
    """Trains one run."""

    def __call__(self, config: ExperimentConfig, /, *, features: SharedFeatures) -> Summary:
        """`features` are those of the run before in this process."""


Executor = Callable[[Sequence[ExperimentConfig], Train, "Turns"], Iterator["Outcome"]]
"""Calls a training function for each configuration; yields the outcomes in any order.

A run that starts from another one's weights comes after that one, and is not trained if that one failed.
"""


class Outcome(NamedTuple):
    """The result of one of several runs: a summary or an error."""

    config: ExperimentConfig
    summary: Summary | None
    error: str | None
    """The message, in one line."""


class Turns:
    """Prints which run starts or has finished, and an estimate of the time left."""

    def __init__(self, console: Console, total: int, *, done: int = 0, at_once: int = 1) -> None:
        """Starts counting.

        Args:
            console: where to print.
            total: number of runs.
            done: number of runs that were finished before.
            at_once: number of runs that are trained at the same time.
        """
        self._console, self._total, self._done, self._at_once = console, total, done, at_once
        self._ended, self._since = 0, time.perf_counter()

    def begin(self, config: ExperimentConfig) -> None:
        """Prints that a run starts."""
        self._print(f"run {self._done + self._ended + 1} of {self._total}: {config.run_name}{self._left()}")

    def end(self, outcome: Outcome) -> None:
        """Counts a run that has ended. Prints its error, or that it is done if several run at the same time."""
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
    """Formats a duration: 40 s, 12 min, 3.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def require_all(failed: Sequence[str], total: int) -> None:
    """Checks that no run failed.

    Raises:
        InputError: naming the runs that did.
    """
    if failed:
        raise InputError(f"{len(failed)} of {total} runs failed: {', '.join(failed)}; see above")


def describe_error(error: Exception) -> str:
    """The message of an error in one line, with its type if it is not one of this project's."""
    return str(error) if isinstance(error, JaxcnnError) else f"{type(error).__name__}: {reason(error)}"


def find_sources(configs: Sequence[ExperimentConfig]) -> dict[str, str]:
    """The names of runs that start from the weights of another of these runs, and the names of those."""
    names = {each.runs_dir / each.run_name: each.run_name for each in configs}
    found = {each.run_name: names.get(each.source) for each in configs if isinstance(each, TransferConfig)}
    return {run: source for run, source in found.items() if source is not None}


def source_failed(source: str) -> str:
    """The error of a run whose source could not be trained."""
    return f"its source {source} failed"


def one_by_one(configs: Sequence[ExperimentConfig], train: Train, turns: Turns) -> Iterator[Outcome]:
    """An `Executor` that trains in this process, in order."""
    features, sources, failed = SharedFeatures(), find_sources(configs), set()
    for config in configs:
        if (source := sources.get(config.run_name, "")) in failed:
            outcome = Outcome(config, None, source_failed(source))
        else:
            turns.begin(config)
            try:
                outcome = Outcome(config, train(config, features=features), None)
            except Exception as error:  # any kind, so that the other runs are not lost
                outcome = Outcome(config, None, describe_error(error))
        if outcome.summary is None:
            failed.add(config.run_name)
        turns.end(outcome)
        yield outcome
