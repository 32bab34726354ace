"""Pictures and tables of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.files import write_whole
from jaxcnn.train import EpochRecord


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # half a second, which training need not wait for

    return Figure(figsize=(width, height), layout="constrained")


def confusion_matrix(
    labels: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any], num_classes: int
) -> np.ndarray[Any, Any]:
    """int64 (num_classes, num_classes): images of each class (row) given each label (column)."""
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


def plot_curves(path: Path, records: Sequence[EpochRecord], best: int) -> None:
    """Writes loss and accuracy by epoch as PNG; `best` is the index of the epoch whose weights are kept."""
    figure = _figure(10, 4)
    epochs = [r.epoch for r in records]
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
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))


def plot_confusion(path: Path, matrix: np.ndarray[Any, Any], class_names: Sequence[str]) -> None:
    """Writes a confusion matrix as PNG, in percent of each class; names and numbers as far as they can be read."""
    count = len(class_names)
    side = min(4 + 0.35 * count, 16)
    figure = _figure(side + 1, side)
    axes = figure.add_subplot()
    percent = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    figure.colorbar(image, label="% of the class", shrink=0.8)
    axes.set(xlabel="predicted", ylabel="true")
    size = min(10.0, 500 / count / 2.2)
    axes.set_xticks(range(count), class_names, rotation=90, fontsize=size)
    axes.set_yticks(range(count), class_names, fontsize=size)
    if count <= 20:
        for row in range(count):
            for column in range(count):
                color = "white" if percent[row, column] > 60 else "black"
                text = f"{percent[row, column]:.0f}"
                axes.text(column, row, text, ha="center", va="center", color=color, fontsize=size)
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))


def plot_comparison(path: Path, curves: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Writes validation accuracy (percent) by epoch as PNG: thin lines for runs, a thick one for the mean of a name."""
    figure = _figure(8, 5)
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
    write_whole(path, lambda temporary: figure.savefig(temporary, dpi=120))
