"""Tables and pictures of a run, against scikit-learn and Pillow."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion

from jaxcnn.report import confusion_matrix, plot_confusion, plot_curves
from jaxcnn.train import EpochRecord


@settings(max_examples=50, deadline=None, derandomize=True)
@given(classes=st.integers(2, 110), n=st.integers(1, 300), seed=st.integers(0, 2**32 - 1))
def test_the_confusion_matrix_equals_scikit_learns(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predictions = rng.integers(0, classes, (2, n)).astype(np.int32)
    wanted = sklearn_confusion(labels, predictions, labels=range(classes))
    np.testing.assert_array_equal(confusion_matrix(labels, predictions, classes), wanted)


def test_the_confusion_matrix_has_true_classes_in_rows_whatever_the_type_of_the_labels() -> None:
    labels = np.array([0, 0, 2, 199], np.uint8)  # 199 * 200 overflows a byte
    matrix = confusion_matrix(labels, np.array([0, 1, 2, 0]), 200)
    assert matrix.dtype == np.int64
    assert (matrix[0, 0], matrix[0, 1], matrix[2, 2], matrix[199, 0], matrix.sum()) == (1, 1, 1, 1, 4)


def read_png(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert image.format == "PNG"
        image.verify()
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize(("classes", "size"), [(10, (1020, 900)), (100, (2040, 1920))])
def test_the_confusion_picture_shows_the_matrix(classes: int, size: tuple[int, int], tmp_path: Path) -> None:
    """A perfect result is a dark diagonal on white; with the last class absent, its last cell is white too."""
    matrix = np.diag(np.full(classes, 7))
    matrix[-1] = 0
    path = tmp_path / "confusion.png"
    plot_confusion(path, matrix, [f"class {i}" for i in range(classes)])
    pixels = read_png(path)
    assert pixels.shape == (size[1], size[0], 3)
    # The darkest blue of the map, away from the colour bar's share of the width, lies on a diagonal.
    dark = np.all(np.abs(pixels[:, : int(0.85 * size[0])].astype(int) - [8, 48, 107]) < 3, axis=-1)
    rows, columns = np.nonzero(dark)
    assert len(rows) > 1000
    assert np.corrcoef(rows, columns)[0, 1] > 0.98
    assert [p.name for p in tmp_path.iterdir()] == ["confusion.png"]


@pytest.mark.parametrize("validated", [True, False])
def test_the_curves_are_a_picture_with_and_without_validation(validated: bool, tmp_path: Path) -> None:
    records = [
        EpochRecord(i, 2 / i, 10.0 * i, 3 / i if validated else None, 9.0 * i if validated else None, 1e-3, 1.0, 1.0)
        for i in range(1, 6)
    ]
    plot_curves(tmp_path / "runs/curves.png", records, 3)
    pixels = read_png(tmp_path / "runs/curves.png")
    assert pixels.shape == (480, 1200, 3)
    orange = np.all(np.abs(pixels.astype(int) - [255, 127, 14]) < 3, axis=-1)  # the second line's colour
    assert orange.any() == validated


def test_one_epoch_is_enough_for_a_picture(tmp_path: Path) -> None:
    plot_curves(tmp_path / "curves.png", [EpochRecord(1, 2.3, 10.0, 2.2, 12.0, 1e-3, 1.0, 1.0)], 0)
    assert read_png(tmp_path / "curves.png").shape == (480, 1200, 3)
