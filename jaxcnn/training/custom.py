"""What a user may give `fit` in place of the built-in: a network, a loss, an augmentation, an optimiser."""

from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxcnn.errors import InputError

Loss = Callable[[jax.Array, jax.Array], jax.Array]
"""Logits (B, K) and labels int32 (B,) -> one value an image (B,)."""
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""A key and images uint8 (B, H, W, C) -> images uint8 (B, H, W, C)."""


class Custom(NamedTuple):
    """What takes the place of the built-in; see `training.loop.fit`. None keeps the built-in."""

    model: nn.Module | None = None
    loss: Loss | None = None
    augmentation: Augmentation | None = None
    optimizer: optax.GradientTransformation | None = None


BUILT_IN = Custom()


@dataclass(frozen=True)
class CustomModule:
    """A module of the user's own, applied as the built-in network is; it has no stages to freeze."""

    module: nn.Module

    def apply(
        self,
        variables: Any,
        x: jax.Array,
        train: bool = False,
        *,
        mask: jax.Array | None = None,
        eval_stages: int = 0,
        **options: Any,
    ) -> Any:
        """Applies the module, with `train` and `mask` where its `__call__` takes them."""
        taken = signature(type(self.module).__call__).parameters
        options |= {name: value for name, value in (("train", train), ("mask", mask)) if name in taken}
        return self.module.apply(variables, x, **options)


def one_an_image(losses: jax.Array, labels: jax.Array) -> jax.Array:
    """The losses as they are.

    Raises:
        InputError: when they are not one for each label; a mean would count padding.
    """
    if losses.shape != labels.shape:
        raise InputError(
            f"the loss has shape {losses.shape}; return one value an image, {labels.shape}, not their mean"
        )
    return losses


def restart(optimizer: optax.GradientTransformation, opt_state: Any, trained: Any) -> Any:
    """The optimiser's state for these parameters: `opt_state` if it is one, else a new one."""
    structure: Any  # jax has no type for it that compares
    leaves, structure = jax.tree.flatten(jax.eval_shape(optimizer.init, trained))
    given, given_structure = jax.tree.flatten(opt_state)
    if structure == given_structure and all(a.shape == b.shape for a, b in zip(leaves, given, strict=True)):
        return opt_state
    return jax.tree.map(jnp.array, optimizer.init(trained))  # copies: steps reuse buffers, and it may hold parameters
