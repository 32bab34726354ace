"""Timing this checkout and another one in turn, each in its own processes."""

import json
import math
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from scipy.special import stdtrit

from experiments.bench import turns
from experiments.bench.machine import ROOT
from experiments.bench.measure import Program, matches, rates, take_turns
from experiments.bench.processes import environment, failure, in_turn, run_child, temporary
from experiments.bench.setting import Setting
from experiments.bench.show import number
from jaxcnn.errors import InputError

HERE, THERE = "this", "other"


@dataclass(frozen=True)
class Comparison:
    """One row: a figure of both checkouts, with one value per round."""

    name: str
    unit: str
    this: Sequence[float]
    other: Sequence[float]
    more_is_better: bool = True

    @property
    def ratios(self) -> list[float]:
        """The ratio of each round; above 1 means that this checkout is better."""
        pairs = zip(self.this, self.other, strict=True)
        return [a / b if self.more_is_better else b / a for a, b in pairs]

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 95 % t interval of the geometric mean of the ratios; None for a single round."""
        logs = [math.log(ratio) for ratio in self.ratios]
        if len(logs) < 2:
            return None
        mean = statistics.mean(logs)
        half = float(stdtrit(len(logs) - 1, 0.975)) * statistics.stdev(logs) / math.sqrt(len(logs))
        return math.exp(mean - half), math.exp(mean + half)

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values."""
        return {
            "name": self.name,
            "unit": self.unit,
            "better": "more" if self.more_is_better else "less",
            "this": list(self.this),
            "other": list(self.other),
            "ratios": self.ratios,
            "ratio": statistics.median(self.ratios),
            "interval": self.interval,
        }


def check(checkout: Path) -> None:
    """Checks that a folder is a checkout of this project.

    Raises:
        InputError: when it has no benchmark.
    """
    if not (checkout / "experiments/bench/child.py").is_file():
        raise InputError(
            f"--against {checkout} is not a checkout of this project: give the folder that has experiments/"
        )


@contextmanager
def worker(checkout: Path, row: str, setting: Setting, cache: Path) -> Iterator[Program]:
    """Starts a process with a checkout's code. Yields a program that makes it run the row's work once, and waits.

    Raises:
        InputError: from the program, when the process fails; the message ends with its last line of stderr.
    """
    command = [sys.executable, turns.__file__, row, json.dumps(setting.to_dict())]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command,
            env=environment(checkout, cache) | {"JAX_PLATFORMS": "cpu"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        send, receive = process.stdin, process.stdout

        def turn() -> None:
            with suppress(BrokenPipeError):
                send.write("go\n")
                send.flush()
            if not receive.readline():
                status = process.wait()
                errors.seek(0)
                raise failure(row, checkout, errors.read(), status)

        try:
            yield turn
        finally:
            process.kill()  # it writes no files
            process.communicate()


def measure(setting: Setting, checkout: Path, patterns: Sequence[str]) -> Iterator[Comparison]:
    """Measures the rows whose names match one of the patterns, or all if there are no patterns.

    Raises:
        InputError: when a pattern matches no row, or a process fails.
    """
    for pattern in patterns:
        if not any(matches(name, [pattern]) for name in ROWS):
            raise InputError(f"rows={pattern!r} names no row of --against; there are {', '.join(ROWS)}")
    if setting.data_dir is not None:
        setting = replace(setting, data_dir=str(Path(setting.data_dir).absolute()))
    prefix = "" if setting.preset == "shallow" else f"{setting.preset}/"
    for name, compare in ROWS.items():
        if not patterns or matches(name, patterns):
            found = compare(name, setting, {HERE: ROOT, THERE: checkout.absolute()})
            yield replace(found, name=prefix + name)


Compare = Callable[[str, Setting, dict[str, Path]], Comparison]


def _compare_rates(
    amount: Callable[[Setting], int], name: str, setting: Setting, checkouts: dict[str, Path]
) -> Comparison:
    """Images per second of two processes that run in turn and live for the whole row."""
    with temporary() as caches, ExitStack() as stack:
        programs = {
            side: stack.enter_context(worker(checkout, name, setting, caches / side))
            for side, checkout in checkouts.items()
        }
        speed = rates(take_turns(programs, setting.rounds), amount(setting))
    return Comparison(name, "images/s", speed[HERE], speed[THERE])


def _compare_answers(
    do: str, figure: str, unit: str, warm: bool, name: str, setting: Setting, checkouts: dict[str, Path]
) -> Comparison:
    """A figure from a new process in each turn."""
    children = {side: partial(run_child, do, setting, checkout=checkout) for side, checkout in checkouts.items()}
    values = in_turn(children, figure, setting.rounds, warm=warm)
    return Comparison(name, unit, values[HERE], values[THERE], more_is_better=False)


_of_steps = partial(_compare_rates, lambda setting: setting.steps * setting.batch_size)
_of_epochs = partial(_compare_rates, lambda setting: setting.images)

ROWS: dict[str, Compare] = {
    "step_full": _of_steps,
    "step_partial": _of_steps,
    "step_frozen": _of_steps,
    "evaluate": _of_steps,
    "epoch_full": _of_epochs,
    "epoch_frozen": _of_epochs,
    "epoch_frozen_cached": partial(_compare_rates, lambda setting: turns.PASSES * setting.images),
    "first_step_cold": partial(_compare_answers, "first_step", "seconds", "s", False),
    "first_step_warm": partial(_compare_answers, "first_step", "seconds", "s", True),
    "peak_memory": partial(_compare_answers, "epoch", "peak_mib", "MiB", False),
    "peak_memory_warm": partial(_compare_answers, "epoch", "peak_mib", "MiB", True),
}
"""The rows, and how each is measured."""


def table(rows: Sequence[Comparison]) -> Table:
    """The table for a terminal."""
    title = "n rounds in turn; ratio of each round, above 1: this checkout is better"
    found = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for name in ("row", "unit", "this", "other", "ratio, median", "its mean, 95 %", "n"):
        found.add_column(name, justify="left" if name in ("row", "unit") else "right", no_wrap=True)
    for row in rows:
        interval = "" if row.interval is None else f"{row.interval[0]:.3f} to {row.interval[1]:.3f}"
        medians = (number(statistics.median(row.this)), number(statistics.median(row.other)))
        ratio = f"{statistics.median(row.ratios):.3f}"
        found.add_row(row.name, row.unit, *medians, ratio, interval, str(len(row.ratios)))
    return found
