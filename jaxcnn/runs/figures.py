"""Plots, and the confusion matrix."""

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.files import write_whole

if TYPE_CHECKING:
    from jaxcnn.training.records import EpochRecord


@contextlib.contextmanager
def new_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """Yields a matplotlib figure of this size in inches, and writes it as PNG at the end.

    It uses matplotlib's default settings, whatever the user has configured.
    """
    matplotlib = _import_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults), warnings.catch_warnings(action="ignore"):  # such as missing glyphs
        figure = matplotlib.figure.Figure(figsize=(width, height), layout="constrained")
        yield figure
        write_whole(path, lambda temporary: figure.savefig(temporary, format="png", dpi=120))


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


_NAME_LENGTH = 24
"""Maximum number of characters of a class name in a plot."""


def _label(name: str) -> str:
    """A class name as one short printable line."""
    line = " ".join(name.encode(errors="replace").decode().split())
    shown = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
    return shown if len(shown) <= _NAME_LENGTH else f"{shown[: _NAME_LENGTH - 1]}\N{HORIZONTAL ELLIPSIS}"


def confusion_matrix(
    labels: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any], num_classes: int
) -> np.ndarray[Any, Any]:
    """Counts images, int64 (num_classes, num_classes): rows are true classes, columns predicted classes.

    Args:
        labels: int (N,).
        predictions: int (N,).
        num_classes: number of classes.
    """
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def plot_curves(path: Path, records: "Sequence[EpochRecord]", best: int) -> None:
    """Plots loss and accuracy by epoch as PNG; `best` is the index of the record whose weights are kept."""
    epochs = [r.epoch for r in records]
    with new_figure(path, 10, 4) as figure:
        for axes, title, train, val in (
            (figure.add_subplot(1, 2, 1), "cross-entropy (nats)", "train_loss", "val_loss"),
            (figure.add_subplot(1, 2, 2), "accuracy (%)", "train_accuracy", "val_accuracy"),
        ):
            axes.plot(epochs, [getattr(r, train) for r in records], ".-", label="train")
            if records[0].val_loss is not None:
                axes.plot(epochs, [getattr(r, val) for r in records], ".-", label="validation")
                axes.axvline(epochs[best], color="grey", linestyle=":", label=f"best epoch ({epochs[best]})")
            axes.set(xlabel="epoch", ylabel=title)
            axes.locator_params(axis="x", integer=True)
            axes.grid(alpha=0.3)
            axes.legend()


def plot_confusion(path: Path, matrix: np.ndarray[Any, Any], class_names: Sequence[str]) -> None:
    """Plots a confusion matrix as PNG, in percent of each true class. Numbers are shown for up to 20 classes."""
    count = len(class_names)
    names = [_label(name) for name in class_names]
    side = min(4 + 0.35 * count, 16)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    with new_figure(path, side + 1, side) as figure:
        axes = figure.add_subplot()
        image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
        figure.colorbar(image, label="% of the class", shrink=0.8)
        axes.set(xlabel="predicted", ylabel="true")
        size = min(10.0, 500 / count / 2.2)
        axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
        axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        if count <= 20:
            for row in range(count):
                for column in range(count):
                    color = "white" if percent[row, column] > 60 else "black"
                    text = f"{percent[row, column]:.0f}"
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)


def plot_comparison(path: Path, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Plots validation accuracy (percent) by epoch as PNG.

    Args:
        path: path of the file.
        curves: for each label, the accuracies of its runs. Their mean is a thick line, each run a thin one.
    """
    with new_figure(path, 8, 5) as figure:
        axes = figure.add_subplot()
        for i, (name, runs) in enumerate(curves.items()):
            epochs = max(len(values) for values in runs)
            for values in runs if len(runs) > 1 else ():
                axes.plot(range(1, len(values) + 1), values, color=f"C{i}", linewidth=0.7, alpha=0.35)
            means = [float(np.mean([v[k] for v in runs if k < len(v)])) for k in range(epochs)]
            label = f"{name}, mean of {len(runs)}" if len(runs) > 1 else name
            axes.plot(range(1, epochs + 1), means, color=f"C{i}", linewidth=2, label=label)
        axes.set(xlabel="epoch", ylabel="validation accuracy (%)")
        axes.locator_params(axis="x", integer=True)
        axes.grid(alpha=0.3)
        axes.legend()
