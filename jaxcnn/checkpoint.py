"""Orbax checkpoints: a training run's, one an epoch, and weights on their own with the network they belong to."""

import gc
import hashlib
import inspect
import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging as absl_logging

from jaxcnn.config import ModelConfig, from_dict
from jaxcnn.errors import InputError, reason
from jaxcnn.step import Metrics, TrainState
from jaxcnn.train import EpochRecord


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
        """Saves a state and what is behind it; returns once the arrays are copied, writes go on.

        Raises:
            InputError: when this checkpoint, or the one before, cannot be written.
        """
        behind = {
            "records": [record._asdict() for record in records],
            "part": part and [np.asarray(values).tolist() for values in part],
        }
        # Orbax has no checksum over the weights themselves: without this one, a flipped bit would be trained on.
        progress = {**behind, "digest": digest(state, json.dumps(behind))}
        with _writing(self._directory):
            # Asked beforehand, for Orbax's threads are loud about a disk that fills up while they write.
            needed = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
            free = shutil.disk_usage(self._directory).free
            if needed > free:
                raise OSError(f"No space left on device: {needed:,} bytes are needed, {free:,} are free")
            self._manager.save(
                int(state.step),
                args=ocp.args.Composite(state=ocp.args.PyTreeSave(state), progress=ocp.args.JsonSave(progress)),
            )

    def restore(self, like: Callable[[int], TrainState]) -> Progress | None:
        """The newest state that can be read, and what is behind it; None if nothing was saved.

        `like` makes a state with the structure, shapes and dtypes that one has in an epoch (counted from 0).

        Raises:
            InputError: when there are checkpoints and none can be read.
        """
        damaged: list[int] = []
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                progress = self._restore(step, like)
            except Exception as error:  # Orbax raises whatever the layer that noticed the damage raised
                print(f"the checkpoint after step {step} is damaged: {reason(error)}", file=sys.stderr)
                damaged.append(step)
                continue
            for each in damaged:  # only now that there is another; they will be written again
                self._manager.delete(each)
            return progress
        if damaged:
            raise InputError(f"no checkpoint in {self._directory} can be read; --overwrite begins the run anew")
        return None

    def _restore(self, step: int, like: Callable[[int], TrainState]) -> Progress:
        args = ocp.args.Composite(progress=ocp.args.JsonRestore())
        progress = self._manager.restore(step, args=args)["progress"]
        records = [EpochRecord(**record) for record in progress["records"]]
        part = progress["part"] and Metrics(*(np.asarray(values) for values in progress["part"]))
        wanted = jax.tree.map(ocp.utils.to_shape_dtype_struct, like(len(records) - (part is None)))
        kinds = ocp.checkpoint_utils.construct_restore_args(wanted)
        args = ocp.args.Composite(state=ocp.args.PyTreeRestore(wanted, restore_args=kinds))
        state = self._manager.restore(step, args=args)["state"]
        behind = {name: progress[name] for name in ("records", "part")}
        if progress["digest"] != digest(state, json.dumps(behind)):
            raise ValueError("its checksum does not fit")
        return Progress(state, records, part)


def digest(tree: Any, note: str = "") -> str:
    """SHA-256, in hexadecimal, of a tree's structure, of every leaf's kind, shape and bytes, and of a note."""
    leaves, structure = jax.tree.flatten(tree)
    found = hashlib.sha256(f"{structure} {note}".encode())
    for leaf in leaves:
        array = np.ascontiguousarray(leaf)
        found.update(f"{array.dtype} {array.shape}".encode())
        found.update(array.data if array.size else b"")
    return found.hexdigest()


@contextmanager
def open_checkpoints(directory: Path) -> Iterator[Checkpoints]:
    """The checkpoints in a folder, made if need be; what is being written is finished on the way out.

    Raises:
        InputError: when the folder, or what was still being written, cannot be written.
    """
    # What a killed process was writing goes with the next opening.
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True, cleanup_tmp_directories=True)
    # Weights hardly compress, and the next epoch would wait for the processor that tries.
    handlers = {
        "state": ocp.PyTreeCheckpointHandler(use_compression=False),
        "progress": ocp.JsonCheckpointHandler(),
    }
    with _quiet():
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
def _quiet() -> Iterator[None]:
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
    except Exception as error:  # Orbax raises whatever the layer below raised, in this thread or another
        raise InputError(
            f"cannot write the checkpoints in {directory}: {reason(error)}; free space or choose another folder; "
            "the same command continues after the last whole one"
        ) from error


def save_weights(directory: Path, variables: Any, config: ModelConfig, *, overwrite: bool = False) -> None:
    """Writes variables and their configuration as one Orbax checkpoint; `overwrite` replaces one that is there.

    Raises:
        InputError: when the folder exists or cannot be written.
    """
    if directory.exists() and not (overwrite and (directory / "_CHECKPOINT_METADATA").exists()):
        raise InputError(f"cannot write the checkpoint {directory}: it exists; give another destination")
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            checkpointer.save(
                directory.absolute(),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardSave(variables),
                    model=ocp.args.JsonSave(asdict(config)),
                ),
                force=overwrite,
            )
    except (OSError, ValueError) as error:
        raise InputError(f"cannot write the checkpoint {directory}: {reason(error)}") from error


def load_weights(directory: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Variables (NumPy arrays) and configuration of a checkpoint that `save_weights` wrote.

    Raises:
        InputError: when the folder holds no such checkpoint, or a damaged one.
    """
    try:
        with _quiet(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                directory.absolute(),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(),
                    model=ocp.args.JsonRestore(),
                ),
            )
        variables = jax.device_get(restored["variables"])
        return {"batch_stats": {}, **variables}, from_dict(ModelConfig, restored["model"], "model.")
    except InputError:
        raise
    except Exception as error:  # Orbax raises whatever the layer that noticed the damage raised
        why = reason(error)
    # Outside of the handler, so that nothing keeps what Orbax left behind.
    raise InputError(
        f"{directory} holds no readable checkpoint of weights: {why}; "
        "make one with python -m experiments.convert model.pth CHECKPOINT"
    )
