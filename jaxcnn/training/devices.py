"""Training on several devices: the mesh, and arrays on it. One process may have all devices, or each process some."""

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcnn.data.splits import Split
from jaxcnn.errors import InputError
from jaxcnn.kernels.backend import is_cpu
from jaxcnn.kernels.features import Features, map_values
from jaxcnn.kernels.shards import Shards

AXIS = "images"
"""The mesh's only axis: images of a batch are divided along it, and everything else is the same on each device."""

EVERYWHERE = PartitionSpec()
DIVIDED = PartitionSpec(AXIS)
DIVIDED_STEPS = PartitionSpec(None, AXIS)
"""Arrays (steps, images, ...): the images of each step are divided."""


def make_mesh(count: int | None = None) -> Mesh | None:
    """A mesh over devices of every process; None for a single device.

    Args:
        count: number of devices of each process. If None, all; but on CPUs one, because a single CPU device already
            uses all cores.

    Raises:
        InputError: when this process has fewer devices.
    """
    local = jax.local_devices()
    wanted = count or (1 if is_cpu() else len(local))
    if wanted > len(local):
        raise InputError(f"devices={wanted} is not usable: {_describe(len(local))}")
    if wanted == 1 and jax.process_count() == 1:
        return None
    devices = [each for process in range(jax.process_count()) for each in jax.local_devices(process)[:wanted]]
    return Mesh(np.array(devices), (AXIS,))


def _describe(count: int) -> str:
    if is_cpu():
        return f"this process has {count}; XLA_FLAGS=--xla_force_host_platform_device_count=N makes more of a CPU"
    return f"this process has {count}"


def image_limit() -> int:
    """The most bytes of training images to keep on a device: half of its memory; of a CPU, half of the process's."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return int(stats.get("bytes_limit") or _host_memory()) // 2


def _host_memory() -> int:
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    with suppress(OSError, ValueError):  # no cgroup, or "max"
        limits.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(limits)


def divide(batch_size: int, mesh: Mesh | None) -> Shards | None:
    """How a batch is divided among the devices of a mesh."""
    return None if mesh is None else Shards(AXIS, batch_size)


def padded_size(batch_size: int, mesh: Mesh | None) -> int:
    """The batch size, rounded up to a multiple of the number of devices."""
    devices = 1 if mesh is None else mesh.size
    return -(-batch_size // devices) * devices


def put(mesh: Mesh, where: PartitionSpec, shape: tuple[int, ...], read: Callable[[Any], np.ndarray]) -> jax.Array:
    """An array on a mesh. `read(index)` returns a part of it; a process reads only what its own devices need."""
    array: jax.Array = jax.make_array_from_callback(shape, NamedSharding(mesh, where), read)
    return array


def replicate(tree: Any, mesh: Mesh | None) -> Any:
    """A tree of arrays, with each array on all devices of a mesh. Arrays that are there already stay as they are."""
    if mesh is None:
        return tree
    wanted = NamedSharding(mesh, EVERYWHERE)

    def place(x: Any) -> jax.Array:
        if isinstance(x, jax.Array) and x.sharding == wanted:
            return x
        values = np.asarray(x)
        return put(mesh, EVERYWHERE, values.shape, lambda index: values[index])

    return jax.tree.map(place, tree)


def gather(split: Split, rows: np.ndarray[Any, Any], mesh: Mesh | None) -> Split:
    """The images and labels at these rows, int (B,) or (steps, B), on the devices; a mesh divides B among them."""
    where = DIVIDED if rows.ndim == 1 else DIVIDED_STEPS

    def take(array: Any) -> Any:
        if mesh is None:
            return jax.device_put(array[rows])
        return put(mesh, where, (*rows.shape, *array.shape[1:]), lambda index: array[rows[index[: rows.ndim]]])

    images = map_values(take, split.images)
    if isinstance(images, Features):
        images = replace(images, columns=replicate(images.columns, mesh))
    return Split(images, take(split.labels))


def fetch(array: jax.Array) -> np.ndarray[Any, Any]:
    """An array that is divided among devices, as one in this process's memory. Every process must call it."""
    gathered = array if array.is_fully_addressable else multihost_utils.process_allgather(array, tiled=True)
    return np.asarray(gathered)
