"""What a network needs beside its weights to classify images, and how that travels with them."""

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
"""The entry of a safetensors file's metadata that holds all of it, as JSON."""
_VERSION = 1


class Described(NamedTuple):
    """What the metadata of a weight file tells."""

    model: ModelConfig
    card: Card


def to_metadata(model: ModelConfig, card: Card) -> dict[str, str]:
    """The metadata of a safetensors file, which holds nothing but texts."""
    values = {"version": _VERSION, "model": asdict(model), **asdict(card)}
    if card.temperature == 1:  # which versions before it was there compute with
        del values["temperature"]
    return {KEY: json.dumps(values, ensure_ascii=False)}


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
            "jaxcnn convert"
        ) from error
    return Described(model, card)


def of_run(config: Mapping[str, Any], model: ModelConfig, path: Path) -> Card:
    """The card of a run's network.

    Args:
        config: what the run's `config.json` holds.
        model: the network.
        path: of the file. The `summary.json` beside it tells a temperature, if one was fitted.

    Raises:
        InputError: naming the file, when it holds something else in the place of these values.
    """
    resolved, data = config.get(RESOLVED), config.get("data")
    resolved, data = (each if isinstance(each, dict) else {} for each in (resolved, data))
    values = {name: resolved[name] for name in ("class_names", "mean", "std") if name in resolved}
    try:
        if (train := config.get("train")) and isinstance(train, dict) and train.get("temperature_scaling"):
            values["temperature"] = _fitted_temperature(path.with_name("summary.json"))
        card = Card(**values, resize=data.get("resize", "squash"))  # versions before 0.1 knew no other way
        card.check(model)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return card


def _fitted_temperature(path: Path) -> Any:
    """What a run's `summary.json` tells; 1 while there is none, as of a run that is not finished."""
    try:
        return json.loads(path.read_bytes())["temperature"]
    except FileNotFoundError:
        return 1.0
    except (OSError, ValueError, RecursionError, LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; finish the run again by its command") from error


def changed(card: Card, **given: Any) -> Card:
    """The card with those of the values that are given, which are not None."""
    return replace(card, **{name: value for name, value in given.items() if value is not None})
