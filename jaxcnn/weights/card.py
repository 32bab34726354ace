"""What a network needs beside its weights to classify images, and how that travels with them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.config.experiment import RESOLVED, Resize, from_dict
from jaxcnn.config.network import ModelConfig
from jaxcnn.errors import InputError, reason, require, require_choice, require_number, set_plain

KEY = "jaxcnn"
"""The entry of a safetensors file's metadata that holds all of it, as JSON."""
_VERSION = 1


@dataclass(frozen=True)
class Card:
    """Which images a network reads, and what its outputs are called. An empty field is not known.

    Raises:
        InputError: when a field holds something else; the message names the field.
    """

    class_names: tuple[str, ...] = ()
    """By label."""
    mean: tuple[float, ...] = ()
    """Of each channel of pixels in [0, 1], subtracted; `std` divides what is left."""
    std: tuple[float, ...] = ()
    """See `mean`."""
    resize: Resize = "squash"
    """How images of other sizes become squares."""

    def __post_init__(self) -> None:
        set_plain(self)
        for name in ("class_names", "mean", "std"):
            value = getattr(self, name)
            require(isinstance(value, (list, tuple)), name, value, "give a sequence")
            object.__setattr__(self, name, tuple(value))
        names = self.class_names
        require(all(isinstance(name, str) for name in names), "class_names", names, "every entry must be a text")
        for value in self.mean:
            require_number("mean", value, least=-1e6, most=1e6)
        for value in self.std:
            require_number("std", value, least=0, most=1e6, open_ends="(")
        require_choice("resize", self.resize, Resize)

    def check(self, model: ModelConfig) -> None:
        """Refuses a card that is not this network's.

        Raises:
            InputError: when the number of names, means or deviations does not fit; the message names the field.
        """
        for name, count, what in (
            ("class_names", model.num_classes, "class of the network"),
            ("mean", model.in_channels, "channel of the network's images"),
            ("std", model.in_channels, "channel of the network's images"),
        ):
            value = getattr(self, name)
            require(len(value) in (0, count), name, value, f"give {count}, one for each {what}")


class Described(NamedTuple):
    """What the metadata of a weight file tells."""

    model: ModelConfig
    card: Card


def to_metadata(model: ModelConfig, card: Card) -> dict[str, str]:
    """The metadata of a safetensors file, which holds nothing but texts."""
    return {KEY: json.dumps({"version": _VERSION, "model": asdict(model), **asdict(card)}, ensure_ascii=False)}


def from_metadata(metadata: Mapping[str, str], path: Path) -> Described | None:
    """What `to_metadata` wrote into a file; None where there is no such entry.

    Raises:
        InputError: naming the file, when the entry is damaged or a later version's.
    """
    if KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[KEY])
        require(isinstance(values, dict), KEY, values, "an object of named values belongs there")
        version = values.pop("version", None)
        require(version == _VERSION, "version", version, f"this release reads version {_VERSION} alone")
        model: ModelConfig = from_dict(ModelConfig, values.pop("model", None), "model.")
        card: Card = from_dict(Card, values)
        card.check(model)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} has metadata that cannot be used: {reason(error)}; write it again from the run or model.pth with "
            "python -m experiments.convert"
        ) from error
    return Described(model, card)


def of_run(config: Mapping[str, Any], model: ModelConfig, path: Path) -> Card:
    """The card of a run's network.

    Args:
        config: what the run's `config.json` holds.
        model: the network.
        path: of the file, for messages.

    Raises:
        InputError: naming the file, when it holds something else in the place of these values.
    """
    resolved, data = config.get(RESOLVED), config.get("data")
    resolved, data = (each if isinstance(each, dict) else {} for each in (resolved, data))
    values = {name: resolved[name] for name in ("class_names", "mean", "std") if name in resolved}
    try:
        card = Card(**values, resize=data.get("resize", "squash"))  # versions before 0.1 knew no other way
        card.check(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return card


def changed(card: Card, **given: Any) -> Card:
    """The card with those of the values that are given, which are not None."""
    return replace(card, **{name: value for name, value in given.items() if value is not None})
