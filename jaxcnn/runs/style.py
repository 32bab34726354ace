"""How figures look: for a page and for print, to the colour-blind, and in grey."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from jaxcnn.files import write_whole
from jaxcnn.runs.palette import PALETTE

Figures = Literal["png", "svg", "pdf"]
"""The formats that figures are written in."""

_DASHES = ("-", (0, (5, 2)), (0, (1, 1.5)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1)), (0, (9, 2)), (0, (2, 4)))
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")

_SETTINGS = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#D9D9D9",
    "grid.linewidth": 0.6,
    "lines.linewidth": 1.4,
    "lines.markersize": 4,
    "legend.frameon": False,
    "figure.dpi": 120,
    "savefig.dpi": 120,
    "pdf.fonttype": 42,  # TrueType: publishers refuse matplotlib's default
    "svg.hashsalt": "jaxcnn",  # the same figure, the same bytes
}


def line(i: int, points: int) -> dict[str, Any]:
    """How the `i`-th line of a figure is drawn: a colour, and a dash and a marker that tell it apart in grey.

    `points` is how many it has; about ten of them are marked. Beyond the palette, colours come again with other dashes.
    """
    return {
        "color": PALETTE[i % len(PALETTE)],
        "linestyle": _DASHES[(i + i // len(PALETTE)) % len(_DASHES)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markevery": max(1, points // 10),
    }


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A figure to draw on, in inches, written in the end. What the user has set for other figures has no effect on it.

    The suffix of `path` decides the format, one of `Figures`; any other suffix means PNG.
    """
    matplotlib = _import_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = path.suffix[1:] if path.suffix[1:] in dates else "png"
    with (
        matplotlib.rc_context({**defaults, **_SETTINGS}),
        warnings.catch_warnings(action="ignore"),
    ):  # glyphs a font lacks
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure
        write_whole(path, lambda temporary: figure.savefig(temporary, format=kind, metadata=dates.get(kind)))


def _import_matplotlib() -> Any:
    """Imports matplotlib: late, as training need not wait for it, and whatever backend MPLBACKEND names.

    A notebook's processes inherit one that is only there in the notebook. None is needed to write a file.
    """
    named = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.figure
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named is not None:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = named  # for others in this process
    return matplotlib


NAME_LENGTH = 24
"""Characters of a class's name that a figure has room for."""


def one_line(name: str, most: int = 200) -> str:
    """A name in one line of at most `most` characters that any file can hold."""
    line = " ".join(name.encode(errors="replace").decode().split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return shown if len(shown) <= most else f"{shown[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
