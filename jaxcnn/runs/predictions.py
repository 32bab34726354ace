"""What a network says of images: a table to look at, and files."""

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
"""What the table shows of more images."""


class Prediction(NamedTuple):
    """What a network says of one image."""

    file: Path
    label: str | None
    """The class that the file's folder names, if it does."""
    best: str
    """The most probable class."""
    probabilities: np.ndarray[Any, Any]
    """float32 (K,)."""


def accuracy(predictions: Sequence[Prediction]) -> tuple[float, int] | None:
    """Percent right of the images whose folders name their class, and how many these are; None where none are."""
    right = [each.best == each.label for each in predictions if each.label is not None]
    return (100 * sum(right) / len(right), len(right)) if right else None


def predictions_table(predictions: Sequence[Prediction], classes: Sequence[str], top_k: int) -> Table:
    """The most probable classes of the first images, each with its probability in percent."""
    table = Table(box=SIMPLE_HEAD)
    table.add_column("image", overflow="fold")
    for place in range(1, top_k + 1):
        table.add_column(f"{place}.", overflow="fold")
    for each in predictions[:_ROWS]:
        order = np.argsort(-each.probabilities, kind="stable")[:top_k]
        cells = [f"{shown(classes[i])} {100 * each.probabilities[i]:.2f} %" for i in order]
        table.add_row(*map(Text, [shown(each.file), *cells]))
    return table


def untold(predictions: Sequence[Prediction]) -> int:
    """How many images the table leaves out."""
    return max(0, len(predictions) - _ROWS)


def write_csv(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """One row an image: file, label, prediction, and the probability of every class.

    Raises:
        InputError: when it cannot be written.
    """
    rows = [[_in_utf8(each.file), each.label, each.best, *map(str, each.probabilities)] for each in predictions]
    names = (f"p({name})" for name in classes)
    write_text(path, csv_text([["file", "label", "prediction", *names], *rows]))


def write_json(path: Path, predictions: Sequence[Prediction], classes: Sequence[str]) -> None:
    """The same as JSON, with the accuracy where there are labels.

    Raises:
        InputError: when it cannot be written.
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
                "probabilities": [float(str(p)) for p in each.probabilities],  # as short as float32 is
            }
            for each in predictions
        ],
    }
    write_text(path, json.dumps(values, ensure_ascii=False) + "\n")


def _in_utf8(path: Path) -> str:
    """A path as text that a file can hold: a name may be any bytes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
