"""2x2 max pool, dense layer, batch normalisation and selections of images that are fast on a CPU too.

XLA's max pool has a scatter for its gradient, which is slow on a CPU; here it is comparisons. Dense layers and
selections of images are XLA's own on an accelerator. A step of the shallow network (batch 256, float32, 2 cores) runs
at 1.8 times PyTorch eager's rate, and with XLA's own forms of these and of the convolution (`jaxcnn.conv`) at 0.6 times
(`experiments.bench`).
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcnn.backend import fixed_settings, laid_out_by_rows

_LARGE = 2**20  # weights of a dense layer from which on its gradient is worth a transposed copy of its input
_PART = 1024  # inputs of a dense layer, few enough for XLA's product to sum them one after the other
_IN_ORDER: dict[str, Any] = {"mode": "promise_in_bounds", "unique_indices": True, "indices_are_sorted": True}


def max_pool2x2(x: Array) -> Array:
    """2x2 max pool with stride 2; an odd last row or column is left out, as in PyTorch.

    (B, H, W, C) -> (B, H // 2, W // 2, C). The first of equal maxima, row by row, takes the whole gradient.
    """
    _, h, w, _ = x.shape
    pooled: Array = _pool(x[:, : h - h % 2, : w - w % 2])
    return pooled


@jax.custom_vjp
def dense(x: Array, kernel: Array, columns: Array | None = None) -> Array:
    """x @ kernel: (B, C) and (C, O) -> (B, O). Both have the same floating dtype. Reverse mode only.

    With `columns`, int32 (c,), ascending, x is (B, c): these columns of an array (B, C) whose others are zero, as many
    from each of its `dense_parts(C)` equal parts. The product and the kernel's gradient are the whole array's up to
    rounding. On a CPU parts are summed one by one, in float32, and each is short enough for XLA to sum its values in
    order, so that zeros leave no trace: with AVX2, where there are such parts, large products are the same to the bit.
    """
    return _dense_forward(x, kernel, columns)[0]


def dense_parts(width: int) -> int:
    """How many equal parts inputs this wide have for `dense`."""
    return width // _PART if width % _PART == 0 and width <= 16 * _PART else 1


def _dense_forward(x: Array, kernel: Array, columns: Array | None) -> tuple[Array, tuple[Array, Array, Array | None]]:
    parts = dense_parts(len(kernel))
    y: Array = cpu_or_plain(partial(_dot_in_parts, parts), jnp.matmul, x, _rows(kernel, columns))
    return y, (x, kernel, columns)


@fixed_settings()
def _dense_backward(saved: tuple[Array, Array, Array | None], g: Array) -> tuple[Array, Array, None]:
    x, kernel, columns = saved
    to_rows: Array = cpu_or_plain(dot_rows if kernel.size < _LARGE else _turned_dot, dot_rows, x, g)
    to_kernel = to_rows if columns is None else jnp.zeros_like(kernel).at[columns].set(to_rows, **_IN_ORDER)
    return dot_columns(g, _rows(kernel, columns)), to_kernel, None


def _rows(kernel: Array, columns: Array | None) -> Array:
    return kernel if columns is None else jnp.asarray(kernel).at[columns].get(**_IN_ORDER)


def _dot_in_parts(parts: int, x: Array, kernel: Array) -> Array:
    if x.dtype.itemsize < 4:  # such sums would lose digits
        return x @ kernel
    products = [a @ b for a, b in zip(jnp.split(x, parts, 1), jnp.split(kernel, parts), strict=True)]
    return sum(products[1:], products[0])


dense.defvjp(_dense_forward, _dense_backward)


def image_by_image(f: Callable[[Array], Array], x: Array) -> Array:
    """f(x), for an f (B, ...) -> (B, ...) that treats every image by itself, as a network in evaluation does.

    On a CPU 64 images go through at a time, in memory that stays in the cache: 0.78x the time for batch 256.
    """
    y: Array = cpu_or_plain(lambda x: in_chunks(f, x, min(64, len(x))), f, x)
    return y


def take_images(x: Array, indices: Array) -> Array:
    """x[indices], (N, ...) and int (B,) -> (B, ...); indices beyond the ends are not looked for.

    On a CPU rows are copied one by one: what reads them would otherwise look up the index for every value.
    """
    copied: Array = cpu_or_plain(_copy_rows, lambda x, indices: jnp.take(x, indices, axis=0, mode="clip"), x, indices)
    return copied


def _copy_rows(x: Array, indices: Array) -> Array:
    flat = x.reshape(len(x), -1)  # a row that is one run of memory, whatever layout is wanted of the copies
    rows: Array = lax.map(lambda i: lax.dynamic_index_in_dim(flat, i, keepdims=False), indices)
    return rows.reshape(-1, *x.shape[1:])


def in_chunks(f: Callable[[Array], Array], x: Array, n: int) -> Array:
    """f over n images at a time; the last chunk overlaps the one before, since slices past the end start earlier."""
    y = jax.eval_shape(f, x)

    def chunk(i: Array, y: Array) -> Array:
        return lax.dynamic_update_slice_in_dim(y, f(lax.dynamic_slice_in_dim(x, i * n, n)), i * n, 0)

    done: Array = lax.fori_loop(0, -(-len(x) // n), chunk, jnp.zeros(y.shape, y.dtype))
    return done


def cpu_or_plain(fast: Callable[..., Any], plain: Callable[..., Any], *args: Array) -> Any:
    """The one place within programs that asks for the backend: `fast` on a CPU, else `plain`."""
    return lax.platform_dependent(*args, cpu=fast, default=plain)


def phases(x: Array) -> list[list[Array]]:
    """Every second pixel, from each of the four places to start.

    No reshape: XLA (jax 0.10.2, CPU) then sees two arrays in what is one, and lets an activation's gradient overwrite
    the pool's input while the pool's gradient still reads it.
    """
    return [[x[:, i::2, j::2] for j in range(2)] for i in range(2)]


def dot_rows(a: Array, b: Array) -> Array:
    """a.T @ b, without writing a.T down."""
    return lax.dot_general(a, b, (((0,), (0,)), ((), ())))


def _turned_dot(a: Array, b: Array) -> Array:
    """a.T @ b with a.T written down, which XLA would undo without the barrier: half the time for fc1.

    Turned by its layout, as its own transposition takes ten times as long in the form that `backend.jit` compiles.
    """
    copied: Array = lax.optimization_barrier(laid_out_by_rows(a).T)
    return copied @ b


def dot_columns(a: Array, b: Array) -> Array:
    """a @ b.T, without writing b.T down."""
    return lax.dot_general(a, b, (((1,), (1,)), ((), ())))


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


def batch_norm(
    x: Array, scale: Array, shift: Array, mask: Array | None = None, *, epsilon: float = 1e-5
) -> tuple[Array, Array, Array, Array]:
    """Normalises each channel by its own mean and variance over the images in the mask.

    x (B, H, W, C), scale and shift (C,), mask bool (B,) -> y (B, H, W, C), mean (C,), biased variance (C,), and how
    many values they come from. Statistics are float32 at least, carry no gradient and sum squares about the mean.
    """
    weight = jnp.ones(len(x), bool) if mask is None else mask
    y, mean, var, n = _norm(x, scale, shift, weight, epsilon)
    return y, *lax.stop_gradient((mean, var, n))


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _norm(x: Array, scale: Array, shift: Array, mask: Array, epsilon: float) -> tuple[Array, Array, Array, Array]:
    y, mean, var, n = _norm_forward(x, scale, shift, mask, epsilon)[0]
    return y, mean, var, n


def _norm_forward(x: Array, scale: Array, shift: Array, mask: Array, epsilon: float) -> tuple[Any, Any]:
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    weight = mask.astype(dtype)[:, None]
    n = weight.sum() * (x.shape[1] * x.shape[2])
    mean = (x.astype(dtype).sum((1, 2)) * weight).sum(0) / n
    centred = x.astype(dtype) - mean
    var = (jnp.square(centred).sum((1, 2)) * weight).sum(0) / n
    inverse = lax.rsqrt(var + epsilon)
    y = centred * (inverse * scale) + shift
    return (y.astype(x.dtype), mean, var, n), (x, scale, weight, n, mean, inverse)


@fixed_settings()
def _norm_backward(epsilon: float, saved: Any, gradients: Any) -> tuple[Array, Array, Array, None]:
    # Written out, since what differentiation makes of the two passes writes copies of x. So would a sum of
    # g * (x - mean), for 3 % of a step: XLA's sums on a CPU take products in, but no differences.
    x, scale, weight, n, mean, inverse = saved
    wide = [a.astype(mean.dtype) for a in (gradients[0], x)]
    to_shift, product = wide[0].sum((0, 1, 2)), (wide[0] * wide[1]).sum((0, 1, 2))
    to_scale = (product - mean * to_shift) * inverse
    through = (to_shift + (wide[1] - mean) * (inverse * to_scale)) / n * weight[:, :, None, None]
    to_x = (wide[0] - through) * (scale * inverse)
    return to_x.astype(x.dtype), to_scale.astype(scale.dtype), to_shift.astype(scale.dtype), None


_norm.defvjp(_norm_forward, _norm_backward)
