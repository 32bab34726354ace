"""Accuracy by class."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np


class ClassScore(NamedTuple):
    """The result of one class on the test set. What a class without images does not have is None."""

    name: str
    images: int
    correct: int
    predicted: int
    """Images of any class that were given this label."""

    @property
    def accuracy(self) -> float | None:
        """Recall of the class in percent."""
        return 100 * self.correct / self.images if self.images else None

    @property
    def precision(self) -> float | None:
        """Share of the images given this label that are of the class; 0 if none were."""
        return self.correct / max(self.predicted, 1) if self.images else None

    @property
    def recall(self) -> float | None:
        """Share of the class's images that are predicted right."""
        return self.correct / self.images if self.images else None

    @property
    def f1(self) -> float | None:
        """Harmonic mean of precision and recall; 0 if no image is predicted right."""
        return 2 * self.correct / (self.images + self.predicted) if self.images else None


COLUMNS = ("class", "images", "correct", "accuracy", "predicted", "precision", "recall", "f1")
"""Of `classes.csv`, in the order of `row`."""


def row(score: ClassScore) -> tuple[Any, ...]:
    """A class's line in `classes.csv`."""
    name, images, correct, predicted = score
    return (name, images, correct, score.accuracy, predicted, score.precision, score.recall, score.f1)


def class_scores(
    labels: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any], names: Sequence[str]
) -> list[ClassScore]:
    """The score of each class; `labels` and `predictions` are int (N,)."""
    hits = labels[labels == predictions]
    counts = (np.bincount(each, minlength=len(names)).tolist() for each in (labels, hits, predictions))
    return [ClassScore(*each) for each in zip(names, *counts, strict=True)]


def balanced_accuracy(scores: Sequence[ClassScore]) -> float:
    """Mean accuracy in percent over the classes that have images, as scikit-learn's balanced accuracy."""
    return float(np.mean([score.accuracy for score in scores if score.accuracy is not None]))


def top_accuracy(logits: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], k: int = 5) -> float:
    """Percent of the images whose label is among the `k` largest logits, floating (N, K); of equal ones the first."""
    largest = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    return float(100 * np.mean((largest == labels[:, None]).any(-1)))


def confusion_matrix(
    labels: np.ndarray[Any, Any], predictions: np.ndarray[Any, Any], num_classes: int
) -> np.ndarray[Any, Any]:
    """int64 (num_classes, num_classes): images of each class (row) given each label (column)."""
    cells = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(cells, minlength=num_classes**2).reshape(num_classes, num_classes)


class Confusion(NamedTuple):
    """Images of one class that were given another label."""

    true: int
    predicted: int
    images: int
    share: float
    """Of the true class's images."""


def confusions(matrix: np.ndarray[Any, Any]) -> list[Confusion]:
    """What is taken for what, from a confusion matrix: most images first, of equal ones the largest share."""
    totals = matrix.sum(axis=1)
    places = np.argwhere((matrix > 0) & ~np.eye(len(matrix), dtype=bool)).tolist()
    found = [Confusion(i, j, int(matrix[i, j]), float(matrix[i, j] / totals[i])) for i, j in places]
    return sorted(found, key=lambda each: (-each.images, -each.share))
