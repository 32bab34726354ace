"""Weights of one task as the start of another: what is taken over, what is new, what is frozen."""

import warnings
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxcnn.config import Activation, FreezeConfig, Head, Mask, ModelConfig
from jaxcnn.errors import InputError
from jaxcnn.masks import frozen_stages
from jaxcnn.model import CNN, init_variables, key_of, stage_of
from jaxcnn.source import Source, read_source
from jaxcnn.validate import local_path, require_choice

_NEW = {"fc3": ("fc3",), "all": ("fc1", "fc2", "fc3")}


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


@dataclass(frozen=True, eq=False)
class TransferModel:
    """A network that begins with saved weights; unpacks as `model, variables, mask`."""

    model: CNN
    variables: dict[str, Any]
    mask: dict[str, Any]
    """A tree like `variables["params"]` of booleans: True where a parameter trains."""
    assumed: tuple[str, ...]
    """What neither the source nor the arguments told of its network."""
    notes: tuple[str, ...]
    """What of the source was ignored or filled in."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.variables, self.mask))


def create_transfer_model(
    source: Path | str,
    num_classes: int,
    *,
    mask: Mask = "partial",
    freeze_until_block: int = 1,
    head: Head = "fc3",
    seed: int = 0,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
    dropout_rate: float | None = None,
) -> TransferModel:
    """A network for another task from saved weights: `model, variables, mask = create_transfer_model(...)`.

    Args:
        source: a run's folder, an Orbax checkpoint, or a file that torch.save or safetensors wrote.
        num_classes: of the target.
        mask: what is frozen; `scratch` ignores the source's weights.
        freeze_until_block: the last block that `partial` freezes, counted from 0.
        head: what is new: the last layer, or the whole classifier.
        seed: of the new layers.
        input_size: what the source's network reads, instead of what its files tell or 32; so with the next two.
        apply_pooling: see `input_size`.
        activation_function: see `input_size`.
        dropout_rate: while fine-tuning; the source's if not given.

    Returns:
        The module, its variables, and the mask of what trains (what `optax.selective_transform` wants is its negation).
        To train with frozen blocks left alone, their running statistics too, apply the module with `eval_stages`, the
        number of stages that the mask freezes (`jaxcnn.masks.frozen_stages`).

    Warns:
        UserWarning: naming what had to be assumed of the source's network, which `assumed` of the result holds too.

    Raises:
        InputError: when the source cannot be read or the mask does not fit its network.
    """
    read = read_source(
        local_path("source", source),
        input_size=input_size,
        apply_pooling=apply_pooling,
        activation_function=activation_function,
    )
    if dropout_rate is not None:
        read = read._replace(config=replace(read.config, dropout_rate=dropout_rate))
    made = transplant(read, num_classes=num_classes, head=head, key=key_of(seed))
    freeze = FreezeConfig(mask=mask, freeze_until_block=freeze_until_block)
    frozen = frozen_stages(freeze, made.config, 0)
    variables = dict(init_variables(made.config, key_of(seed))) if mask == "scratch" else made.variables
    trains = {
        name: jax.tree.map(lambda _, name=name: stage_of(name, made.config) >= frozen, module)
        for name, module in variables["params"].items()
    }
    if read.assumed:
        warnings.warn(
            f"{source} does not tell all of its network; assumed: {'; '.join(read.assumed)}. "
            "Where it is otherwise, give the argument of that name, or a file of the right weights alone",
            stacklevel=2,
        )
    return TransferModel(CNN(made.config), variables, trains, tuple(read.assumed), tuple(read.notes))
