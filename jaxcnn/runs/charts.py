"""Coordinates of the charts on a run's page. The template draws them as SVG, in light or dark colours."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.runs.calibration import ConfidenceBin
from jaxcnn.runs.palette import FAINTEST, RIGHT, WRONG, mix_with_white

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT_EDGE, TOP, BOTTOM = 52, 350, 10, 186
"""Edges of the area inside the axes."""


class Tick(NamedTuple):
    """A value on an axis."""

    at: float
    text: str


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    path: str
    """The `d` attribute of an SVG path."""
    dots: tuple[tuple[float, float], ...]
    """All points, if there are few. Without dots a line of one point would be invisible."""


class Chart(NamedTuple):
    """Lines over epochs."""

    title: str
    description: str
    """What the chart shows, for screen readers."""
    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    best: float | None
    """Horizontal position of the epoch whose weights are kept; None if validation did not choose it."""
    end: float
    """Horizontal position of the last epoch."""


def line_chart(
    title: str,
    description: str,
    epochs: Sequence[int],
    lines: Mapping[str, Sequence[float | None]],
    best: int | None,
) -> Chart:
    """A chart of values by epoch. Values that are None or not finite are left out.

    Args:
        title: title of the chart.
        description: what the chart shows, for screen readers.
        epochs: numbers of the epochs, ascending.
        lines: for each name, one value per epoch.
        best: the epoch to mark; None marks none.
    """
    known = [v for values in lines.values() for v in values if v is not None and math.isfinite(v)]
    y_ticks = nice_ticks(min(known, default=0.0), max(known, default=1.0))
    low, high = y_ticks[0], y_ticks[-1]
    first, last = epochs[0], max(epochs[-1], epochs[0] + 1)

    def x(epoch: float) -> float:
        return round(LEFT + (RIGHT_EDGE - LEFT) * (epoch - first) / (last - first), 1)

    def y(value: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * (value - low) / (high - low), 1)

    drawn = []
    for name, values in lines.items():
        pieces = [
            (x(epoch), y(value)) if value is not None and math.isfinite(value) else None
            for epoch, value in zip(epochs, values, strict=True)
        ]
        path, pen = "", "M"
        for piece in pieces:
            if piece is not None:
                path += f"{pen}{piece[0]:g} {piece[1]:g}"
            pen = "M" if piece is None else "L"
        dots = tuple(piece for piece in pieces if piece is not None) if len(epochs) <= 40 else ()
        drawn.append(Line(name, path, dots))
    whole = (each for each in nice_ticks(first, last) if first <= each <= last and each % 1 == 0)
    return Chart(
        title,
        description,
        tuple(drawn),
        tuple(Tick(x(each), f"{each:g}") for each in whole),
        tuple(Tick(y(each), f"{each:g}") for each in y_ticks),
        None if best is None else x(best),
        x(epochs[-1]),
    )


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers at equal distances, the first no larger than `low`, the last no less than `high`."""
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # one value, up to rounding
        low, high = min(low, 0.0), max(high, 0.0) or 1.0
    power = 10.0 ** math.floor(math.log10(high / most - low / most))
    for step in (power * factor for factor in (1, 2, 2.5, 5, 10, 20)):
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first < most:
            break
    return [float(f"{i * step:.12g}") for i in range(first, last + 1)]


class Cell(NamedTuple):
    """A square of a confusion matrix."""

    row: int
    column: int
    color: str
    text: str
    """The share in percent, shown if cells are large enough."""
    dark: bool
    """Whether the cell is so dark that its text must be white."""
    tooltip: str


def matrix_cells(matrix: np.ndarray[Any, Any], names: Sequence[str]) -> tuple[list[Cell], float]:
    """The cells that are not empty, and the largest off-diagonal share of a true class (a fraction).

    Confusions are darkest at that share, and cells of the diagonal at 100 % of the class.
    """
    totals = np.maximum(matrix.sum(axis=1), 1)
    shares = matrix / totals[:, None]
    off = np.where(np.eye(len(matrix), dtype=bool), 0, shares)
    most = float(off.max()) or 1.0
    cells = []
    for row, column in np.argwhere(matrix).tolist():
        share, images = float(shares[row, column]), int(matrix[row, column])
        right = row == column
        part = share if right else share / most
        color = mix_with_white(RIGHT if right else WRONG, FAINTEST + (1 - FAINTEST) * part)
        what = "right" if right else f"taken for {names[column]}"
        tooltip = f"{names[row]} {what}: {images} of {totals[row]}"
        cells.append(Cell(row, column, color, f"{100 * share:.0f}", part > 0.55, tooltip))
    return cells, most


class Bar(NamedTuple):
    """A bin of the reliability diagram, in coordinates of the drawing."""

    x: float
    width: float
    top: float
    """Upper end of the bar. Its height is the accuracy of the bin's images."""
    dot: tuple[float, float]
    """The point of the diagonal at the bin's mean confidence. A calibrated bar ends at this height."""
    share: float
    """Number of images, as a fraction of that of the fullest bin."""


def reliability(bins: Sequence[ConfidenceBin], size: float) -> list[Bar]:
    """The bins that are not empty, in a square of this size with its origin at the top left."""
    fullest = max(each.images for each in bins)
    return [
        Bar(
            round(size * each.low, 1),
            round(size * (each.high - each.low), 1),
            round(size * (1 - each.accuracy), 1),
            (round(size * each.confidence, 1), round(size * (1 - each.confidence), 1)),
            each.images / fullest,
        )
        for each in bins
        if each.images
    ]
