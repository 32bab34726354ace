"""Starting a network for a new task from the weights of another."""

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


def transplant(
    source: Source, *, num_classes: int, head: Head = "fc3", key: jax.Array, keep_fitting_head: bool = False
) -> Transplant:
    """Makes the source's network for another number of classes, with its weights and a new head.

    Args:
        source: weights and their configuration.
        num_classes: number of classes of the new task.
        head: which layers get new weights: fc3, or all of fc1, fc2 and fc3.
        key: random key of the new weights.
        keep_fitting_head: keep the source's fc3 if the number of classes is the same, as the original program does.

    Raises:
        InputError: when the source's weights do not have the shapes of its configuration, or `head` is unknown.
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
