"""Files that are either whole or not there."""

import json
import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import InputError, reason
from jaxcnn.validate import local_path

TEMPORARY = ".jaxcnn-"
"""What the names of files begin with that are being written; a killed process leaves them."""


def cache_folder() -> Path:
    """Where this project keeps what it can make again: under XDG_CACHE_HOME, or .cache in the user's home."""
    try:
        given = os.environ.get("XDG_CACHE_HOME")
        return (local_path("XDG_CACHE_HOME", given) if given else Path.home() / ".cache") / "jaxcnn"
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


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, whatever the locale, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: dict[str, Any]) -> None:
    """Writes values as indented JSON, whole or not at all. Numbers must be finite: JSON has no others."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_npy(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Writes an array as `.npy`, whole or not at all."""
    write_whole(path, lambda temporary: np.save(temporary, array))
