"""The history file: one line of JSON for each measured row."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcnn.errors import InputError, reason


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Appends a line for each record to a file, which is created if it does not exist.

    Raises:
        InputError: when the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    except OSError as error:
        raise InputError(f"--history {path} cannot be written: {reason(error)}; choose another path") from error
