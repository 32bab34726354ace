"""Files that are either whole or not there."""

import csv
import fcntl
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import InputError, reason


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Runs `save` on a temporary file beside `path`, then renames it: readers see the old file or the new one.

    Raises:
        InputError: when the folder or the disk does not take the file.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=path.suffix)
        os.close(handle)
        temporary = Path(name)
        save(temporary)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write {path}: {reason(error)}; free space or choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes values as indented JSON, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(json.dumps(values, indent=2) + "\n"))


def write_npy(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Writes an array as `.npy`, whole or not at all."""
    write_whole(path, lambda temporary: np.save(temporary, array))


def append_row(path: Path, row: dict[str, Any]) -> None:
    """Adds a row to a CSV file that several processes may share; a new file gets the names as its first line.

    Raises:
        InputError: when the file has other columns, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            header = next(csv.reader(file), None)
            if header not in (None, list(row)):
                raise InputError(f"{path} has other columns than this version writes; move it away")
            writer = csv.writer(file, lineterminator="\n")
            if header is None:
                writer.writerow(row)
            writer.writerow(row.values())
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; free space or choose another folder") from error
