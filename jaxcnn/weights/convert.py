"""PyTorch `state_dict` <-> Flax variables, and what names and shapes tell of the network.

The names are the original's: `blocks.{i}.{j}`, where j counts convolution, batch norm (if any) and activation of each
layer, then `fc1`, `fc2`, `fc3`. Convolutions go from OIHW to HWIO, linear layers from (out, in) to (in, out); fc1 also
reorders its inputs, because PyTorch flattens feature maps as C, H, W and this network as H, W, C.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.config.network import ModelConfig, NetworkOverrides
from jaxcnn.errors import InputError
from jaxcnn.weights.state_dicts import not_this_network

StateDict = Mapping[str, Any]
Variables = Mapping[str, Any]


class Entry(NamedTuple):
    """One tensor in both worlds."""

    torch_name: str
    torch_shape: tuple[int, ...]
    path: tuple[str, ...]
    """Where it is among the variables, collection first."""
    kind: str
    """conv, flatten (fc1, which reads flattened feature maps), linear, vector or count."""


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Every tensor of the network, in the order of PyTorch's `state_dict`."""
    in_channels = config.in_channels
    for i, channels in enumerate(config.channels):
        j = 0
        for layer in range(config.layers_per_block[i]):
            torch_name, module = f"blocks.{i}.{j}", ("params", f"block_{i}", f"conv_{layer}")
            yield Entry(f"{torch_name}.weight", (channels, in_channels, 3, 3), (*module, "kernel"), "conv")
            yield Entry(f"{torch_name}.bias", (channels,), (*module, "bias"), "vector")
            if config.apply_bn[i]:
                j += 1
                torch_name, place = f"blocks.{i}.{j}", (f"block_{i}", f"bn_{layer}")
                for leaf, collection, name in (
                    ("weight", "params", "scale"),
                    ("bias", "params", "bias"),
                    ("running_mean", "batch_stats", "mean"),
                    ("running_var", "batch_stats", "var"),
                ):
                    yield Entry(f"{torch_name}.{leaf}", (channels,), (collection, *place, name), "vector")
                yield Entry(f"{torch_name}.num_batches_tracked", (), ("batch_stats", *place, "count"), "count")
            j += 2  # past the activation
            in_channels = channels
    fan_in = in_channels * config.final_size**2
    for name, width in zip(("fc1", "fc2", "fc3"), (*config.hidden_dims[-2:], config.num_classes), strict=True):
        kind = "flatten" if name == "fc1" else "linear"
        yield Entry(f"{name}.weight", (width, fan_in), ("params", name, "kernel"), kind)
        yield Entry(f"{name}.bias", (width,), ("params", name, "bias"), "vector")
        fan_in = width


def from_torch(state_dict: StateDict, config: ModelConfig) -> dict[str, Any]:
    """Variables `{"params": ..., "batch_stats": ...}` (NumPy arrays, dtypes kept) of a PyTorch `state_dict`.

    Args:
        state_dict: tensors or arrays under the original's names.
        config: the network they belong to.

    Raises:
        InputError: listing every name that is missing, unexpected, or has another shape than `config` says.
    """
    arrays = {name: _to_numpy(name, value) for name, value in state_dict.items()}
    wanted = {entry.torch_name: entry for entry in entries(config)}
    problems = [f"{name} is missing" for name in wanted if name not in arrays]
    problems += [f"{name!r} is not part of the network" for name in arrays if name not in wanted]
    problems += [
        f"{name} has shape {arrays[name].shape}, not {entry.torch_shape}"
        for name, entry in wanted.items()
        if name in arrays and arrays[name].shape != entry.torch_shape
    ]
    problems += [
        f"{name} holds {arrays[name].dtype}, not floating-point numbers"
        for name, entry in wanted.items()
        if name in arrays and entry.kind != "count" and arrays[name].dtype.kind != "f"
    ]
    if problems:
        shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
        raise InputError(f"the weights do not fit the network: {shown}. Give the configuration they were trained with")
    variables: dict[str, Any] = {"params": {}, "batch_stats": {}}
    for name, entry in wanted.items():
        *parents, leaf = entry.path
        node = variables
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = _to_flax(arrays[name], entry.kind, config)
    return variables


def to_torch(variables: Variables, config: ModelConfig) -> dict[str, Any]:
    """The `state_dict` (torch tensors, PyTorch's names and order) of variables; the inverse of `from_torch`."""
    import torch

    arrays = to_arrays(variables, config)
    return {name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()}  # torch may own it


def to_arrays(variables: Variables, config: ModelConfig) -> dict[str, np.ndarray[Any, Any]]:
    """As `to_torch`, but NumPy arrays in place of tensors. They may be views of the variables."""
    arrays = {}
    for entry in entries(config):
        node: Any = variables
        for part in entry.path:
            node = node[part]
        arrays[entry.torch_name] = _from_flax(np.asarray(node), entry.kind, config)
    return arrays


def _to_numpy(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        if hasattr(value, "detach"):
            _refuse_odd(name, value)
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value
        array = np.asarray(value).copy()  # PyTorch's optimisers write into theirs
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise InputError(f"{name!r} holds {kind}, which NumPy does not have; save it as float32") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name!r} holds {array.dtype}, not real numbers; save it as float32")
    return array


def _refuse_odd(name: str, tensor: Any) -> None:
    """Refuses a torch tensor that is more or less than an array, whatever PyTorch itself would say of it."""
    if tensor.is_meta:
        raise InputError(f"{name!r} is a meta tensor, without data; load the weights into the network, then save them")
    if tensor.is_quantized:
        raise InputError(f"{name!r} is a quantised tensor; save the network as it was before")
    if tensor.is_nested or str(tensor.layout) != "torch.strided":
        raise InputError(f"{name!r} is a sparse or nested tensor ({tensor.layout}); save tensor.to_dense()")


def _to_flax(array: np.ndarray[Any, Any], kind: str, config: ModelConfig) -> np.ndarray[Any, Any]:
    if kind == "conv":
        return array.transpose(2, 3, 1, 0)
    if kind == "flatten":
        size = config.final_size
        return array.reshape(len(array), -1, size, size).transpose(2, 3, 1, 0).reshape(-1, len(array))
    if kind == "linear":
        return array.T
    return array.astype(np.int32) if kind == "count" else array


def _from_flax(array: np.ndarray[Any, Any], kind: str, config: ModelConfig) -> np.ndarray[Any, Any]:
    if kind == "conv":
        return array.transpose(3, 2, 0, 1)
    if kind == "flatten":
        size, width = config.final_size, array.shape[1]
        return array.reshape(size, size, -1, width).transpose(3, 2, 0, 1).reshape(width, -1)
    if kind == "linear":
        return array.T
    return array.astype(np.int64) if kind == "count" else array


def infer_config(state_dict: StateDict, given: NetworkOverrides | None = None) -> tuple[ModelConfig, list[str]]:
    """The configuration that weights were trained with, and what had to be assumed.

    Shapes and names tell everything but the input size, which blocks pool, and the activation. The number of poolings
    follows from the input size and fc1; the first blocks are assumed to have them.

    Raises:
        InputError: when the names are not this network's, or no number of poolings fits fc1.
    """
    shapes = {name: tuple(np.shape(value)) for name, value in state_dict.items()}
    layers: dict[int, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"blocks\.(\d{1,4})\.(\d{1,4})\.weight", name):
            layers.setdefault(int(match[1]), {})[int(match[2])] = shape
    heads = [shapes.get(f"fc{k}.weight", ()) for k in (1, 2, 3)]
    if not layers or sorted(layers) != list(range(len(layers))) or any(len(head) != 2 for head in heads):
        raise InputError(not_this_network(list(shapes)))
    # A file may hold its tensors in any order.
    ordered = [[layers[i][j] for j in sorted(layers[i])] for i in range(len(layers))]
    convs = [[shape for shape in block if len(shape) == 4] for block in ordered]
    norms = [[shape for shape in block if len(shape) == 1] for block in ordered]
    if any(not conv or conv[0][0] < 1 for conv in convs):
        raise InputError("these are not the weights of this network: every block needs a 3x3 convolution")
    channels = tuple(conv[-1][0] for conv in convs)
    assumed = []
    given = given or NetworkOverrides()
    activation_function = given.activation_function or "relu"
    if given.activation_function is None:
        assumed.append("activation_function=relu")
    input_size = given.input_size or 32
    if given.input_size is None:
        assumed.append("input_size=32")
    apply_pooling = given.apply_pooling
    if apply_pooling is None:
        fits = [
            p
            for p in range(len(layers) + 1)
            if input_size >> p > 0 and channels[-1] * (input_size >> p) ** 2 == heads[0][1]
        ]
        if not fits:
            raise InputError(
                f"fc1.weight reads {heads[0][1]} values, which no pooling of {input_size}x{input_size} images into "
                f"{channels[-1]} channels gives; state the input size and which blocks pool"
            )
        apply_pooling = tuple(int(i < fits[0]) for i in range(len(layers)))
        assumed.append(f"apply_pooling={list(apply_pooling)} (the first blocks pool)")
    config = ModelConfig(
        input_size=input_size,
        in_channels=convs[0][0][1],
        num_classes=heads[2][0],
        hidden_dims=(*channels, heads[0][0], heads[1][0]),
        layers_per_block=tuple(len(conv) for conv in convs),
        apply_pooling=apply_pooling,
        apply_bn=tuple(int(bool(norm)) for norm in norms),
        num_blocks=len(layers),
        activation_function=activation_function,
    )
    return config, assumed


def flags_to_read(state_dict: StateDict, config: ModelConfig) -> list[str]:
    """The command line's words without which `infer_config` takes these weights for those of another network."""
    told = {field.name: getattr(config, field.name) for field in fields(NetworkOverrides)}
    try:
        guess: ModelConfig | None = infer_config(state_dict)[0]
    except InputError:
        guess = None
    words: list[str] = []
    for name, value in told.items():
        if guess is None or getattr(guess, name) != value:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words
