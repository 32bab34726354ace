"""PyTorch `state_dict` <-> Flax variables, and the network's configuration from names and shapes.

PyTorch's names are those of the original program: `blocks.{i}.{j}` in block i, then `fc1`, `fc2`, `fc3`. The index j
counts all layers of the block, those without weights too:

    blocks.0.0   convolution         params/block_0/conv_0
    blocks.0.1   batch norm          params/block_0/bn_0, batch_stats/block_0/bn_0
    blocks.0.2   activation          (no weights)
    blocks.0.3   convolution         params/block_0/conv_1

Kernels are transposed: convolutions from OIHW to HWIO, dense layers from (out, in) to (in, out). The inputs of fc1 are
reordered too, because PyTorch flattens feature maps as C, H, W and this network as H, W, C.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.config.network import ModelConfig, NetworkOverrides
from jaxcnn.errors import InputError
from jaxcnn.weights.state_dicts import unknown_names

StateDict = Mapping[str, Any]
Variables = Mapping[str, Any]


class Entry(NamedTuple):
    """One tensor, with its name in PyTorch and its path in Flax."""

    torch_name: str
    torch_shape: tuple[int, ...]
    path: tuple[str, ...]
    """Keys into the variables: the collection, the modules and the leaf."""
    kind: str
    """How the array is converted: conv, flatten (fc1, whose input is flattened), linear, vector or count."""


def entries(config: ModelConfig) -> Iterator[Entry]:
    """Yields every tensor of the network, in the order of PyTorch's `state_dict`."""
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
    """Converts a PyTorch `state_dict` to variables `{"params": ..., "batch_stats": ...}` of NumPy arrays.

    Args:
        state_dict: tensors or arrays under the original's names. Their dtypes are kept, except that 16-bit torch
            tensors become float32.
        config: the network that they belong to.

    Raises:
        InputError: listing the tensors that are missing, unexpected, or of a wrong shape or dtype.
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
    """Converts variables to a `state_dict` of torch tensors in PyTorch's order; the inverse of `from_torch`."""
    import torch

    arrays = to_arrays(variables, config)
    return {
        name: torch.from_numpy(np.array(array, order="C")) for name, array in arrays.items()
    }  # a copy, which torch may modify


def to_arrays(variables: Variables, config: ModelConfig) -> dict[str, np.ndarray[Any, Any]]:
    """As `to_torch`, with NumPy arrays instead of tensors. They may be views of the variables."""
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
            _require_dense(name, value)
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value
        array = np.asarray(value).copy()  # a copy, because PyTorch's optimisers update tensors in place
    except InputError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        kind = getattr(value, "dtype", type(value).__name__)
        raise InputError(f"{name!r} holds {kind}, which NumPy does not have; save it as float32") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name!r} holds {array.dtype}, not real numbers; save it as float32")
    return array


def _require_dense(name: str, tensor: Any) -> None:
    """Raises an InputError for meta, quantised, sparse and nested tensors, which are not plain arrays."""
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
    """The configuration that weights were trained with, and the settings that had to be assumed (as text).

    Names and shapes determine everything that the logits depend on, except for three settings: the input size, the
    activation, and which blocks pool. Each of these comes from `given` or is assumed: 32 pixels, ReLU, and pools in the
    first blocks. How many blocks pool follows from the inputs of fc1. For example, 32x32 images, 512 channels and 8,192
    inputs mean 4x4 feature maps, so three pools. Dropout and initialiser get their defaults.

    Raises:
        InputError: when the names are not this network's, when no number of pools fits fc1, or when the resulting
            configuration is invalid.
    """
    shapes = {name: tuple(np.shape(value)) for name, value in state_dict.items()}
    layers: dict[int, dict[int, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        if match := re.fullmatch(r"blocks\.(\d{1,4})\.(\d{1,4})\.weight", name):
            layers.setdefault(int(match[1]), {})[int(match[2])] = shape
    heads = [shapes.get(f"fc{k}.weight", ()) for k in (1, 2, 3)]
    if not layers or sorted(layers) != list(range(len(layers))) or any(len(head) != 2 for head in heads):
        raise InputError(unknown_names(list(shapes)))
    # The file may hold its tensors in any order.
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
    """The flags that have to be given so that `infer_config` returns `config` for these weights."""
    overrides = {field.name: getattr(config, field.name) for field in fields(NetworkOverrides)}
    try:
        guess: ModelConfig | None = infer_config(state_dict)[0]
    except InputError:
        guess = None
    words: list[str] = []
    for name, value in overrides.items():
        if guess is None or getattr(guess, name) != value:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words
