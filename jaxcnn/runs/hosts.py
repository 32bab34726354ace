"""Joining the processes of a run that several hosts train together."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import jax

from jaxcnn.config.experiment import Device
from jaxcnn.errors import InputError, JaxcnnError, MachineError, reason, require_int
from jaxcnn.runs.device import select_device
from jaxcnn.runs.signals import CONTINUES, as_interrupted

_HEARTBEAT = 30
"""Seconds after which a process that no longer answers is taken for lost. JAX's own value is 100."""
_PATIENCE = 120
"""Seconds to wait for the other processes at the start."""
_SHUTDOWN = 30
"""Seconds to wait for the other processes at the end."""
_LAST = 3.0
"""Seconds that process 0 stays after an error. When it ends, JAX aborts the others, with a trace of C++ functions."""


@contextmanager
def join(device: Device, coordinator: str, processes: int | None, process: int | None) -> Iterator[None]:
    """Within the context, this process is one of those that train a run together.

    They find each other by themselves in a SLURM step or under Open MPI's mpirun of several tasks, and on a TPU pod of
    several hosts. Otherwise all three arguments are needed. Without them, this process is alone.

    At the end all processes wait for each other. After an error this process ends at once, without clean-up, because
    the others could wait for it.

    Args:
        device: the kind of device to compute on.
        coordinator: `HOST:PORT` of process 0, which the others can reach.
        processes: the number of processes.
        process: this process's number, from 0.

    Raises:
        InputError: when only some arguments are given, or the processes cannot find each other.
    """
    told = (bool(coordinator), processes is not None, process is not None)
    if any(told) and not all(told):
        raise InputError("--coordinator, --processes and --process belong together; give all three")
    if not (any(told) or _is_one_of_several()):
        yield
        return
    if processes is not None and process is not None:
        require_int("processes", processes, least=1, most=65536)
        require_int("process", process, least=0, most=processes - 1)
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdigit() or not 0 < int(port) < 65536:
            raise InputError(f"coordinator={coordinator!r} is not an address; give HOST:PORT of process 0")
    try:
        jax.distributed.initialize(
            coordinator or None,
            processes,
            process,
            initialization_timeout=_PATIENCE,
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_SHUTDOWN,
        )
    except (RuntimeError, ValueError) as error:
        raise InputError(f"the processes have not found each other: {reason(error)}") from error
    select_device(device)  # first, because asking JAX for its processes chooses a device
    number = jax.process_index()
    try:
        yield
    except (JaxcnnError, KeyboardInterrupt) as error:
        _leave(number, error)
    except jax.errors.JaxRuntimeError as error:  # of a sum over all devices, for example
        remedy = "the same command, on all hosts and without --overwrite, continues"
        _leave(number, MachineError(f"another process of this run was lost ({reason(error)}); {remedy}"))
    jax.distributed.shutdown()


def _leave(number: int, error: JaxcnnError | KeyboardInterrupt) -> None:
    """Prints an error and ends this process, as `cli.main` would, but at once."""
    prefix = f"process {number}: " if number else ""
    if isinstance(error, JaxcnnError):
        told, status = f"error: {error}", 2
    else:
        interrupted = as_interrupted(error)
        told, status = f"{interrupted}; {CONTINUES}", interrupted.status
    print(f"{prefix}{told}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if number == 0:
        time.sleep(_LAST)
    os._exit(status)


def _is_one_of_several() -> bool:
    """Whether a launcher has started this process as one of several. A job's batch script itself is none."""
    get = os.environ.get
    slurm = "SLURM_STEP_NODELIST" in os.environ and get("SLURM_STEP_NUM_TASKS", "1") != "1"
    mpi = "OMPI_MCA_orte_hnp_uri" in os.environ and get("OMPI_COMM_WORLD_SIZE", "1") != "1"
    return slurm or mpi or "," in get("TPU_WORKER_HOSTNAMES", "")
