"""Predictions as a table, CSV and JSON."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from jaxcnn.data.images import shown
from jaxcnn.files import write_text
from jaxcnn.runs.tables import csv_text

_ROWS = 100
"""Maximum number of images in the table."""


class Prediction(NamedTuple):
    """The prediction for one image."""

    file: Path
    label: str | None
    """The true class, if the name of the file's folder is a class."""
    best: str
    """The most probable class."""
    probabilities: np.ndarray[Any, Any]
    """Probability of each class, float32 (K,)."""


def accuracy(predictions: Sequence[Prediction]) -> tuple[float, int] | None:
    """Accuracy in percent over the images with a label, and how many they are; None if there are none."""
    right = [each.best == each.label for each in predictions if each.label is not None]
    return (100 * sum(right) / len(right), len(right)) if right else None


def predictions_table(predictions: Sequence[Prediction], classes: Sequence[str], top_k: int) -> Table:
    """Table of the `top_k` most probable classes of the first 100 images, with probabilities in percent."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    for place in range(1, top_k + 1):
        table.add_column(f"{place}.", overflow="fold")
    for each in predictions[:_ROWS]:
        order = np.argsort(-each.probabilities, kind="stable")[:top_k]
        cells = [f"{shown(classes[i])} {100 * each.probabilities[i]:.2f} %" for i in order]
        table.add_row(*map(Text, [shown(each.file), *cells]))
    return table


def count_omitted(predictions: Sequence[Prediction]) -> int:
    """Number of images that are not in the table."""
    return max(0, len(predictions) - _ROWS)


def write_csv(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Writes one row per image: file, label, prediction, and the probability of every class.

    Raises:
        MachineError: when it cannot be written.
    """
    rows = [[_in_utf8(each.file), each.label, each.best, *map(str, each.probabilities)] for each in predictions]
    names = (f"p({name})" for name in classes)
    write_text(path, csv_text([["file", "label", "prediction", *names], *rows]))


def write_json(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """Writes the same as JSON, with the accuracy if there are labels.

    Raises:
        MachineError: when it cannot be written.
    """
    found = accuracy(predictions)
    values = {
        "classes": list(classes),
        "accuracy": None if found is None else found[0],
        "images": [
            {
                "file": _in_utf8(each.file),
                "label": each.label,
                "prediction": each.best,
                "probabilities": [
                    float(str(p)) for p in each.probabilities
                ],  # the shortest decimals that give the float32
            }
            for each in predictions
        ],
    }
    write_text(path, json.dumps(values, ensure_ascii=False) + "\n")


def _in_utf8(path: Path) -> str:
    """A path as valid UTF-8. File names may contain any bytes, and invalid ones are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
