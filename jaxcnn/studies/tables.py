"""A comparison as a table for the terminal, Markdown and LaTeX, and as CSV with unrounded numbers."""

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from jaxcnn.runs.tables import csv_text, escape_markdown, latex_text, markdown_text
from jaxcnn.studies.records import CaseResult, Comparison


def column_names(comparison: Comparison) -> tuple[str, ...]:
    """The header of `cells`."""
    return (
        "case",
        "runs",
        "test accuracy (%)",
        "sd between seeds",
        "95 % t interval",
        "validation accuracy (%)",
        f"difference to {comparison.baseline}",
        "95 % interval (Holm)",
        "p (Holm)",
        "epochs to best",
        "seconds",
        "trained parameters",
    )


def cells(comparison: Comparison) -> list[tuple[str, ...]]:
    """A row of text for each case. Cells that need two runs are empty if there is one."""
    return [_cells(case, comparison.chosen) for case in comparison.cases]


def _cells(case: CaseResult, chosen: str | None) -> tuple[str, ...]:
    test, validation, difference = case.test, case.validation, case.difference
    mark = " *" if case.name == chosen else ""
    return (
        case.name,
        str(test.n),
        f"{test.mean:.2f}",
        "" if test.sd is None else f"{test.sd:.2f}",
        "" if test.low is None else f"{test.low:.2f} to {test.high:.2f}",
        "" if validation is None else f"{validation.mean:.2f}{mark}",
        "" if difference is None else f"{difference.mean:+.2f}",
        "" if difference is None or difference.low is None else f"{difference.low:+.2f} to {difference.high:+.2f}",
        "" if difference is None or difference.p is None else f"{difference.p:.2g}",
        f"{case.best_epoch:.1f}",
        f"{case.seconds:.1f}",
        f"{case.trainable_parameters:,}",
    )


def legend(comparison: Comparison) -> str:
    """The meaning of the columns, in words."""
    decides = (
        "* marks the highest mean validation accuracy: this column decides a choice, and test accuracy never does."
        if comparison.chosen is not None
        else "No setting is chosen: some runs held no images out for validation."
    )
    return (
        "Test accuracy: mean over the runs of a case, each read once. sd: standard deviation between seeds. t "
        "interval: of the mean. Difference: paired by seed; its interval and p are corrected for the number of "
        f"comparisons by Holm's method. {decides}"
    )


_PARTS = ((0, 1, 2, 3, 4, 5), (0, 6, 7, 8), (0, 9, 10, 11))


def terminal_tables(comparison: Comparison) -> Group:
    """The table for a terminal, in three parts, because it would be too wide."""
    tables = []
    for columns in _PARTS:
        table = Table(box=box.SIMPLE_HEAD)
        for number in columns:
            name, width = column_names(comparison)[number], max(len(row[number]) for row in cells(comparison))
            least = width if number else min(width, 24)
            table.add_column(Text(name), justify="right" if number else "left", overflow="fold", min_width=least)
        for row in cells(comparison):
            table.add_row(*(Text(row[number]) for number in columns))
        tables.append(table)
    return Group(*tables, Text(legend(comparison)))


def markdown_table(comparison: Comparison) -> str:
    """The table as Markdown, with its legend."""
    return f"{markdown_text(column_names(comparison), cells(comparison))}\n{escape_markdown(legend(comparison))}\n"


def latex_table(comparison: Comparison) -> str:
    """The table as LaTeX for the package booktabs, with its legend as a comment."""
    return f"{latex_text(column_names(comparison), cells(comparison))}% {legend(comparison)}\n"


def csv_table(comparison: Comparison, columns: Sequence[str]) -> str:
    """The table as CSV: a row for each case with its name, its settings in `columns`, and unrounded numbers."""
    header = [
        *("case", *columns, "runs", "test_accuracy", "test_sd", "test_low", "test_high", "val_accuracy", "chosen"),
        *("difference", "difference_low", "difference_high", "p", "more_seeds", "sampling_error"),
        *("best_epoch", "seconds", "trainable_parameters"),
    ]
    return csv_text([header, *(_numbers(case, columns, comparison.chosen) for case in comparison.cases)])


def _numbers(case: CaseResult, columns: Sequence[str], chosen: str | None) -> list[Any]:
    test, difference = case.test, case.difference
    compared: list[Any] = [None] * 5
    if difference is not None:
        compared = [difference.mean, difference.low, difference.high, difference.p, difference.more]
    return [
        *(case.name, *(case.settings[column] for column in columns)),
        *(test.n, test.mean, test.sd, test.low, test.high),
        *(None if case.validation is None else case.validation.mean, int(case.name == chosen)),
        *(*compared, case.sampling_error, case.best_epoch, case.seconds, case.trainable_parameters),
    ]
