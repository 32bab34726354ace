"""Reading the arrays in a finished run's `results/`."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.errors import InputError, reason


class RunArrays(NamedTuple):
    """Predictions for N test images and K classes, in the order of the test split."""

    labels: np.ndarray[Any, Any]
    """int32 (N,)."""
    predictions: np.ndarray[Any, Any]
    """int32 (N,)."""
    probabilities: np.ndarray[Any, Any]
    """float32 (N, K)."""
    examples: dict[int, np.ndarray[Any, Any]]
    """Some of the test images, uint8 (H, W, C), by index. Runs of earlier versions have none."""


def read_arrays(folder: Path) -> RunArrays:
    """Reads the arrays of a run.

    Raises:
        InputError: when an array cannot be read, or their shapes do not match.
    """
    labels, predictions, probabilities = (_read(folder, name) for name in ("labels", "predictions", "probabilities"))
    if not (labels.shape == predictions.shape == probabilities.shape[:1] and probabilities.ndim == 2):
        raise InputError(
            f"the arrays in {folder / 'results'} are of different images; --overwrite trains the run again"
        )
    examples: dict[int, np.ndarray[Any, Any]] = {}
    if (folder / "results" / "examples.npy").exists():
        indices, images = (_read(folder, name) for name in ("examples", "example_images"))
        examples = dict(zip(indices.tolist(), images, strict=False))
    return RunArrays(labels, predictions, probabilities, examples)


def _read(folder: Path, name: str) -> np.ndarray[Any, Any]:
    path = folder / "results" / f"{name}.npy"
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; --overwrite trains the run again") from error
