"""Timing programs in turn, and the rows that hold the results."""

import fnmatch
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from experiments.bench.setting import Setting

Program = Callable[[], object]
"""A function that does a fixed amount of work and returns when it is done."""
Skipped = Callable[[str], bool]
"""A function: row name -> whether the row is not asked for. A group then skips work that only that row needs."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    `values` has a list for each column, with one value per round. The columns "jaxcnn" and "pytorch" give the ratio,
    which is above 1 if jaxcnn is better. Names of other forms start with the program, such as "pytorch_compiled".
    `note` says what was not measured, and why.
    """

    name: str
    what: str
    unit: str
    values: Mapping[str, Sequence[float]]
    more_is_better: bool = True
    note: str = ""
    compares: bool = True
    """Whether the ratio is a result: both programs do the same work."""

    def median(self, column: str) -> float | None:
        """Median over the rounds; None if the column has no values."""
        values = self.values.get(column)
        return statistics.median(values) if values else None

    def versus(self, ours: str, theirs: str) -> float | None:
        """Ratio of the medians of two columns; above 1 means that `ours` is better."""
        a, b = self.median(ours), self.median(theirs)
        if a is None or b is None:
            return None
        return a / b if self.more_is_better else b / a

    @property
    def ratio(self) -> float | None:
        """Ratio of jaxcnn to PyTorch, from the medians."""
        return self.versus("jaxcnn", "pytorch")

    def best(self, program: str) -> str | None:
        """The column with the best median among the forms of "jaxcnn" or "pytorch"; None if there is none."""
        medians = {column: self.median(column) for column in self.values if column.startswith(program)}
        found = {column: value for column, value in medians.items() if value is not None}
        return (max if self.more_is_better else min)(found, key=found.__getitem__, default=None)

    @property
    def has_forms(self) -> bool:
        """Whether a program was measured in more than one form."""
        columns = [column for column in self.values if column.startswith(("jaxcnn", "pytorch"))]
        return self.compares and len(columns) > 2

    @property
    def best_ratio(self) -> float | None:
        """Ratio of jaxcnn's best form to PyTorch's best form."""
        ours, theirs = self.best("jaxcnn"), self.best("pytorch")
        return None if ours is None or theirs is None else self.versus(ours, theirs)

    @property
    def ratio_spread(self) -> tuple[float, float] | None:
        """Smallest and largest ratio of a single round."""
        pairs = list(zip(self.values.get("jaxcnn", ()), self.values.get("pytorch", ()), strict=False))
        ratios = [ours / theirs if self.more_is_better else theirs / ours for ours, theirs in pairs]
        return (min(ratios), max(ratios)) if ratios else None

    def to_dict(self) -> dict[str, Any]:
        """The row as JSON values: medians, ratios, best forms, and the figures of every form."""
        forms = {
            column: {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}
            for column, values in self.values.items()
            if values
        }
        return {
            "name": self.name,
            "what": self.what,
            "unit": self.unit,
            "better": "more" if self.more_is_better else "less",
            "jaxcnn": self.median("jaxcnn"),
            "pytorch": self.median("pytorch"),
            "ratio": self.ratio,
            "ratio_spread": self.ratio_spread,
            "best_jaxcnn": self.best("jaxcnn"),
            "best_pytorch": self.best("pytorch"),
            "best_ratio": self.best_ratio,
            "forms": forms,
            "note": self.note,
        }


class Group(NamedTuple):
    """Rows that one measurement gives."""

    names: tuple[str, ...]
    measure: Callable[[Setting, Skipped], Sequence[Row]]
    default: bool = True
    """Whether it is measured when no rows are asked for by name."""


def usable(makers: Mapping[str, Callable[[], Program]]) -> tuple[dict[str, Program], str]:
    """Makes each program and runs it once. A program that fails is left out.

    Returns:
        The programs by column, and a remark that says which ones failed and why.
    """
    programs: dict[str, Program] = {}
    remarks = []
    for column, make in makers.items():
        try:
            program = make()
            program()
        except Exception as error:  # compilers and drivers raise many types
            remarks.append(f"{column.replace('_', ' ')} {not_timed(error)}")
        else:
            programs[column] = program
    return programs, "; ".join(remarks)


def not_timed(error: Exception) -> str:
    """A remark with the type of an error and the first line of its message."""
    why = (str(error).strip().splitlines() or [""])[0][:120]
    return f"not timed: {type(error).__name__}: {why}".rstrip(": ")


def take_turns(programs: Mapping[str, Program], rounds: int) -> dict[str, list[float]]:
    """Runs all programs once per round, and returns the seconds of each program by round.

    Each program first runs once without being timed, which compiles it. Each round starts with another program, so that
    none always follows the same one. Sharing a process does not slow down either side: full training steps of this
    project ran at 577 and 586 images/s alone and at 579 and 586 in turn with PyTorch's; PyTorch's at 471 and 507 alone
    and at 494 and 508 in turn (medians of 7, two cores). PyTorch's evaluation gets faster: 1,100 to 1,170 images/s
    alone, 1,250 to 1,760 in turn. So OpenMP's waiting threads need no special setting.
    """
    for program in programs.values():
        program()
    seconds: dict[str, list[float]] = {name: [] for name in programs}
    for order in orders(list(programs), rounds):
        for name in order:
            began = time.perf_counter()
            programs[name]()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def orders(names: Sequence[str], rounds: int) -> list[list[str]]:
    """The order of the names in each round: rotated by one from round to round."""
    return [[names[(i + k) % len(names)] for k in range(len(names))] for i in range(rounds)]


def repeat(program: Program, times: int) -> Program:
    """A program that runs another one several times, so that it takes long enough to be timed."""
    return lambda: [program() for _ in range(times)]


def rates(seconds: Mapping[str, Sequence[float]], amount: float) -> dict[str, list[float]]:
    """Work per second, from the seconds that `amount` of work took."""
    return {name: [amount / each for each in values] for name, values in seconds.items()}


def matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a row's name matches one of the patterns."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
