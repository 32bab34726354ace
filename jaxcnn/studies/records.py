"""The results of a study: rows of runs, and a comparison of cases."""

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
    """The result of a case. Accuracies are in percent, differences in percentage points."""

    name: str
    settings: dict[str, Any]
    """What varies, by column."""
    test: Estimate
    validation: Estimate | None
    """None without validation images."""
    difference: Difference | None
    """In test accuracy to the baseline. None for the baseline, and for a case that shares no seed with it."""
    sampling_error: float | None
    """Half the width of Wilson's interval on so many test images; None if their number is not known."""
    best_epoch: float
    seconds: float
    trainable_parameters: int


class Comparison(NamedTuple):
    """The compared cases of a study."""

    cases: list[CaseResult]
    baseline: str
    chosen: str | None
    """The case with the highest mean validation accuracy; None if a case has no validation images."""

    def case(self, name: str) -> CaseResult:
        """The case of a name."""
        return next(case for case in self.cases if case.name == name)
