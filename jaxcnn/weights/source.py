"""Loading saved weights together with their network's configuration, and starting a transfer from them."""

import json
import operator
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import jax

from jaxcnn import masks
from jaxcnn.config.experiment import Head, TransferConfig, from_dict
from jaxcnn.config.network import Activation, ModelConfig, NetworkOverrides
from jaxcnn.config.training import FreezeConfig, Mask
from jaxcnn.errors import InputError, local_path, reason
from jaxcnn.files import is_there
from jaxcnn.model import CNN, key_of
from jaxcnn.weights import transfer
from jaxcnn.weights.card import NetworkDescription, card_of_run, from_metadata
from jaxcnn.weights.convert import from_torch, infer_config, to_arrays
from jaxcnn.weights.files import load_file, read_metadata, refuse_folder
from jaxcnn.weights.pretrained import locate_weights
from jaxcnn.weights.state_dicts import find_network
from jaxcnn.weights.transfer import Source


def read_source(path: Path, given: NetworkOverrides | None = None) -> Source:
    """Reads weights from a folder, an Orbax checkpoint, a file that `torch.save` or safetensors wrote, or by name.

    A folder is a run's or a published model's. Names are those of `jaxcnn.weights.pretrained`.

    A setting that a weight file does not contain comes from the first of these that has it:

    1. `given`
    2. the metadata of the file, if it is a safetensors file that this program wrote
    3. a `config.json` beside the file
    4. a default, which the result lists in `assumed`

    Raises:
        InputError: when there are no usable weights, or the weights and the configuration disagree.
    """
    given, path = given or NetworkOverrides(), locate_weights(path)
    if is_there(path) and path.is_dir():
        file = next((path / name for name in ("model.pth", "model.safetensors") if is_there(path / name)), None)
        if file is None:
            from jaxcnn.weights.weights_only import load_weights

            refuse_folder(path)
            if is_there(path / "config.json") and is_there(path / "checkpoints"):
                raise InputError(
                    f"{path} is a run without weights: no epoch of it has ended, or its model.pth was removed; give "
                    f"again the command that began it, which continues, or take {path / 'checkpoints'}"
                )
            variables, config = load_weights(path)
            if given.values():
                changed = given.apply(config)
                variables, config = from_torch(to_arrays(variables, config), changed), changed
            return Source(variables, config, [])
        path = file
    state_dict, assumed, notes = find_network(load_file(path), path)
    beside = path.parent / "config.json"
    where, described = "its metadata", from_metadata(read_metadata(path), path)
    if described is None and is_there(beside):
        where, described = str(beside), _describe_run(beside)
        if described is None:
            notes = [*notes, f"{beside} does not describe a network of this program and is ignored"]
    if described is not None:
        config = given.apply(described.model)
        try:
            return Source(from_torch(state_dict, config), config, assumed, notes, described.card)
        except InputError as error:
            raise InputError(f"{path} and the network in {where} disagree: {error}") from error
    config, more = infer_config(state_dict, given)
    return Source(from_torch(state_dict, config), config, [*assumed, *more], notes)


# Fields of `ModelConfig` by which a config.json of this program is recognised.
_OWN = {"hidden_dims", "layers_per_block", "apply_pooling", "apply_bn", "num_blocks", "activation_function"}


def _describe_run(path: Path) -> NetworkDescription | None:
    """Reads the network and its card from a run's config.json; None if another program wrote the file."""
    try:
        values = json.loads(path.read_bytes())  # bytes, so that json detects UTF-8 and UTF-16
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}, which is beside the weights: {reason(error)}") from error
    section = values.get("model") if isinstance(values, dict) else None
    known = {each.name for each in fields(ModelConfig)}
    if not isinstance(section, dict) or not ((section and section.keys() <= known) or section.keys() & _OWN):
        return None
    model: ModelConfig = from_dict(ModelConfig, section, f"{path}: model.")
    return NetworkDescription(model, card_of_run(values, model, path))


@dataclass(frozen=True, eq=False)
class TransferModel:
    """A network that starts from saved weights. It unpacks to `model, variables, mask`."""

    model: CNN
    variables: dict[str, Any]
    mask: dict[str, Any]
    """A pytree of bools with the structure of `variables["params"]`, True for trained parameters."""
    assumed: tuple[str, ...]
    """Settings of the network that neither the source nor the arguments gave, as text."""
    notes: tuple[str, ...]
    """What was ignored in the source or filled in, as text."""

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.variables, self.mask))


def create_transfer_model(
    source: Path | str,
    num_classes: int,
    *,
    mask: Mask | None = None,
    freeze_until_block: int = 1,
    frozen_stages: int | None = None,
    head: Head = "fc3",
    copied_stages: int | None = None,
    seed: int = 0,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
    dropout_rate: float | None = None,
) -> TransferModel:
    """Creates a network for another task from saved weights.

    Example:
        ```python
        model, variables, mask = create_transfer_model("runs/cifar10", num_classes=5, mask="frozen")
        ```

    Args:
        source: a run's folder, a published model's folder, an Orbax checkpoint, a file that torch.save or safetensors
            wrote, or "cifar10-shallow".
        num_classes: number of classes of the new task.
        mask: `frozen` freezes all blocks, `partial` blocks 0 to `freeze_until_block`, `full` nothing. `scratch` freezes
            nothing and ignores the source's weights. If not given, `partial`, or what `frozen_stages` says.
        freeze_until_block: the last block that `partial` freezes, counted from 0.
        frozen_stages: number of frozen stages, counted from the input; replaces a mask.
        head: which layers start with new weights: fc3, or all of fc1, fc2 and fc3.
        copied_stages: number of stages that start with the source's weights, counted from the input; replaces `head`.
        seed: seed of the new weights.
        input_size: height and width of the source network's input; if not given, what its files say, or 32.
        apply_pooling: whether (1 or 0) each block ends in a pool; if not given, what the files say, or the first
            blocks.
        activation_function: the activation; if not given, what the files say, or ReLU.
        dropout_rate: dropout rate of fine-tuning; the source's if not given.

    Returns:
        The Flax module, its variables, and a mask that is True for trained parameters. optax wants the opposite, which
        `jaxcnn.freeze_mask` makes. To keep the batch statistics of frozen blocks unchanged too, apply the module with
        `eval_stages`, the number of frozen stages (`jaxcnn.masks.frozen_stages`).

    Warns:
        UserWarning: naming the settings of the source's network that had to be assumed. They are in `assumed` too.

    Raises:
        InputError: when the source cannot be read, or its network has no such stages.
    """
    given = NetworkOverrides(
        input_size=input_size, apply_pooling=apply_pooling, activation_function=activation_function
    )
    read = read_source(local_path("source", source), given)
    if dropout_rate is not None:
        read = read._replace(config=replace(read.config, dropout_rate=dropout_rate))
    freeze = FreezeConfig(
        mask=mask or ("partial" if frozen_stages is None else "full"),
        freeze_until_block=freeze_until_block,
        frozen_stages=frozen_stages,
    )
    copied = transfer.copied_stages(TransferConfig(freeze=freeze, head=head, copied_stages=copied_stages), read.config)
    made = transfer.transplant(read, num_classes=num_classes, copied_stages=copied, key=key_of(seed))
    frozen = masks.frozen_stages(freeze, made.config, 0)
    trains = jax.tree.map(operator.not_, masks.freeze_mask(made.variables["params"], made.config, frozen))
    if read.assumed:
        warnings.warn(
            f"{source} does not describe its network completely; assumed: {'; '.join(read.assumed)}. "
            "If that is wrong, give the argument of that name, or a file with only the right weights",
            stacklevel=2,
        )
    return TransferModel(CNN(made.config), made.variables, trains, tuple(read.assumed), tuple(read.notes))
