"""One run: train, keep what comes of it in `runs/<name>/`, show it."""

import contextlib
import csv
import io
import json
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.table import Table
from tensorboardX import SummaryWriter

from experiments.cli import RESOLVED, to_json
from experiments.progress import Progress
from jaxcnn import convert
from jaxcnn.checkpoint import open_checkpoints
from jaxcnn.config import Device, ExperimentConfig
from jaxcnn.data import Dataset, load_dataset
from jaxcnn.errors import InputError, reason
from jaxcnn.files import append_row, write_json, write_npy, write_whole
from jaxcnn.masks import count_parameters
from jaxcnn.model import init_variables
from jaxcnn.optim import best_epoch
from jaxcnn.report import confusion_matrix, plot_confusion, plot_curves
from jaxcnn.train import EpochRecord, TrainState, evaluate, fit, init_state, make_eval_step, stopped

Summary = dict[str, Any]


def run_experiment(config: ExperimentConfig, *, overwrite: bool = False) -> Summary:
    """Trains, or finishes what an earlier call began, and returns what `summary.json` holds.

    Validation decides the learning rate, when to stop and the best epoch; the test set is read once, at the end, with
    the best weights (the last ones where nothing is held out for validation).

    Raises:
        InputError: when the configuration, the data or the run's folder cannot be used.
    """
    console = Console(soft_wrap=True)
    select_device(config.device)
    folder = config.runs_dir / config.run_name
    dataset = load_dataset(
        config.data,
        input_size=config.model.input_size,
        in_channels=config.model.in_channels,
        seed=config.seed,
    )
    config = replace(config, model=replace(config.model, num_classes=dataset.num_classes))
    finished = claim_folder(folder, config, dataset, overwrite=overwrite)
    if finished is not None:
        console.print(f"{folder} is finished; --overwrite trains anew, --name trains beside it")
    else:
        finished = _train(folder, config, dataset, console)
    console.print(results_table(finished))
    return finished


def select_device(device: Device) -> None:
    """Has JAX compute on a kind of device, and keep compiled programs for the next start.

    Raises:
        InputError: when the machine has no such device, or JAX no support for it installed.
    """
    if device != "auto":
        jax.config.update("jax_platforms", {"gpu": "cuda"}.get(device, device))  # type: ignore[no-untyped-call]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcnn" / "compiled"
    jax.config.update("jax_compilation_cache_dir", str(cache))  # type: ignore[no-untyped-call]
    try:
        found = jax.devices()[0].platform
    except RuntimeError as error:
        raise InputError(
            f"device={device!r} cannot be had: {reason(error)}. "
            "For an NVIDIA GPU install jaxcnn[cuda12]; or give --device cpu"
        ) from error
    if device not in ("auto", found):
        raise InputError(f"device={device!r} cannot be had: JAX already computes on {found} in this process")


def claim_folder(folder: Path, config: ExperimentConfig, dataset: Dataset, *, overwrite: bool) -> Summary | None:
    """Makes the run's folder, or finds an earlier start of the same run in it; its summary if that is finished.

    Raises:
        InputError: when the folder belongs to another configuration, naming the fields that differ.
    """
    path = folder / "config.json"
    wanted = to_json(config)
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
    import shutil

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


def _train(folder: Path, config: ExperimentConfig, dataset: Dataset, console: Console) -> Summary:
    began = time.perf_counter()
    model_path = folder / "model.pth"
    variables = init_variables(config.model, jax.random.key(config.seed))
    state = init_state(variables, config.model, config.optim, seed=config.seed)
    records: list[EpochRecord] = []
    counts = count_parameters(state.params, config.model, 0)
    _print_start(console, folder, config, dataset, sum(count for _, count, _ in counts))
    with open_checkpoints(folder / "checkpoints") as checkpoints, _tensorboard(folder / "logs") as board:
        if (restored := checkpoints.restore(state)) is not None:
            state, records = restored
            console.print(f"continuing after epoch {len(records)}")
        for record in records:
            _log_scalars(board, record)
        with Progress(console, config.train.epochs, len(dataset.train.labels), len(records)) as progress:
            for trained, record in fit(state, config, dataset, history=records, on_step=progress.step):
                records.append(record)
                best = _best(records)
                if best == len(records) - 1:  # before the checkpoint: a run that resumes finds its best weights
                    convert.write_state_dict(model_path, _variables(trained), config.model)
                checkpoints.save(trained, records)
                _write_metrics(folder, records)
                _log_scalars(board, record)
                progress.epoch(record, is_best=best == len(records) - 1)
        best = _best(records)
        best_variables = convert.from_torch(convert.read_state_dict(model_path), config.model)
        eval_step = jax.jit(make_eval_step(model=config.model, mean=dataset.mean, std=dataset.std))
        test_loss, test_accuracy, predictions = evaluate(
            eval_step, best_variables, dataset.test, config.train.batch_size
        )
        board.add_scalar("Loss/test", test_loss, records[best].epoch)
        board.add_scalar("Accuracy/test", test_accuracy, records[best].epoch)
    matrix = confusion_matrix(dataset.test.labels, predictions, dataset.num_classes)
    plot_curves(folder / "curves.png", records, best)
    plot_confusion(folder / "confusion.png", matrix, dataset.class_names)
    for name, values in (
        ("train_loss", [r.train_loss for r in records]),
        ("val_loss", [r.val_loss for r in records if r.val_loss is not None]),
        ("val_accuracy", [r.val_accuracy for r in records if r.val_accuracy is not None]),
        ("test_loss", [test_loss]),
        ("test_accuracy", [test_accuracy]),
        ("predictions", predictions),
        ("labels", dataset.test.labels),
    ):
        write_npy(folder / "results" / f"{name}.npy", np.asarray(values))
    summary: Summary = {
        "name": config.run_name,
        "dataset": dataset.name,
        "seed": config.seed,
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "val_accuracy": records[best].val_accuracy,
        "val_loss": records[best].val_loss,
        "best_epoch": records[best].epoch,
        "epochs": len(records),
        "stopped": stopped(records, config) or f"all {config.train.epochs} epochs are done",
        "seconds": sum(r.seconds for r in records),
        "images_per_second": float(np.median([r.images_per_second for r in records])),
        "trainable_parameters": sum(count for _, count, trains in counts if trains),
        "total_parameters": sum(count for _, count, _ in counts),
        "wall_seconds": time.perf_counter() - began,
    }
    append_row(config.runs_dir / "experiment_logs.csv", summary)
    write_json(folder / "summary.json", summary)  # last: its presence says that the run is finished
    return summary


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _best(records: Sequence[EpochRecord]) -> int:
    """Index of the epoch whose weights count: the best by validation, or the last where there is none."""
    pairs = [(r.val_loss, r.val_accuracy) for r in records if r.val_loss is not None and r.val_accuracy is not None]
    if not pairs:
        return len(records) - 1
    losses, accuracies = zip(*pairs, strict=True)
    return best_epoch(losses, accuracies)


@contextlib.contextmanager
def _tensorboard(folder: Path) -> Iterator[SummaryWriter]:
    """A writer into an emptied folder: a resumed run writes its events again, so none is there twice."""
    for old in folder.glob("events.*"):
        old.unlink()
    writer = SummaryWriter(str(folder))
    try:
        yield writer
    finally:
        writer.close()


def _log_scalars(board: SummaryWriter, record: EpochRecord) -> None:
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


def _write_metrics(folder: Path, records: Sequence[EpochRecord]) -> None:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(EpochRecord._fields)
    writer.writerows(records)
    write_whole(folder / "metrics.csv", lambda temporary: temporary.write_text(text.getvalue()))


def _print_start(console: Console, folder: Path, config: ExperimentConfig, dataset: Dataset, parameters: int) -> None:
    validation = 0 if dataset.validation is None else len(dataset.validation.labels)
    console.print(
        f"[bold]{folder}[/]: {dataset.name}, {dataset.num_classes} classes, {len(dataset.train.labels):,} training, "
        f"{validation:,} validation, {len(dataset.test.labels):,} test images; {parameters:,} parameters; "
        f"augmentation {config.data.augment}; seed {config.seed}; on {jax.devices()[0].device_kind}",
        highlight=False,
    )


def results_table(summary: Summary) -> Table:
    """A run's results to look at."""
    table = Table(title=f"{summary['name']}: {summary['dataset']}, seed {summary['seed']}", show_header=False)
    best = f"epoch {summary['best_epoch']} of {summary['epochs']} ({summary['stopped']})"
    table.add_row("test accuracy", f"[bold]{summary['test_accuracy']:.2f} %[/]")
    table.add_row("test loss", f"{summary['test_loss']:.4f}")
    if summary["val_accuracy"] is not None:
        table.add_row("validation accuracy", f"{summary['val_accuracy']:.2f} %")
    table.add_row("weights of", best)
    table.add_row("training time", f"{summary['seconds']:.1f} s")
    table.add_row("training speed", f"{summary['images_per_second']:,.0f} images/s")
    trained, total = summary["trainable_parameters"], summary["total_parameters"]
    table.add_row("trained parameters", f"{trained:,} of {total:,}")
    return table
