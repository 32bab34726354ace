"""Which test images a run keeps for its page: the most confidently wrong ones and the least certain ones."""

from typing import Any

import numpy as np

MOST = 12
"""Maximum number of images of each kind."""


def confidently_wrong(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Indices, int (at most `MOST`,), of the wrong predictions with the highest probability, the worst first.

    Args:
        probabilities: floating (N, K), finite.
        labels: int (N,).
    """
    confidence = probabilities.max(-1)
    wrong = np.flatnonzero(probabilities.argmax(-1) != labels)
    return wrong[np.argsort(-confidence[wrong], kind="stable")][:MOST]


def least_sure(probabilities: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Indices, int (at most `MOST`,), of the images whose most probable class has the lowest probability."""
    return np.argsort(probabilities.max(-1), kind="stable")[:MOST]


def select_examples(probabilities: np.ndarray[Any, Any], labels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Indices of the images of both kinds, ascending; empty if a probability is not finite."""
    if not np.isfinite(probabilities).all():
        return np.empty(0, np.int64)
    return np.union1d(confidently_wrong(probabilities, labels), least_sure(probabilities))
