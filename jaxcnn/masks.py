"""Freezing: which parameters are trained.

A stage is a block, fc1 or fc2. One integer, the number of frozen stages counted from the input, decides which
parameters are trained, what the gradient and the optimiser state contain, and the mode of each batch norm. For a
network of four blocks (SHALLOW):

    frozen stages   trained
    0               everything
    1               blocks 1 to 3, fc1, fc2, fc3
    2               blocks 2 and 3, fc1, fc2, fc3
    4               fc1, fc2, fc3
    6               fc3: a linear probe
"""

import sys
from collections.abc import Mapping
from typing import Any

import jax

from jaxcnn.config.network import ModelConfig, stage_of
from jaxcnn.config.training import FreezeConfig, Mask
from jaxcnn.errors import InputError

Params = dict[str, Any]


def frozen_stages(freeze: FreezeConfig, config: ModelConfig, epoch: int) -> int:
    """The number of frozen stages in an epoch (counted from 0).

    Probing and gradual unfreezing freeze more stages in early epochs. The mask `scratch` never freezes any.

    Raises:
        InputError: when stages are to be frozen that the network does not have.
    """
    if (freeze.frozen_stages or 0) > config.num_stages:
        raise InputError(
            f"freeze.frozen_stages={freeze.frozen_stages} is not usable: the network has {config.num_stages} stages "
            f"that can be frozen, block_0 to block_{config.num_blocks - 1}, fc1 and fc2"
        )
    if freeze.mask == "partial" and freeze.freeze_until_block >= config.num_blocks:
        raise InputError(
            f"freeze_until_block={freeze.freeze_until_block} is not usable: the network has blocks 0 to "
            f"{config.num_blocks - 1}"
        )
    named = {"partial": freeze.freeze_until_block + 1, "frozen": config.num_blocks}
    finally_frozen = named.get(freeze.mask, freeze.frozen_stages or 0)
    if freeze.mask == "scratch":
        return 0
    if epoch < freeze.probe_epochs:
        return config.num_stages
    if freeze.unfreeze_every:
        return max(finally_frozen, config.num_stages - epoch // freeze.unfreeze_every)
    return finally_frozen


def mask_name(freeze: FreezeConfig, config: ModelConfig) -> Mask:
    """The mask, or the closest one to a number of frozen stages: `frozen` also stands for frozen fc1 and fc2."""
    frozen = freeze.frozen_stages or 0
    if freeze.mask != "full" or not frozen:
        return freeze.mask
    return "partial" if frozen < config.num_blocks else "frozen"


def settled_epoch(freeze: FreezeConfig, config: ModelConfig) -> int:
    """The first epoch (counted from 0) in which the mask alone decides: probing or gradual unfreezing is over."""
    if freeze.mask == "scratch":
        return 0
    finally_frozen = frozen_stages(freeze, config, sys.maxsize)
    return freeze.unfreeze_every * (config.num_stages - finally_frozen) or freeze.probe_epochs


def partition(params: Mapping[str, Any], config: ModelConfig, frozen_stages: int) -> tuple[Params, Params]:
    """Splits parameters by top-level module into (frozen, trained)."""
    # `stage_of` knows the modules of the built-in network only. With nothing frozen, modules may have any names.
    frozen = {name: leaf for name, leaf in params.items() if frozen_stages and stage_of(name, config) < frozen_stages}
    trained = {name: leaf for name, leaf in params.items() if name not in frozen}
    return frozen, trained


def freeze_mask(params: Mapping[str, Any], config: ModelConfig, frozen_stages: int) -> Params:
    """A pytree of bools with the structure of `params`, True for frozen parameters: optax's `freeze_mask`.

    Example:
        ```python
        mask = freeze_mask(variables["params"], model.config, 2)  # blocks 0 and 1
        optimizer = optax.selective_transform(optax.adam(1e-3), freeze_mask=mask)
        ```

    Args:
        params: parameters of the built-in network.
        config: its configuration.
        frozen_stages: number of frozen stages, counted from the input.
    """
    return {
        name: jax.tree.map(lambda _, name=name: stage_of(name, config) < frozen_stages, module)
        for name, module in params.items()
    }


def count_parameters(params: Mapping[str, Any], config: ModelConfig, frozen_stages: int) -> list[tuple[str, int, bool]]:
    """(name, number of parameters, whether it is trained) for every top-level module, from the input on."""
    return [
        (
            name,
            sum(leaf.size for leaf in jax.tree.leaves(params[name])),
            stage_of(name, config) >= frozen_stages,
        )
        for name in sorted(params, key=lambda name: stage_of(name, config))
    ]


def stages_to_unfreeze(freeze: FreezeConfig, model: ModelConfig, epoch: int, epochs: int) -> list[str]:
    """Names of the stages that were frozen before an epoch (counted from 0, of so many) and are trained in it."""
    if epoch == epochs:
        return []
    before, now = (frozen_stages(freeze, model, each) for each in (epoch - 1, epoch))
    n = model.num_blocks
    return [f"block_{stage}" if stage < n else f"fc{stage - n + 1}" for stage in range(now, before)]
