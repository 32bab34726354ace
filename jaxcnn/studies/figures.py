"""Figures of a study as SVG. Colours are those of Okabe and Ito; lines differ in style and marker as well."""

import contextlib
import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from jaxcnn.runs.figures import _import_matplotlib
from jaxcnn.studies.records import CaseResult, Comparison, Row
from jaxcnn.studies.statistics import estimate

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#999999")
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":")


class _Svg:
    """A figure in the making; `text` is its SVG once it is done."""

    text = ""
    figure: Any


@contextlib.contextmanager
def _svg(width: float, height: float, alt: str) -> Iterator[_Svg]:
    """A figure to draw on. What the user has set for other figures has no effect on it."""
    matplotlib = _import_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    own = {"svg.fonttype": "none", "svg.hashsalt": "jaxcnn", "axes.spines.top": False, "axes.spines.right": False}
    with matplotlib.rc_context(defaults | own), warnings.catch_warnings(action="ignore"):  # as of missing glyphs
        svg = _Svg()
        svg.figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield svg
        text = io.StringIO()
        svg.figure.savefig(text, format="svg", metadata={"Date": None, "Title": alt})
    svg.text = "".join(text.getvalue().partition("<svg")[1:])  # without what a page has of its own


def _style(number: int) -> dict[str, Any]:
    of = COLOURS, MARKERS
    colour, marker = (each[number % len(each)] for each in of)
    return {"color": colour, "marker": marker, "linestyle": LINES[number // len(COLOURS) % len(LINES)]}


def draw_accuracy(comparison: Comparison, rows: Mapping[str, Sequence[Row]]) -> str:
    """Test accuracy against depth, or by case where nothing else is varied by its number of stages.

    A dot is a run, a bar the 95 % t interval of a mean. Scratch is a band across; controls, whose source learned the
    same task, have broken lines.

    Args:
        comparison: of the study.
        rows: by case.
    """
    depth = _depth_column(comparison)
    with _svg(7.5, 4.5, "test accuracy") as svg:
        axes = svg.figure.add_subplot()
        lines: dict[str, list[tuple[float, CaseResult]]] = {}
        for number, case in enumerate(comparison.cases):
            if depth is None:
                lines.setdefault("", []).append((number, case))
            elif case.settings["copied_stages"] == 0:
                _draw_reference(axes, case)
            else:
                lines.setdefault(_series(case, depth), []).append((case.settings[depth], case))
        for number, (label, points) in enumerate(lines.items()):
            style = _style(number) | {"linestyle": "--" if label.startswith("same") else "-"}
            if depth is None:
                style["linestyle"] = ""
            shift = 0.04 * (number - (len(lines) - 1) / 2)  # so that intervals do not hide each other
            xs, ys = [x + shift for x, _ in points], [case.test.mean for _, case in points]
            bars = [
                [y - (y if case.test.low is None else case.test.low) for y, (_, case) in zip(ys, points, strict=True)]
            ]
            axes.errorbar(xs, ys, yerr=bars * 2, capsize=3, label=label or None, **style)
            for x, (_, case) in zip(xs, points, strict=True):
                values = [row["test_accuracy"] for row in rows[case.name]]
                axes.plot([x + 0.1] * len(values), values, ".", color=style["color"], alpha=0.45)
        if depth is None:
            names = [case.name for case in comparison.cases]
            axes.set_xticks(range(len(names)), names, rotation=20 if len("".join(names)) > 60 else 0, parse_math=False)
        else:
            axes.set_xlabel(f"{depth.replace('_', ' ')} (counted from the input)")
            axes.locator_params(axis="x", integer=True)
            if len(lines) > 1:
                svg.figure.legend(loc="outside right center", frameon=False, fontsize="small")
            else:
                axes.legend(frameon=False)
        axes.set_ylabel("test accuracy (%)")
        axes.grid(axis="y", alpha=0.3)
    return svg.text


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
    axes.axhline(case.test.mean, color="#000000", linestyle=":", label=case.name)
    if case.test.low is not None:
        axes.axhspan(case.test.low, case.test.high, color="#999999", alpha=0.2, linewidth=0)


def draw_curves(curves: Mapping[str, Sequence[Sequence[float]]]) -> str:
    """Validation accuracy by epoch: a line for the mean of each case, and a band for its 95 % t interval.

    Args:
        curves: by case, validation accuracies (percent) of each run by epoch. Runs may differ in length; an epoch's
            mean is over those that reached it.
    """
    with _svg(7.5, 4.5, "validation accuracy by epoch") as svg:
        axes = svg.figure.add_subplot()
        for number, (name, runs) in enumerate(curves.items()):
            reached = [[v for v in values if v is not None] for values in zip_longest(*runs)]
            found = [estimate(values) for values in reached]
            epochs, style = range(1, len(found) + 1), _style(number)
            every = max(1, len(found) // 8)
            axes.plot(epochs, [each.mean for each in found], label=name, markevery=every, markersize=4, **style)
            ends = [(each.mean, each.mean) if each.low is None else (each.low, each.high) for each in found]
            low, high = zip(*ends, strict=True)
            axes.fill_between(epochs, low, high, color=style["color"], alpha=0.12, linewidth=0)
        axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
        top = max((max(values) for runs in curves.values() for values in runs), default=100)
        low_end = min((min(values) for runs in curves.values() for values in runs), default=0)
        axes.set_ylim(max(0, low_end - 5), min(100, top + 5))  # a band over two runs is wide
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        svg.figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return svg.text


def draw_time(comparison: Comparison, rows: Mapping[str, Sequence[Row]]) -> str:
    """Test accuracy against training time: a small dot for a run, a large mark for the mean of a case."""
    with _svg(7.5, 4.5, "test accuracy against seconds") as svg:
        axes = svg.figure.add_subplot()
        for number, case in enumerate(comparison.cases):
            style = _style(number) | {"linestyle": ""}
            seconds, accuracies = ([row[name] for row in rows[case.name]] for name in ("seconds", "test_accuracy"))
            axes.plot(seconds, accuracies, ".", color=style["color"], alpha=0.45)
            axes.plot([case.seconds], [case.test.mean], label=case.name, markersize=8, **style)
        axes.set(xlabel="training time (s)", ylabel="test accuracy (%)")
        axes.grid(alpha=0.3)
        svg.figure.legend(loc="outside right center", frameon=False, fontsize="small")
    return svg.text
