"""Finding the network's tensors in what a training program saved.

Training programs wrap a state_dict in dictionaries, add prefixes, and save other things with it. For example,

    {"epoch": 3, "model": {"module.net.blocks.0.0.weight": ..., "module.net.fc1.weight": ...}, "optimizer": {...}}

holds the tensors `blocks.0.0.weight` and `fc1.weight`, found in the dictionary "model" under the prefix "net.". The
same rules apply to all files:

- Search: every dictionary in the file, at any depth and in lists too, except optimiser states (`optimizer`,
  `opt_state` and similar keys).
- Strip: the names that wrappers insert anywhere (`module`, `_orig_mod`, `_fsdp_wrapped_module`, ...), and any prefix
  that all of the network's tensors share.
- Choose: the only complete network. If there are several, the only moving or stochastic average among them (its name
  contains `ema`, `swa` or `average`, or it has an `n_averaged`), because training programs evaluate that one. An
  average with `n_averaged` 0 does not count. Anything else is ambiguous and refused.
- Ignore everything outside of the chosen network's prefix, and report it. Everything under the prefix must belong to
  the network.
- Refuse a tensor that is there twice, under names that become the same.
- Set a missing `num_batches_tracked` (PyTorch before 0.4.1) to 0, and report it.
"""

import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.errors import InputError

_WRAPPERS = frozenset(
    {
        "module",  # DataParallel, DistributedDataParallel, AveragedModel
        "_orig_mod",  # torch.compile
        "_fsdp_wrapped_module",
        "_fpw_module",  # FSDP of fairscale
        "_checkpoint_wrapped_module",
        "_forward_module",  # Lightning's strategies
    }
)
_NAME = re.compile(
    r"(|.*\.)(blocks\.\d{1,4}\.\d{1,4}|fc[123])\.(weight|bias|running_mean|running_var|num_batches_tracked)"
)
_SAVE = "save model.state_dict() of the network alone"
_LEAST = {"blocks.0.0.weight", "fc1.weight", "fc2.weight", "fc3.weight"}
_OPTIMISER = re.compile(r"(?i)opt(im(i[sz]ers?)?)?([_-]?states?([_-]?dicts?)?)?|optimi[sz]ers?[_-].*")
_AVERAGE = re.compile(r"(?i)(^|[._])(ema|swa|avg|averaged?)($|[._])")

# Tensors that represent a weight in another form: a pattern for the name, what made them, and the remedy.
_FORMS: tuple[tuple[str, str, str], ...] = (
    (r"lora_|\.base_layer\.|\bhada_", "an adapter (LoRA, PEFT)", "merge it (merge_and_unload)"),
    (
        r"\bparametrizations\.",
        "torch.nn.utils.parametrize, as weight_norm and spectral_norm use it",
        "take it off with torch.nn.utils.parametrize.remove_parametrizations(module, 'weight')",
    ),
    (r"\bweight_[gv]$", "weight_norm", "take it off with torch.nn.utils.remove_weight_norm(module)"),
    (r"\bweight_u$", "spectral_norm", "take it off with torch.nn.utils.remove_spectral_norm(module)"),
    (r"\bweight_mask$", "pruning", "make it permanent with torch.nn.utils.prune.remove(module, 'weight')"),
    (
        r"_packed_params|\b(zero_point|qweight|absmax|SCB)$",
        "quantisation",
        "use the network before it was quantised",
    ),
)


class Weights(NamedTuple):
    """The network's tensors in a weight file, under the original program's names."""

    tensors: dict[str, Any]
    assumed: list[str]
    """Which of several networks was chosen, as text."""
    notes: list[str]
    """What was ignored, and what was filled in, as text."""


class _Network(NamedTuple):
    """The tensors under one prefix of one dictionary."""

    keys: tuple[Any, ...]
    """The keys that lead to the dictionary."""
    prefix: str
    tensors: dict[str, Any]
    others: list[str]
    """The other keys of the dictionary."""
    averaged: int | None
    """The value of `n_averaged`: the number of states in the average. None if there is no such tensor."""

    @property
    def place(self) -> str:
        return ".".join([*map(str, self.keys), self.prefix]).strip(".") or "the top level"

    @property
    def is_average(self) -> bool:
        return self.averaged is not None or _AVERAGE.search(self.place) is not None

    @property
    def is_whole(self) -> bool:
        norms = [n for n, t in self.tensors.items() if re.fullmatch(r"blocks\..*\.weight", n) and t.ndim == 1]
        return self.tensors.keys() >= _LEAST | {name.replace(".weight", ".running_mean") for name in norms}


def find_network(loaded: object, path: Path) -> Weights:
    """Finds the network's tensors in the content of a file, by the rules above.

    Raises:
        InputError: naming the file, when there is no network, or when it is ambiguous which one is meant.
    """
    found = [network for keys, table in _dictionaries(loaded) for network in _networks(keys, table, path)]
    if not any(network.is_whole for network in found):
        names = {str(key): _is_tensor(value) for _, table in _dictionaries(loaded) for key, value in table.items()}
        _refuse_other_forms(names, path)
        if not any(names.values()):
            raise InputError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
        if len(found) != 1:
            together = {name for network in found for name in network.tensors}
            if together >= _LEAST:
                raise InputError(f"{path} holds parts of a network in {_places(found)}; {_SAVE}")
            raise InputError(f"{path}: {unknown_names([name for name, tensor in names.items() if tensor])}")
    network, assumed = _choose(found, path)
    _refuse_other_forms(network.tensors, path)
    tensors, notes = dict(network.tensors), []
    if network.averaged == 0:
        notes.append(
            f"{_printable(network.place)} has averaged nothing yet (n_averaged is 0): these are its initial weights"
        )
    counts = [name.replace(".running_var", ".num_batches_tracked") for name in tensors if name.endswith(".running_var")]
    if missing := [name for name in counts if name not in tensors]:
        import torch

        tensors.update({name: torch.tensor(0) for name in missing})
        notes.append(f"not in the file, and set to 0: {_list_names(missing)}")
    if ignored := [*_siblings(network.keys, loaded), *network.others]:
        notes.append(f"ignored: {_list_names(ignored)}")
    return Weights(tensors, assumed, notes)


def unknown_names(names: Sequence[str]) -> str:
    """The message for weights whose names are not this network's."""
    return (
        "these are not the weights of this network: the names must be blocks.0.0.weight ... fc3.bias, "
        f"found {', '.join(map(repr, names[:4])) or 'none'}"
    )


def _dictionaries(loaded: object) -> Iterator[tuple[tuple[Any, ...], Mapping[Any, Any]]]:
    """Yields every dictionary that is not an optimiser's, as (keys that lead to it, dictionary)."""
    pending: deque[tuple[tuple[Any, ...], object]] = deque([((), loaded)])
    seen = set()
    while pending:
        keys, table = pending.popleft()
        if isinstance(table, Mapping) and id(table) not in seen:
            seen.add(id(table))  # a pickled dictionary may contain itself
            yield keys, table
            pending += [((*keys, key), value) for key, value in table.items() if not _OPTIMISER.fullmatch(str(key))]
        elif isinstance(table, (list, tuple)):
            pending += [((*keys, i), value) for i, value in enumerate(table)]


def _networks(keys: tuple[Any, ...], table: Mapping[Any, Any], path: Path) -> Iterator[_Network]:
    """Yields the networks in a dictionary: one for each prefix under which there are names of this network."""
    origins: dict[str, Any] = {}
    for key, value in table.items():
        name = ".".join(part for part in str(key).split(".") if part not in _WRAPPERS)
        if _is_tensor(value) and origins.setdefault(name, key) != key and _NAME.fullmatch(name):
            raise InputError(f"{path} holds {origins[name]!r} and {key!r}, which are one tensor; save one of them")
    prefixes = {match[1] for name in origins if (match := _NAME.fullmatch(name))}
    for prefix in sorted(prefixes):
        longer = tuple(each for each in prefixes if len(each) > len(prefix))
        own = [name for name in origins if name.startswith(prefix) and not name.startswith(longer)]
        tensors = {name.removeprefix(prefix): table[origins[name]] for name in own}
        averaged = _to_int(tensors.pop("n_averaged", None))
        known = {origins[name] for name in own}
        yield _Network(keys, prefix, tensors, [str(key) for key in table if key not in known], averaged)


def _choose(found: Sequence[_Network], path: Path) -> tuple[_Network, list[str]]:
    whole = [network for network in found if network.is_whole]
    if not whole:
        (part,) = found
        return part, []  # `from_torch` will name the missing tensors
    trained = [network for network in whole if network.averaged != 0] or whole
    network, *more = [each for each in trained if each.is_average] or trained
    if more:
        raise InputError(f"{path} holds several networks, in {_places([network, *more])}; save only one of them")
    for other in found:
        twice = [name for name in other.tensors if name in network.tensors and not other.is_whole]
        if twice and other.keys == network.keys:
            names = f"{network.prefix + twice[0]!r} and {other.prefix + twice[0]!r}"
            raise InputError(f"{path} holds {names}, which are one tensor; save one of them")
    if len(whole) == 1:
        return network, []
    why = "an average" if network.is_average else "the average has averaged nothing yet"
    unused = _places([each for each in whole if each is not network])
    return network, [f"the weights in {_printable(network.place)} ({why}), not those in {unused}"]


def _siblings(keys: tuple[Any, ...], table: Any) -> list[str]:
    """Dotted names of everything that is not in the dictionary at `keys` but beside it or one of its parents."""
    names = []
    for depth, key in enumerate(keys):
        others = table if isinstance(table, Mapping) else range(len(table))
        names += [".".join(map(str, (*keys[:depth], other))) for other in others if other != key]
        table = table[key]
    return names


def _refuse_other_forms(names: Iterable[str], path: Path) -> None:
    for name in names:
        for pattern, what, remedy in _FORMS:
            if re.search(pattern, name):
                raise InputError(
                    f"{path} holds {name!r}, which comes from {what}; {remedy}, then save model.state_dict()"
                )


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach")  # without importing PyTorch


def _to_int(tensor: Any) -> int | None:
    try:
        return int(tensor)
    except (ValueError, TypeError, RuntimeError):  # None, several elements, or a meta tensor
        return None


def _printable(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _places(networks: Sequence[_Network]) -> str:
    names = [_printable(network.place) for network in networks]
    return " and ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(map(_printable, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
