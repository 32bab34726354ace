"""Starting a network for a new task from the weights of another."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import TransferConfig
from jaxcnn.config.network import ModelConfig, stage_of
from jaxcnn.errors import InputError
from jaxcnn.masks import frozen_stages
from jaxcnn.model import init_variables


class Source(NamedTuple):
    """Saved weights with the network that they belong to."""

    variables: dict[str, Any]
    config: ModelConfig
    assumed: list[str]
    """Settings of the network that the files did not contain, as text."""
    notes: Sequence[str] = ()
    """What was ignored or filled in while reading, as text."""
    card: Card | None = None
    """Preprocessing and class names, if the files contain them."""


class Transplant(NamedTuple):
    """A network for a new task with the weights that it starts from."""

    variables: dict[str, Any]
    config: ModelConfig
    """The source's network with the new number of classes."""
    taken: list[str]
    """Top-level modules whose weights come from the source."""
    new: list[str]
    """Top-level modules with new weights."""


def copied_stages(config: TransferConfig, model: ModelConfig) -> int:
    """The number of stages, counted from the input, that start with the source's weights.

    Raises:
        InputError: when the network has fewer stages, or stages with new weights would be frozen.
    """
    if config.freeze.mask == "scratch":
        return 0
    copied = config.copied_stages
    if copied is None:
        copied = model.num_blocks if config.head == "all" else model.num_stages
    if copied > model.num_stages:
        raise InputError(f"copied_stages={copied} is not usable: the source has {model.num_stages} stages below fc3")
    if copied < model.num_stages and (config.freeze.probe_epochs or config.freeze.unfreeze_every):
        raise InputError(
            f"copied_stages={copied} is not usable: probing and gradual unfreezing train fc3 alone at first; "
            f"take over all {model.num_stages} stages"
        )
    if (frozen := frozen_stages(config.freeze, model, sys.maxsize)) > copied:
        raise InputError(
            f"{frozen} frozen stages are not usable: {copied} are taken over, and new weights would be frozen; freeze "
            "fewer, or raise copied_stages"
        )
    return copied


def transplant(
    source: Source,
    *,
    num_classes: int,
    copied_stages: int | None = None,
    key: jax.Array,
    keep_fitting_head: bool = False,
) -> Transplant:
    """Makes the source's network for another number of classes, with its weights in the first stages.

    Args:
        source: weights and their configuration.
        num_classes: number of classes of the new task.
        copied_stages: number of stages that get the source's weights, counted from the input; None for all, so that
            only fc3 is new.
        key: random key of the new weights.
        keep_fitting_head: if all stages are copied and the number of classes is the same, keep the source's fc3 too, as
            the original program does.

    Raises:
        InputError: when the source's weights do not have the shapes of its configuration.
    """
    config = replace(source.config, num_classes=num_classes)
    fresh = init_variables(config, key)
    copied = config.num_stages if copied_stages is None else copied_stages
    if keep_fitting_head and copied == config.num_stages and num_classes == source.config.num_classes:
        copied += 1
    names = sorted(fresh["params"], key=lambda name: stage_of(name, config))
    taken, new = names[:copied], names[copied:]
    problems = []
    for collection in ("params", "batch_stats"):
        for name in taken:
            wanted, given = (v.get(collection, {}).get(name, {}) for v in (fresh, source.variables))
            shapes = [jax.tree_util.tree_map(lambda leaf: tuple(leaf.shape), tree) for tree in (wanted, given)]
            if shapes[0] != shapes[1]:
                problems.append(f"{name} is {shapes[1] or 'missing'} there, {shapes[0]} here")
    if problems:
        raise InputError(f"the source's weights do not fit: {'; '.join(problems)}. Give the configuration they have")
    variables = {
        collection: {name: (source.variables if name in taken else fresh)[collection][name] for name in modules}
        for collection, modules in fresh.items()
    }
    return Transplant(variables, config, taken, new)
