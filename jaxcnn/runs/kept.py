"""The weights that a run keeps: those of its best epoch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.data.splits import Dataset
from jaxcnn.errors import InputError
from jaxcnn.weights.card import to_metadata
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.files import read_state_dict, write_state_dict


def write_weights(
    folder: Path,
    variables: dict[str, Any],
    config: ExperimentConfig,
    dataset: Dataset,
    names: Sequence[str] = ("model.pth", "model.safetensors"),
    temperature: float = 1.0,
) -> None:
    """Writes the weights to the run's folder, in these files."""
    card = Card(dataset.class_names, *dataset.standardisation, config.data.resize, temperature)
    for name in names:
        write_state_dict(folder / name, variables, config.model, to_metadata(config.model, card))


def read_best(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
    """Reads the best epoch's weights from the run's folder.

    Raises:
        InputError: when the file is missing or damaged.
    """
    try:
        return from_torch(read_state_dict(folder / "model.pth"), config.model)
    except InputError as error:
        raise InputError(f"{folder} has lost its best epoch: {error}; --overwrite starts the run again") from error
