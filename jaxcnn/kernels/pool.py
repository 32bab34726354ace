"""2x2 max pool with a gradient made of comparisons; XLA's own gradient is a scatter, which is slow on a CPU."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.primitives import phases


def max_pool2x2(x: Array, *, plain: bool = False) -> Array:
    """2x2 max pool with stride 2: (B, H, W, C) -> (B, H // 2, W // 2, C).

    An odd last row or column is left out, as in PyTorch. Of equal maxima, the first one (row by row) gets the whole
    gradient. The forward pass stores which of the four pixels won, as one byte; the backward pass compares it with each
    pixel's number:

        x        [[3, 7],    numbers  [[0, 1],    winner  1    gradient  [[0, g],
                  [7, 2]]              [2, 3]]                            [0, 0]]

    If `plain`, JAX's own differentiation finds the same gradient, and also works in forward mode.
    """
    _, h, w, _ = x.shape
    pooled: Array = (_plain_pool if plain else _pool)(x[:, : h - h % 2, : w - w % 2])
    return pooled


@jax.custom_vjp
def _pool(x: Array) -> Array:
    (a, b), (c, d) = phases(x)
    return jnp.maximum(jnp.maximum(a, b), jnp.maximum(c, d))


def _pool_forward(x: Array) -> tuple[Array, Array]:
    (a, b), (c, d) = phases(x)
    top, bottom = jnp.maximum(a, b), jnp.maximum(c, d)
    winner = jnp.where(bottom > top, jnp.where(d > c, 3, 2), jnp.where(b > a, 1, 0))
    return jnp.maximum(top, bottom), winner.astype(jnp.uint8)


@fixed_settings()
def _pool_backward(winner: Array, g: Array) -> tuple[Array]:
    b, h, w, c = g.shape
    place = jnp.arange(4, dtype=winner.dtype).reshape(2, 1, 2, 1)
    spread = jnp.where(winner[:, :, None, :, None] == place, g[:, :, None, :, None], 0)
    return (spread.reshape(b, 2 * h, 2 * w, c),)


_pool.defvjp(_pool_forward, _pool_backward)


def _plain_pool(x: Array) -> Array:
    (a, b), (c, d) = phases(x)
    return _first_maximum(_first_maximum(a, b), _first_maximum(c, d))


def _first_maximum(a: Array, b: Array) -> Array:
    """jnp.maximum(a, b), except that a gets the whole gradient where they are equal."""
    return jnp.where((b > a) | jnp.isnan(b), b, a)
