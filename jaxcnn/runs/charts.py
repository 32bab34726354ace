"""Charts of a run's page as coordinates, which its template draws as SVG in the colours of light and dark pages."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.runs.calibration import ConfidenceBin
from jaxcnn.runs.palette import FAINTEST, RIGHT, WRONG

WIDTH, HEIGHT = 360, 220
LEFT, RIGHT_EDGE, TOP, BOTTOM = 52, 350, 10, 186
"""Of the area within the axes."""


class Tick(NamedTuple):
    """A value on an axis."""

    at: float
    text: str


class Line(NamedTuple):
    """A line of a chart."""

    name: str
    path: str
    """Of SVG."""
    dots: tuple[tuple[float, float], ...]
    """Where there are few points, each of them; a line of a single point would be invisible."""


class Chart(NamedTuple):
    """Lines over epochs."""

    title: str
    told: str
    """What it shows, in words."""
    lines: tuple[Line, ...]
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    best: float | None
    """Where the epoch is whose weights are kept, if validation chose it."""
    end: float


def line_chart(
    title: str,
    told: str,
    epochs: Sequence[int],
    lines: Mapping[str, Sequence[float | None]],
    best: int | None,
) -> Chart:
    """A chart of values by epoch; those that are None or not finite are left out.

    Args:
        title: of the chart.
        told: what it shows, for those who do not see it.
        epochs: ascending.
        lines: values by name, one an epoch.
        best: the epoch to mark.
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
        told,
        tuple(drawn),
        tuple(Tick(x(each), f"{each:g}") for each in whole),
        tuple(Tick(y(each), f"{each:g}") for each in y_ticks),
        None if best is None else x(best),
        x(epochs[-1]),
    )


def nice_ticks(low: float, high: float, most: int = 6) -> list[float]:
    """At most `most` round numbers at equal distances, the first no larger than `low`, the last no less than `high`."""
    if high <= low:
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
    """The share in percent; drawn where cells are large enough."""
    dark: bool
    """Whether the text on it has to be white."""
    told: str


def matrix_cells(matrix: np.ndarray[Any, Any], names: Sequence[str]) -> tuple[list[Cell], float]:
    """The cells that hold images, and the largest share of a class (a fraction) that was taken for one other.

    Colours of confusions reach their darkest at that share, those of the diagonal at the whole class.
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
        color = mixed(RIGHT if right else WRONG, FAINTEST + (1 - FAINTEST) * part)
        what = "right" if right else f"taken for {names[column]}"
        told = f"{names[row]} {what}: {images} of {totals[row]}"
        cells.append(Cell(row, column, color, f"{100 * share:.0f}", part > 0.55, told))
    return cells, most


def mixed(color: str, share: float) -> str:
    """A share of a colour (#RRGGBB) on white."""
    parts = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "#" + "".join(f"{round(255 + share * (part - 255)):02x}" for part in parts)


class Bar(NamedTuple):
    """A bin of the reliability diagram, in its coordinates."""

    x: float
    width: float
    top: float
    """Of the bar, whose height is the accuracy."""
    dot: tuple[float, float]
    """The bin's mean confidence on the diagonal, where the bar would end if that were right."""
    share: float
    """Height of its images' bar, relative to the fullest bin's."""


def reliability(bins: Sequence[ConfidenceBin], size: float) -> list[Bar]:
    """The bins that hold images, in a square of this size whose origin is at the top left."""
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
