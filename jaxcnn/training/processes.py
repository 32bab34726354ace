"""Several processes that train one run together, usually one on each host. Each has some of the devices.

Process 0 writes, locks and prints. What it decides goes to the others as JSON. With a single process, every function
here does nothing but call its argument.
"""

import json
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxcnn.errors import JaxcnnError, MachineError

_T = TypeVar("_T")


def is_first() -> bool:
    """Whether this is process 0."""
    first: bool = jax.process_index() == 0
    return first


def _are_several() -> bool:
    """Whether there are other processes."""
    several: bool = jax.process_count() > 1
    return several


def from_first(make: Callable[[], _T]) -> _T:
    """Calls `make` on process 0 alone, and returns its result on every process. Every process must call this.

    Args:
        make: returns what JSON can hold. (Process 0 gets the result itself, without that conversion.)

    Raises:
        MachineError: on the other processes, when `make` raises on process 0.
    """
    if not _are_several():
        return make()
    if not is_first():
        sent = json.loads(_broadcast(b""))
        if "error" in sent:
            raise MachineError(f"process 0 has stopped: {sent['error']}")
        value: _T = sent["value"]
        return value
    try:
        made = make()
    except JaxcnnError as error:
        _broadcast(json.dumps({"error": str(error)}).encode())
        raise
    _broadcast(json.dumps({"value": made}).encode())
    return made


def _broadcast(data: bytes) -> bytes:
    """The bytes of process 0."""
    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(size, np.uint8)
    if is_first():
        padded[:] = np.frombuffer(data, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded)))


def together(work: Callable[[], _T]) -> _T:
    """Calls `work` on every process. If it raises on one of them, every process ends with an error.

    Raises:
        MachineError: on processes where `work` succeeded, when it raises on another one.
    """
    if not _are_several():
        return work()
    try:
        done = work()
    except JaxcnnError:
        multihost_utils.process_allgather(np.bool_(True))
        raise
    failed = np.flatnonzero(multihost_utils.process_allgather(np.bool_(False)))
    if len(failed):
        raise MachineError(f"process {', '.join(map(str, failed))} has stopped, and its output says why")
    return done


def largest(value: int) -> int:
    """The largest value that a process gives. Every process must call this."""
    return int(np.max(multihost_utils.process_allgather(np.int32(value)))) if _are_several() else value
