"""How a batch is divided among devices, inside `jax.shard_map`."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax


class Shards(NamedTuple):
    """A batch whose images are divided among the devices of a mesh axis: each has equally many consecutive ones.

    With 6 images on 4 devices, padded to 8:

        device 0   images 0, 1
        device 1   images 2, 3
        device 2   images 4, 5
        device 3   padding
    """

    axis_name: str
    batch_size: int
    """Number of images in the whole batch, without that padding."""


def total(x: Any, shards: Shards | None) -> Any:
    """The sum of x over all devices; x itself if the batch is not divided. x is an array or a tree of arrays."""
    return x if shards is None else lax.psum(x, shards.axis_name)


def places(n: int, shards: Shards | None) -> Array:
    """The places in the whole batch, int32 (n,), of the n images that this device has."""
    first = 0 if shards is None else lax.axis_index(shards.axis_name) * n
    found: Array = first + jnp.arange(n, dtype=jnp.int32)
    return found


def whole_batch(n: int, shards: Shards | None) -> int:
    """The number of images in the whole batch, of which this device has n."""
    return n if shards is None else shards.batch_size
