"""Figures, tables and the page of a finished run, made from the files in its folder."""

from collections.abc import Callable
from pathlib import Path
from typing import get_args

from jaxcnn.config.experiment import RESOLVED
from jaxcnn.errors import InputError
from jaxcnn.files import TEMPORARY, write_text
from jaxcnn.runs.arrays import read_arrays
from jaxcnn.runs.figures import plot_confusion, plot_curves
from jaxcnn.runs.metrics import read_metrics
from jaxcnn.runs.page import render
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.runs.scores import ClassScore, class_scores, confusion_matrix
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.style import Figures, one_line
from jaxcnn.runs.tables import latex_text, markdown_text


def present(folder: Path, figures: Figures = "png") -> None:
    """Makes the figures, tables and page that a finished run does not have yet. A failure is a warning on stderr."""
    for path, make in _products(folder, figures):
        if not path.exists():
            with only_warns(str(path)):
                for leftover in folder.glob(f"{TEMPORARY}{path.name}-*"):  # from a killed process
                    leftover.unlink(missing_ok=True)
                make(folder, path)


def present_again(folder: Path, figures: Figures = "png") -> list[Path]:
    """Makes all figures, tables and the page of a finished run, also those that exist. Returns their paths.

    Raises:
        InputError: when the run is not finished, or its folder lacks something.
        MachineError: when one cannot be written.
    """
    if not (folder / "summary.json").is_file():
        raise InputError(f"{folder} holds no finished run; give the folder of one, such as runs/cifar10")
    products = _products(folder, figures)
    for path, make in products:
        make(folder, path)
    return [path for path, _ in products]


def remove_products(folder: Path) -> None:
    """Removes what was made of what a folder held before, so that `present` makes it."""
    for path in {path for figures in get_args(Figures) for path, _ in _products(folder, figures)}:
        with only_warns(f"new {path}"):
            path.unlink(missing_ok=True)


def _products(folder: Path, figures: Figures) -> list[tuple[Path, Callable[[Path, Path], None]]]:
    makers = {
        f"curves.{figures}": _draw_curves,
        f"confusion.{figures}": _draw_confusion,
        "classes.md": _write_markdown,
        "classes.tex": _write_latex,
        "report.html": write_page,
    }
    return [(folder / name, make) for name, make in makers.items()]


def _draw_curves(folder: Path, path: Path) -> None:
    records = read_metrics(folder)
    best = read_summary(folder / "summary.json")["best_epoch"]
    plot_curves(path, records, [record.epoch for record in records].index(best))


def _draw_confusion(folder: Path, path: Path) -> None:
    names, arrays = _class_names(folder), read_arrays(folder)
    plot_confusion(path, confusion_matrix(arrays.labels, arrays.predictions, len(names)), names)


_HEADER = ("class", "images", "right", "accuracy (%)", "precision", "recall", "F1")


def _write_markdown(folder: Path, path: Path) -> None:
    write_text(path, markdown_text(_HEADER, map(_cells, _scores(folder))))


def _write_latex(folder: Path, path: Path) -> None:
    write_text(path, latex_text(_HEADER, map(_cells, _scores(folder))))


def _scores(folder: Path) -> list[ClassScore]:
    arrays = read_arrays(folder)
    return class_scores(arrays.labels, arrays.predictions, _class_names(folder))


def _cells(score: ClassScore) -> list[str]:
    numbers = (score.precision, score.recall, score.f1)
    accuracy = "" if score.accuracy is None else f"{score.accuracy:.2f}"
    return [
        one_line(score.name),
        f"{score.images}",
        f"{score.correct}",
        accuracy,
        *("" if number is None else f"{number:.3f}" for number in numbers),
    ]


def write_page(folder: Path, path: Path) -> None:
    """Writes the page of a finished run.

    Raises:
        InputError: when its folder lacks something.
    """
    config, summary = read_json(folder / "config.json"), read_summary(folder / "summary.json")
    write_text(path, render(folder, config, summary, read_metrics(folder), read_arrays(folder)))


def _class_names(folder: Path) -> list[str]:
    return list(read_json(folder / "config.json")[RESOLVED]["class_names"])
