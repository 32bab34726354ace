"""Several runs at the same time, in processes of this machine or of a cluster, by Dask.

If a worker dies, Dask gives its run to another one, which continues from the last checkpoint: at most one epoch, or a
second of shorter ones, is lost. The lock of a run's folder belongs to the process, so it ends with it.
"""

import contextlib
import io
import logging
import os
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.errors import InputError, InUseError, reason, require_int
from jaxcnn.runs.summary import Summary
from jaxcnn.studies.execute import (
    Executor,
    Outcome,
    Train,
    Turns,
    describe_error,
    find_sources,
    one_by_one,
    source_failed,
)
from jaxcnn.training.features import SharedFeatures

_PATIENCE = 300.0
"""Seconds that a run waits for its folder, in case a lost worker has not ended yet."""


@contextlib.contextmanager
def open_executor(*, jobs: int | None = None, cluster: str | None = None) -> Iterator[tuple[Executor, int]]:
    """Yields an executor, and the number of runs that it trains at the same time.

    Without arguments, runs are trained one after the other in this process.

    Args:
        jobs: number of processes on this machine, which share its processors evenly.
        cluster: address of a Dask scheduler, `tcp://host:8786`. Its workers need the same files under the same paths.

    Raises:
        InputError: when both are given, Dask is not installed, or the scheduler cannot be reached.
    """
    if jobs is None and cluster is None:
        yield one_by_one, 1
        return
    if jobs is not None and cluster is not None:
        raise InputError(f"jobs={jobs} starts workers here and cluster={cluster!r} has its own; give one of them")
    if find_spec("distributed") is None:
        raise InputError("several runs at once need Dask: pip install 'jaxcnn[cluster]'")
    import dask
    from distributed import Client, LocalCluster

    for name in list(logging.root.manager.loggerDict):
        if name.startswith("distributed"):
            logging.getLogger(name).setLevel(logging.ERROR)  # not a message for each worker that starts or ends
    if cluster is not None:
        try:
            client = Client(cluster, timeout="30s")
        except (OSError, ValueError) as error:
            raise InputError(f"cluster={cluster!r} cannot be reached: {reason(error)}") from error
        with client:
            yield partial(_hand_out, client, ()), max(1, len(client.nthreads()))
        return
    assert jobs is not None
    require_int("jobs", jobs, least=1, most=1024)
    with (
        # Dask has glibc return memory to the system at once, which would make a run of a large network a third slower.
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),
        LocalCluster(
            n_workers=jobs, threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=":0"
        ) as local,
        Client(local) as client,
    ):
        yield partial(_hand_out, client, _shares(jobs)), jobs


def _shares(jobs: int) -> tuple[tuple[int, ...], ...]:
    """The processors of each worker: equally many, and no processor twice if there are enough."""
    if not hasattr(os, "sched_getaffinity"):  # such as macOS
        return ()
    processors = sorted(os.sched_getaffinity(0))
    each = max(1, len(processors) // jobs)
    return tuple(tuple(processors[(job * each + i) % len(processors)] for i in range(each)) for job in range(jobs))


def _hand_out(
    client: Any, shares: Sequence[Sequence[int]], configs: Sequence[ExperimentConfig], train: Train, turns: Turns
) -> Iterator[Outcome]:
    """An `Executor` on the workers of a client."""
    from distributed import as_completed

    sources = find_sources(configs)
    futures: dict[str, Any] = {}
    for i, config in enumerate(configs):
        name = config.run_name
        source = sources.get(name)
        futures[name] = client.submit(
            _train, train, config, shares, source, futures.get(source or ""),
            pure=False, key=f"{name}-{time.time_ns()}", priority=-i,
        )  # fmt: skip
    by_future = dict(zip(futures.values(), configs, strict=True))
    for future in as_completed(by_future):
        if future.status == "finished":
            outcome = Outcome(by_future[future], *future.result())
        else:
            error = future.exception()
            outcome = Outcome(by_future[future], None, describe_error(error))
        turns.end(outcome)
        yield outcome


_Result = tuple[Summary | None, str | None]
"""The summary of a run, or the message of an error."""


def _train(
    train: Train,
    config: ExperimentConfig,
    shares: Sequence[Sequence[int]],
    source: str | None,
    source_result: _Result | None,
) -> _Result:
    """Trains a run in a worker. Dask calls it when the result of the run's source, if that is trained too, is there."""
    from distributed import get_worker

    if source is not None and source_result is not None and source_result[0] is None:
        return None, source_failed(source)
    worker = get_worker()
    if "profile" in worker.periodic_callbacks:
        # Dask's profiler calls `sys._current_frames` every 10 ms. In Python 3.11 that can deadlock with threads that
        # start or end, as Orbax's do: the run would hang forever (github.com/python/cpython/issues/106883).
        worker.loop.add_callback(worker.periodic_callbacks["profile"].stop)
    if shares:  # before JAX starts its threads, which inherit it
        os.sched_setaffinity(0, shares[int(worker.name)])
        os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{0.9 / len(shares):.3f}")  # of a shared GPU
    features = vars(worker).setdefault("jaxcnn_features", SharedFeatures())  # kept between the worker's runs
    until = time.monotonic() + _PATIENCE
    with contextlib.redirect_stdout(io.StringIO()):  # the program prints which runs are done
        while True:
            try:
                return train(config, features=features), None
            except InUseError as error:
                if time.monotonic() > until:
                    return None, describe_error(error)
                time.sleep(2)
            except Exception as error:
                return None, describe_error(error)
