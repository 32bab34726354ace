"""The network's tensors in what training programs save: wrapped in dictionaries, under prefixes, beside other things.

One rule, whatever program wrote the file:

- Stripped: the names that wrappers put into those of tensors, wherever they stand (`module`, `_orig_mod`,
  `_fsdp_wrapped_module` and the like), and the prefix, whatever it is, under which the network lies.
- Searched: every dictionary in the file, however deep and in whatever list, except those of optimisers (`optimizer`,
  `opt_state` and the like).
- Chosen: the one complete set of tensors under the original's names. Of several, the one that is a moving or
  stochastic average (`ema`, `swa` or `average` in its name, or counted by `n_averaged`), as it is the one that training
  programs evaluate; never an average of nothing. Anything else is ambiguous, and refused.
- Ignored, and told: all that lies elsewhere. What lies under the network's own prefix must belong to it.
- A tensor that is there twice, under names that become one, is refused.
- Batch norms without `num_batches_tracked` (PyTorch before 0.4.1) get 0, which is told.
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

# Names of tensors that stand for a weight in another form: what they come of, and the remedy.
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
    """The tensors of a weight file under the original's names."""

    tensors: dict[str, Any]
    assumed: list[str]
    """What was chosen among several."""
    notes: list[str]
    """What was ignored, and what was filled in."""


class _Network(NamedTuple):
    """The tensors under one prefix of one dictionary."""

    keys: tuple[Any, ...]
    """Those that lead to the dictionary."""
    prefix: str
    tensors: dict[str, Any]
    others: list[str]
    """What else the dictionary holds."""
    averaged: int | None
    """How many states it is the average of, if it says so."""

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
    """The network's tensors in what a file held, by the rule above.

    Raises:
        InputError: naming the file, when there is no such network, or several that could be meant.
    """
    found = [network for keys, table in _tables(loaded) for network in _networks(keys, table, path)]
    if not any(network.is_whole for network in found):
        names = {str(key): _is_tensor(value) for _, table in _tables(loaded) for key, value in table.items()}
        _refuse_other_forms(names, path)
        if not any(names.values()):
            raise InputError(f"{path} holds no state_dict; save one with torch.save(model.state_dict(), path)")
        if len(found) != 1:
            together = {name for network in found for name in network.tensors}
            if together >= _LEAST:
                raise InputError(f"{path} holds parts of a network in {_places(found)}; {_SAVE}")
            raise InputError(f"{path}: {not_this_network([name for name, tensor in names.items() if tensor])}")
    network, assumed = _choose(found, path)
    _refuse_other_forms(network.tensors, path)
    tensors, notes = dict(network.tensors), []
    if network.averaged == 0:
        notes.append(
            f"{_plain(network.place)} averages nothing yet (n_averaged is 0): these are the weights it began with"
        )
    counts = [name.replace(".running_var", ".num_batches_tracked") for name in tensors if name.endswith(".running_var")]
    if missing := [name for name in counts if name not in tensors]:
        import torch

        tensors.update({name: torch.tensor(0) for name in missing})
        notes.append(f"not in the file, and taken for 0: {_list_names(missing)}")
    if ignored := [*_beside(network.keys, loaded), *network.others]:
        notes.append(f"ignored: {_list_names(ignored)}")
    return Weights(tensors, assumed, notes)


def not_this_network(names: Sequence[str]) -> str:
    """What to say of weights with such names."""
    return (
        "these are not the weights of this network: the names must be blocks.0.0.weight ... fc3.bias, "
        f"found {', '.join(map(repr, names[:4])) or 'none'}"
    )


def _tables(loaded: object) -> Iterator[tuple[tuple[Any, ...], Mapping[Any, Any]]]:
    """Every dictionary but those of optimisers, and the keys that lead to it."""
    pending: deque[tuple[tuple[Any, ...], object]] = deque([((), loaded)])
    seen = set()
    while pending:
        keys, table = pending.popleft()
        if isinstance(table, Mapping) and id(table) not in seen:
            seen.add(id(table))  # a pickle may hold a dictionary in itself
            yield keys, table
            pending += [((*keys, key), value) for key, value in table.items() if not _OPTIMISER.fullmatch(str(key))]
        elif isinstance(table, (list, tuple)):
            pending += [((*keys, i), value) for i, value in enumerate(table)]


def _networks(keys: tuple[Any, ...], table: Mapping[Any, Any], path: Path) -> Iterator[_Network]:
    """The tensors of a dictionary, by the prefixes under which there are names of this network."""
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
        averaged = _number(tensors.pop("n_averaged", None))
        known = {origins[name] for name in own}
        yield _Network(keys, prefix, tensors, [str(key) for key in table if key not in known], averaged)


def _choose(found: Sequence[_Network], path: Path) -> tuple[_Network, list[str]]:
    whole = [network for network in found if network.is_whole]
    if not whole:
        (part,) = found
        return part, []  # what is missing is told by name where the network is built
    begun = [network for network in whole if network.averaged != 0] or whole
    network, *more = [each for each in begun if each.is_average] or begun
    if more:
        raise InputError(f"{path} holds several networks, in {_places([network, *more])}; save one of them alone")
    for other in found:
        twice = [name for name in other.tensors if name in network.tensors and not other.is_whole]
        if twice and other.keys == network.keys:
            names = f"{network.prefix + twice[0]!r} and {other.prefix + twice[0]!r}"
            raise InputError(f"{path} holds {names}, which are one tensor; save one of them")
    if len(whole) == 1:
        return network, []
    why = "an average" if network.is_average else "the average is of nothing yet"
    unused = _places([each for each in whole if each is not network])
    return network, [f"the weights in {_plain(network.place)} ({why}), not those in {unused}"]


def _beside(keys: tuple[Any, ...], table: Any) -> list[str]:
    """What lies beside a dictionary, in those that lead to it."""
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
                    f"{path} holds {name!r}, which comes of {what}; {remedy}, then save model.state_dict()"
                )


def _is_tensor(value: object) -> bool:
    return hasattr(value, "detach")  # which needs no PyTorch


def _number(tensor: Any) -> int | None:
    try:
        return int(tensor)
    except (ValueError, TypeError, RuntimeError):  # none, not of one number, or without data
        return None


def _plain(name: str) -> str:
    return name if name.isprintable() else repr(name)


def _places(networks: Sequence[_Network]) -> str:
    names = [_plain(network.place) for network in networks]
    return " and ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(map(_plain, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
