"""The result of a run, which `summary.json` holds."""

from types import UnionType
from typing import TypedDict, get_type_hints


class Summary(TypedDict):
    """What came of a run. Losses are in nats, accuracies in percent, times in seconds.

    `NEW` names what is None of a run that an earlier version finished.
    """

    name: str
    """Of the run's folder."""
    dataset: str
    mask: str
    seed: int
    test_accuracy: float
    balanced_accuracy: float | None
    """Mean of the accuracies of the classes."""
    top5_accuracy: float | None
    """Share of the images whose label is among the five most probable; None where there are at most ten classes."""
    calibration_error: float | None
    """Expected calibration error of `probabilities.npy`, a fraction; None where these are not finite."""
    temperature: float | None
    """What the logits were divided by to get `probabilities.npy`; None where none was fitted. The losses are those of
    the logits as they are."""
    test_loss: float | None
    """None where it is not finite."""
    val_accuracy: float | None
    """At the best epoch; None without a validation split, as the loss."""
    val_loss: float | None
    best_epoch: int
    """Counted from 1."""
    epochs: int
    stopped: str
    """Why training ended."""
    seconds: float
    """Of all epochs."""
    images_per_second: float
    """Median over the epochs."""
    trainable_parameters: int
    total_parameters: int
    wall_seconds: float
    """Of the process that finished the run."""


SUMMARY: dict[str, type | UnionType] = {
    name: kind if kind in (str, int) else int | kind for name, kind in get_type_hints(Summary).items()
}
"""The fields by name, and what values they may have; JSON has no difference between 1 and 1.0."""

NEW = ("balanced_accuracy", "top5_accuracy", "calibration_error", "temperature")
"""The fields that earlier versions did not write."""
