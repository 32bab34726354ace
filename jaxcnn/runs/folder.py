"""A run's folder: whose it is, and what a finished run leaves there."""

import contextlib
import fcntl
import json
import math
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp

from jaxcnn.config.experiment import PLACES, RESOLVED, Existing, ExperimentConfig, to_json
from jaxcnn.data.splits import Dataset
from jaxcnn.errors import InputError, JaxcnnError, MachineError, reason, unreadable
from jaxcnn.files import TEMPORARY, write_json
from jaxcnn.kernels.precision import resolve_precision
from jaxcnn.runs.processor import describe_processor
from jaxcnn.runs.summary import NEW, SUMMARY, Summary

_LOCK = ".lock"
_PENDING = "summary.pending.json"
_SETTINGS = (
    "XLA_FLAGS",
    "LIBTPU_INIT_ARGS",
    "NVIDIA_TF32_OVERRIDE",
    "JAX_DISABLE_JIT",
    "JAX_DISABLE_MOST_OPTIMIZATIONS",
)
"""What else the environment may change results by, which programs do not set themselves."""


def with_precision(config: ExperimentConfig, folder: Path, existing: Existing) -> ExperimentConfig:
    """The configuration with float32 or bfloat16 in place of `auto`: what the folder's run began with, if there is one.

    Raises:
        InputError: when the folder's `config.json` cannot be read.
    """
    if config.train.precision != "auto":
        return config
    precision, path = resolve_precision("auto"), folder / "config.json"
    if path.is_file() and not existing.overwrite and isinstance(train := read_json(path).get("train"), dict):
        precision = train.get("precision", "float32")  # which runs of older versions do not name
    return replace(config, train=replace(config.train, precision=precision))


def find_finished(
    folder: Path, config: ExperimentConfig, resolved: dict[str, Any], existing: Existing
) -> Summary | None:
    """The summary, if the folder holds this very run, finished; None if it can be begun or continued there.

    Args:
        folder: of the run.
        config: of the run.
        resolved: what `config.json` keeps beside it; of this, `source_digest` must not change between two starts.
        existing: what to do with a run that is there.

    Raises:
        InputError: when the folder belongs to another configuration, naming the fields that differ.
    """
    return None if existing.overwrite else _look(folder, {**to_json(config), RESOLVED: resolved}, existing)


@contextlib.contextmanager
def claim_folder(
    folder: Path, config: ExperimentConfig, resolved: dict[str, Any], existing: Existing
) -> Iterator[Summary | None]:
    """The run's folder, made or found, for this process alone; yields the summary if the run is finished after all.

    The arguments are those of `find_finished`.

    Raises:
        InputError: as `find_finished`, and when another process uses the folder.
    """
    wanted = {**to_json(config), RESOLVED: resolved}
    _refuse_foreign(folder, existing.overwrite)
    with _lock_folder(folder):
        if existing.overwrite:
            _empty(folder)
        if (folder / _PENDING).exists():  # an earlier version, killed when all but the log was written
            os.replace(folder / _PENDING, folder / "summary.json")
        if (summary := _look(folder, wanted, existing)) is None:  # again, now that nobody changes it
            for leftover in folder.rglob(f"{TEMPORARY}*"):  # of a process that was killed
                with contextlib.suppress(OSError):
                    leftover.unlink()
            _tell_changes(folder, wanted)
            if existing.extend or not (folder / "config.json").exists():
                (folder / "summary.json").unlink(missing_ok=True)  # of fewer epochs
                write_json(folder / "config.json", wanted)
        yield summary


def _tell_changes(folder: Path, wanted: dict[str, Any]) -> None:
    """Says where a run that goes on was begun with other versions or on another device: its bits may differ."""
    there = read_json(folder / "config.json").get(RESOLVED) if (folder / "config.json").exists() else None
    if there:
        known = there.keys() & {"versions", "device", "settings"}
        old, new = ({name: of[name] for name in known} for of in (there, wanted[RESOLVED]))
        if changed := _differences(old, new):
            told = "; ".join(f"{name} was {was}, is {now}" for name, (was, now) in changed.items())
            print(f"{folder} goes on under other conditions than it began with, and may round otherwise: {told}")


def _look(folder: Path, wanted: dict[str, Any], existing: Existing) -> Summary | None:
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
    began_with = resolved.get("source_digest")
    if "source" not in differences and began_with not in (None, now.get("source_digest")):
        raise InputError(
            f"{folder} began with other weights than {wanted.get('source')} holds now. Give --name for a run beside "
            "it, --overwrite to replace it, or those weights back"
        )
    other = [
        name
        for name in ("images", "class_names", "mean", "std")
        if name in resolved and name in now and resolved[name] != now[name]
    ]
    if other and not any(name.startswith("data.") for name in differences):
        raise InputError(
            f"{folder} began with other images than {wanted['data']['name']} has now: {', '.join(other)} differ. "
            "Give --name for a run beside it, --overwrite to replace it, or those images back"
        )
    done = (folder / "summary.json").exists()
    epochs, _ = differences.get("train.epochs", (None, None))
    longer = len(differences) == 1 and isinstance(epochs, int) and epochs < wanted["train"]["epochs"]
    if longer and existing.extend:
        _refuse_useless(folder, wanted, epochs, done)
        return None
    if differences:
        told = "; ".join(f"{name}={old!r} there, {new!r} here" for name, (old, new) in differences.items())
        raise InputError(
            f"{folder} holds another run: {told}. Give --name for a run beside it, "
            f"{'--extend to train it for longer, ' if longer else ''}or --overwrite to replace it"
        )
    return read_summary(folder / "summary.json") if done else None


def _with_defaults(there: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the settings that an older version did not know, and so did not change."""
    defaults = to_json(ExperimentConfig())
    sections = {name for name in there if isinstance(there[name], dict) and isinstance(defaults.get(name), dict)}
    return {name: {**defaults[name], **value} if name in sections else value for name, value in there.items()}


def _refuse_useless(folder: Path, wanted: dict[str, Any], epochs: int, done: bool) -> None:
    """Refuses to extend a run that would not become what one begun with more epochs is."""
    if wanted["optim"]["schedule"] == "cosine":
        raise InputError(
            f"{folder} cannot be extended: optim.schedule='cosine' has brought its learning rate down over "
            f"{epochs} epochs. Give --name for a run beside it, or --overwrite to replace it"
        )
    if done and (summary := read_summary(folder / "summary.json"))["epochs"] < epochs:
        raise InputError(
            f"{folder} cannot be extended: it was over before its last epoch ({summary['stopped']}). "
            "Give --name and another train.early_stopping for a run beside it"
        )


def is_unfinished(folder: Path) -> bool:
    """Whether a run was begun in a folder, and has not come to its end."""
    return (folder / _LOCK).exists() and not (folder / "summary.json").exists()


def source_digest(folder: Path) -> str | None:
    """Of the weights that a transfer's run began with."""
    digest = read_json(folder / "config.json").get(RESOLVED, {}).get("source_digest")
    return digest if isinstance(digest, str) else None


def _refuse_foreign(folder: Path, overwrite: bool = False) -> None:
    """Refuses a folder that holds something else; what is to be deleted must look like a run."""
    try:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is no folder; give another --name or --runs-dir")
        config = folder / "config.json"
        ours = (folder / _LOCK).exists() or (config.exists() and (not overwrite or _describes_run(config)))
        if folder.exists() and not ours and any(folder.iterdir()):
            raise InputError(f"{folder} exists and is no run of this program; give another --name or --runs-dir")
    except OSError as error:
        raise InputError(f"{folder} cannot be used: {reason(error)}; give another --name or --runs-dir") from error


def _describes_run(path: Path) -> bool:
    try:
        return {"data", "model", "train"} <= read_json(path).keys()
    except JaxcnnError:
        return False


@contextlib.contextmanager
def _lock_folder(folder: Path) -> Iterator[None]:
    """Keeps other processes out. The lock is the kernel's and goes with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("a")
    except OSError as error:
        raise MachineError(f"cannot write in {folder}: {reason(error)}; choose another --runs-dir") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by another process; wait until that has ended, or give another --name"
            ) from None
        except OSError as error:
            raise InputError(
                f"{folder} cannot be locked: {reason(error)}; choose a --runs-dir on a file system with locks"
            ) from error
        yield


def _empty(folder: Path) -> None:
    """Removes an earlier run; what tells that it is one goes last, so that a removal can be killed and repeated."""
    inside = sorted(folder.iterdir(), key=lambda path: (path.name == "config.json", path.name != "summary.json"))
    try:
        for path in inside:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            elif path.name != _LOCK:
                path.unlink()
    except OSError as error:
        raise InputError(f"cannot remove {folder}: {reason(error)}") from error


def read_summary(path: Path) -> Summary:
    """A run's result.

    Raises:
        InputError: when the file is damaged.
    """
    remedy = "delete it, and the same command computes it again"
    summary = {**dict.fromkeys(NEW), **read_json(path, remedy)}
    wrong = [name for name, kind in SUMMARY.items() if not _is(summary.get(name, ...), kind)]
    if wrong:
        raise InputError(f"{path} lacks {', '.join(wrong)}, or has something else there; {remedy}")
    return cast(Summary, summary)


def _is(value: Any, kind: Any) -> bool:
    """Whether a value is of a type, and a number one that can be shown."""
    if isinstance(value, float):
        return isinstance(value, kind) and math.isfinite(value)
    return isinstance(value, kind) and (not isinstance(value, int) or abs(value) <= 2**53)


def resolve(dataset: Dataset) -> dict[str, Any]:
    """What `config.json` keeps beside the configuration: versions, device and the data set's own numbers."""
    return {
        "versions": {name: version(name) for name in ("jaxcnn", "jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "processor": describe_processor(),
        "settings": {
            "float": str(jnp.result_type(float)),  # float64 under JAX_ENABLE_X64
            **{name: os.environ[name] for name in _SETTINGS if name in os.environ},
        },
        "mean": dataset.mean,
        "std": dataset.std,
        "class_names": dataset.class_names,
        "images": {
            "train": len(dataset.train.labels),
            "validation": 0 if dataset.validation is None else len(dataset.validation.labels),
            "test": len(dataset.test.labels),
        },
        "test_origin": dataset.test_origin,
        "origin": dataset.origin,
    }


def read_json(path: Path, remedy: str = "--overwrite begins the run again") -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
        InputError: when it holds no object, with the remedy; `UnreadableError` when it cannot be read now.
    """
    try:
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict) or not isinstance(values.get(RESOLVED, {}), dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise unreadable(path, error) or InputError(f"{path} cannot be read ({reason(error)}); {remedy}") from error
    return values


def _differences(old: Any, new: Any, where: str = "") -> dict[str, tuple[Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        found: dict[str, tuple[Any, Any]] = {}
        for name in sorted(old.keys() | new.keys()):
            found |= _differences(old.get(name), new.get(name), f"{where}.{name}" if where else name)
        return found
    return {} if old == new else {where: (old, new)}
