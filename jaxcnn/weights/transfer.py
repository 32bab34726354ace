"""Weights of one task as the start of another: what is taken over, what is new, what is frozen."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import Head
from jaxcnn.config.network import ModelConfig, stage_of
from jaxcnn.errors import InputError, require_choice
from jaxcnn.model import init_variables

_NEW = {"fc3": ("fc3",), "all": ("fc1", "fc2", "fc3")}


class Source(NamedTuple):
    """Weights from a file or folder, with the network they belong to."""

    variables: dict[str, Any]
    config: ModelConfig
    assumed: list[str]
    """What the files did not tell."""
    notes: Sequence[str] = ()
    """What else there is to say of how they were read."""
    card: Card | None = None
    """What the files tell of the images that the network reads, and of its classes."""


class Transplant(NamedTuple):
    """The start of a transfer."""

    variables: dict[str, Any]
    config: ModelConfig
    """The source's network with the target's classes."""
    taken: list[str]
    """Top-level modules whose weights come from the source."""
    new: list[str]
    """Those freshly initialised."""


def transplant(
    source: Source, *, num_classes: int, head: Head = "fc3", key: jax.Array, keep_fitting_head: bool = False
) -> Transplant:
    """The source's network for another number of classes, with its weights below a new head.

    Args:
        source: weights and their configuration.
        num_classes: of the target.
        head: what is new: the last layer, or the whole classifier.
        key: of the new layers.
        keep_fitting_head: keep the source's fc3 if the number of classes is the same, as the original program does.

    Raises:
        InputError: when weights to be taken over do not have the network's shapes, or there is no such `head`.
    """
    require_choice("head", head, Head)
    config = replace(source.config, num_classes=num_classes)
    fresh = init_variables(config, key)
    keeps = keep_fitting_head and num_classes == source.config.num_classes
    new = [] if keeps and head == "fc3" else list(_NEW[head])
    taken = sorted((name for name in fresh["params"] if name not in new), key=lambda name: stage_of(name, config))
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
