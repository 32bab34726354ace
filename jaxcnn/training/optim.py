"""Optimisers, learning rate schedules, and what validation decides: plateaus, early stopping, the best epoch.

Plateau and early stopping are functions of the validation history alone, so there is no state of theirs to save,
and a resumed run decides what an uninterrupted one would.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxcnn.config.training import OptimConfig

Schedule = Callable[[jax.Array], jax.Array | float]


def make_optimizer(config: OptimConfig) -> optax.GradientTransformation:
    """Gradients -> the direction of descent; the step multiplies it by the learning rate and clips beforehand.

    Adam's weight decay enters the gradient (L2), as in `torch.optim.Adam`; AdamW's does not. SGD keeps PyTorch's
    momentum buffer, which is not scaled by the learning rate.
    """
    decay = optax.add_decayed_weights(config.weight_decay)
    if config.optimizer == "adam":
        return optax.chain(decay, scale_by_adam())
    if config.optimizer == "adamw":
        return optax.chain(scale_by_adam(), decay)
    return optax.chain(decay, optax.trace(config.momentum))


def scale_by_adam(b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with its bias correction, 1 - decay**count, exact to float32's last bit.

    optax subtracts in float32, which is off by 2e-5 in the first steps. All weights then err the same way, and after
    five steps small activations differ from PyTorch's, which corrects in double precision, by ten times the rounding.
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
    """The learning rate of each step (counted from 0), before plateaus scale it."""
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
