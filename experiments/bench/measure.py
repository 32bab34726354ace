"""Programs timed in turn, and rows of what came of it."""

import fnmatch
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Program = Callable[[], object]
"""Does a fixed amount of work and returns when it is done."""


@dataclass(frozen=True)
class Row:
    """One line of the table: what was measured, round by round, in one unit.

    `values` holds a list for each column; "jaxcnn" and "pytorch" make the ratio, which is above 1 where jaxcnn is
    better. A column that could not be measured is an empty list, and `note` says why.
    """

    name: str
    what: str
    unit: str
    values: Mapping[str, Sequence[float]]
    more_is_better: bool = True
    note: str = ""
    compares: bool = True
    """Whether the two columns are the two programs doing the same, and the ratio is a result."""

    def median(self, column: str) -> float | None:
        """Median over the rounds; None for a column without values."""
        values = self.values.get(column)
        return statistics.median(values) if values else None

    def versus(self, column: str) -> float | None:
        """How many times better the median of jaxcnn is than that of `column`."""
        ours, theirs = self.median("jaxcnn"), self.median(column)
        if ours is None or theirs is None:
            return None
        return ours / theirs if self.more_is_better else theirs / ours

    @property
    def ratio(self) -> float | None:
        """Of jaxcnn to PyTorch, from the medians."""
        return self.versus("pytorch")

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """Smallest and largest ratio of one round."""
        pairs = list(zip(self.values.get("jaxcnn", ()), self.values.get("pytorch", ()), strict=False))
        ratios = [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]
        return (min(ratios), max(ratios)) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """What is kept of the row: medians by column, the spread (smallest, largest) and the rounds (n)."""
        medians = {column: self.median(column) for column in self.values}
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "better": "more" if self.more_is_better else "less",
            "jaxcnn": None,
            "pytorch": None,
            **medians,
            "ratio": self.ratio,
            "ratio_spread": self.ratio_spread,
            "spread": {column: [min(values), max(values)] for column, values in self.values.items() if values},
            "n": max((len(values) for values in self.values.values()), default=0),
            "note": self.note,
        }


def take_turns(programs: Mapping[str, Program], rounds: int) -> dict[str, list[float]]:
    """Seconds that each program takes, round by round: every round runs each of them once.

    All run once before, which compiles them. Each round begins with the next program, so that none always follows
    the same one. Sharing a process costs neither side anything: full training steps of this project ran at 577 and 586
    images/s alone and at 579 and 586 in turn with PyTorch's; PyTorch's at 471 and 507 alone and at 494 and 508 in
    turn (medians of 7, two cores). PyTorch's evaluation gains: 1,100 to 1,170 images/s alone, 1,250 to 1,760 in turn.
    So no setting of OpenMP's waiting threads is needed.
    """
    for program in programs.values():
        program()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    names = list(programs)
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            programs[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def repeated(program: Program, times: int) -> Program:
    """The program so many times, as one that takes long enough to be timed."""
    return lambda: [program() for _ in range(times)]


def rates(seconds: Mapping[str, Sequence[float]], amount: float) -> dict[str, list[float]]:
    """Work a second, from the seconds that `amount` of it took."""
    return {name: [amount / each for each in values] for name, values in seconds.items()}


def chosen(name: str, patterns: Sequence[str]) -> bool:
    """Whether a row's name matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
