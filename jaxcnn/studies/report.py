"""What a study leaves in its folder: tables, figures and a page, all made from the rows."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any
from urllib.parse import quote

from jaxcnn.files import write_text
from jaxcnn.runs.present import read_metrics
from jaxcnn.runs.streams import only_warns
from jaxcnn.studies.compare import compare, verdict
from jaxcnn.studies.figures import draw_accuracy, draw_curves, draw_time
from jaxcnn.studies.plan import Study
from jaxcnn.studies.records import Comparison, Finished, Row
from jaxcnn.studies.rows import write_rows
from jaxcnn.studies.tables import cells, column_names, csv_table, latex_table, legend, markdown_table

_RUN_COLUMNS = ("seed", "test_accuracy", "val_accuracy", "best_epoch", "epochs", "seconds")
_CAPTIONS = {
    "accuracy.svg": "Test accuracy. A dot is a run; a bar is the 95 % t interval of the mean over seeds.",
    "curves.svg": "Validation accuracy by epoch: the mean over seeds and its 95 % t interval.",
    "time.svg": "Test accuracy against the time that training took: dots are runs, marks are means.",
}


def compare_runs(study: Study, finished: Sequence[Finished]) -> Comparison:
    """The comparison of the cases that have finished runs."""
    settings = {run.case: run.settings for run in study.runs}
    rows = _by_case(study, finished)
    return compare([(case, settings[case], each) for case, each in rows.items()], study.baseline)


def _by_case(study: Study, finished: Sequence[Finished]) -> dict[str, list[Row]]:
    rows = {case: [each.row for each in finished if each.case == case] for case in study.cases}
    return {case: each for case, each in rows.items() if each}


def write_report(study: Study, finished: Sequence[Finished], failed: Sequence[str]) -> Comparison:
    """Writes `results.csv`, `comparison.csv`, `.md` and `.tex`, figures and `study.html` into the study's folder.

    What cannot be written, or lacks a run's `metrics.csv`, is a warning on stderr.

    Args:
        study: whose runs they are.
        finished: those to compare, one at least.
        failed: names of the runs that failed.
    """
    comparison, folder = compare_runs(study, finished), study.folder
    said = verdict(comparison)
    texts = {
        "comparison.csv": csv_table(comparison, study.columns),
        "comparison.md": markdown_table(comparison) + "".join(f"\n- {line}" for line in said) + "\n",
        "comparison.tex": latex_table(comparison),
    }
    with only_warns(str(folder / "results.csv")):
        write_rows(folder / "results.csv", study.columns, [each.row for each in finished])
    for name, text in texts.items():
        with only_warns(str(folder / name)):
            write_text(folder / name, text)
    figures: dict[str, str] = {}
    rows = _by_case(study, finished)
    for name in _CAPTIONS:
        with only_warns(str(folder / name)):
            if name == "accuracy.svg":
                figures[name] = draw_accuracy(comparison, rows)
            elif name == "time.svg":
                figures[name] = draw_time(comparison, rows)
            elif curves := _curves(study, finished):
                figures[name] = draw_curves(curves)
            else:
                continue
            write_text(folder / name, f'<?xml version="1.0" encoding="utf-8"?>\n{figures[name]}')
    with only_warns(str(folder / "study.html")):
        write_text(folder / "study.html", _page(study, comparison, finished, failed, figures, said))
    return comparison


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
    figures: Mapping[str, str],
    said: Sequence[str],
) -> str:
    from jinja2 import Environment, StrictUndefined

    template = files("jaxcnn.studies").joinpath("study.html").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    seeds = sorted({each.row["seed"] for each in finished})
    facts = (
        f"{len(comparison.cases)} cases, {len(finished)} of {len(study.runs)} runs, seeds "
        f"{', '.join(map(str, seeds))}, data set {finished[0].row['dataset']}; compared to {study.baseline}"
    )
    return environment.from_string(template).render(
        title=f"Study {study.folder.name}",
        facts=facts,
        verdict=said,
        failed=failed,
        header=column_names(comparison),
        cells=cells(comparison),
        legend=legend(comparison),
        figures=[(_CAPTIONS[name], svg) for name, svg in figures.items()],
        run_header=(*study.columns, *_RUN_COLUMNS),
        runs=[_run_line(study, each) for each in finished],
    )


def _run_line(study: Study, run: Finished) -> tuple[str, str, list[str]]:
    """A link to a run's report, or to its folder where it has none; its name; and what the page shows of it."""
    report = run.folder / "report.html"
    target = os.path.relpath(report if report.is_file() else run.folder, study.folder)
    return quote(target), run.row["run"], [_shown(run.row[name]) for name in (*study.columns, *_RUN_COLUMNS)]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.2f}" if isinstance(value, float) and abs(value) >= 0.1 else str(value)
