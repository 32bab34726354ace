"""The plots of a finished run, drawn from the files in its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config.experiment import RESOLVED
from jaxcnn.errors import InputError, reason
from jaxcnn.files import TEMPORARY
from jaxcnn.runs.figures import confusion_matrix, plot_confusion, plot_curves
from jaxcnn.runs.folder import read_json, read_summary
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.tables import read_table
from jaxcnn.training.records import EpochRecord


def present(folder: Path) -> None:
    """Draws the plots that a finished run does not have yet. A failure is a warning on stderr."""
    for name, draw in _PICTURES.items():
        if not (folder / name).exists():
            with only_warns(str(folder / name)):
                for leftover in folder.glob(f"{TEMPORARY}{name}-*"):  # from a killed process
                    leftover.unlink(missing_ok=True)
                draw(folder)


def remove_pictures(folder: Path) -> None:
    """Removes plots of an earlier result, so that `present` draws them again."""
    for name in _PICTURES:
        with only_warns(f"new {folder / name}"):
            (folder / name).unlink(missing_ok=True)


def _draw_curves(folder: Path) -> None:
    records = read_metrics(folder)
    best = read_summary(folder / "summary.json")["best_epoch"]
    plot_curves(folder / "curves.png", records, [record.epoch for record in records].index(best))


def _draw_confusion(folder: Path) -> None:
    names = read_json(folder / "config.json")[RESOLVED]["class_names"]
    labels, predictions = (np.load(folder / "results" / f"{name}.npy") for name in ("labels", "predictions"))
    plot_confusion(folder / "confusion.png", confusion_matrix(labels, predictions, len(names)), names)


_PICTURES: dict[str, Callable[[Path], None]] = {"curves.png": _draw_curves, "confusion.png": _draw_confusion}


def read_metrics(folder: Path) -> list[EpochRecord]:
    """Reads a run's `metrics.csv`.

    Raises:
        InputError: when it is missing or not such a table.
    """
    header, *rows = read_table(folder / "metrics.csv")
    try:
        if not rows:
            raise ValueError("it holds no epoch")
        return [_record(dict(zip(header, row, strict=True))) for row in rows]
    except (ValueError, KeyError) as error:
        problem = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read: {reason(error)}"
        raise InputError(f"{folder / 'metrics.csv'} {problem}; --overwrite trains the run again") from error


def _record(cells: dict[str, str]) -> EpochRecord:
    values: dict[str, Any] = {name: float(cells[name]) if cells[name] else None for name in EpochRecord._fields}
    return EpochRecord(**{**values, "epoch": int(cells["epoch"])})
