"""Statistics of a few runs: intervals, paired differences, corrections, power and sample size."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from scipy import special  # scipy.stats takes seconds to import

LEVEL = 0.95
"""Level of every interval."""
POWER = 0.8
_MOST_PAIRS = 200


class Estimate(NamedTuple):
    """A mean over runs. Fields that need two runs are None if there is one."""

    n: int
    mean: float
    sd: float | None
    """Standard deviation between runs, with n - 1."""
    low: float | None
    """Ends of the t interval of the mean."""
    high: float | None


class Difference(NamedTuple):
    """A paired difference to a baseline, over the seeds that both have."""

    n: int
    mean: float
    low: float | None
    """Ends of its interval, corrected for the number of comparisons; None of one pair."""
    high: float | None
    p: float | None
    """Of the paired t test, corrected too."""
    more: int | None
    """Further pairs that would tell the two apart with a probability of 80 %, if mean and spread are as measured; None
    of one pair, where they are told apart already, and beyond 200."""

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval leaves 0 out."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def t_intervals(values: Any, level: float = LEVEL) -> tuple[Any, Any]:
    """Ends of the t interval of the mean, along the last axis: (..., n) -> two of (...); n is at least 2."""
    values = np.asarray(values, float)
    n = values.shape[-1]
    half = special.stdtrit(n - 1, (1 + level) / 2) * values.std(-1, ddof=1) / np.sqrt(n)
    mean = values.mean(-1)
    return mean - half, mean + half


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation and 95 % t interval of one value or more."""
    mean = fmean(values)
    if len(values) < 2:
        return Estimate(len(values), mean, None, None, None)
    low, high = t_intervals(values)
    return Estimate(len(values), mean, float(np.std(values, ddof=1)), float(low), float(high))


def paired_p(differences: Any) -> Any:
    """p of the two-sided paired t test, along the last axis: (..., n) -> (...); n is at least 2."""
    differences = np.asarray(differences, float)
    n, mean = differences.shape[-1], differences.mean(-1)
    error = differences.std(-1, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(error > 0, np.abs(mean) / error, np.where(mean == 0, 0.0, np.inf))
    return 2 * special.stdtr(n - 1, -t)


def holm(ps: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's method."""
    order = np.argsort(ps, kind="stable")
    scaled = [min(1.0, (len(ps) - rank) * ps[index]) for rank, index in enumerate(order)]
    corrected = np.empty(len(ps))
    corrected[order] = np.maximum.accumulate(scaled) if scaled else []
    return [float(p) for p in corrected]


def _holm_alphas(ps: Sequence[float]) -> list[float]:
    """What each p value has to be below in Holm's method: from the first that is not, all that follow share its own."""
    order, count = np.argsort(ps, kind="stable"), len(ps)
    alphas, failed = [0.0] * count, None
    for rank, index in enumerate(order):
        alpha = (1 - LEVEL) / (count - (rank if failed is None else failed))
        alphas[index] = alpha
        if failed is None and ps[index] >= alpha:
            failed = rank
    return alphas


def compare_to(baseline: dict[int, float], others: dict[str, dict[int, float]]) -> dict[str, Difference]:
    """Paired differences of several settings to a baseline, corrected together.

    An interval has the level at which Holm's method tests, so that it leaves 0 out exactly where that test rejects.

    Args:
        baseline: values by seed.
        others: the same of each other setting. One that shares no seed with the baseline has no difference.
    """
    pairs = {
        name: [values[seed] - baseline[seed] for seed in values if seed in baseline] for name, values in others.items()
    }
    tested = [name for name, each in pairs.items() if len(each) > 1]
    ps = [float(paired_p(pairs[name])) for name in tested]
    corrected, alphas = (dict(zip(tested, each, strict=True)) for each in (holm(ps), _holm_alphas(ps)))
    found = {}
    for name, each in pairs.items():
        if name in corrected:
            low, high = (float(end) for end in t_intervals(each, 1 - alphas[name]))
            told_apart = low > 0 or high < 0
            needed = None if told_apart else pairs_needed(each, alphas[name])
            more = None if needed is None else max(needed - len(each), 1)
            found[name] = Difference(len(each), float(np.mean(each)), low, high, corrected[name], more)
        elif each:
            found[name] = Difference(len(each), each[0], None, None, None, None)
    return found


def power(n: Any, effect: float, alpha: float = 1 - LEVEL) -> Any:
    """Probability that a two-sided paired t test finds a difference.

    Args:
        n: pairs; one number or many.
        effect: the mean difference over its standard deviation.
        alpha: the test's level.
    """
    n = np.asarray(n)
    bound, shift = special.stdtrit(n - 1, 1 - alpha / 2), abs(effect) * np.sqrt(n)
    found = 1 - special.nctdtr(n - 1, shift, bound) + np.nan_to_num(special.nctdtr(n - 1, shift, -bound))
    return np.where(np.isnan(found), 1.0, found)  # far out SciPy gives up


def pairs_needed(differences: Sequence[float], alpha: float = 1 - LEVEL) -> int | None:
    """Pairs for a power of 80 %, if mean and standard deviation are those of `differences`; None beyond 200."""
    mean, sd = float(np.mean(differences)), float(np.std(differences, ddof=1))
    if sd == 0:
        return None
    pairs = np.arange(2, _MOST_PAIRS + 1)
    enough = power(pairs, mean / sd, alpha) >= POWER
    return int(pairs[np.argmax(enough)]) if enough.any() else None


def sampling_error(accuracy: float, images: int) -> float:
    """Half the width, in points, of the 95 % Wilson interval of an accuracy (percent) on so many test images.

    It is what another draw of test images would change, with the same network; runs that share a test set share it.
    """
    p, z = accuracy / 100, float(special.ndtri((1 + LEVEL) / 2))
    return 100 * z / (1 + z * z / images) * float(np.sqrt(p * (1 - p) / images + z * z / (4 * images * images)))
