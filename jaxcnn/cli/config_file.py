"""Reading a configuration from a JSON file."""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from jaxcnn.config.experiment import RESOLVED, from_dict
from jaxcnn.errors import InputError, reason

Config = TypeVar("Config")


def read_config(path: Path, kind: type[Config]) -> Config:
    """Reads a `config.json` into a configuration of type `kind`.

    Raises:
        InputError: when the file is missing, is not JSON, or has unknown names or unusable values.
    """
    try:
        # bytes, so that json detects UTF-8 and UTF-16
        values = json.loads(path.read_bytes(), object_pairs_hook=_to_dict)
    except json.JSONDecodeError as error:
        raise InputError(
            f"cannot read the configuration {path}: {_explain(error)} in line {error.lineno}, column {error.colno}"
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


def _to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A dict of an object's members; raises an InputError for a duplicate name, which json would accept."""
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{twice!r} is there twice; remove one of them")
    return values


def _explain(error: json.JSONDecodeError) -> str:
    """What is wrong with the JSON; for a comment or a trailing comma, also the remedy."""
    before, after = error.doc[: error.pos].rstrip(), error.doc[error.pos :].lstrip()
    if after.startswith(("//", "/*", "#")):
        return "JSON has no comments; remove the one"
    if re.match(r",?\s*[}\]]", after) and (after[0] == "," or before.endswith(",")):
        return "JSON has no comma before a closing bracket; remove the one"
    return f"it is not JSON: {error.msg}"
