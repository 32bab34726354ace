"""PyTorch `state_dict` <-> Flax variables, and the files that hold them.

The names are the original's: `blocks.{i}.{j}`, where j counts convolution, batch norm (if any) and activation of each
layer, then `fc1`, `fc2`, `fc3`. Convolutions go from OIHW to HWIO, linear layers from (out, in) to (in, out); fc1 also
reorders its inputs, because PyTorch flattens feature maps as C, H, W and this network as H, W, C.
"""

import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.config import Activation, ModelConfig, from_dict
from jaxcnn.errors import InputError, reason
from jaxcnn.files import is_there, write_whole

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

    state_dict = {}
    for entry in entries(config):
        node: Any = variables
        for part in entry.path:
            node = node[part]
        array = _from_flax(np.asarray(node), entry.kind, config)
        state_dict[entry.torch_name] = torch.from_numpy(np.array(array, order="C"))  # a copy that torch may own
    return state_dict


def _to_numpy(name: str, value: Any) -> np.ndarray[Any, Any]:
    try:
        if hasattr(value, "detach"):  # a torch tensor; NumPy has no bfloat16
            value = value.detach().cpu()
            value = value.float() if str(value.dtype) in ("torch.bfloat16", "torch.float16") else value
        array = np.asarray(value).copy()  # PyTorch's optimisers write into theirs
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{name!r} is no plain tensor ({reason(error)}); save it as float32") from error
    if array.dtype.kind not in "fiu":
        raise InputError(f"{name!r} holds {array.dtype}, not numbers; a model.pth maps names to tensors")
    return array


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


def infer_config(
    state_dict: StateDict,
    *,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
) -> tuple[ModelConfig, list[str]]:
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
        raise InputError(
            f"these are not the weights of this network: the names must be blocks.0.0.weight ... fc3.bias, "
            f"found {', '.join(map(repr, list(shapes)[:4])) or 'none'}"
        )
    convs = [[s for s in layers[i].values() if len(s) == 4] for i in range(len(layers))]
    norms = [[s for s in layers[i].values() if len(s) == 1] for i in range(len(layers))]
    if any(not conv or conv[0][0] < 1 for conv in convs):
        raise InputError("these are not the weights of this network: every block needs a 3x3 convolution")
    channels = tuple(conv[-1][0] for conv in convs)
    assumed = []
    if activation_function is None:
        activation_function = "relu"
        assumed.append("activation_function=relu")
    if input_size is None:
        input_size = 32
        assumed.append("input_size=32")
    if apply_pooling is None:
        fits = [
            p
            for p in range(min(len(layers), input_size.bit_length() - 1) + 1)
            if channels[-1] * (input_size // 2**p) ** 2 == heads[0][1]
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
    told = {name: getattr(config, name) for name in ("input_size", "apply_pooling", "activation_function")}
    try:
        guess: ModelConfig | None = infer_config(state_dict)[0]
    except InputError:
        guess = None
    words: list[str] = []
    for name, value in told.items():
        if guess is None or getattr(guess, name) != value:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, tuple) else [value])]
    return words


class Source(NamedTuple):
    """Weights from a file or folder, with the network they belong to."""

    variables: dict[str, Any]
    config: ModelConfig
    assumed: list[str]
    """What the files did not tell."""


def read_source(
    path: Path,
    *,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
) -> Source:
    """Weights from a run's folder, an Orbax checkpoint, a `.pth` or a `.safetensors` file.

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
            from jaxcnn.checkpoint import load_weights

            variables, config = load_weights(path)
            if given:
                changed = replace(config, **given)
                variables, config = from_torch(to_torch(variables, config), changed), changed
            return Source(variables, config, [])
        path = path / "model.pth"
    state_dict = read_state_dict(path)
    beside = path.parent / "config.json"
    if beside.exists() and (saved := _saved_model(beside)) is not None:
        config = replace(saved, **given)
        return Source(from_torch(state_dict, config), config, [])
    config, assumed = infer_config(state_dict, **given)
    return Source(from_torch(state_dict, config), config, assumed)


def _saved_model(path: Path) -> ModelConfig | None:
    """The network in a run's config.json; None if the file is somebody else's."""
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read {path}, which lies beside the weights: {reason(error)}") from error
    if not isinstance(values, dict) or "model" not in values:
        return None
    config: ModelConfig = from_dict(ModelConfig, values["model"], f"{path}: model.")
    return config


def read_state_dict(path: Path) -> dict[str, Any]:
    """The tensors of a `.pth`, `.pt` or `.safetensors` file. Never runs code from the file.

    Raises:
        InputError: naming the file, when it is missing, damaged, or holds anything but tensors.
    """
    if not (is_there(path) and path.is_file()):
        raise InputError(f"{path} does not exist; give the path of a model.pth or .safetensors file")
    loaded = _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded or not all(hasattr(v, "shape") for v in loaded.values()):
        raise InputError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
    prefixes = ("_orig_mod.", "module.")  # of torch.compile and DataParallel
    return {_strip(str(name), prefixes): value for name, value in loaded.items()}


def _strip(name: str, prefixes: tuple[str, ...]) -> str:
    while name.startswith(prefixes):
        name = name.removeprefix(next(prefix for prefix in prefixes if name.startswith(prefix)))
    return name


def _read_pickle(path: Path) -> Any:
    import torch

    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                members = archive.infolist()
                declared = sum(member.file_size for member in members)
                if declared > path.stat().st_size:  # torch.save compresses nothing
                    raise InputError(
                        f"{path} would unpack to {declared:,} bytes, more than it holds; it was not read. "
                        "Give a file that torch.save wrote"
                    )
                for member in members:  # torch.load itself looks at no checksum
                    if member.CRC:  # 0 is what PyTorch writes where it was told to compute none
                        archive.read(member)
        return torch.load(path, map_location="cpu", weights_only=True)
    except (InputError, MemoryError):
        raise
    except pickle.UnpicklingError as error:
        if "weights_only" in str(error).lower():
            raise InputError(
                f"{path} holds more than tensors, and reading it could run code; it was not read. "
                "Save model.state_dict() alone and give that file"
            ) from error
        raise InputError(f"{path} is damaged or not a PyTorch file") from error
    except Exception as error:  # the legacy format fails in as many ways as there are bytes
        raise InputError(f"{path} is damaged or not a PyTorch file: {reason(error)}") from error


def _read_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is damaged or not a safetensors file: {reason(error)}") from error


def write_state_dict(path: Path, variables: Variables, config: ModelConfig) -> None:
    """Writes variables as `.pth` or `.safetensors` (by the suffix), whole or not at all."""
    state_dict = to_torch(variables, config)

    def save(temporary: Path) -> None:
        if path.suffix == ".safetensors":
            from safetensors import SafetensorError
            from safetensors.torch import save_file

            try:
                save_file(state_dict, temporary)
            except SafetensorError as error:
                raise OSError(reason(error)) from error
        else:
            import torch

            # By way of memory: given a path, torch.save writes the temporary's name into the file, and hides what
            # the system said when the disk is full.
            whole = io.BytesIO()
            torch.save(state_dict, whole)
            temporary.write_bytes(whole.getvalue())

    write_whole(path, save)
