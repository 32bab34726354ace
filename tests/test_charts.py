"""The geometry of the page's charts and of its confusion matrix."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.runs.charts import line_chart, matrix_cells, nice_ticks
from jaxcnn.runs.palette import mix_with_white


@settings(max_examples=200, deadline=None, derandomize=True)
@given(low=st.floats(-1e12, 1e12), span=st.floats(0, 1e12))
def test_ticks_are_round_and_enclose_all(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    slack = 1e-9 * max(abs(low), abs(low + span), 1e-300)
    assert ticks[0] <= low + slack
    assert ticks[-1] >= low + span - slack
    assert 2 <= len(ticks) <= 8


def test_values_that_differ_by_rounding_are_drawn_from_zero() -> None:
    for low in (7204.0, 7206.0):
        assert nice_ticks(low, low + 1e-12) == [0, 2000, 4000, 6000, 8000]


def test_a_chart_leaves_out_what_is_not_finite() -> None:
    chart = line_chart(
        "loss", "", [1, 2, 3, 4], {"training": [1.0, float("inf"), 2.0, 1e300], "validation": [None] * 4}, 2
    )
    assert chart.lines[0].path.count("M") == 2
    assert chart.lines[1].path == ""
    assert [tick.text for tick in chart.x] == ["1", "2", "3", "4"]


def test_a_single_confusion_is_seen_in_the_matrix_and_the_largest_is_darkest() -> None:
    matrix = np.diag(np.full(100, 99))
    matrix[3, 4], matrix[5, 6] = 1, 11
    cells, most = matrix_cells(matrix, [f"class number {i}" for i in range(100)])
    assert most == 11 / 110
    colors = {(cell.row, cell.column): cell.color for cell in cells}
    assert colors[5, 6] == mix_with_white("#D55E00", 1) == "#d55e00"
    assert colors[3, 4] == mix_with_white("#D55E00", 0.15 + 0.85 * 0.1)
    assert len(cells) == 102
