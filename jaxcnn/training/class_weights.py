"""Class weights for the loss."""

import numpy as np


def balanced_weights(labels: np.ndarray, num_classes: int) -> tuple[float, ...]:
    """N / (classes * images of the class) for each class: scikit-learn's "balanced" weights.

    Args:
        labels: int (N,), of the training images.
        num_classes: number of classes. A class without images gets the weight 0.
    """
    counts = np.bincount(labels, minlength=num_classes)
    return tuple(len(labels) / (num_classes * count) if count else 0.0 for count in counts.tolist())
