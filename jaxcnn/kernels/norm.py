"""Batch normalisation with a hand-written gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.shards import Shards, total


def batch_norm(
    x: Array,
    scale: Array,
    shift: Array,
    mask: Array | None = None,
    *,
    epsilon: float = 1e-5,
    shards: Shards | None = None,
    plain: bool = False,
) -> tuple[Array, Array, Array, Array]:
    """Normalises each channel by its mean and variance over the batch, then scales and shifts it.

    Args:
        x: floating-point (B, H, W, C).
        scale: (C,), applied after the normalisation.
        shift: (C,), added last.
        mask: bool (B,); images that are False do not count in the statistics. None counts all.
        epsilon: added to the variance.
        shards: how the batch is divided among devices; the statistics are those of the whole batch.
        plain: use JAX's own gradients, which also differentiate in forward mode; for a batch that is not divided.

    Returns:
        y (B, H, W, C); mean (C,); biased variance (C,); and the number of values that each statistic comes from. The
        statistics are computed in float32 or wider, with squares about the mean. They carry no gradient.
    """
    weight = jnp.ones(x.shape[0], bool) if mask is None else mask
    y, mean, var, n = (_plain_norm if plain else _norm)(x, scale, shift, weight, epsilon, shards)
    return y, *lax.stop_gradient((mean, var, n))


def _plain_norm(
    x: Array, scale: Array, shift: Array, mask: Array, epsilon: float, shards: Shards | None
) -> tuple[Array, Array, Array, Array]:
    y, mean, var, n = _norm_forward(x, scale, shift, mask, epsilon, shards)[0]
    return y, mean, var, n


_norm = jax.custom_vjp(_plain_norm, nondiff_argnums=(4, 5))


def _norm_forward(
    x: Array, scale: Array, shift: Array, mask: Array, epsilon: float, shards: Shards | None
) -> tuple[Any, Any]:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    weight = mask.astype(dtype)[:, None]
    n = total(weight.sum(), shards) * (x.shape[1] * x.shape[2])
    mean = total((x.astype(dtype).sum((1, 2)) * weight).sum(0), shards) / n
    centred = x.astype(dtype) - mean
    var = total((jnp.square(centred).sum((1, 2)) * weight).sum(0), shards) / n
    inverse = lax.rsqrt(var + epsilon)
    y = centred * (inverse * scale) + shift
    return (y.astype(x.dtype), mean, var, n), (x, scale, weight, n, mean, inverse)


@fixed_settings()
def _norm_backward(
    epsilon: float, shards: Shards | None, saved: Any, gradients: Any
) -> tuple[Array, Array, Array, None]:
    # Automatic differentiation of the two passes would write copies of x. So would a sum of g * (x - mean), which costs
    # 3 % of a step: on a CPU, XLA fuses a product into a sum, and does not fuse a difference. Hence sum(g * x) - mean *
    # sum(g).
    x, scale, weight, n, mean, inverse = saved
    wide = [a.astype(mean.dtype) for a in (gradients[0], x)]
    to_shift, product = wide[0].sum((0, 1, 2)), (wide[0] * wide[1]).sum((0, 1, 2))
    to_scale = (product - mean * to_shift) * inverse
    # This device's part of the gradients of scale and shift is returned; what reaches x comes from the whole batch.
    whole_shift, whole_scale = total((to_shift, to_scale), shards)
    through = (whole_shift + (wide[1] - mean) * (inverse * whole_scale)) / n * weight[:, :, None, None]
    to_x = (wide[0] - through) * (scale * inverse)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_shift.astype(scale.dtype), None


_norm.defvjp(_norm_forward, _norm_backward)
