"""Optimisers and learning rate schedules."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxcnn.config.training import OptimConfig

Schedule = Callable[[jax.Array], jax.Array | float]


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Maps gradients to the direction of descent, without the learning rate: the training step multiplies by it.

    Adam adds the weight decay to the gradient (L2), as `torch.optim.Adam` does. AdamW adds it to the direction. SGD's
    momentum buffer is PyTorch's: the learning rate does not scale it.
    """
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.optimizer == "adam":
        return optax.chain(decay, scale_by_adam())
    if config.optimizer == "adamw":
        return optax.chain(scale_by_adam(), decay)
    return optax.chain(decay, optax.trace(config.momentum))


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with a bias correction, 1 - decay**count, that is exact to the last bit of float32.

    optax subtracts in float32, which is off by 2e-5 in the first steps. That error has the same sign for all weights.
    After five steps, small activations differ from PyTorch's, which corrects in double precision, by ten times the
    rounding error.
    """

    def update(
        gradient: optax.Updates, state: optax.OptState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.OptState]:
        assert isinstance(state, optax.ScaleByAdamState)
        count = state.count + 1
        mu = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, state.mu, gradient)
        nu = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, state.nu, gradient)
        c1, c2 = (-jnp.expm1(count * math.log(decay)) for decay in (b1, b2))
        direction = jax.tree.map(lambda m, v: m / c1 / (jnp.sqrt(v / c2) + eps), mu, nu)
        return direction, optax.ScaleByAdamState(count, mu, nu)

    return optax.GradientTransformation(optax.scale_by_adam(b1, b2, eps).init, update)


def make_schedule(config: OptimConfig, *, steps_per_epoch: int, epochs: int) -> Schedule:
    """The learning rate by step, counted from 0, before plateaus scale it.

    With a warm-up of w steps, step i < w has (i + 1) / w of the rate. The cosine begins after it, at step w.
    """
    warmup = round(config.warmup_epochs * steps_per_epoch)
    # The schedule holds only what it depends on: runs that differ in anything else have the same compiled step.
    learning_rate = config.learning_rate
    decay_steps = max(steps_per_epoch * epochs - warmup, 1) if config.schedule == "cosine" else None

    def schedule(step: jax.Array) -> jax.Array | float:
        rate: jax.Array | float = learning_rate
        if decay_steps is not None:
            progress = jnp.clip((step - warmup) / decay_steps, 0, 1)
            rate *= 0.5 * (1 + jnp.cos(jnp.pi * progress))
        return rate * jnp.minimum((step + 1) / warmup, 1) if warmup else rate

    return schedule
