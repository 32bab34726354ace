"""Masks side by side: a table and a picture of what transfer bought."""

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from jaxcnn.errors import InputError, reason
from jaxcnn.files import write_whole
from jaxcnn.report import plot_comparison

_COLUMNS = ("mask", "runs", "test accuracy (%)", "against scratch", "epochs to best", "seconds", "trained parameters")


def rows(summaries: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """One row for each mask, over its seeds: mean and standard deviation, and the paired difference to scratch.

    The difference is that of runs with the same seed: its mean and the standard error of the mean.
    """
    by_mask: dict[str, dict[int, dict[str, Any]]] = {}
    for summary in summaries:
        by_mask.setdefault(summary["mask"], {})[summary["seed"]] = summary
    scratch = by_mask.get("scratch", {})
    made: list[tuple[str, ...]] = []
    for mask, runs in by_mask.items():
        pairs = [runs[s]["test_accuracy"] - scratch[s]["test_accuracy"] for s in runs if s in scratch]
        paired = "" if mask == "scratch" or not pairs else _spread(pairs, signed=True, error_of_mean=True)
        made.append(
            (
                mask,
                str(len(runs)),
                _spread([run["test_accuracy"] for run in runs.values()]),
                paired,
                f"{statistics.mean(run['best_epoch'] for run in runs.values()):.1f}",
                f"{statistics.mean(run['seconds'] for run in runs.values()):.1f}",
                f"{next(iter(runs.values()))['trainable_parameters']:,}",
            )
        )
    return made


def _spread(values: Sequence[float], *, signed: bool = False, error_of_mean: bool = False) -> str:
    mean = f"{statistics.mean(values):+.2f}" if signed else f"{statistics.mean(values):.2f}"
    if len(values) == 1:
        return mean
    spread = statistics.stdev(values) / (len(values) ** 0.5 if error_of_mean else 1)
    return f"{mean} ± {spread:.2f}"


def comparison_table(summaries: Sequence[dict[str, Any]]) -> Table:
    """The rows to look at."""
    table = Table(*_COLUMNS, title="What transfer bought")
    for row in rows(summaries):
        table.add_row(*row)
    return table


def write_comparison(folder: Path, runs: Sequence[Path], summaries: Sequence[dict[str, Any]]) -> None:
    """Writes comparison.png (validation accuracy by epoch, a line for each mask), .md and .csv.

    Raises:
        InputError: when a run's `metrics.csv` is gone or another program's, or a file cannot be written.
    """
    curves: dict[str, list[list[float]]] = {}
    for run, summary in zip(runs, summaries, strict=True):
        curves.setdefault(summary["mask"], []).append(_accuracies(run / "metrics.csv"))
    table = rows(summaries)
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([_COLUMNS, *table])
    write_whole(folder / "comparison.csv", lambda path: path.write_text(text.getvalue()))
    lines = [_COLUMNS, tuple("---" for _ in _COLUMNS), *table]
    markdown = "".join(f"| {' | '.join(cells)} |\n" for cells in lines)
    write_whole(folder / "comparison.md", lambda path: path.write_text(markdown))
    plot_comparison(folder / "comparison.png", curves)


def _accuracies(path: Path) -> list[float]:
    try:
        with path.open(newline="") as file:
            return [float(row["val_accuracy"]) for row in csv.DictReader(file) if row["val_accuracy"]]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; --overwrite trains that run anew") from error
