"""The content of `summary.json`."""

from types import UnionType
from typing import TypedDict, get_type_hints


class Summary(TypedDict):
    """The result of a run. Losses are in nats, accuracies in percent, times in seconds.

    Fields that `NEW` names are None if an earlier version finished the run.
    """

    name: str
    """Name of the run's folder."""
    dataset: str
    mask: str
    """If a number of frozen stages was given, the mask that is closest: partial, or frozen if no block trains."""
    copied_stages: int | None
    """Stages that started with the source's weights, counted from the input."""
    frozen_stages: int | None
    """Stages that were frozen in the last epoch, counted from the input."""
    seed: int
    test_accuracy: float
    balanced_accuracy: float | None
    """Mean of the classes' accuracies."""
    top5_accuracy: float | None
    """Share of the images whose label is among the five most probable; None where there are at most ten classes."""
    calibration_error: float | None
    """Expected calibration error of `probabilities.npy`, a fraction; None where these are not finite."""
    temperature: float | None
    """What the logits were divided by to get `probabilities.npy`; None where none was fitted. The losses are of the
    logits as they are."""
    test_loss: float | None
    """None if it is not finite."""
    val_accuracy: float | None
    """At the best epoch; None without validation images, like `val_loss`."""
    val_loss: float | None
    best_epoch: int
    """Counted from 1."""
    epochs: int
    stopped: str
    """Why training ended."""
    seconds: float
    """Training time of all epochs."""
    images_per_second: float
    """Median over the epochs."""
    trainable_parameters: int
    total_parameters: int
    wall_seconds: float
    """Wall time of the process that finished the run."""


SUMMARY: dict[str, type | UnionType] = {
    name: kind if kind in (str, int) else int | kind for name, kind in get_type_hints(Summary).items()
}
"""The fields and their types. float also allows int, because JSON does not distinguish 1 and 1.0."""

NEW = (
    "copied_stages", "frozen_stages", "balanced_accuracy", "top5_accuracy", "calibration_error", "temperature",
)  # fmt: skip
"""The fields that earlier versions did not write."""
