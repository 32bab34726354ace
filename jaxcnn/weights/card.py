"""The network and its preprocessing as metadata of a safetensors file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import RESOLVED, from_dict
from jaxcnn.config.network import ModelConfig
from jaxcnn.errors import InputError, reason, require

KEY = "jaxcnn"
"""The metadata entry that holds everything, as JSON."""
_VERSION = 1


class NetworkDescription(NamedTuple):
    """The network and its card, as the metadata of a weight file or a run's `config.json` give them."""

    model: ModelConfig
    card: Card


def to_metadata(model: ModelConfig, card: Card) -> dict[str, str]:
    """Metadata for a safetensors file, whose values must be strings."""
    values = {"version": _VERSION, "model": asdict(model), **asdict(card)}
    if card.temperature == 1:  # earlier versions do not know the field, and compute the same without it
        del values["temperature"]
    return {KEY: json.dumps(values, ensure_ascii=False)}


def from_metadata(metadata: Mapping[str, str], path: Path) -> NetworkDescription | None:
    """Reads what `to_metadata` wrote; None if the metadata have no such entry.

    Raises:
        InputError: naming the file, when the entry is damaged or was written by a later version.
    """
    if KEY not in metadata:
        return None
    try:
        values = json.loads(metadata[KEY])
        require(isinstance(values, dict), KEY, values, "it should be an object of named values")
        version = values.pop("version", None)
        require(version == _VERSION, "version", version, f"this release reads only version {_VERSION}")
        model: ModelConfig = from_dict(ModelConfig, values.pop("model", None), "model.")
        card: Card = from_dict(Card, values)
        card.check(model)
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} has metadata that cannot be used: {reason(error)}; write it again from the run or model.pth with "
            "jaxcnn convert"
        ) from error
    return NetworkDescription(model, card)


def card_of_run(config: Mapping[str, Any], model: ModelConfig, path: Path) -> Card:
    """Makes the card of a run's network from its `config.json`: class names, mean, std and resize.

    Names, mean and std that the file does not have stay empty.

    Args:
        config: the content of the run's `config.json`.
        model: the network.
        path: path of `config.json`, for messages. The `summary.json` beside it has the temperature, if one was fitted.

    Raises:
        InputError: naming the file, when one of the values is unusable or does not fit the network.
    """
    resolved, data = config.get(RESOLVED), config.get("data")
    resolved, data = (each if isinstance(each, dict) else {} for each in (resolved, data))
    values = {name: resolved[name] for name in ("class_names", "mean", "std") if name in resolved}
    try:
        if (train := config.get("train")) and isinstance(train, dict) and train.get("temperature_scaling"):
            values["temperature"] = _fitted_temperature(path.with_name("summary.json"))
        card = Card(**values, resize=data.get("resize", "squash"))  # versions before 0.1 always squashed
        card.check(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return card


def _fitted_temperature(path: Path) -> Any:
    """The temperature in a run's `summary.json`; 1 if the run is not finished."""
    try:
        return json.loads(path.read_bytes())["temperature"]
    except FileNotFoundError:
        return 1.0
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; finish the run again by its command") from error


def update_card(card: Card, **fields: Any) -> Card:
    """A copy of the card with those of the fields replaced that are not None."""
    return replace(card, **{name: value for name, value in fields.items() if value is not None})
