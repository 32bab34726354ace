"""Orbax checkpoints: a training run's, one an epoch, and weights on their own with the network they belong to."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxcnn.config import ModelConfig, from_dict
from jaxcnn.errors import InputError, reason
from jaxcnn.step import TrainState
from jaxcnn.train import EpochRecord


class Checkpoints:
    """The last two epochs of a run, each with the records of all epochs so far."""

    def __init__(self, manager: ocp.CheckpointManager) -> None:
        self._manager = manager

    def save(self, state: TrainState, records: Sequence[EpochRecord]) -> None:
        """Saves the state after the last of `records`; returns once the arrays are copied, writes go on."""
        self._manager.save(
            len(records),
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                records=ocp.args.JsonSave([record._asdict() for record in records]),
            ),
        )

    def restore(self, like: Callable[[int], TrainState]) -> tuple[TrainState, list[EpochRecord]] | None:
        """The newest state that can be read, and its records; None if nothing was saved.

        `like` makes a state with the structure, shapes and dtypes of the one after so many epochs.

        Raises:
            InputError: when there are checkpoints and none can be read.
        """
        epochs = sorted(self._manager.all_steps(), reverse=True)
        problem: Exception | None = None
        for epoch in epochs:
            args = ocp.args.Composite(
                state=ocp.args.StandardRestore(jax.tree.map(ocp.utils.to_shape_dtype_struct, like(epoch))),
                records=ocp.args.JsonRestore(),
            )
            try:
                restored = self._manager.restore(epoch, args=args)
                records = [EpochRecord(**record) for record in restored["records"]]
            except Exception as error:  # Orbax raises whatever the layer that noticed the damage raised
                problem = error
                print(f"the checkpoint of epoch {epoch} is damaged: {reason(error)}", file=sys.stderr)
                self._manager.delete(epoch)  # it will be written again
                continue
            return restored["state"], records
        if problem is not None:
            raise InputError(
                f"no checkpoint in {self._manager.directory} can be read; --overwrite begins the run anew"
            ) from problem
        return None


@contextmanager
def open_checkpoints(directory: Path) -> Iterator[Checkpoints]:
    """The checkpoints in a folder, made if need be; what is being written is finished on the way out."""
    options = ocp.CheckpointManagerOptions(max_to_keep=2, create=True)
    with ocp.CheckpointManager(directory.absolute(), options=options) as manager:
        yield Checkpoints(manager)


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
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
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
        raise InputError(
            f"{directory} holds no readable checkpoint of weights: {reason(error)}; "
            "make one with python -m experiments.convert model.pth CHECKPOINT"
        ) from error
