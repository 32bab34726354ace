"""Reading the files in a run's folder."""

import json
import math
from pathlib import Path
from typing import Any, cast

from jaxcnn.config.experiment import RESOLVED
from jaxcnn.errors import InputError, reason, unreadable
from jaxcnn.runs.summary import NEW, SUMMARY, Summary


def read_json(path: Path, remedy: str = "--overwrite starts the run again") -> dict[str, Any]:
    """Reads a JSON object from one of a run's files. `remedy` ends the message of the InputError.

    Raises:
        InputError: when the file is missing or holds no JSON object.
        UnreadableError: when it cannot be read at the moment.
    """
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or not isinstance(values.get(RESOLVED, {}), dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) or InputError(f"{path} cannot be read ({reason(error)}); {remedy}") from error
    return values


def read_summary(path: Path) -> Summary:
    """Reads a run's `summary.json`.

    Raises:
        InputError: when the file is damaged or incomplete.
    """
    remedy = "delete it, and the same command computes it again"
    summary = {**dict.fromkeys(NEW), **read_json(path, remedy)}
    wrong = [name for name, kind in SUMMARY.items() if not _has_type(summary.get(name, ...), kind)]
    if wrong:
        raise InputError(f"{path} lacks {', '.join(wrong)}, or has unusable values there; {remedy}")
    return cast(Summary, summary)


def _has_type(value: Any, kind: Any) -> bool:
    """Whether a value has the type `kind`. Floats must be finite, and ints at most 2**53."""
    if isinstance(value, float):
        return isinstance(value, kind) and math.isfinite(value)
    return isinstance(value, kind) and (not isinstance(value, int) or abs(value) <= 2**53)
