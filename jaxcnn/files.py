"""Files that are either whole or not there."""

import hashlib
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.errors import InputError, MachineError, local_path, reason

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
        MachineError: when the folder or the disk does not take the file.
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
        raise MachineError(f"cannot write {path}: {reason(error)}; free space or choose another folder") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder to be filled, which takes its place, or that of an older one, once the block ends without an error.

    Raises:
        OSError: when it cannot be made or moved.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(dir=folder.parent.absolute(), prefix=f"{TEMPORARY}{folder.name}-"))
    try:
        (aside / "new").mkdir()
        yield aside / "new"
        if folder.exists():
            os.replace(folder, aside / "old")
        os.replace(aside / "new", folder)
    finally:
        if not folder.exists():  # the last step failed: what was there goes back
            with suppress(OSError):
                os.replace(aside / "old", folder)
        if folder.exists() or not (aside / "old").exists():
            shutil.rmtree(aside, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Writes a text as UTF-8, whatever the locale, whole or not at all."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes values as indented JSON, whole or not at all. Numbers must be finite: JSON has no others."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_npy(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Writes an array as `.npy`, whole or not at all."""
    write_whole(path, lambda temporary: np.save(temporary, array))


MANIFEST = "sha256.json"
"""The file within a folder that lists the others with their checksums."""

_VERSION = "2:"


def digest(variables: Mapping[str, Any]) -> str:
    """SHA-256 over the path, dtype, shape and bytes of every array in nested mappings, whatever their order."""
    leaves = sorted(_leaves(variables, ""))
    found = hashlib.sha256()
    for (path, _), content in zip(leaves, _in_threads(_array_digest, (array for _, array in leaves)), strict=True):
        found.update(f"{path}\0".encode() + content)
    return _VERSION + found.hexdigest()


def made_by_older_version(found: str) -> bool:
    """Whether a digest is of the kind that `older_digest` makes."""
    return not found.startswith(_VERSION)


def older_digest(tree: Any, note: str = "") -> str:
    """What versions before 0.1 wrote: it hashes how JAX prints a tree's structure, which JAX may change."""
    import jax  # loading data, and asking for help, do without

    leaves, structure = jax.tree.flatten(tree)
    found = hashlib.sha256(f"{structure} {note}".encode())
    for content in _in_threads(_array_digest, leaves):
        found.update(content)
    return found.hexdigest()


def _leaves(node: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(node, Mapping):
        for name, value in node.items():
            yield from _leaves(value, f"{path}/{name}")
    else:
        yield path, node


def _array_digest(leaf: Any) -> bytes:
    array = np.ascontiguousarray(leaf)
    found = hashlib.sha256(f"{array.dtype} {array.shape}".encode())
    found.update(array.data if array.size else b"")
    return found.digest()


def _in_threads(work: Callable[[Any], bytes], items: Iterable[Any]) -> Iterator[bytes]:
    with ThreadPoolExecutor() as threads:  # training waits for it, and hashlib runs in parallel
        yield from threads.map(work, items)


def write_manifest(folder: Path) -> None:
    """Lists the checksums of all files below a folder in its `sha256.json`.

    Raises:
        OSError: when a file cannot be read.
        MachineError: when the list cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [str(path.relative_to(folder)) for path in files]
    sums = (content.hex() for content in _in_threads(_file_digest, files))
    write_json(folder / MANIFEST, dict(zip(names, sums, strict=True)))


def find_damage(folder: Path) -> str | None:
    """What proves that files are not those that `write_manifest` listed; None if nothing does, or nothing was listed.

    Raises:
        OSError: when a file that is there cannot be read. That proves nothing.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [folder / name for name in dict(listed)]
    except (ValueError, TypeError):
        return f"{MANIFEST} is no list of checksums"
    if missing := [path for path in files if not path.exists()]:
        return f"{missing[0].relative_to(folder)} is missing"
    for path, found in zip(files, _in_threads(_file_digest, files), strict=True):
        if found.hex() != listed[str(path.relative_to(folder))]:
            return f"the checksum of {path.relative_to(folder)} does not fit"
    return None


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
