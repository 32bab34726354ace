"""Figures of a study, in the style of the runs' figures."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from jaxcnn.runs.palette import FAINTEST
from jaxcnn.runs.style import line, new_figure, one_line
from jaxcnn.studies.records import CaseResult, Comparison, Row
from jaxcnn.studies.statistics import estimate

_SIZE = (7.5, 4.5)
_SOLID, _BROKEN = "-", "--"
_RUN = {"linestyle": "", "marker": ".", "alpha": 0.45}
"""How a single run is drawn."""


def plot_accuracy(path: Path, comparison: Comparison, rows: Mapping[str, Sequence[Row]]) -> None:
    """Plots test accuracy against depth, or by case where no number of stages varies.

    A dot is a run, a bar the 95 % t interval of a mean. Scratch is a band across the figure. Controls, whose source
    learned the same task, have broken lines.

    Args:
        path: of the figure.
        comparison: of the study.
        rows: the runs of each case.
    """
    depth = _depth_column(comparison)
    with new_figure(path, *_SIZE) as figure:
        axes = figure.add_subplot()
        lines: dict[str, list[tuple[float, CaseResult]]] = {}
        for i, case in enumerate(comparison.cases):
            if depth is None:
                lines.setdefault("", []).append((i, case))
            elif case.settings["copied_stages"] == 0:
                _draw_reference(axes, case)
            else:
                lines.setdefault(_series(case, depth), []).append((case.settings[depth], case))
        for i, (label, points) in enumerate(lines.items()):
            style = line(i, 1) | {"linestyle": _BROKEN if label.startswith("same") else _SOLID}
            if depth is None:
                style["linestyle"] = ""
            shift = 0.04 * (i - (len(lines) - 1) / 2)  # so that intervals do not hide each other
            xs, means = [x + shift for x, _ in points], [case.test.mean for _, case in points]
            bars = [0.0 if case.test.low is None else case.test.mean - case.test.low for _, case in points]
            axes.errorbar(xs, means, yerr=bars, capsize=3, label=one_line(label) or None, **style)
            for x, (_, case) in zip(xs, points, strict=True):
                accuracies = [row["test_accuracy"] for row in rows[case.name]]
                axes.plot([x + 0.1] * len(accuracies), accuracies, color=style["color"], **_RUN)
        if depth is None:
            names = [one_line(case.name) for case in comparison.cases]
            axes.set_xticks(range(len(names)), names, rotation=20 if len("".join(names)) > 60 else 0, parse_math=False)
        else:
            axes.set_xlabel(f"{depth.replace('_', ' ')} (counted from the input)")
            axes.locator_params(axis="x", integer=True)
            figure.legend(loc="outside right center")
        axes.set_ylabel("test accuracy (%)")


def _depth_column(comparison: Comparison) -> str | None:
    settings = comparison.cases[0].settings
    if "source_task" in settings:
        return "copied_stages"
    return "frozen_stages" if {"frozen_stages", "copied_stages"} <= settings.keys() else None


def _series(case: CaseResult, depth: str) -> str:
    """The line that a case is a point of."""
    settings = {name: value for name, value in case.settings.items() if name not in ("copied_stages", "frozen_stages")}
    task = settings.pop("source_task", None)
    parts = [] if task is None else [f"{task} task", "frozen" if case.settings["frozen_stages"] else "fine-tuned"]
    parts += [f"{name.rpartition('.')[2]}={value}" for name, value in settings.items()]
    return ", ".join(parts) or f"all {case.settings['copied_stages']} stages copied"


def _draw_reference(axes: Any, case: CaseResult) -> None:
    axes.axhline(case.test.mean, color="grey", linestyle=":", label=one_line(case.name))
    if case.test.low is not None:
        axes.axhspan(case.test.low, case.test.high, color="grey", alpha=FAINTEST, linewidth=0)


def plot_validation(path: Path, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Plots validation accuracy by epoch: a line for the mean of each case, and a band for its 95 % t interval.

    Args:
        path: of the figure.
        curves: by case, the validation accuracies (percent) of each run by epoch. Runs may differ in length; the mean
            of an epoch is over the runs that reached it.
    """
    with new_figure(path, *_SIZE) as figure:
        axes = figure.add_subplot()
        for i, (name, runs) in enumerate(curves.items()):
            reached = [[value for value in values if value is not None] for values in zip_longest(*runs)]
            found = [estimate(values) for values in reached]
            epochs, style = range(1, len(found) + 1), line(i, len(found))
            axes.plot(epochs, [each.mean for each in found], label=one_line(name), **style)
            several = [each.n > 1 for each in found]
            low = [each.mean if each.low is None else each.low for each in found]
            high = [each.mean if each.high is None else each.high for each in found]
            axes.fill_between(epochs, low, high, where=several, color=style["color"], alpha=FAINTEST, linewidth=0)
        values = [value for runs in curves.values() for run in runs for value in run]
        axes.set_ylim(max(0, min(values) - 5), min(100, max(values) + 5))  # a band over two runs is wide
        axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
        axes.locator_params(axis="x", integer=True)
        figure.legend(loc="outside right center")


def plot_time(path: Path, comparison: Comparison, rows: Mapping[str, Sequence[Row]]) -> None:
    """Plots test accuracy against training time: a small dot for a run, a large marker for the mean of a case."""
    with new_figure(path, *_SIZE) as figure:
        axes = figure.add_subplot()
        for i, case in enumerate(comparison.cases):
            style = line(i, 1) | {"linestyle": "", "markersize": 8}
            seconds, accuracies = ([row[name] for row in rows[case.name]] for name in ("seconds", "test_accuracy"))
            axes.plot(seconds, accuracies, color=style["color"], **_RUN)
            axes.plot([case.seconds], [case.test.mean], label=one_line(case.name), **style)
        axes.set(xlabel="training time (s)", ylabel="test accuracy (%)")
        figure.legend(loc="outside right center")
