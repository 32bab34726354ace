"""Past figures: a file to which each measured row adds a line of JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jaxcnn.errors import InputError, reason


def append(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Adds a line for each record to the end of the file, which is made if it is not there.

    Raises:
        InputError: when the file cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
    except OSError as error:
        raise InputError(f"--history {path} cannot be written: {reason(error)}; choose another path") from error
