"""Atomic file writes and checksums."""

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
"""Prefix of temporary files. A killed process leaves such files behind."""


def cache_folder() -> Path:
    """The folder for cached files: `jaxcnn` in XDG_CACHE_HOME, or in ~/.cache if that is not set.

    Without a home directory, the result is a path that cannot be written, so that nothing is cached.

    Raises:
        InputError: when XDG_CACHE_HOME is not a path.
    """
    try:
        given = os.environ.get("XDG_CACHE_HOME")
        return (local_path("XDG_CACHE_HOME", given) if given else Path.home() / ".cache") / "jaxcnn"
    except RuntimeError:  # no home directory
        return Path(os.devnull) / "jaxcnn"


def is_there(path: Path) -> bool:
    """Whether a path exists.

    Raises:
        InputError: when the system cannot say, for example because the name is too long or the folder is unreadable.
    """
    try:
        return path.exists()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; give another path") from error


def write_whole(path: Path, save: Callable[[Path], object]) -> None:
    """Writes a file atomically: readers see the complete old file or the complete new one.

    `save` writes a temporary file in the same folder, which is then renamed to `path`.

    Raises:
        MachineError: when the file cannot be written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.parent / f"{TEMPORARY}{path.name}-{secrets.token_hex(4)}{path.suffix}"
        temporary.touch(exist_ok=False)  # follows the user's umask; mkstemp would not
        save(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())  # otherwise a power failure may leave the new name with no content
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
    """Writes a text atomically, as UTF-8 in any locale."""
    write_whole(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Writes values atomically as indented JSON; raises ValueError for NaN and infinity, which JSON does not have."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def write_npy(path: Path, array: np.ndarray[Any, Any]) -> None:
    """Writes an array atomically as `.npy`."""
    write_whole(path, lambda temporary: np.save(temporary, array))


MANIFEST = "sha256.json"
"""Name of the file that lists the checksums of all other files in its folder."""

_VERSION = "2:"


def digest(variables: Mapping[str, Any]) -> str:
    """SHA-256 over the path, dtype, shape and bytes of every array in nested mappings. Key order does not matter."""
    leaves = sorted(_leaves(variables, ""))
    found = hashlib.sha256()
    for (path, _), content in zip(leaves, _in_threads(_array_digest, (array for _, array in leaves)), strict=True):
        found.update(f"{path}\0".encode() + content)
    return _VERSION + found.hexdigest()


def made_by_older_version(found: str) -> bool:
    """Whether a digest has the format of `older_digest`."""
    return not found.startswith(_VERSION)


def older_digest(tree: Any, note: str = "") -> str:
    """The digest that versions before 0.1 wrote. It hashes JAX's printed tree structure, which JAX may change."""
    import jax  # slow, and not needed for loading data or for --help

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
    with ThreadPoolExecutor() as threads:  # hashlib releases the GIL, and training waits for the result
        yield from threads.map(work, items)


def write_manifest(folder: Path) -> None:
    """Writes `sha256.json` into a folder: the SHA-256 of every file below it.

    Raises:
        OSError: when a file cannot be read.
        MachineError: when `sha256.json` cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    names = [str(path.relative_to(folder)) for path in files]
    sums = (content.hex() for content in _in_threads(_file_digest, files))
    write_json(folder / MANIFEST, dict(zip(names, sums, strict=True)))


def find_damage(folder: Path) -> str | None:
    """Compares a folder with its `sha256.json`.

    Returns:
        The first difference (a missing file, a wrong checksum, an unreadable list) as text for a message. None if all
        files match, or if the folder has no `sha256.json`.

    Raises:
        OSError: when an existing file cannot be read, which does not prove damage.
    """
    if not (folder / MANIFEST).exists():
        return None
    try:
        listed = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        files = [folder / name for name in dict(listed)]
    except (ValueError, TypeError):
        return f"{MANIFEST} is not a list of checksums"
    if missing := [path for path in files if not path.exists()]:
        return f"{missing[0].relative_to(folder)} is missing"
    for path, found in zip(files, _in_threads(_file_digest, files), strict=True):
        if found.hex() != listed[str(path.relative_to(folder))]:
            return f"the checksum of {path.relative_to(folder)} does not match"
    return None


def _file_digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
