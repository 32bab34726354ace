"""Files that are either whole or not there."""

import csv
import fcntl
import io
import json
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import InputError, reason

TEMPORARY = ".jaxcnn-"
"""What the names of files begin with that are being written; a killed process leaves them."""


def cache_folder() -> Path:
    """Where this project keeps what it can make anew: under XDG_CACHE_HOME, or .cache in the user's home."""
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcnn"
    except RuntimeError:  # nobody's home: a place where nothing can be written, as callers are prepared for
        return Path(os.devnull) / "jaxcnn"


def is_there(path: Path) -> bool:
    """Whether a path exists.

    Raises:
        InputError: when that cannot be told, as of a name that is too long or in a folder that may not be read.
    """
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; give another path") from error


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Runs `save` on a temporary file beside `path`, then renames it: readers see the old file or the new one.

    Raises:
        InputError: when the folder or the disk does not take the file.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}{path.suffix}"
        temporary.touch(exist_ok=False)  # with the permissions that the user's umask leaves, unlike mkstemp
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # or a machine that loses power may keep the new name and not what is in it
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
    """Adds a row to a CSV file that several processes may share, unless that very row is there.

    A new file gets the names as its first line. What a killed process or a full disk left of a row is removed; a
    last row that only lacks its line end, as some editors leave it, gets one.

    Raises:
        InputError: when the file has other columns, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            file.seek(0)
            there = file.read()
            names, values = _line(row), _line(row.values())
            if there and not there.startswith(names) and not names.startswith(there):
                raise InputError(f"{path} has other columns than this version writes; move it away")
            whole = there[: there.rfind(b"\n") + 1]
            tail = there[len(whole) :]
            file.truncate(len(whole))
            begun = any(line.startswith(tail) and tail + b"\n" != line for line in (values, names))
            if _cells(tail) == len(row) and not begun:
                whole += tail + b"\n"
                file.write(tail + b"\n")
            if b"\n" + values in whole:
                return
            try:
                rest = values if whole else names + values
                while rest:
                    rest = rest[file.write(rest) :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(len(whole))
                raise
    except OSError as error:
        raise InputError(f"cannot write {path}: {reason(error)}; free space or choose another folder") from error


def _line(values: Iterable[Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _cells(line: bytes) -> int:
    return sum(len(row) for row in csv.reader([line.decode(errors="replace")]))
