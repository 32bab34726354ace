"""Figures of runs: they show what they should, in print, to the colour-blind, and in grey."""

import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from sklearn.metrics import confusion_matrix as sklearn_confusion

from jaxcnn.runs.figures import plot_confusion, plot_curves
from jaxcnn.runs.palette import PALETTE
from jaxcnn.runs.scores import confusion_matrix
from jaxcnn.runs.style import NAME_LENGTH, line, one_line
from jaxcnn.training.records import EpochRecord

ROOT = Path(__file__).parent.parent
BLUE, VERMILLION = [0, 114, 178], [213, 94, 0]


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


@pytest.mark.parametrize(("classes", "size"), [(10, (900, 780)), (100, (1680, 1560))])
def test_the_confusion_picture_shows_the_matrix(classes: int, size: tuple[int, int], tmp_path: Path) -> None:
    """A perfect result is a dark diagonal on white; with the last class absent, its last cell is white too."""
    matrix = np.diag(np.full(classes, 7))
    matrix[-1] = 0
    path = tmp_path / "confusion.png"
    plot_confusion(path, matrix, [f"class {i}" for i in range(classes)])
    pixels = read_png(path)
    assert pixels.shape == (size[1], size[0], 3)
    # The darkest blue of the map, away from the colour bars, lies on a diagonal.
    dark = np.all(np.abs(pixels[size[1] // 4 :, : int(0.8 * size[0])].astype(int) - BLUE) < 3, axis=-1)
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
    blue, vermillion = (np.all(np.abs(pixels.astype(int) - color) < 3, axis=-1).any() for color in (BLUE, VERMILLION))
    assert (blue, vermillion) == (validated, True)


def test_one_epoch_is_enough_for_a_picture(tmp_path: Path) -> None:
    plot_curves(tmp_path / "curves.png", [EpochRecord(1, 2.3, 10.0, 2.2, 12.0, 1e-3, 1.0, 1.0)], 0)
    assert read_png(tmp_path / "curves.png").shape == (480, 1200, 3)


# What users have set, and how they call their classes

RECORDS = [EpochRecord(i, 2 / i, 10.0 * i, 3 / i, 9.0 * i, 1e-3, 1.0, 1.0) for i in (1, 2)]


def draw_all(folder: Path) -> list[np.ndarray]:
    plot_curves(folder / "curves.png", RECORDS, 1)
    plot_confusion(folder / "confusion.png", np.array([[3, 1], [0, 2]]), ["$a_1", "b"])
    return [read_png(folder / f"{name}.png") for name in ("curves", "confusion")]


def test_what_is_set_for_other_figures_has_no_effect(tmp_path: Path) -> None:
    wanted = draw_all(tmp_path / "plain")
    settings = {
        "text.usetex": True, "text.parse_math": True, "font.family": ["No Such Font"], "figure.dpi": 30,
        "savefig.bbox": "tight", "savefig.format": "pdf", "savefig.transparent": True, "axes.facecolor": "black",
        "figure.constrained_layout.use": False, "axes.formatter.use_locale": True,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        drawn = draw_all(tmp_path / "set")
        assert {name: matplotlib.rcParams[name] for name in settings} == settings  # and is as it was
    for one, other in zip(drawn, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


PROGRAM = """
import os, sys
from pathlib import Path
import numpy as np
from jaxcnn.runs.figures import plot_confusion

plot_confusion(Path(sys.argv[1]), np.eye(2), ["a", "b"])
print(os.environ["MPLBACKEND"], sys.modules["matplotlib"].rcParams.get("backend"))
"""


@pytest.mark.parametrize(
    "backend", ["module://matplotlib_inline.backend_inline", pytest.param("svg", marks=pytest.mark.slow)]
)
def test_a_notebooks_backend_and_a_users_rc_file_are_no_obstacle(backend: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\nfont.family: No Such Font\nsavefig.bbox: tight\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPLBACKEND": backend, "LC_ALL": "C"}
    words = [sys.executable, "-c", PROGRAM, str(tmp_path / "confusion.png")]
    done = subprocess.run(words, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    variable, set_for_others = done.stdout.split()
    assert variable == backend
    assert set_for_others == "svg" or backend != "svg"
    plot_confusion(tmp_path / "here.png", np.eye(2), ["a", "b"])
    np.testing.assert_array_equal(read_png(tmp_path / "confusion.png"), read_png(tmp_path / "here.png"))


NAMES = {
    "plain": "plain",
    "$x^": "$x^",
    "\\frac{$": "\\frac{$",
    "a_b": "a_b",
    "[red]x[/]": "[red]x[/]",
    "two\nlines\r\n": "two lines",
    "\ttab": "tab",
    "": "",
    "null\0bell\a": "null\ufffdbell\ufffd",
    "\ud800": "?",
    "x" * 24: "x" * 24,
    "y" * 300: "y" * 23 + "…",
    "🐈 cat": "🐈 cat",
    "猫": "猫",
    "שלום": "שלום",
    "\u202eoverridden": "\ufffdoverridden",
}


def test_names_of_any_kind_are_labels_in_one_line() -> None:
    assert {name: one_line(name, NAME_LENGTH) for name in NAMES} == NAMES


def test_names_of_any_kind_are_drawn(tmp_path: Path) -> None:
    names = [*NAMES, "same", "same"]
    plot_confusion(tmp_path / "named.png", np.diag(np.full(len(names), 7)), names)
    pixels = read_png(tmp_path / "named.png")
    side = round((3 + 0.35 * len(names)) * 120)
    assert pixels.shape == (side, side + 120, 3)
    dark = np.all(np.abs(pixels[:, : int(0.8 * side)].astype(int) - BLUE) < 3, axis=-1)
    assert np.ptp(np.nonzero(dark)[0]) > side / 2  # names leave the matrix more than half of the picture


def test_losses_of_any_size_are_drawn(tmp_path: Path) -> None:
    huge = [RECORDS[0]._replace(val_loss=1e30), RECORDS[1]._replace(train_loss=1e300), RECORDS[1]._replace(epoch=3)]
    plot_curves(tmp_path / "curves.png", huge, 0)
    assert read_png(tmp_path / "curves.png").shape == (480, 1200, 3)


# Print, colour-blindness, grey


def luminance(color: str) -> float:
    """Relative luminance, by WCAG 2."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def test_lines_differ_in_more_than_colour_and_are_seen_on_white() -> None:
    lines = [line(i, 50) for i in range(len(PALETTE))]
    for name in ("color", "linestyle", "marker"):
        assert len({str(each[name]) for each in lines}) == len(PALETTE)
    assert len({(each["color"], str(each["linestyle"])) for each in map(line, range(40), [50] * 40)}) == 40
    assert all(1.05 / (luminance(color) + 0.05) > 2 for color in PALETTE)
    first, second = (luminance(color) for color in PALETTE[:2])  # of nearly one grey: their dashes tell them apart
    assert abs(first - second) < 0.1


@pytest.mark.parametrize(("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF-")])
def test_a_figure_has_the_format_of_its_name_and_the_same_bytes_each_time(
    suffix: str, begins: bytes, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        plot_curves(tmp_path / f"{name}.{suffix}", RECORDS, 1)
    one, two = ((tmp_path / f"{name}.{suffix}").read_bytes() for name in ("one", "two"))
    assert one.startswith(begins)
    assert one == two
    assert suffix != "pdf" or b"/Type3" not in one


def test_a_single_confusion_among_100_classes_is_seen(tmp_path: Path) -> None:
    """It would be one of 255 shades from white on the scale of the diagonal."""
    matrix = np.diag(np.full(100, 99))
    matrix[20, 70] = 1
    plot_confusion(tmp_path / "confusion.png", matrix, [f"class {i}" for i in range(100)])
    pixels = read_png(tmp_path / "confusion.png")[:, :1200].astype(int)
    rows, columns = np.nonzero(np.all(np.abs(pixels - VERMILLION) < 3, axis=-1))
    assert 25 < len(rows) < 400
    assert np.ptp(rows) < 15
    assert np.ptp(columns) < 15
