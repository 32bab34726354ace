"""Writing the tables, figures and page of a study."""

import base64
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rich.console import Console

from jaxcnn.files import write_text
from jaxcnn.runs.metrics import read_metrics
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.style import Figures
from jaxcnn.studies.compare import compare, verdict
from jaxcnn.studies.figures import plot_accuracy, plot_time, plot_validation
from jaxcnn.studies.plan import Study
from jaxcnn.studies.records import Comparison, Finished, Row
from jaxcnn.studies.rows import write_rows
from jaxcnn.studies.tables import cells, column_names, csv_table, latex_table, legend, markdown_table, terminal_tables

_RUN_COLUMNS = ("seed", "test_accuracy", "val_accuracy", "best_epoch", "epochs", "seconds")
_CAPTIONS = {
    "accuracy": "Test accuracy. A dot is a run; a bar is the 95 % t interval of the mean over seeds.",
    "curves": "Validation accuracy by epoch: the mean over seeds and its 95 % t interval.",
    "time": "Test accuracy against the time that training took: dots are runs, large markers are means.",
}


def write_report(
    study: Study, finished: Sequence[Finished], failed: Sequence[str] = (), figures: Figures = "svg"
) -> Comparison:
    """Writes `results.csv`, `comparison.csv`, `.md` and `.tex`, figures and `study.html` into the study's folder.

    If a file cannot be written, or a run's `metrics.csv` cannot be read, a warning is printed on stderr.

    Args:
        study: the study.
        finished: its runs to compare, at least one.
        failed: names of the runs that failed.
        figures: the format of the figures. SVG is written in any case, because the page has these.
    """
    folder, rows = study.folder, _by_case(study, finished)
    settings = {run.case: run.settings for run in study.runs}
    comparison = compare([(case, settings[case], each) for case, each in rows.items()], study.baseline)
    lines = verdict(comparison)
    texts = {
        "comparison.csv": csv_table(comparison, study.columns),
        "comparison.md": markdown_table(comparison) + "".join(f"\n- {line}" for line in lines) + "\n",
        "comparison.tex": latex_table(comparison),
    }
    with only_warns(str(folder / "results.csv")):
        write_rows(folder / "results.csv", study.columns, [each.row for each in finished])
    for name, text in texts.items():
        with only_warns(str(folder / name)):
            write_text(folder / name, text)
    drawn = _draw(study, comparison, finished, figures)
    with only_warns(str(folder / "study.html")):
        write_text(folder / "study.html", _page(study, comparison, finished, failed, drawn, lines))
    return comparison


def print_comparison(console: Console, comparison: Comparison, folder: Path) -> None:
    """Prints the tables and the verdict of a comparison, and the folder that holds them."""
    console.print(terminal_tables(comparison))
    for line in (*verdict(comparison), f"comparison in {folder}"):
        console.print(line, markup=False, highlight=False)


def _by_case(study: Study, finished: Sequence[Finished]) -> dict[str, list[Row]]:
    rows = {case: [each.row for each in finished if each.case == case] for case in study.cases}
    return {case: each for case, each in rows.items() if each}


def _draw(study: Study, comparison: Comparison, finished: Sequence[Finished], figures: Figures) -> dict[str, Path]:
    """Draws the figures; returns the SVG ones that could be drawn, by their caption."""
    rows = _by_case(study, finished)
    plots: dict[str, Callable[[Path], None]] = {
        "accuracy": lambda path: plot_accuracy(path, comparison, rows),
        "time": lambda path: plot_time(path, comparison, rows),
    }
    with only_warns(str(study.folder / "curves.svg")):
        if curves := _curves(study, finished):
            plots["curves"] = lambda path: plot_validation(path, curves)
    drawn = {}
    for name, caption in _CAPTIONS.items():
        for suffix in dict.fromkeys(("svg", figures)) if name in plots else ():
            path = study.folder / f"{name}.{suffix}"
            with only_warns(str(path)):
                plots[name](path)
                if suffix == "svg":
                    drawn[caption] = path
    return drawn


def _curves(study: Study, finished: Sequence[Finished]) -> dict[str, list[list[float]]]:
    """Validation accuracies by epoch of the runs of each case that have any."""
    curves: dict[str, list[list[float]]] = {case: [] for case in study.cases}
    for each in finished:
        accuracies = [r.val_accuracy for r in read_metrics(each.folder) if r.val_accuracy is not None]
        if accuracies:
            curves[each.case].append(accuracies)
    return {case: runs for case, runs in curves.items() if runs}


def _page(
    study: Study,
    comparison: Comparison,
    finished: Sequence[Finished],
    failed: Sequence[str],
    figures: Mapping[str, Path],
    lines: Sequence[str],
) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("jaxcnn.studies"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    seeds = sorted({each.row["seed"] for each in finished})
    facts = (
        f"{len(comparison.cases)} cases, {len(finished)} of {len(study.runs)} runs, seeds "
        f"{', '.join(map(str, seeds))}, data set {finished[0].row['dataset']}; compared to {study.baseline}"
    )
    return environment.get_template("study.html.jinja").render(
        title=f"Study {study.folder.name}",
        facts=facts,
        verdict=lines,
        failed=failed,
        header=column_names(comparison),
        cells=cells(comparison),
        legend=legend(comparison),
        figures=[(caption, _data_uri(path)) for caption, path in figures.items()],
        run_header=(*study.columns, *_RUN_COLUMNS),
        runs=[_run_line(study, each) for each in finished],
    )


def _data_uri(svg: Path) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.read_bytes()).decode()}"


def _run_line(study: Study, run: Finished) -> tuple[str, str, list[str]]:
    """A link to a run's report, or to its folder where it has none; its name; and what the page shows of it."""
    report = run.folder / "report.html"
    target = os.path.relpath(report if report.is_file() else run.folder, study.folder)
    return quote(target), run.row["run"], [_shown(run.row[name]) for name in (*study.columns, *_RUN_COLUMNS)]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) and abs(value) >= 0.1 else str(value)
