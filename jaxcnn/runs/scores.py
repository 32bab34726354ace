"""Accuracy by class."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ClassScore(NamedTuple):
    """The result of one class on the test set."""

    name: str
    images: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """Recall of the class in percent; None if it has no images."""
        return 100 * self.correct / self.images if self.images else None


def class_scores(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[ClassScore]:
    """The score of each class; `labels` and `predictions` are int (N,)."""
    images = np.bincount(labels, minlength=len(names))
    correct = np.bincount(labels[labels == predictions], minlength=len(names))
    return [ClassScore(*each) for each in zip(names, images.tolist(), correct.tolist(), strict=True)]


def balanced_accuracy(scores: Sequence[ClassScore]) -> float:
    """Mean accuracy in percent over the classes that have images, as scikit-learn's balanced accuracy."""
    return float(np.mean([score.accuracy for score in scores if score.accuracy is not None]))
