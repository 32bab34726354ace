"""What a study's results are made of: rows of runs, and cases compared."""

from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.studies.statistics import Difference, Estimate

Row = dict[str, Any]
"""A run by column: `run`, `seed`, what varies, the fields of `summary.json`, `test_images`, `processor`, `threads`."""


class Finished(NamedTuple):
    """A finished run of a study."""

    case: str
    folder: Path
    row: Row


class CaseResult(NamedTuple):
    """What came of a case; accuracies in percent, differences in points."""

    name: str
    settings: dict[str, Any]
    """What varies, by column."""
    test: Estimate
    validation: Estimate | None
    """None where nothing is held out."""
    difference: Difference | None
    """Of the test accuracy to the baseline's; None of the baseline, and where they share no seed."""
    sampling_error: float | None
    """What the size of the test set alone leaves open; None where it is not known."""
    best_epoch: float
    seconds: float
    trainable_parameters: int


class Comparison(NamedTuple):
    """The cases of a study."""

    cases: list[CaseResult]
    baseline: str
    chosen: str | None
    """The case with the highest mean validation accuracy; None where a case has none."""

    def case(self, name: str) -> CaseResult:
        """The case of a name."""
        return next(case for case in self.cases if case.name == name)
