"""How well each class is recognised."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ClassScore(NamedTuple):
    """One class on the test set."""

    name: str
    images: int
    correct: int

    @property
    def accuracy(self) -> float | None:
        """Percent of the class's images (its recall); None if there are none."""
        return 100 * self.correct / self.images if self.images else None


def class_scores(labels: np.ndarray, predictions: np.ndarray, names: Sequence[str]) -> list[ClassScore]:
    """The score of each class, from labels and predictions, int (N,)."""
    images = np.bincount(labels, minlength=len(names))
    correct = np.bincount(labels[labels == predictions], minlength=len(names))
    return [ClassScore(*each) for each in zip(names, images.tolist(), correct.tolist(), strict=True)]


def balanced_accuracy(scores: Sequence[ClassScore]) -> float:
    """Mean of the accuracies of the classes that have images, in percent: scikit-learn's balanced accuracy."""
    return float(np.mean([score.accuracy for score in scores if score.accuracy is not None]))
