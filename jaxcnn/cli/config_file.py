"""A run's configuration as a file, and what to do where one is."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from jaxcnn.config.experiment import RESOLVED, from_dict
from jaxcnn.errors import InputError, reason

Config = TypeVar("Config")


def read_config(path: Path, kind: type[Config]) -> Config:
    """The experiment of some kind in a config.json.

    Raises:
        InputError: when the file is missing, is no JSON, or holds what no experiment has.
    """
    try:
        # UTF-8 or UTF-16, with or without a byte order mark
        values = json.loads(path.read_bytes(), object_pairs_hook=_each_once)
    except json.JSONDecodeError as error:
        raise InputError(
            f"cannot read the configuration {path}: {_mistake(error)} in line {error.lineno}, column {error.colno}"
        ) from error
    except UnicodeError as error:
        raise InputError(f"cannot read the configuration {path}: {reason(error)}; save it as UTF-8") from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"cannot read the configuration {path}: {reason(error)}") from error
    if isinstance(values, dict):
        values = {name: value for name, value in values.items() if name != RESOLVED}
    try:
        config: Config = from_dict(kind, values)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return config


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice!r} is there twice; remove one of them")
    return values


def _mistake(error: json.JSONDecodeError) -> str:
    """What is wrong with a file that should be JSON, and the remedy where it is a common mistake."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if after.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove the one"
    if re.match(r",?\s*[}\]]", after) and (after[0] == "," or before.endswith(",")):
        return "JSON has no comma before a closing bracket; remove the one"
    return f"it is no JSON: {error.msg}"
