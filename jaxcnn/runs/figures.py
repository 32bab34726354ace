"""Figures of runs, for print."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.runs.palette import FAINTEST, RIGHT, WRONG, mix_with_white
from jaxcnn.runs.style import NAME_LENGTH, line, new_figure, one_line

if TYPE_CHECKING:
    from jaxcnn.training.records import EpochRecord


def plot_curves(path: Path, records: "Sequence[EpochRecord]", best: int) -> None:
    """Plots loss and accuracy by epoch; `best` is the index of the record whose weights are kept."""
    epochs = [r.epoch for r in records]
    with new_figure(path, 10, 4) as figure:
        for axes, title, train, val in (
            (figure.add_subplot(1, 2, 1), "cross-entropy (nats)", "train_loss", "val_loss"),
            (figure.add_subplot(1, 2, 2), "accuracy (%)", "train_accuracy", "val_accuracy"),
        ):
            if records[0].val_loss is not None:
                axes.plot(epochs, [getattr(r, val) for r in records], label="validation", **line(0, len(epochs)))
            axes.plot(epochs, [getattr(r, train) for r in records], label="training", **line(1, len(epochs)))
            if records[0].val_loss is not None:
                axes.axvline(epochs[best], color="grey", linestyle=":", label=f"best epoch ({epochs[best]})")
            axes.set(xlabel="epoch", ylabel=title)
            axes.locator_params(axis="x", integer=True)
            axes.legend()


def plot_confusion(path: Path, matrix: np.ndarray[Any, Any], class_names: Sequence[str]) -> None:
    """Plots a confusion matrix, int (K, K) with true classes in rows, in percent of each true class.

    Two scales: one for the diagonal, and one for confusions, which ends at the largest of them. On a common scale
    confusions would be too faint to see. Cells have numbers where there are at most 20 classes.
    """
    count = len(class_names)
    names = [one_line(name, NAME_LENGTH) for name in class_names]
    cell = max(0.1, min(0.35, 7 / count))  # inches, so that 100 names can be read
    side = min(3 + cell * count, 24)
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    diagonal = np.eye(count, dtype=bool)
    confusions = np.ma.masked_where(diagonal | (matrix == 0), percent)
    most = float(confusions.max()) if confusions.count() else 1.0
    size = min(9.0, 72 * 0.75 * (side - 3) / count)
    with new_figure(path, side + 1, side) as figure:
        axes = figure.add_subplot()
        axes.grid(False)
        right = axes.imshow(np.ma.masked_where(~diagonal, percent), cmap=_ramp(RIGHT), vmin=0, vmax=100)
        wrong = axes.imshow(confusions, cmap=_ramp(WRONG), vmin=0, vmax=most)
        bars = {"shrink": 0.6, "aspect": 40}
        figure.colorbar(wrong, label="confusions, % of the true class", location="right", **bars)
        figure.colorbar(right, label="right, % of the class", location="top", **bars)
        axes.set(xlabel="predicted", ylabel="true")
        if size >= 3:
            axes.set_xticks(range(count), names, rotation=90, fontsize=size, parse_math=False)
            axes.set_yticks(range(count), names, fontsize=size, parse_math=False)
        if count <= 20:
            for row, column in np.argwhere(matrix):
                full = 100 if row == column else most
                color = "white" if percent[row, column] > 0.6 * full else "black"
                axes.text(
                    column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=color, fontsize=size
                )


def _ramp(color: str) -> Any:
    """A colormap from a faint form of the colour to the colour itself."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("", [mix_with_white(color, FAINTEST), color])
