"""Weights on disk, with the network that they belong to: a transfer's source, and the `model.pth` of a run."""

import json
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax

from jaxcnn.config.experiment import Head, from_dict
from jaxcnn.config.network import Activation, ModelConfig, Untold
from jaxcnn.config.training import FreezeConfig, Mask
from jaxcnn.errors import InputError, local_path, reason
from jaxcnn.files import is_there
from jaxcnn.masks import freeze_mask, frozen_stages
from jaxcnn.model import CNN, init_variables, key_of
from jaxcnn.weights.card import Described, from_metadata, of_run
from jaxcnn.weights.convert import from_torch, infer_config, to_arrays
from jaxcnn.weights.files import load_file, read_metadata, refuse_folder
from jaxcnn.weights.pretrained import locate_weights
from jaxcnn.weights.state_dicts import find_network
from jaxcnn.weights.transfer import Source, transplant


def read_source(path: Path, given: Untold | None = None) -> Source:
    """Weights from a folder, an Orbax checkpoint, a file of `torch.save` or safetensors, or those of a name.

    A folder is a run's or a published model's; names are those of `jaxcnn.weights.pretrained`. What a weight file
    cannot tell comes from `given`, else from its metadata (of a safetensors file that this program wrote), else from a
    `config.json` beside it, else is assumed.

    Raises:
        InputError: when nothing usable is there, or the weights and the configuration disagree.
    """
    given, path = given or Untold(), locate_weights(path)
    if is_there(path) and path.is_dir():
        file = next((path / name for name in ("model.pth", "model.safetensors") if is_there(path / name)), None)
        if file is None:
            from jaxcnn.weights.weights_only import load_weights

            refuse_folder(path)
            variables, config = load_weights(path)
            if given.told():
                changed = given.change(config)
                variables, config = from_torch(to_arrays(variables, config), changed), changed
            return Source(variables, config, [])
        path = file
    state_dict, assumed, notes = find_network(load_file(path), path)
    beside = path.parent / "config.json"
    where, described = "its metadata", from_metadata(read_metadata(path), path)
    if described is None and is_there(beside):
        where, described = str(beside), _describe_run(beside)
        if described is None:
            notes = [*notes, f"{beside} describes no network of this program and is not used"]
    if described is not None:
        config = given.change(described.model)
        try:
            return Source(from_torch(state_dict, config), config, assumed, notes, described.card)
        except InputError as error:
            raise InputError(f"{path} and the network in {where} disagree: {error}") from error
    config, more = infer_config(state_dict, given)
    return Source(from_torch(state_dict, config), config, [*assumed, *more], notes)


# Fields of `ModelConfig` that another program's section "model" is unlikely to have.
_OWN = {"hidden_dims", "layers_per_block", "apply_pooling", "apply_bn", "num_blocks", "activation_function"}


def _describe_run(path: Path) -> Described | None:
    """What a run's config.json tells of its network; None if the file is another program's."""
    try:
        values = json.loads(path.read_bytes())  # which tells UTF-8 from UTF-16, with a byte order mark or without
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}, which lies beside the weights: {reason(error)}") from error
    section = values.get("model") if isinstance(values, dict) else None
    known = {each.name for each in fields(ModelConfig)}
    if not isinstance(section, dict) or not ((section and section.keys() <= known) or section.keys() & _OWN):
        return None
    model: ModelConfig = from_dict(ModelConfig, section, f"{path}: model.")
    return Described(model, of_run(values, model, path))


@dataclass(frozen=True, eq=False)
class TransferModel:
    """A network that begins with saved weights; unpacks as `model, variables, mask`."""

    model: CNN
    variables: dict[str, Any]
    mask: dict[str, Any]
    """A tree like `variables["params"]` of booleans: True where a parameter trains."""
    assumed: tuple[str, ...]
    """What neither the source nor the arguments told of its network."""
    notes: tuple[str, ...]
    """What of the source was ignored or filled in."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.variables, self.mask))


def create_transfer_model(
    source: Path | str,
    num_classes: int,
    *,
    mask: Mask = "partial",
    freeze_until_block: int = 1,
    head: Head = "fc3",
    seed: int = 0,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
    dropout_rate: float | None = None,
) -> TransferModel:
    """A network for another task from saved weights: `model, variables, mask = create_transfer_model(...)`.

    Args:
        source: a run's folder, a published model's, an Orbax checkpoint, a file that torch.save or safetensors wrote,
            or "cifar10-shallow".
        num_classes: of the target.
        mask: what is frozen; `scratch` ignores the source's weights.
        freeze_until_block: the last block that `partial` freezes, counted from 0.
        head: what is new: the last layer, or the whole classifier.
        seed: of the new layers.
        input_size: what the source's network reads, instead of what its files tell or 32; so with the next two.
        apply_pooling: see `input_size`.
        activation_function: see `input_size`.
        dropout_rate: while fine-tuning; the source's if not given.

    Returns:
        The module, its variables, and the mask of what trains. `optax.selective_transform` takes the opposite, which
        `jaxcnn.freeze_mask` makes. To train with frozen blocks left alone, their running statistics too, apply the
        module with `eval_stages`, the number of stages that the mask freezes (`jaxcnn.masks.frozen_stages`).

    Warns:
        UserWarning: naming what had to be assumed of the source's network, which `assumed` of the result holds too.

    Raises:
        InputError: when the source cannot be read or the mask does not fit its network.
    """
    given = Untold(input_size=input_size, apply_pooling=apply_pooling, activation_function=activation_function)
    read = read_source(local_path("source", source), given)
    if dropout_rate is not None:
        read = read._replace(config=replace(read.config, dropout_rate=dropout_rate))
    made = transplant(read, num_classes=num_classes, head=head, key=key_of(seed))
    freeze = FreezeConfig(mask=mask, freeze_until_block=freeze_until_block)
    frozen = frozen_stages(freeze, made.config, 0)
    variables = dict(init_variables(made.config, key_of(seed))) if mask == "scratch" else made.variables
    trains = jax.tree.map(operator.not_, freeze_mask(variables["params"], made.config, frozen))
    if read.assumed:
        warnings.warn(
            f"{source} does not tell all of its network; assumed: {'; '.join(read.assumed)}. "
            "Where it is otherwise, give the argument of that name, or a file of the right weights alone",
            stacklevel=2,
        )
    return TransferModel(CNN(made.config), variables, trains, tuple(read.assumed), tuple(read.notes))
