"""Dense layer that is fast on a CPU, also where only some of its inputs are not zero."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxcnn.kernels.backend import cpu_or_plain, fixed_settings, laid_out_by_rows
from jaxcnn.kernels.primitives import dot_columns, dot_rows

_LARGE = 2**20  # weights from which on a transposed copy of the input makes the gradient faster
_PART = 1024  # inputs of one part: so few that XLA's product sums them one after the other
_IN_ORDER: dict[str, Any] = {"mode": "promise_in_bounds", "unique_indices": True, "indices_are_sorted": True}


def dense(x: Array, kernel: Array, columns: Array | None = None, *, plain: bool = False) -> Array:
    """x @ kernel, also where x holds only those columns that are not zero.

    With C = 4 inputs in two parts, and columns = [0, 2]:

        x in full     [[1, 0, 5, 0],    x given  [[1, 5],    kernel rows used  [k0,
                       [2, 0, 6, 0]]              [2, 6]]                       k2]
        parts          part 0 | part 1            one column from each part

    The result and the kernel's gradient (zero for the rows that are not used) equal those of the full x up to rounding.
    In float32 on a CPU, each part is multiplied by itself and the products are added in order. A part is short enough
    for XLA to add its terms in order too, where a zero changes nothing. So with AVX2 large products have the same bits
    with and without the zeros.

    Args:
        x: (B, C), or (B, c) with `columns`.
        kernel: (C, O), of the same floating-point type.
        columns: int32 (c,), ascending: which columns of the full (B, C) array x holds. Each of the `dense_parts(C)`
            parts must have the same number of them.
        plain: use JAX's own product and gradients, which also differentiate in forward mode.

    Returns:
        (B, O), of that type.
    """
    y: Array = jnp.matmul(x, _rows(kernel, columns)) if plain else _dense(x, kernel, columns)
    return y


def dense_parts(width: int) -> int:
    """How many equal parts `dense` divides this many inputs into."""
    return width // _PART if width % _PART == 0 and width <= 16 * _PART else 1


@jax.custom_vjp
def _dense(x: Array, kernel: Array, columns: Array | None) -> Array:
    return _dense_forward(x, kernel, columns)[0]


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
    if x.dtype.itemsize < 4:  # sums of rounded products would lose digits
        return x @ kernel
    products = [a @ b for a, b in zip(jnp.split(x, parts, 1), jnp.split(kernel, parts), strict=True)]
    return sum(products[1:], products[0])


def _transposed_dot(a: Array, b: Array) -> Array:
    """a.T @ b, by way of a transposed copy of a in memory.

    For the gradient of SHALLOW's fc1 this takes half the time of `dot_rows`, which reads a column by column. The
    optimization barrier keeps XLA from turning the copy back into such reads. `laid_out_by_rows` makes XLA copy a
    before it is transposed; a transposition by XLA would take ten times as long as this copy with the options that
    `executables.jit` sets.
    """
    copied: Array = lax.optimization_barrier(laid_out_by_rows(a).T)
    return copied @ b


_dense.defvjp(_dense_forward, _dense_backward)
