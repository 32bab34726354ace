"""A small network, images for it, and runs of `fit` on them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import torch

from jaxcnn import ModelConfig
from jaxcnn.config import DataConfig, ExperimentConfig, OptimConfig, TrainConfig
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.data.splits import Dataset, Split
from jaxcnn.training.loop import fit
from jaxcnn.training.records import EpochRecord, TrainState
from jaxcnn.training.step import init_state
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.pytorch_network import TorchCNN

MODEL = ModelConfig(
    input_size=8, hidden_dims=(4, 6, 9, 7), layers_per_block=(1, 2), apply_pooling=(1, 0), apply_bn=(1, 1),
    num_blocks=2, num_classes=4, dropout_rate=0.0,
)  # fmt: skip
STANDARDISATION = Standardisation(mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))


def draw_split(n: int, seed: int, classes: int = MODEL.num_classes) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, classes, n).astype(np.int32))


def draw_dataset(train: int = 37, validation: int | None = 21) -> Dataset:
    held_out = None if validation is None else draw_split(validation, 1)
    return Dataset("noise", draw_split(train, 0), held_out, draw_split(19, 2), tuple("abcd"), STANDARDISATION)


def contradicting() -> Dataset:
    """Training says class 0, validation class 1: the better the fit, the higher the validation loss."""
    dataset = draw_dataset()
    assert dataset.validation is not None
    return replace(
        dataset,
        train=Split(dataset.train.images, np.zeros_like(dataset.train.labels)),
        validation=Split(dataset.validation.images, np.ones_like(dataset.validation.labels)),
    )


def experiment(model: ModelConfig = MODEL, augment: Any = "none", **fields: Any) -> ExperimentConfig:
    """Of three epochs with batches of 16, which nothing stops; fields are those of OptimConfig and TrainConfig."""
    train = {"epochs": 3, "batch_size": 16, "early_stopping_patience": None, "early_stopping_target": None}
    seed = fields.pop("seed", 0)
    train |= {name: fields.pop(name) for name in list(fields) if name in train}
    return ExperimentConfig(
        seed=seed, model=model, data=DataConfig(augment=augment), optim=OptimConfig(**fields),
        train=TrainConfig(**train),
    )  # fmt: skip


def draw_variables(model: ModelConfig) -> dict[str, Any]:
    torch.manual_seed(0)
    return from_torch(TorchCNN(model).state_dict(), model)


def begin(config: ExperimentConfig) -> TrainState:
    return init_state(draw_variables(config.model), config.model, config.optim, seed=config.seed)


def copy(state: TrainState) -> Any:
    """What a state holds, safe from the steps that reuse its buffers."""
    return jax.tree.map(lambda leaf: np.array(leaf), state)


def run(config: ExperimentConfig, dataset: Dataset, **kwargs: Any) -> tuple[list[Any], list[EpochRecord]]:
    state = kwargs.pop("state", None) or begin(config)
    pairs = [(copy(state), record) for state, record in fit(state, config, dataset, **kwargs)]
    return [state for state, _ in pairs], [record for _, record in pairs]


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def untimed(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    return [record._replace(seconds=0, images_per_second=0) for record in records]


def variables_of(state: Any) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def torch_inputs(split: Split) -> torch.Tensor:
    mean, std = map(np.array, STANDARDISATION)
    pixels = (split.images.astype(np.float64) / 255 - mean) / std
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())
