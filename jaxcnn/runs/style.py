"""The style of all figures: readable in print, in grey and for the colour-blind."""

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
    """matplotlib's properties of the `i`-th line of a figure: colour, and dash and marker to tell lines apart in grey.

    `points` is the number of points on the line. About ten of them get a marker. Beyond the palette, colours come
    again with other dashes.
    """
    return {
        "color": PALETTE[i % len(PALETTE)],
        "linestyle": _DASHES[(i + i // len(PALETTE)) % len(_DASHES)],
        "marker": _MARKERS[i % len(_MARKERS)],
        "markevery": max(1, points // 10),
    }


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yields a matplotlib figure of this size in inches, and writes it at the end.

    The suffix of `path` decides the format: svg, pdf, or PNG for any other suffix. matplotlib's defaults and this
    module's settings apply, whatever the user has configured.
    """
    matplotlib = _import_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    kind = path.suffix[1:] if path.suffix[1:] in dates else "png"
    # Warnings: such as missing glyphs.
    with matplotlib.rc_context({**defaults, **_SETTINGS}), warnings.catch_warnings(action="ignore"):
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure
        write_whole(path, lambda temporary: figure.savefig(temporary, format=kind, metadata=dates.get(kind)))


def _import_matplotlib() -> Any:
    """Imports matplotlib without the backend that MPLBACKEND names.

    A process started from a notebook inherits a MPLBACKEND that exists only in the notebook, and the import would fail.
    Writing a file needs no backend. The import is late so that training does not wait for it.
    """
    named = None if "matplotlib" in sys.modules else os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib.figure
    finally:
        if named is not None:
            os.environ["MPLBACKEND"] = named
    if named is not None:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = named  # for other code in this process
    return matplotlib


NAME_LENGTH = 24
"""Maximum number of characters of a class name in a figure."""


def one_line(name: str, most: int = 200) -> str:
    """A name as one printable line of at most `most` characters."""
    line = " ".join(name.encode(errors="replace").decode().split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return shown if len(shown) <= most else f"{shown[: most - 1]}\N{HORIZONTAL ELLIPSIS}"
