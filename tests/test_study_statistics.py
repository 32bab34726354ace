"""Intervals, corrections and power of a study: against scipy, statsmodels and simulation."""

from statistics import fmean

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.power import TTestPower
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import DescrStatsW

from jaxcnn.studies.statistics import (
    compare_to,
    estimate,
    holm,
    paired_p,
    pairs_needed,
    power,
    sampling_error,
    t_intervals,
)

STUDIES = 2000


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_an_estimate_is_that_of_scipy_and_statsmodels() -> None:
    values = [88.5, 81.25, 93.75, 90.0]
    n, mean, sd, low, high = estimate(values)
    assert (n, mean) == (4, fmean(values))
    assert sd == pytest.approx(stats.tstd(values), rel=1e-12)
    interval = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(values))
    assert (low, high) == pytest.approx(interval, rel=1e-12)
    assert (low, high) == pytest.approx(DescrStatsW(values).tconfint_mean(), rel=1e-12)
    assert estimate([3.0]) == (1, 3.0, None, None, None)


@pytest.mark.parametrize("n", [2, 3, 10])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    low, high = t_intervals(5 + 3 * normal(STUDIES, n))
    assert 100 * np.mean((low <= 5) & (high >= 5)) == pytest.approx(95, abs=1.5)
    # Paired: seeds move both settings alike, and the difference is what counts.
    seeds, noise = 20 * normal(STUDIES, n, seed=1), normal(2, STUDIES, n, seed=2)
    low, high = t_intervals((seeds + noise[0] + 2) - (seeds + noise[1]))
    assert 100 * np.mean((low <= 2) & (high >= 2)) == pytest.approx(95, abs=1.5)


def test_a_paired_test_is_that_of_scipy() -> None:
    one, other = normal(2, 5, 6)
    np.testing.assert_allclose(paired_p(one - other), stats.ttest_rel(one, other, axis=-1).pvalue, rtol=1e-10)
    assert paired_p([0.0, 0.0]) == 1
    assert paired_p([0.5, 0.5]) == 0


@pytest.mark.parametrize("ps", [[0.03], [0.01, 0.04, 0.03, 0.005], [0.2, 0.2, 0.001, 1.0], [0.6, 0.9, 0.0]])
def test_holms_correction_is_that_of_statsmodels(ps: list[float]) -> None:
    np.testing.assert_allclose(holm(ps), multipletests(ps, method="holm")[1], rtol=1e-12)


@pytest.mark.slow
def test_a_corrected_interval_leaves_0_out_exactly_where_holms_test_rejects() -> None:
    rejected = 0
    for study in range(6):
        shifts, noise = np.array([0, 0.6, 1.2, 2.0, 4.0])[:, None], normal(5, 4, seed=study)
        baseline = dict(enumerate(normal(4, seed=1000 + study)))
        others = {
            str(i): {seed: baseline[seed] + float(value) for seed, value in enumerate(row)}
            for i, row in enumerate(shifts + noise)
        }
        differences = compare_to(baseline, others)
        raw = [stats.ttest_rel(list(each.values()), list(baseline.values())).pvalue for each in others.values()]
        rejects, corrected, *_ = multipletests(raw, method="holm")
        np.testing.assert_allclose([each.p for each in differences.values()], corrected, rtol=1e-9)
        assert [each.is_told_apart for each in differences.values()] == list(rejects)
        rejected += sum(rejects)
    assert 3 < rejected < 21


def test_a_single_comparison_is_not_corrected() -> None:
    a, b = {0: 1.0, 1: 4.0, 2: 3.0}, {0: 2.0, 2: 6.5, 1: 4.5, 7: 100.0}
    found = compare_to(a, {"b": b})["b"]
    wanted = stats.ttest_rel([2.0, 4.5, 6.5], [1.0, 4.0, 3.0])
    assert (found.n, found.mean, found.p) == (3, pytest.approx(5 / 3), pytest.approx(wanted.pvalue))
    assert (found.low, found.high) == pytest.approx(tuple(wanted.confidence_interval()), rel=1e-9)
    assert compare_to(a, {"c": {7: 1.0}}) == {}
    assert compare_to(a, {"d": {0: 1.5}})["d"] == (1, 0.5, None, None, None, None)


@pytest.mark.parametrize(("n", "effect", "alpha"), [(3, 1.0, 0.05), (5, 1.5, 0.05), (10, 0.8, 0.01), (30, 0.3, 0.05)])
def test_power_is_that_of_statsmodels_and_of_simulation(n: int, effect: float, alpha: float) -> None:
    found = power(n, effect, alpha)
    assert found == pytest.approx(TTestPower().power(effect, n, alpha), abs=1e-6)
    simulated = np.mean(paired_p(effect + normal(20_000, n)) < alpha)
    assert 100 * found == pytest.approx(100 * simulated, abs=3)


def test_the_pairs_needed_are_the_fewest_with_a_power_of_80_percent() -> None:
    for differences in ([0.4, 1.0, 1.9], [0.1, -0.2, 0.3, 0.5], [3.0, 3.1, 2.9]):
        needed = pairs_needed(differences)
        effect = np.mean(differences) / np.std(differences, ddof=1)
        assert needed is not None
        assert power(needed, effect) >= 0.8
        assert needed == 2 or power(needed - 1, effect) < 0.8
    assert pairs_needed([1.0, -1.0001]) is None
    assert pairs_needed([0.5, 0.5]) is None
    found = compare_to(dict.fromkeys(range(4), 0.0), {"a": {0: 0.1, 1: -0.2, 2: 0.3, 3: 0.5}})["a"]
    assert found.more == pairs_needed([0.1, -0.2, 0.3, 0.5]) - 4


@pytest.mark.parametrize(("accuracy", "images"), [(0, 10), (50, 100), (97.5, 360), (100, 360), (34.2, 10_000)])
def test_the_error_of_the_test_set_is_wilsons(accuracy: float, images: int) -> None:
    low, high = proportion_confint(accuracy / 100 * images, images, method="wilson")
    assert sampling_error(accuracy, images) == pytest.approx(50 * (high - low), rel=1e-9)
