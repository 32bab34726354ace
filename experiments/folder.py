"""A run's folder: whose it is, and the files that grow with the run."""

import contextlib
import csv
import io
import json
import platform
import shutil
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from tensorboardX import SummaryWriter

from experiments.config_file import RESOLVED, to_json
from jaxcnn.config import ExperimentConfig
from jaxcnn.data import Dataset
from jaxcnn.errors import InputError, reason
from jaxcnn.files import write_json, write_whole
from jaxcnn.train import EpochRecord

Summary = dict[str, Any]


def claim_folder(folder: Path, config: ExperimentConfig, dataset: Dataset, *, overwrite: bool) -> Summary | None:
    """Makes the run's folder, or finds an earlier start of the same run in it; its summary if that is finished.

    Raises:
        InputError: when the folder belongs to another configuration, naming the fields that differ.
    """
    path = folder / "config.json"
    wanted = to_json(config)
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder} is no folder; give another --name or --runs-dir")
    if folder.exists() and overwrite:
        _remove_run(folder)
    if path.exists():
        differences = _differences({**read_json(path), RESOLVED: None}, {**wanted, RESOLVED: None})
        differences = [d for d in differences if d.split("=")[0] not in ("device", "runs_dir", "name")]
        if differences:
            raise InputError(
                f"{folder} holds another run: {'; '.join(differences)}. Give --name for a run beside it, "
                "or --overwrite to replace it"
            )
        if (folder / "summary.json").exists():
            return read_json(folder / "summary.json")
    elif folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is no run of this program; give another --name or --runs-dir")
    resolved = {
        "versions": {name: version(name) for name in ("jaxcnn", "jax", "jaxlib", "flax", "optax", "numpy")},
        "python": platform.python_version(),
        "device": jax.devices()[0].device_kind,
        "mean": dataset.mean,
        "std": dataset.std,
        "class_names": dataset.class_names,
        "images": {
            "train": len(dataset.train.labels),
            "validation": 0 if dataset.validation is None else len(dataset.validation.labels),
            "test": len(dataset.test.labels),
        },
    }
    write_json(path, {**wanted, RESOLVED: resolved})
    return None


def _remove_run(folder: Path) -> None:
    """Removes an earlier run, and refuses to remove anything else."""
    if not (folder / "config.json").exists():
        raise InputError(f"{folder} exists and is no run of this program; give another --name or --runs-dir")
    try:
        shutil.rmtree(folder)
    except OSError as error:
        raise InputError(f"cannot remove {folder}: {reason(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a run.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        values = json.loads(path.read_text())
        if not isinstance(values, dict):
            raise ValueError("it holds no object")
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({reason(error)}); --overwrite begins the run anew") from error
    return values


def _differences(old: Any, new: Any, where: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for name in sorted(old.keys() | new.keys()):
            found += _differences(old.get(name), new.get(name), f"{where}.{name}" if where else name)
        return found
    return [] if old == new else [f"{where}={old!r} there, {new!r} here"]


@contextlib.contextmanager
def tensorboard(folder: Path) -> Iterator[SummaryWriter]:
    """A writer into an emptied folder: a resumed run writes its events again, so none is there twice."""
    for old in folder.glob("events.*"):
        old.unlink()
    writer = SummaryWriter(str(folder))
    try:
        yield writer
    finally:
        writer.close()


def log_scalars(board: SummaryWriter, record: EpochRecord) -> None:
    """Writes an epoch's numbers as TensorBoard events, under the original's tags where it has them."""
    for tag, value in (
        ("Loss/train", record.train_loss),
        ("Loss/val", record.val_loss),
        ("Accuracy/train", record.train_accuracy),
        ("Accuracy/val", record.val_accuracy),
        ("LearningRate", record.learning_rate),
        ("ImagesPerSecond", record.images_per_second),
    ):
        if value is not None:
            board.add_scalar(tag, value, record.epoch)


def write_metrics(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Writes `metrics.csv`: a line for every epoch so far."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EpochRecord._fields)
    writer.writerows(records)
    write_whole(folder / "metrics.csv", lambda temporary: temporary.write_text(text.getvalue()))
