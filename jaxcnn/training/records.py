"""The types of training: its state, a batch, sums over a batch, the record of an epoch, an evaluation."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np


class TrainState(NamedTuple):
    """Everything that a training step changes, as one pytree."""

    step: jax.Array
    """int32, steps taken. Each step folds it into the key, so there is no other random state."""
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    """The optimiser's state, by top-level module that trains; a user's own optimiser has a single state."""
    key: jax.Array


class Batch(NamedTuple):
    """A batch of fixed size. Images outside the mask are padding. Outside of jit, the arrays may be NumPy's."""

    images: Any
    """uint8 (B, H, W, C), or `kernels.features.Features` of B images."""
    labels: Any
    """int32 (B,)."""
    mask: Any
    """bool (B,)."""


class Metrics(NamedTuple):
    """Sums over the images of a batch, without padding. Means are computed once, from totals."""

    loss: Any
    """Sum of the cross-entropy, in nats, or of the user's own loss."""
    correct: Any
    count: Any


TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
"""Maps a state, a batch and a factor of the learning rate to the next state and the batch's metrics."""
EvalStep = Callable[[Any, Batch, Any], tuple[Metrics, jax.Array]]
"""Maps variables, a batch and a key's data to the batch's metrics and its logits (B, K)."""


class EpochRecord(NamedTuple):
    """Results of an epoch. Losses are means in nats, accuracies percent; without a validation split, its are None."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    """At the epoch's last step; NaN with a user's own optimiser."""
    seconds: float
    """Of training and validation, including compilation. If the epoch was interrupted, only the part after that."""
    images_per_second: float
    """Training images per second of training, without validation."""


class Evaluation(NamedTuple):
    """The results of a network on a split."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Percent."""
    logits: np.ndarray[Any, Any]
    """Floating (N, K), in the split's order."""


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities, float32 (..., K), from logits (..., K); computed in float64."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # the logits of a network that diverged are not finite
        powers = np.exp(wide - wide.max(-1, keepdims=True))
    probabilities: np.ndarray[Any, Any] = (powers / powers.sum(-1, keepdims=True)).astype(np.float32)
    return probabilities
