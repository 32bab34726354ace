"""What training works on and what it leaves: the state, batches, sums over images, and the record of an epoch."""

from typing import Any, NamedTuple

import jax
import numpy as np


class TrainState(NamedTuple):
    """Everything that a training step changes, as one pytree."""

    step: jax.Array
    """int32, steps taken; folded into the key, so no random state needs to be carried."""
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: Any
    """The optimiser's state of each trained top-level module, and of nothing else; of an optimiser of the user's own
    the one state that it keeps."""
    key: jax.Array


class Batch(NamedTuple):
    """A batch of fixed size; images outside the mask are padding. NumPy arrays do outside of jit."""

    images: Any
    """uint8 (B, H, W, C), or `model.Features` of B images."""
    labels: jax.Array
    """int32 (B,)."""
    mask: jax.Array
    """bool (B,)."""


class Metrics(NamedTuple):
    """Sums over the real images of a batch, so that totals divided once are exact."""

    loss: Any
    """Sum of the cross-entropy, in nats, or of the user's own loss."""
    correct: Any
    count: Any


class EpochRecord(NamedTuple):
    """What one epoch did. Losses are means in nats, accuracies percent; validation is None without a split."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    """At the epoch's last step; NaN with an optimiser of the user's own."""
    seconds: float
    """Training and validation, with what had to be compiled; of an epoch that was interrupted, what came after."""
    images_per_second: float
    """Training images, over the time spent training."""


class Evaluation(NamedTuple):
    """What a network does on a split."""

    loss: float
    """Mean cross-entropy, in nats."""
    accuracy: float
    """Percent."""
    logits: np.ndarray[Any, Any]
    """Floating (N, K), in the split's order."""


def softmax(logits: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Probabilities, float32 (..., K), of logits (..., K); the arithmetic is in float64."""
    wide = logits.astype(np.float64)
    with np.errstate(invalid="ignore"):  # of a network that diverged, values that are not finite
        powers = np.exp(wide - wide.max(-1, keepdims=True))
    probabilities: np.ndarray[Any, Any] = (powers / powers.sum(-1, keepdims=True)).astype(np.float32)
    return probabilities
