"""Orbax checkpoints of a training run, one an epoch."""

import gc
import inspect
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from jaxcnn.errors import InputError, JaxcnnError, MachineError, is_out_of_memory, reason, unreadable
from jaxcnn.files import find_damage, older_digest, write_manifest
from jaxcnn.training.records import EpochRecord, Metrics, TrainState

_DAMAGED = ".damaged"
"""What the names of damaged checkpoints end with, until a newer one is written."""


class Progress(NamedTuple):
    """How far a run is: all that `fit` needs to go on."""

    state: TrainState
    records: list[EpochRecord]
    """Of the epochs that are over."""
    part: Metrics | None = None
    """Of each step of the epoch in hand, where it was cut short."""


class Checkpoints:
    """The last two states of a run, by the number of steps behind them."""

    def __init__(self, manager: ocp.CheckpointManager) -> None:
        self._manager = manager
        self._directory = Path(manager.directory)

    def save(self, state: TrainState, records: Sequence[EpochRecord], part: Metrics | None = None) -> None:
        """Saves a state and what is behind it; returns once it is written, so that a kill costs no epoch that is over.

        Raises:
            MachineError: when it cannot be written.
        """
        progress = {
            "records": [record._asdict() for record in records],
            "part": part and [np.asarray(values).tolist() for values in part],
        }
        step = int(state.step)
        with _writing(self._directory):
            # Asked beforehand, for Orbax's threads are loud about a disk that fills up while they write.
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            free = shutil.disk_usage(self._directory).free
            if needed > free:
                raise OSError(f"No space left on device: {needed:,} bytes are needed, {free:,} are free")
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress)),
            )
            # Orbax has no checksum over the weights themselves: a flipped bit would be trained on.
            write_manifest(self._directory / str(step))
            for damaged in self._directory.glob(f"*{_DAMAGED}"):  # only now that there is a newer one
                shutil.rmtree(damaged)

    def restore(self, like: Callable[[int], TrainState]) -> Progress | None:
        """The newest state that is not damaged, and what is behind it; None if nothing was saved.

        A checkpoint is passed over only where its checksums prove it damaged. It is set aside, and deleted once a newer
        one is written.

        Args:
            like: makes a state with the structure, shapes and dtypes that one has in an epoch (counted from 0).

        Raises:
            InputError: when all checkpoints are damaged, or one that is not cannot be restored: nothing is changed.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._directory / str(step)
            if (damage := _damage(folder)) is not None:
                print(f"the checkpoint after step {step} is damaged: {damage}", file=sys.stderr)
                damaged.append(step)
                continue
            progress = self._restore(step, like)
            if damaged:
                self._set_aside(damaged)
            return progress
        if damaged:
            raise InputError(f"no checkpoint in {self._directory} can be read; --overwrite begins the run again")
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames checkpoints, for others of the same steps will be written."""
        with _writing(self._directory):
            for step in steps:
                os.replace(self._directory / str(step), self._directory / f"{step}.{time.time_ns()}{_DAMAGED}")
            self._manager.reload()

    def read_weights(self, step: str | None) -> dict[str, Any]:
        """Parameters and batch statistics (NumPy arrays) after a step, or the last one.

        Raises:
            InputError: when it is not there or cannot be read.
        """
        steps = {str(each): each for each in sorted(self._manager.all_steps())}
        wanted = next(reversed(steps), None) if step is None else step
        if wanted not in steps:
            raise InputError(
                f"{self._directory} has no checkpoint {wanted or ''}; there are {', '.join(steps) or 'none'}"
            )
        folder = self._directory / wanted
        if (damage := _damage(folder)) is not None:
            raise InputError(f"{folder} is damaged: {damage}; give another checkpoint or the run's folder")
        with _reading(folder):
            kinds = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                self._manager.item_metadata(steps[wanted])["state"].tree,
            )
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=kinds))
            state = self._manager.restore(steps[wanted], args=args)["state"]
        return {"params": state["params"], "batch_stats": state.get("batch_stats") or {}}

    def _restore(self, step: int, like: Callable[[int], TrainState]) -> Progress:
        folder = self._directory / str(step)
        with _reading(folder):
            progress = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
            records = [EpochRecord(**record) for record in progress["records"]]
            part = progress["part"] and Metrics(*(np.asarray(values) for values in progress["part"]))
            wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like(len(records) - (part is None)))
            require_alike(folder, self._manager.item_metadata(step)["state"].tree, wanted)
            kinds = ocp.checkpoint_utils.construct_restore_args(wanted)
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(wanted, restore_args=kinds))
            state = self._manager.restore(step, args=args)["state"]
        behind = {name: progress[name] for name in ("records", "part")}
        if progress.get("digest") not in (None, older_digest(jax.device_get(state), json.dumps(behind))):
            print(
                f"{folder} has a checksum of another version's, which this one cannot compare; it is used all the same",
                file=sys.stderr,
            )
        return Progress(state, records, part)


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turns whatever Orbax and the layers below it raise while a checkpoint is read into one message."""
    try:
        yield
        return
    except (JaxcnnError, MemoryError):
        raise
    except Exception as error:  # Orbax raises whatever the layer below raised
        if is_out_of_memory(error):
            raise MemoryError(reason(error)) from error
        if (later := unreadable(folder, error)) is not None:
            raise later from error
        why = reason(error)
    # Outside of the handler, so that nothing keeps what Orbax left behind.
    raise InputError(
        f"{folder} cannot be restored, though its checksums do not prove it damaged: {why}. Nothing was "
        "changed: the same command tries again; with this folder moved away, it goes on from the one before"
    )


def _damage(folder: Path) -> str | None:
    """What proves that a checkpoint is damaged, or None."""
    try:
        return find_damage(folder)
    except OSError as error:
        raise unreadable(folder, error) or InputError(f"{folder} cannot be read: {reason(error)}") from error


def require_alike(folder: Path, saved: Any, wanted: Any) -> None:
    """Refuses a checkpoint of other arrays than those wanted: Orbax would convert them without a word."""
    there, here = (_kinds(tree) for tree in (saved, wanted))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise InputError(
                f"{folder} holds {name} as {there.get(name, 'nothing')}, and this run wants "
                f"{here.get(name, 'nothing')}; start it as it was begun (JAX_ENABLE_X64 decides between float32 and "
                "float64)"
            )


def _kinds(tree: Any) -> dict[str, str]:
    """Dtype and shape of every leaf by its path. Orbax has dicts where the state has named tuples."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_name, path)): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths}


def _name(key: Any) -> str:
    return str(next(getattr(key, each) for each in ("key", "idx", "name") if hasattr(key, each)))


@contextmanager
def open_checkpoints(directory: Path, *, read_only: bool = False) -> Iterator[Checkpoints]:
    """The checkpoints in a folder, made if need be.

    Raises:
        MachineError: when the folder cannot be written.
    """
    # What a killed process was writing goes with the next opening; the disk alone is busy with what is deleted.
    writes = {"max_to_keep": 2, "create": True, "cleanup_tmp_directories": True, "enable_background_delete": True}
    # `save` returns once all is on disk, so threads that write in the background would only add their own start.
    options = ocp.CheckpointManagerOptions(
        read_only=read_only, enable_async_checkpointing=False, **({} if read_only else writes)
    )
    # The next epoch waits: weights hardly compress, and gathering the arrays' files in one takes a fifth of the time.
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False),
        "progress": ocp.JsonCheckpointHandler(),
    }
    with quiet_orbax():
        with _writing(directory):
            manager = ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=handlers)
        try:
            yield Checkpoints(manager)
        except BaseException:
            with suppress(Exception):  # what went wrong first is what counts
                manager.close()
            raise
        with _writing(directory):
            manager.close()


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps Orbax from printing, from threads and forgotten coroutines, tracebacks of what it raises as well."""
    verbosity, report = absl_logging.get_verbosity(), sys.unraisablehook

    def report_others(unraisable: Any) -> None:
        closed = isinstance(unraisable.exc_value, RuntimeError) and str(unraisable.exc_value) == "Event loop is closed"
        if not closed and not inspect.iscoroutine(unraisable.object):
            report(unraisable)

    events = logging.getLogger("asyncio")
    level = events.level
    events.setLevel(logging.CRITICAL)
    absl_logging.set_verbosity(absl_logging.FATAL)
    sys.unraisablehook = report_others
    try:
        yield
    except BaseException:
        gc.collect()  # now, while it is quiet
        time.sleep(0.2)  # and for what was being read or written in the meantime
        raise
    finally:
        sys.unraisablehook = report
        absl_logging.set_verbosity(verbosity)
        events.setLevel(level)


@contextmanager
def _writing(directory: Path) -> Iterator[None]:
    try:
        yield
    except JaxcnnError:
        raise
    except Exception as error:  # Orbax raises whatever the layer below raised, in this thread or another
        raise MachineError(
            f"cannot write the checkpoints in {directory}: {reason(error)}; free space or choose another folder; "
            "the same command, without --overwrite, continues after the last whole one"
        ) from error
