"""Which parameters are frozen and trained, for random configurations."""

from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn import DEEP, SHALLOW, ModelConfig, OptimConfig, init_variables
from jaxcnn.config import FreezeConfig
from jaxcnn.masks import count_parameters, freeze_mask, frozen_stages, partition, settled_epoch
from jaxcnn.training.step import init_state
from jaxcnn.weights.pytorch_network import TorchCNN


@st.composite
def configs(draw: Any) -> ModelConfig:
    blocks = draw(st.integers(1, 12))  # two digits: block_10 comes after block_9
    small = st.lists(st.integers(1, 5), min_size=blocks, max_size=blocks)
    return ModelConfig(
        input_size=4,
        num_classes=draw(st.integers(1, 7)),
        hidden_dims=(*draw(small), 3, 2),
        layers_per_block=tuple(min(2, n) for n in draw(small)),
        apply_pooling=(0,) * blocks,
        apply_bn=tuple(n % 2 for n in draw(small)),
        num_blocks=blocks,
    )


def shapes_of(config: ModelConfig) -> Any:
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))["params"]


def torch_stage(name: str, config: ModelConfig) -> int:
    """The stage of a parameter of the PyTorch network; fc3 comes after the last one."""
    kind, number, *_ = name.replace("fc", "fc.").split(".")
    return int(number) if kind == "blocks" else config.num_blocks + int(number) - 1


@settings(max_examples=20, deadline=None, derandomize=True)
@given(config=configs())
def test_every_parameter_is_either_frozen_or_trained(config: ModelConfig) -> None:
    params = shapes_of(config)
    order = [*(f"block_{i}" for i in range(config.num_blocks)), "fc1", "fc2", "fc3"]
    assert sorted(params) == sorted(order)
    for stages in range(config.num_stages + 1):
        frozen, trained = partition(params, config, stages)
        assert set(frozen) == set(order[:stages])
        assert set(trained) == set(order[stages:])
        assert frozen | trained == params
        mask = freeze_mask(params, config, stages)
        assert jax.tree.structure(mask) == jax.tree.structure(params)
        assert all(set(jax.tree.leaves(module)) == {name in frozen} for name, module in mask.items())


@settings(max_examples=20, deadline=None, derandomize=True)
@given(config=configs())
def test_parameters_are_counted_as_pytorch_counts_them(config: ModelConfig) -> None:
    check_counts(config)


@pytest.mark.parametrize("config", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_the_parameters_of_the_presets_are_counted_as_pytorch_counts_them(config: ModelConfig) -> None:
    check_counts(config)


def check_counts(config: ModelConfig) -> None:
    with torch.device("meta"):
        network = TorchCNN(config)
    params = shapes_of(config)
    order = [*(f"block_{i}" for i in range(config.num_blocks)), "fc1", "fc2", "fc3"]
    for stages in range(config.num_stages + 1):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(torch_stage(name, config) >= stages)
        counts = count_parameters(params, config, stages)
        assert [name for name, _, _ in counts] == order
        assert sum(count for _, count, _ in counts) == sum(p.numel() for p in network.parameters())
        trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert sum(count for _, count, trains in counts if trains) == trained
        for i, (_, count, trains) in enumerate(counts):
            mine = [p for name, p in network.named_parameters() if torch_stage(name, config) == i]
            assert count == sum(p.numel() for p in mine)
            assert trains == all(p.requires_grad for p in mine)


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_the_optimiser_remembers_trained_parameters_only(optimizer: str) -> None:
    config = ModelConfig(
        input_size=4, hidden_dims=(2, 3, 4, 5), layers_per_block=(1, 1), apply_pooling=(1, 0), apply_bn=(1, 0),
        num_blocks=2,
    )  # fmt: skip
    variables = jax.tree.map(
        lambda leaf: np.ones(leaf.shape, leaf.dtype), jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))
    )
    copies = 1 if optimizer == "sgd" else 2  # of each trained number; Adam counts its steps besides
    for stages in range(config.num_stages + 1):
        state = init_state(variables, config, OptimConfig(optimizer=optimizer), seed=0, frozen_stages=stages)
        _, trained = partition(variables["params"], config, stages)
        assert set(state.opt_state) == set(trained)
        for name, module in trained.items():
            moments = [leaf for leaf in jax.tree.leaves(state.opt_state[name]) if leaf.ndim]
            assert sum(m.size for m in moments) == copies * sum(p.size for p in jax.tree.leaves(module))


@pytest.mark.parametrize(
    ("fields", "frozen", "settled"),
    [
        ({"mask": "partial", "freeze_until_block": 0, "probe_epochs": 3}, [6, 6, 6, 1, 1], 3),
        ({"mask": "full", "unfreeze_every": 1}, [6, 5, 4, 3, 2, 1, 0, 0], 6),
        ({"mask": "frozen", "unfreeze_every": 2}, [6, 6, 5, 5, 4, 4], 4),
        ({"mask": "frozen"}, [4, 4], 0),
        ({"mask": "scratch", "probe_epochs": 3}, [0, 0], 0),
        ({"mask": "scratch", "unfreeze_every": 2}, [0, 0], 0),
    ],
)
def test_what_is_frozen_in_each_epoch_and_when_that_settles(
    fields: dict[str, Any], frozen: list[int], settled: int
) -> None:
    """Four blocks, fc1 and fc2; new weights have nothing to keep, and so are never frozen."""
    freeze = FreezeConfig(**fields)
    assert [frozen_stages(freeze, SHALLOW, epoch) for epoch in range(len(frozen))] == frozen
    assert settled_epoch(freeze, SHALLOW) == settled
