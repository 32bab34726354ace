"""Weights on disk, with the network that they belong to: a transfer's source, and the `model.pth` of a run."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.config import Activation, ModelConfig, from_dict
from jaxcnn.convert import from_torch, infer_config, to_arrays
from jaxcnn.errors import InputError, reason
from jaxcnn.files import is_there, write_whole
from jaxcnn.state_dicts import find_network
from jaxcnn.torch_file import save_torch_file
from jaxcnn.weight_files import load_file, refuse_folder


class Source(NamedTuple):
    """Weights from a file or folder, with the network they belong to."""

    variables: dict[str, Any]
    config: ModelConfig
    assumed: list[str]
    """What the files did not tell."""
    notes: Sequence[str] = ()
    """What else there is to say of how they were read."""


def read_source(
    path: Path,
    *,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
) -> Source:
    """Weights from a run's folder, an Orbax checkpoint, or a file that `torch.save` or safetensors wrote.

    What a weight file cannot tell comes from the arguments, else from a `config.json` beside it, else is assumed.

    Raises:
        InputError: when nothing usable is there, or the weights and the configuration disagree.
    """
    given: dict[str, Any] = {
        name: value
        for name, value in (
            ("input_size", input_size),
            ("apply_pooling", apply_pooling),
            ("activation_function", activation_function),
        )
        if value is not None
    }
    if is_there(path) and path.is_dir():
        if not is_there(path / "model.pth"):
            from jaxcnn.weights_checkpoint import load_weights

            refuse_folder(path)
            variables, config = load_weights(path)
            if given:
                changed = replace(config, **given)
                variables, config = from_torch(to_arrays(variables, config), changed), changed
            return Source(variables, config, [])
        path = path / "model.pth"
    state_dict, assumed, notes = find_network(load_file(path), path)
    beside = path.parent / "config.json"
    if is_there(beside):
        saved = _saved_model(beside)
        if saved is not None:
            config = replace(saved, **given)
            try:
                return Source(from_torch(state_dict, config), config, assumed, notes)
            except InputError as error:
                raise InputError(f"{path} and the network in {beside} disagree: {error}") from error
        notes = [*notes, f"{beside} describes no network of this program and is not used"]
    config, more = infer_config(state_dict, **given)
    return Source(from_torch(state_dict, config), config, [*assumed, *more], notes)


# Fields of `ModelConfig` that another program's section "model" is unlikely to have.
_OWN = {"hidden_dims", "layers_per_block", "apply_pooling", "apply_bn", "num_blocks", "activation_function"}


def _saved_model(path: Path) -> ModelConfig | None:
    """The network in a run's config.json; None if the file is another program's."""
    try:
        values = json.loads(path.read_bytes())  # which tells UTF-8 from UTF-16, with a byte order mark or without
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}, which lies beside the weights: {reason(error)}") from error
    section = values.get("model") if isinstance(values, dict) else None
    known = {each.name for each in fields(ModelConfig)}
    if not isinstance(section, dict) or not ((section and section.keys() <= known) or section.keys() & _OWN):
        return None
    config: ModelConfig = from_dict(ModelConfig, section, f"{path}: model.")
    return config


def read_state_dict(path: Path) -> dict[str, Any]:
    """The network's tensors in a file that `torch.save` or safetensors wrote, by the rule of `jaxcnn.state_dicts`.

    Raises:
        InputError: naming the file, when it is missing or damaged, or holds no such network or several.
    """
    return find_network(load_file(path), path).tensors


def write_state_dict(path: Path, variables: Mapping[str, Any], config: ModelConfig) -> None:
    """Writes variables as `.pth` or `.safetensors` (by the suffix), whole or not at all."""
    arrays = to_arrays(variables, config)

    def save(temporary: Path) -> None:
        if path.suffix != ".safetensors":
            return save_torch_file(temporary, arrays)
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        try:
            save_file({name: np.array(array, order="C") for name, array in arrays.items()}, temporary)
        except SafetensorError as error:
            raise OSError(reason(error)) from error

    write_whole(path, save)
