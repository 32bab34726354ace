"""A small run, and what tests ask of such runs."""

import csv
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import board
import numpy as np
import pytest
import torch

from jaxcnn.cli.main import main
from jaxcnn.config import DataConfig, ExperimentConfig, ModelConfig, OptimConfig, TrainConfig

MODEL = ModelConfig(
    input_size=8,
    in_channels=1,
    hidden_dims=(4, 8, 16, 8),
    layers_per_block=(1, 1),
    apply_pooling=(1, 0),
    apply_bn=(1, 0),
    num_blocks=2,
)
TINY = ExperimentConfig(
    name="tiny",
    data=DataConfig("digits", augment="none"),
    model=MODEL,
    optim=OptimConfig(learning_rate=0.01),
    train=TrainConfig(epochs=3, batch_size=64),
)
STEPS = 21  # of an epoch: 1,294 training images in batches of 64
TIMES = ("seconds", "images_per_second", "wall_seconds")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pth", weights_only=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMES}


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the last bit in all but times, names and folders."""
    mine, wanted = weights(one), weights(other)
    assert list(mine) == list(wanted)
    for name, tensor in wanted.items():
        assert mine[name].dtype == tensor.dtype
        assert mine[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    metrics = [[without_times(row) for row in rows(folder / "metrics.csv")] for folder in (one, other)]
    assert metrics[0] == metrics[1]
    for path in (other / "results").iterdir():
        np.testing.assert_array_equal(np.load(one / "results" / path.name), np.load(path))
    assert shown_without_times(one / "logs") == shown_without_times(other / "logs")
    summaries = [without_times(json.loads((folder / "summary.json").read_text())) for folder in (one, other)]
    assert {**summaries[0], "name": ""} == {**summaries[1], "name": ""}


def shown_without_times(folder: Path) -> dict[str, dict[int, float]]:
    return {tag: values for tag, values in scalars(folder).items() if tag != "ImagesPerSecond"}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """What TensorBoard shows of a folder, by tag and step."""
    return {tag: {value.step: value.value for value in values} for tag, values in board.shown(folder).items()}


def send(number: int) -> None:
    """Sends this process a signal."""
    os.kill(os.getpid(), number)


def ended(work: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    """Status, stdout and stderr of a program that does this work."""
    with pytest.raises(SystemExit) as end:
        main(work)
    return (end.value.code, *capsys.readouterr())
