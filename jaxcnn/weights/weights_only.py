"""Orbax checkpoints of weights and their network, without the state of a training run."""

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from jaxcnn.config.experiment import from_dict
from jaxcnn.config.network import ModelConfig
from jaxcnn.errors import InputError, JaxcnnError, MachineError, reason, unreadable
from jaxcnn.files import is_there, whole_folder
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.model import init_variables, key_of
from jaxcnn.weights.checkpoint import open_checkpoints, quiet_orbax, require_same_arrays


def save_weights(directory: Path, variables: Any, config: ModelConfig, *, overwrite: bool = False) -> None:
    """Writes variables and their configuration atomically as an Orbax checkpoint.

    Args:
        directory: the checkpoint's folder.
        variables: the weights.
        config: their network.
        overwrite: replace an existing checkpoint.

    Raises:
        InputError: when the folder exists, unless `overwrite` is given and it is an Orbax checkpoint.
        MachineError: when it cannot be written.
    """
    if is_there(directory) and not (overwrite and (directory / "_CHECKPOINT_METADATA").exists()):
        raise InputError(f"cannot write the checkpoint {directory}: it exists; give another destination")
    try:
        with (
            whole_folder(directory) as new,
            quiet_orbax(),
            ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer,
        ):
            items = {"variables": ocp.args.StandardSave(variables), "model": ocp.args.JsonSave(asdict(config))}
            checkpointer.save(new, args=ocp.args.Composite(**items), force=True)  # over the empty folder
    except Exception as error:  # Orbax raises whatever the layer below raised
        raise MachineError(
            f"cannot write the checkpoint {directory}: {reason(error)}; free space or give another destination"
        ) from error


@fixed_settings()
def load_weights(directory: Path) -> tuple[dict[str, Any], ModelConfig]:
    """Reads variables (NumPy arrays) and configuration from a checkpoint that `save_weights` or a run wrote.

    Args:
        directory: the checkpoint's folder. For a run, one of the folders in `checkpoints`, or `checkpoints` itself for
            the last one.

    Raises:
        InputError: when the folder has no checkpoint, or a damaged one.
    """
    for home, step in ((directory, None), (directory.parent, directory.name)):
        if home.name == "checkpoints" and (home.parent / "config.json").exists():
            return _load_from_run(home, step)
    try:
        with quiet_orbax(), ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
            restored = checkpointer.restore(
                directory.absolute(),
                args=ocp.args.Composite(
                    variables=ocp.args.StandardRestore(),
                    model=ocp.args.JsonRestore(),
                ),
            )
        variables = jax.device_get(restored["variables"])
        return {"batch_stats": {}, **variables}, from_dict(ModelConfig, restored["model"], "model.")
    except (JaxcnnError, MemoryError):
        raise
    except Exception as error:  # Orbax passes on any exception of the layers below
        why, later = reason(error), unreadable(directory, error)
    # Outside of the handler: inside, the traceback would keep Orbax's objects alive.
    raise later or InputError(
        f"{directory} holds no readable checkpoint of weights: {why}; make one with jaxcnn convert model.pth CHECKPOINT"
    )


def _load_from_run(home: Path, step: str | None) -> tuple[dict[str, Any], ModelConfig]:
    """As `load_weights`, for a run's checkpoint after `step`, or the last one if None."""
    try:
        config = json.loads((home.parent / "config.json").read_bytes())
        model: ModelConfig = from_dict(ModelConfig, config["model"], "model.")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f"{home.parent / 'config.json'} does not describe these checkpoints: {reason(error)}"
        ) from error
    with open_checkpoints(home, read_only=True) as checkpoints:
        variables = checkpoints.read_weights(step)
    wanted = jax.eval_shape(partial(init_variables, model), key_of(0))
    require_same_arrays(home, variables, {name: wanted[name] for name in variables})
    return variables, model
