"""A user's own network, loss, augmentation or optimiser, given to `fit` in place of the built-in one."""

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
"""Maps logits (B, K) and labels int32 (B,) to one value for each image (B,)."""
Augmentation = Callable[[jax.Array, jax.Array], jax.Array]
"""Maps a key and images uint8 (B, H, W, C) to images uint8 (B, H, W, C)."""


class Custom(NamedTuple):
    """The user's own parts; see `training.loop.fit`. None means the built-in one."""

    model: nn.Module | None = None
    loss: Loss | None = None
    augmentation: Augmentation | None = None
    optimizer: optax.GradientTransformation | None = None

    @property
    def needs_whole_batch(self) -> bool:
        """Whether a part of it may compute with the whole batch, so that devices cannot each run it on their images."""
        return self.model is not None or self.augmentation is not None


BUILT_IN = Custom()


@dataclass(frozen=True)
class CustomModule:
    """Gives a user's own module the interface of the built-in network. It has no stages to freeze."""

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
        """Applies the module. `train` and `mask` are passed on if its `__call__` has such parameters."""
        taken = signature(type(self.module).__call__).parameters
        options |= {name: value for name, value in (("train", train), ("mask", mask)) if name in taken}
        return self.module.apply(variables, x, **options)


def one_an_image(losses: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the losses, after checking that there is one for each image.

    Raises:
        InputError: when they have another shape. A mean over the batch would include padding.
    """
    if losses.shape != labels.shape:
        raise InputError(
            f"the loss has shape {losses.shape}; return one value an image, {labels.shape}, not their mean"
        )
    return losses


def restart(optimizer: optax.GradientTransformation, opt_state: Any, trained: Any) -> Any:
    """A state of the optimiser for these parameters: `opt_state` if its structure and shapes fit, else a new one."""
    structure: Any  # jax has no type for it that compares
    leaves, structure = jax.tree.flatten(jax.eval_shape(optimizer.init, trained))
    given, given_structure = jax.tree.flatten(opt_state)
    if structure == given_structure and all(a.shape == b.shape for a, b in zip(leaves, given, strict=True)):
        return opt_state
    return jax.tree.map(jnp.array, optimizer.init(trained))  # copies: steps reuse buffers, and it may hold parameters
