"""Figures of studies: runs, means and intervals are seen, in every format."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_figures import BLUE, read_png

from jaxcnn.runs.palette import FAINTEST
from jaxcnn.studies.compare import compare
from jaxcnn.studies.figures import plot_accuracy, plot_time, plot_validation


def color_share(path: Path, color: list[int], share: float = 1.0) -> int:
    """Number of pixels that have a share of a colour on white."""
    wanted = 255 + share * (np.array(color) - 255)
    return int(np.all(np.abs(read_png(path).astype(int) - wanted) < 3, axis=-1).sum())


def test_seeds_have_a_band_and_a_single_run_has_none(tmp_path: Path) -> None:
    def tinted(runs: list[list[float]]) -> int:
        plot_validation(tmp_path / "curves.png", {"full": runs})
        return color_share(tmp_path / "curves.png", BLUE, FAINTEST)

    assert tinted([[10.0, 20.0, 30.0]]) < 200  # the edges of the line
    assert tinted([[10.0, 20.0, 30.0], [20.0, 30.0, 50.0]]) > 10_000
    assert 1_000 < tinted([[10.0, 20.0], [20.0, 30.0, 50.0]]) < tinted([[10.0, 20.0, 30.0], [20.0, 30.0, 50.0]])


def row(seed: int, accuracy: float) -> dict[str, Any]:
    numbers = {"test_accuracy": accuracy, "val_accuracy": accuracy, "seconds": 2.0 + seed}
    return {"seed": seed, "test_images": 100, "best_epoch": 3, "trainable_parameters": 1000, **numbers}


YOSINSKI = [{"source_task": task, "copied_stages": 1, "frozen_stages": n} for task in ("other", "same") for n in (1, 0)]
CASES = {
    "by case": [{"mask": "full"}, {"mask": "partial"}],
    "depth": [{"copied_stages": 0, "frozen_stages": 0}, *({"copied_stages": 6, "frozen_stages": n} for n in range(3))],
    "yosinski": [{"source_task": "none", "copied_stages": 0, "frozen_stages": 0}, *YOSINSKI],
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize("seeds", [1, 3])
def test_every_kind_of_study_is_drawn_with_and_without_intervals(kind: str, seeds: int, tmp_path: Path) -> None:
    rows = {str(case): [row(seed, 50.0 + 3 * seed) for seed in range(seeds)] for case in CASES[kind]}
    comparison = compare([(str(case), case, rows[str(case)]) for case in CASES[kind]], str(CASES[kind][0]))
    plot_accuracy(tmp_path / "accuracy.png", comparison, rows)
    plot_time(tmp_path / "time.png", comparison, rows)
    for name in ("accuracy", "time"):
        assert read_png(tmp_path / f"{name}.png").shape == (540, 900, 3)
        assert color_share(tmp_path / f"{name}.png", BLUE) > 20
