"""Dense layer whose products are as fast on a CPU as it allows."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcnn.kernels.backend import cpu_or_plain, fixed_settings, laid_out_by_rows
from jaxcnn.kernels.primitives import dot_columns, dot_rows

_LARGE = 2**20  # weights of a dense layer from which on its gradient is worth a transposed copy of its input


_PART = 1024  # inputs of a dense layer, few enough for XLA's product to sum them one after the other


_IN_ORDER: dict[str, Any] = {"mode": "promise_in_bounds", "unique_indices": True, "indices_are_sorted": True}


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
    to_rows: Array = cpu_or_plain(dot_rows if kernel.size < _LARGE else _transposed_dot, dot_rows, x, g)
    to_kernel = to_rows if columns is None else jnp.zeros_like(kernel).at[columns].set(to_rows, **_IN_ORDER)
    return dot_columns(g, _rows(kernel, columns)), to_kernel, None


def _rows(kernel: Array, columns: Array | None) -> Array:
    return kernel if columns is None else jnp.asarray(kernel).at[columns].get(**_IN_ORDER)


def _dot_in_parts(parts: int, x: Array, kernel: Array) -> Array:
    if x.dtype.itemsize < 4:  # such sums would lose digits
        return x @ kernel
    products = [a @ b for a, b in zip(jnp.split(x, parts, 1), jnp.split(kernel, parts), strict=True)]
    return sum(products[1:], products[0])


def _transposed_dot(a: Array, b: Array) -> Array:
    """a.T @ b with a.T written down, which XLA would undo without the barrier: half the time for fc1.

    Turned by its layout, as its own transposition takes ten times as long in the form that `jit` of
    `kernels.backend` compiles.
    """
    copied: Array = lax.optimization_barrier(laid_out_by_rows(a).T)
    return copied @ b


dense.defvjp(_dense_forward, _dense_backward)
