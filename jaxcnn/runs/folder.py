"""A run's folder: checking what it holds, locking it, and reading its JSON files."""

import contextlib
import fcntl
import json
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from jaxcnn import __version__
from jaxcnn.config.experiment import PLACES, RESOLVED, Existing, ExperimentConfig, to_json
from jaxcnn.data.splits import Dataset
from jaxcnn.errors import InputError, InUseError, JaxcnnError, MachineError, reason
from jaxcnn.files import TEMPORARY, digest, made_by_older_version, older_digest, write_json
from jaxcnn.kernels.precision import resolve_precision
from jaxcnn.runs.processor import count_processors, describe_processor
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.runs.summary import Summary

_LOCK = ".lock"
_PENDING = "summary.pending.json"
_SETTINGS = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "JAX_DISABLE_JIT",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
)
"""Environment variables that can change results."""


def with_precision(config: ExperimentConfig, folder: Path, existing: Existing) -> ExperimentConfig:
    """Replaces the precision `auto` by float32 or bfloat16. A run that continues keeps the one it started with.

    Raises:
        InputError: when the folder's `config.json` cannot be read.
    """
    if config.train.precision != "auto":
        return config
    precision, path = resolve_precision("auto"), folder / "config.json"
    if path.is_file() and not existing.overwrite and isinstance(train := read_json(path).get("train"), dict):
        precision = train.get("precision", "float32")  # older versions did not record it
    return replace(config, train=replace(config.train, precision=precision))


def find_finished(
    folder: Path, config: ExperimentConfig, resolved: dict[str, Any], existing: Existing
) -> Summary | None:
    """Checks whether a run can use a folder.

    Args:
        folder: the run's folder; it need not exist.
        config: the run's configuration.
        resolved: what `resolve` returns, with `source_digest` for a transfer.
        existing: what to do with an existing run.

    Returns:
        The summary if this run is already finished there; None if it can start or continue.

    Raises:
        InputError: when the folder holds another run, naming the settings that differ, or is not a run's folder.
    """
    return None if existing.overwrite else _check_folder(folder, {**to_json(config), RESOLVED: resolved}, existing)


@contextlib.contextmanager
def claim_folder(
    folder: Path, config: ExperimentConfig, resolved: dict[str, Any], existing: Existing
) -> Iterator[Summary | None]:
    """Creates the run's folder if necessary, and locks it for this process.

    Arguments are those of `find_finished`, which is repeated under the lock.

    Yields:
        The summary if another process has finished the run meanwhile; else None.

    Raises:
        InputError: as `find_finished`, and when another process uses the folder.
        MachineError: when the folder cannot be written.
    """
    wanted = {**to_json(config), RESOLVED: resolved}
    _refuse_foreign(folder, existing.overwrite)
    with _lock_folder(folder):
        if existing.overwrite:
            _delete_contents(folder)
        if (folder / _PENDING).exists():  # left by an earlier version that was killed before it wrote the log
            os.replace(folder / _PENDING, folder / "summary.json")
        if (summary := _check_folder(folder, wanted, existing)) is None:  # again, now under the lock
            for leftover in folder.rglob(f"{TEMPORARY}*"):  # from a killed process
                with contextlib.suppress(OSError):
                    leftover.unlink()
            _print_changes(folder, wanted)
            if existing.extend or not (folder / "config.json").exists():
                (folder / "summary.json").unlink(missing_ok=True)  # it is of the shorter run
                write_json(folder / "config.json", wanted)
        yield summary


def _print_changes(folder: Path, wanted: dict[str, Any]) -> None:
    """Prints which versions, device or settings have changed since the run started: rounding may differ."""
    there = read_json(folder / "config.json").get(RESOLVED) if (folder / "config.json").exists() else None
    if there:
        known = there.keys() & {"versions", "device", "devices", "threads", "settings"}
        old, new = ({name: of[name] for name in known} for of in (there, wanted[RESOLVED]))
        if changed := _differences(old, new):
            text = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in changed.items())
            print(f"{folder} continues under other conditions than it started with, so rounding may differ: {text}")


def _check_folder(folder: Path, wanted: dict[str, Any], existing: Existing) -> Summary | None:
    """See `find_finished`; `wanted` is what the run's `config.json` should hold."""
    _refuse_foreign(folder)
    if not (folder / "config.json").exists():
        return None
    there = _with_defaults(read_json(folder / "config.json"))
    resolved: dict[str, Any] = there.get(RESOLVED) or {}
    differences = {
        name: values
        for name, values in _differences({**there, RESOLVED: None}, {**wanted, RESOLVED: None}).items()
        if name not in PLACES
    }
    now = json.loads(json.dumps(wanted[RESOLVED]))
    original = resolved.get("source_digest")
    if "source" not in differences and original not in (None, now.get("source_digest")):
        raise InputError(
            f"{folder} started from other weights than those in {wanted.get('source')}. Give --name for another "
            "folder, give --overwrite to replace the run, or restore the earlier weights"
        )
    other = [
        name
        for name in ("images", "class_names", "mean", "std")
        if name in resolved and name in now and resolved[name] != now[name]
    ]
    if other and not any(name.startswith("data.") for name in differences):
        raise InputError(
            f"{folder} started with other images than {wanted['data']['name']} has now: {', '.join(other)} differ. "
            "Give --name for another folder, give --overwrite to replace the run, or restore the earlier images"
        )
    done = (folder / "summary.json").exists()
    epochs, _ = differences.get("train.epochs", (None, None))
    longer = len(differences) == 1 and isinstance(epochs, int) and epochs < wanted["train"]["epochs"]
    if longer and existing.extend:
        _require_extendable(folder, wanted, epochs, done)
        return None
    if differences:
        text = "; ".join(f"{name}={old!r} there, {new!r} here" for name, (old, new) in differences.items())
        raise InputError(
            f"{folder} holds another run: {text}. Give --name for another folder, "
            f"{'--extend to train it for longer, ' if longer else ''}or --overwrite to replace it"
        )
    return read_summary(folder / "summary.json") if done else None


def _with_defaults(there: dict[str, Any]) -> dict[str, Any]:
    """A stored configuration, completed by the defaults of settings that its older version did not have."""
    defaults = to_json(ExperimentConfig())
    sections = {name for name in there if isinstance(there[name], dict) and isinstance(defaults.get(name), dict)}
    return {name: {**defaults[name], **value} if name in sections else value for name, value in there.items()}


def _require_extendable(folder: Path, wanted: dict[str, Any], epochs: int, done: bool) -> None:
    """Raises an InputError if extending the run would not give the result of a run with more epochs."""
    if wanted["optim"]["schedule"] == "cosine":
        raise InputError(
            f"{folder} cannot be extended: optim.schedule='cosine' has reduced its learning rate over "
            f"{epochs} epochs. Give --name for another folder, or --overwrite to replace the run"
        )
    if done and (summary := read_summary(folder / "summary.json"))["epochs"] < epochs:
        raise InputError(
            f"{folder} cannot be extended: it stopped before its last epoch ({summary['stopped']}). "
            "Give --name for another folder, with other values of train.early_stopping_*"
        )


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds a run that is not finished."""
    return (folder / _LOCK).exists() and not (folder / "summary.json").exists()


def source_digest(folder: Path) -> str | None:
    """The digest of the weights that the transfer in a folder started from; None if there is none."""
    found = read_json(folder / "config.json").get(RESOLVED, {}).get("source_digest")
    return found if isinstance(found, str) else None


def _refuse_foreign(folder: Path, overwrite: bool = False) -> None:
    """Raises an InputError if a folder holds something other than a run. With `overwrite` the check is stricter."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is not a folder; give another --name or --runs-dir")
        config = folder / "config.json"
        ours = (folder / _LOCK).exists() or (config.exists() and (not overwrite or _describes_run(config)))
        if folder.exists() and not ours and any(folder.iterdir()):
            raise InputError(f"{folder} exists and is not a run of this program; give another --name or --runs-dir")
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {reason(error)}; give another --name or --runs-dir") from error


def _describes_run(path: Path) -> bool:
    try:
        return {"data", "model", "train"} <= read_json(path).keys()
    except JaxcnnError:
        return False


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Locks the folder against other processes. The kernel releases the lock when the process ends, even by a kill."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a")
    except OSError as error:
        raise MachineError(f"cannot write in {folder}: {reason(error)}; choose another --runs-dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUseError(
                f"{folder} is in use by another process; wait until that has ended, or give another --name"
            ) from None
        except OSError as error:
            raise InputError(
                f"{folder} cannot be locked: {reason(error)}; choose a --runs-dir on a file system with locks"
            ) from error
        yield


def _delete_contents(folder: Path) -> None:
    """Deletes an earlier run, its `config.json` last: after a kill the folder is still recognised as a run."""
    inside = sorted(folder.iterdir(), key=lambda path: (path.name == "config.json", path.name != "summary.json"))
    try:
        for path in inside:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
    except OSError as error:
        raise InputError(f"cannot remove {folder}: {reason(error)}") from error


def resolve(dataset: Dataset, devices: int = 1) -> dict[str, Any]:
    """Versions, device, environment and properties of the data set, which `config.json` records under "resolved"."""
    return {
        "versions": {
            "jaxcnn": __version__,  # the package may not be installed, but lie on PYTHONPATH
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy")},
        },
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "devices": devices,
        "processor": describe_processor(),
        "threads": count_processors(),
        "settings": {
            "float": str(jnp.result_type(float)),  # float64 under JAX_ENABLE_X64
            **{name: os.environ[name] for name in _SETTINGS if name in os.environ},
        },
        **dataset.standardisation._asdict(),
        "class_names": dataset.class_names,
        "images": {
            "train": len(dataset.train.labels),
            "validation": 0 if dataset.validation is None else len(dataset.validation.labels),
            "test": len(dataset.test.labels),
        },
        "test_origin": dataset.test_origin,
        "origin": dataset.origin,
    }


def digest_source(variables: Mapping[str, Any], folder: Path, existing: Existing) -> str:
    """The digest of a source's variables, in the format of the run's `config.json` if an older version wrote it."""
    new, path = digest(variables), folder / "config.json"
    if existing.overwrite or not path.is_file():
        return new
    resolved = read_json(path).get(RESOLVED, {})
    began_with = resolved.get("source_digest")
    if not isinstance(began_with, str) or not made_by_older_version(began_with):
        return new
    if older_digest(variables) == began_with:
        return began_with
    # The same JAX computes the same digest, so the source has changed.
    if resolved.get("versions", {}).get("jax") == jax.__version__:
        return new
    print(
        f"{folder} was started by another version, whose checksum of the source cannot be compared; the source is "
        "assumed to be the same",
        file=sys.stderr,
    )
    return began_with


def _differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted(old.keys() | new.keys()):
            found |= _differences(old.get(name), new.get(name), f"{where}.{name}" if where else name)
        return found
    return {} if old == new else {where: (old, new)}
