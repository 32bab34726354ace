"""Orbax checkpoints of a training run, one per epoch."""

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
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from jaxcnn.errors import InputError, JaxcnnError, MachineError, is_out_of_memory, reason, unreadable
from jaxcnn.files import find_damage, older_digest, write_manifest
from jaxcnn.training.processes import from_first, is_first, together
from jaxcnn.training.records import EpochRecord, Metrics, TrainState

_DAMAGED = ".damaged"
"""Suffix that a damaged checkpoint gets. It is deleted once a newer checkpoint is written."""


class Progress(NamedTuple):
    """Everything that `fit` needs to continue a run."""

    state: TrainState
    records: list[EpochRecord]
    """One for each finished epoch."""
    part: Metrics | None = None
    """The metrics of each finished step, (steps,), if the run was interrupted within an epoch."""


class Checkpoints:
    """The last two states of a run, numbered by the training steps taken."""

    def __init__(self, manager: ocp.CheckpointManager) -> None:
        self._manager = manager
        self._directory = Path(manager.directory)

    def save(self, state: TrainState, records: Sequence[EpochRecord], part: Metrics | None = None) -> None:
        """Writes a checkpoint, and returns when it is on disk: a kill after that does not lose a finished epoch.

        Args:
            state: the state to save.
            records: the records of all finished epochs.
            part: the metrics of each finished step of an interrupted epoch, (steps,).

        Raises:
            MachineError: when it cannot be written.
        """
        progress = {
            "records": [record._asdict() for record in records],
            "part": part and [np.asarray(values).tolist() for values in part],
        }
        step = int(state.step)
        with _explain_write_errors(self._directory):
            # Checked first: when the disk fills up during a write, Orbax's threads print tracebacks.
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            free = shutil.disk_usage(self._directory).free
            if needed > free:
                raise OSError(f"No space left on device: {needed:,} bytes are needed, {free:,} are free")
            self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress)),
            )
            if not is_first():
                return
            # Orbax does not checksum the weights, so a flipped bit would go unnoticed.
            write_manifest(self._directory / str(step))
            for damaged in self._directory.glob(f"*{_DAMAGED}"):  # only now that there is a newer one
                shutil.rmtree(damaged)

    def restore(self, like: Callable[[int], TrainState]) -> Progress | None:
        """Restores the newest undamaged checkpoint; None if there are none.

        A checkpoint is skipped only if its checksums prove it damaged. It is then renamed, and deleted once a newer one
        is written.

        Args:
            like: epoch (counted from 0) -> a state with the structure, shapes and dtypes of that epoch. They depend on
                which stages are frozen then.

        Raises:
            InputError: when all checkpoints are damaged, or an undamaged one cannot be restored. Nothing is changed.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            folder = self._directory / str(step)
            if (damage := from_first(partial(_find_damage, folder))) is not None:
                print(f"the checkpoint after step {step} is damaged: {damage}", file=sys.stderr)
                damaged.append(step)
                continue
            progress = together(partial(self._restore, step, like))
            if damaged:
                self._set_aside(damaged)
            return progress
        if damaged:
            raise InputError(f"no checkpoint in {self._directory} can be read; --overwrite starts the run again")
        return None

    def _set_aside(self, steps: Sequence[int]) -> None:
        """Renames damaged checkpoints, because new ones of the same steps will be written."""
        with _explain_write_errors(self._directory):
            from_first(partial(self._rename, steps))
            self._manager.reload()

    def _rename(self, steps: Sequence[int]) -> None:
        for step in steps:
            os.replace(self._directory / str(step), self._directory / f"{step}.{time.time_ns()}{_DAMAGED}")

    def read_weights(self, step: str | None) -> dict[str, Any]:
        """Reads parameters and batch statistics as NumPy arrays.

        Args:
            step: number of the checkpoint; None takes the last one.

        Raises:
            InputError: when there is no such checkpoint or it cannot be read.
        """
        steps = {str(each): each for each in sorted(self._manager.all_steps())}
        wanted = next(reversed(steps), None) if step is None else step
        if wanted not in steps:
            raise InputError(
                f"{self._directory} has no checkpoint {wanted or ''}; there are {', '.join(steps) or 'none'}"
            )
        folder = self._directory / wanted
        if (damage := _find_damage(folder)) is not None:
            raise InputError(f"{folder} is damaged: {damage}; give another checkpoint or the run's folder")
        with _explain_read_errors(folder):
            kinds = jax.tree.map(
                lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
                self._manager.item_metadata(steps[wanted])["state"].tree,
            )
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=kinds))
            state = self._manager.restore(steps[wanted], args=args)["state"]
        return {"params": state["params"], "batch_stats": state.get("batch_stats") or {}}

    def _restore(self, step: int, like: Callable[[int], TrainState]) -> Progress:
        folder = self._directory / str(step)
        with _explain_read_errors(folder):
            progress = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
            records = [EpochRecord(**record) for record in progress["records"]]
            part = progress["part"] and Metrics(*(np.asarray(values) for values in progress["part"]))
            # The state after a finished epoch still has that epoch's structure; within an epoch, the next one's.
            shaping_epoch = len(records) - 1 if part is None else len(records)
            wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like(shaping_epoch))
            require_same_arrays(folder, self._manager.item_metadata(step)["state"].tree, wanted)
            kinds = ocp.checkpoint_utils.construct_restore_args(wanted)
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(wanted, restore_args=kinds))
            state = self._manager.restore(step, args=args)["state"]
        behind = {name: progress[name] for name in ("records", "part")}
        if progress.get("digest") not in (None, older_digest(jax.device_get(state), json.dumps(behind))):
            print(
                f"{folder} has a checksum of another version, which this one cannot compare; it is used nevertheless",
                file=sys.stderr,
            )
        return Progress(state, records, part)


@contextmanager
def _explain_read_errors(folder: Path) -> Iterator[None]:
    """Turns any exception that Orbax raises while it reads a checkpoint into an error with one message."""
    try:
        yield
        return
    except (JaxcnnError, MemoryError):
        raise
    except Exception as error:  # Orbax passes on any exception of the layers below
        if is_out_of_memory(error):
            raise MemoryError(reason(error)) from error
        if (later := unreadable(folder, error)) is not None:
            raise later from error
        why = reason(error)
    # Outside of the handler: inside, the traceback would keep Orbax's objects alive.
    raise InputError(
        f"{folder} cannot be restored, though its checksums do not prove it damaged: {why}. Nothing was "
        "changed: the same command tries again; with this folder moved away, it continues from the previous one"
    )


def _find_damage(folder: Path) -> str | None:
    """The proof that a checkpoint is damaged, as text for a message; None if its checksums match."""
    try:
        return find_damage(folder)
    except OSError as error:
        raise unreadable(folder, error) or InputError(f"{folder} cannot be read: {reason(error)}") from error


def require_same_arrays(folder: Path, saved: Any, wanted: Any) -> None:
    """Raises an InputError unless both trees have the same paths, shapes and dtypes. Orbax would convert them."""
    there, here = (_array_types(tree) for tree in (saved, wanted))
    for name in sorted(there.keys() | here.keys()):
        if there.get(name) != here.get(name):
            raise InputError(
                f"{folder} holds {name} as {there.get(name, 'nothing')}, and this run wants "
                f"{here.get(name, 'nothing')}; start it as before (JAX_ENABLE_X64 decides between float32 and "
                "float64)"
            )


def _array_types(tree: Any) -> dict[str, str]:
    """Maps the path of every leaf to its dtype and shape. Orbax's dicts and our named tuples give equal paths."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {"/".join(map(_name, path)): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in paths}


def _name(key: Any) -> str:
    return str(next(getattr(key, each) for each in ("key", "idx", "name") if hasattr(key, each)))


@contextmanager
def open_checkpoints(directory: Path, *, read_only: bool = False) -> Iterator[Checkpoints]:
    """Opens the checkpoints in a folder, which is created if it does not exist.

    Raises:
        MachineError: when the folder cannot be written.
    """
    # Removes what a killed process left half-written, and deletes old checkpoints in the background.
    writes = {"max_to_keep": 2, "create": True, "cleanup_tmp_directories": True, "enable_background_delete": True}
    # `save` waits until everything is on disk, so asynchronous writing would only add the cost of its threads.
    options = ocp.CheckpointManagerOptions(
        read_only=read_only, enable_async_checkpointing=False, **({} if read_only else writes)
    )
    # For speed, since training waits: weights hardly compress, and ocdbt (one file for all arrays) takes a fifth of
    # the time.
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(use_compression=False, use_ocdbt=False),
        "progress": ocp.JsonCheckpointHandler(),
    }
    with quiet_orbax():
        with _explain_write_errors(directory):
            manager = ocp.CheckpointManager(directory.absolute(), options=options, item_handlers=handlers)
        try:
            yield Checkpoints(manager)
        except BaseException:
            with suppress(Exception):  # the first error is the one to report
                manager.close()
            raise
        with _explain_write_errors(directory):
            manager.close()


@contextmanager
def quiet_orbax() -> Iterator[None]:
    """Keeps Orbax from printing. Its threads and coroutines print tracebacks of errors that it also raises."""
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
        gc.collect()  # abandoned coroutines complain when collected: do it while nothing is printed
        time.sleep(0.2)  # and let threads finish that are still reading or writing
        raise
    finally:
        sys.unraisablehook = report
        absl_logging.set_verbosity(verbosity)
        events.setLevel(level)


@contextmanager
def _explain_write_errors(directory: Path) -> Iterator[None]:
    """Turns any exception that Orbax raises while it writes into a MachineError."""
    try:
        yield
    except JaxcnnError:
        raise
    except Exception as error:  # Orbax passes on any exception of the layers below, from this thread or another
        raise MachineError(
            f"cannot write the checkpoints in {directory}: {reason(error)}; free space or choose another folder; "
            "the same command, without --overwrite, continues after the last complete one"
        ) from error
