"""2x2 max pool whose gradient is comparisons: XLA's own is a scatter, which is slow on a CPU."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.primitives import phases


def max_pool2x2(x: Array) -> Array:
    """2x2 max pool with stride 2; an odd last row or column is left out, as in PyTorch.

    (B, H, W, C) -> (B, H // 2, W // 2, C). The first of equal maxima, row by row, takes the whole gradient.
    """
    _, h, w, _ = x.shape
    pooled: Array = _pool(x[:, : h - h % 2, : w - w % 2])
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
