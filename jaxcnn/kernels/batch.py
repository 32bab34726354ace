"""Operations on the images of a batch, each in the form that suits the backend."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from jaxcnn.kernels.backend import cpu_or_plain
from jaxcnn.kernels.primitives import batch_size, in_chunks


def image_by_image(f: Callable[[Any], Array], x: Any) -> Array:
    """f(x), for an f that maps (B, ...) to (B, ...) and treats every image separately, as a network in evaluation does.

    On a CPU, f gets 64 images at a time, so that their activations stay in the processor's cache: 0.78x the time for
    batch 256. x is an array, or a tree of arrays that all have the images as their first axis.
    """
    y: Array = cpu_or_plain(lambda x: in_chunks(f, x, min(64, batch_size(x))), f, x)
    return y


def take_images(x: Array, indices: Array) -> Array:
    """x[indices], for x (N, ...) and int indices (B,), which must be in range.

    On a CPU, rows are copied one by one. Otherwise XLA would fuse the indexing into whatever reads the rows, and look
    up the index once for every value.
    """
    copied: Array = cpu_or_plain(_copy_rows, lambda x, indices: jnp.take(x, indices, axis=0, mode="clip"), x, indices)
    return copied


def _copy_rows(x: Array, indices: Array) -> Array:
    flat = x.reshape(len(x), -1)  # so that a row is contiguous in memory, whatever layout XLA picks for the copies
    rows: Array = lax.map(lambda i: lax.dynamic_index_in_dim(flat, i, keepdims=False), indices)
    return rows.reshape(-1, *x.shape[1:])
