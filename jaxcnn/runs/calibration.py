"""Calibration: how often predictions of a given confidence are right, and temperature scaling."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

BINS = 15
"""Number of bins of equal width, as in Guo et al., "On Calibration of Modern Neural Networks" (2017)."""

_MOST = 100.0
"""Highest temperature; the lowest is its reciprocal. If all images are right, no temperature is low enough."""


class ConfidenceBin(NamedTuple):
    """The images whose most probable class has a probability in (low, high]."""

    low: float
    high: float
    images: int
    confidence: float
    """Mean probability of the most probable class; 0 where there are no images."""
    accuracy: float
    """Share of the images that are right; 0 where there are none."""


def confidence_bins(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> list[ConfidenceBin]:
    """The images by confidence, in `BINS` intervals of equal width.

    Args:
        probabilities: floating (N, K), finite.
        labels: int (N,).
    """
    confidence = probabilities.max(-1).astype(np.float64)
    right = probabilities.argmax(-1) == labels
    edges = np.linspace(0, 1, BINS + 1)
    places = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, BINS - 1)  # rounding may exceed 1
    images, confidences, rights = (
        np.bincount(places, weights, minlength=BINS) for weights in (None, confidence, right.astype(np.float64))
    )
    some = np.maximum(images, 1)
    columns = (edges[:-1], edges[1:], images, confidences / some, rights / some)
    return [ConfidenceBin(*each) for each in zip(*(column.tolist() for column in columns), strict=True)]


def calibration_error(bins: Sequence[ConfidenceBin]) -> float:
    """Expected calibration error, a fraction: mean distance between confidence and accuracy, weighted by images."""
    distances = sum(each.images * abs(each.accuracy - each.confidence) for each in bins)
    return float(distances / sum(each.images for each in bins))


def fit_temperature(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> float:
    """The temperature for which the mean cross-entropy of `logits / temperature` is lowest.

    Args:
        logits: floating (N, K), finite, of images that the network was not trained on.
        labels: int (N,).
    """
    from scipy.optimize import brentq  # late: few runs need it

    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    of_label = wide[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        """Derivative of the mean cross-entropy by the inverse temperature. It increases, because that is convex."""
        powers = np.exp(wide * inverse)
        return float(np.mean((powers * wide).sum(-1) / powers.sum(-1) - of_label))

    if slope(_MOST) <= 0:
        return 1 / _MOST
    if slope(1 / _MOST) >= 0:
        return _MOST
    return 1 / float(brentq(slope, 1 / _MOST, _MOST, xtol=1e-12))
