"""Comparing masks: a table and a plot of what transfer brings."""

import statistics
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from jaxcnn.files import write_text
from jaxcnn.runs.figures import plot_comparison
from jaxcnn.runs.metrics import read_metrics
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.style import Figures
from jaxcnn.runs.summary import Summary
from jaxcnn.runs.tables import csv_text, latex_text, markdown_text

_COLUMNS = ("mask", "runs", "test accuracy (%)", "against scratch", "epochs to best", "seconds", "trained parameters")


def rows(summaries: Sequence[Summary]) -> list[tuple[str, ...]]:
    """One table row per mask, with cells as text under `_COLUMNS`.

    Accuracies are mean and standard deviation over the seeds. "against scratch" is the difference to the scratch run
    with the same seed: its mean over the seeds, and the standard error of that mean.
    """
    by_mask: dict[str, dict[int, Summary]] = {}
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


def comparison_table(summaries: Sequence[Summary]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(*_COLUMNS, title="What transfer bought")
    for row in rows(summaries):
        table.add_row(*row)
    return table


def write_comparison(
    folder: Path, runs: Sequence[Path], summaries: Sequence[Summary], figures: Figures = "png"
) -> None:
    """Writes comparison.csv, .md, .tex and a figure (validation accuracy by epoch, a line for each mask).

    If a file cannot be written, or a run's `metrics.csv` cannot be read, a warning is printed on stderr.
    """
    table = rows(summaries)
    texts = {
        "csv": csv_text([_COLUMNS, *table]),
        "md": markdown_text(_COLUMNS, table),
        "tex": latex_text(_COLUMNS, table),
    }
    for suffix, text in texts.items():
        with only_warns(str(folder / f"comparison.{suffix}")):
            write_text(folder / f"comparison.{suffix}", text)
    with only_warns(str(folder / f"comparison.{figures}")):
        curves: dict[str, list[list[float]]] = {}
        for run, summary in zip(runs, summaries, strict=True):
            accuracies = [r.val_accuracy for r in read_metrics(run) if r.val_accuracy is not None]
            curves.setdefault(summary["mask"], []).append(accuracies)
        plot_comparison(folder / f"comparison.{figures}", curves)
