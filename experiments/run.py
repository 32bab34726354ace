"""One run: train, keep what comes of it in `runs/<name>/`, show it."""

import os
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from experiments.config_file import CONTINUE, Existing
from experiments.display import Progress as Bar
from experiments.display import print_start, results_table
from experiments.folder import (
    Board,
    Summary,
    claimed,
    find_finished,
    log_summary,
    resolve,
    write_metrics,
)
from experiments.signals import noted
from jaxcnn import convert
from jaxcnn.checkpoint import Progress, digest, open_checkpoints
from jaxcnn.config import Device, ExperimentConfig, TransferConfig
from jaxcnn.convert import Source, read_source
from jaxcnn.data import Dataset, as_original, load_dataset
from jaxcnn.errors import InputError, reason
from jaxcnn.files import write_npy
from jaxcnn.masks import count_parameters, frozen_stages
from jaxcnn.model import init_variables
from jaxcnn.optim import best_epoch
from jaxcnn.report import confusion_matrix, plot_confusion, plot_curves
from jaxcnn.step import Metrics, TrainState, init_state, make_eval_step
from jaxcnn.train import EpochRecord, Paused, backend_form, evaluate, fit, stopped
from jaxcnn.transfer import transplant


def run_experiment(config: ExperimentConfig, existing: Existing = CONTINUE) -> Summary:
    """Trains, or finishes what an earlier call began, and returns what `summary.json` holds.

    Validation decides the learning rate, when to stop and the best epoch; the test set is read once, at the end, with
    the best weights (the last ones where nothing is held out for validation).

    Raises:
        InputError: when the configuration, the data or the run's folder cannot be used.
        Interrupted: when SIGINT or SIGTERM came while it trained; the same call continues.
    """
    console = Console(soft_wrap=True)
    select_device(config.device)
    folder = config.runs_dir / config.run_name
    if original := config.protocol == "original":  # all training images train; the test split steers
        config = replace(config, data=replace(config.data, validation=0.0))
    source = open_source(config) if isinstance(config, TransferConfig) else None
    model = config.model if source is None else source.config
    dataset = load_dataset(config.data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed)
    if original:
        if model.in_channels != 3:
            raise InputError(f"protocol='original' is for RGB images, not model.in_channels={model.in_channels}")
        dataset = as_original(dataset)
    config = replace(config, model=replace(model, num_classes=dataset.num_classes))
    frozen_stages(config.freeze, config.model, 0)  # refuses a mask that the network does not have
    resolved = resolve(dataset) | ({"source_digest": digest(source.variables)} if source is not None else {})
    if (summary := find_finished(folder, config, resolved, existing)) is not None:
        console.print(f"{folder} is finished; --overwrite trains anew, --name trains beside it", markup=False)
    else:
        variables, notes = first_variables(config, source)  # may refuse, so before the folder is made
        with claimed(folder, config, resolved, existing) as summary:
            if summary is None:
                for note in notes:
                    console.print(note, markup=False)
                began = time.perf_counter()
                counts = _count(variables, config)
                print_start(console, folder, config, dataset, counts)
                records = _train(folder, config, dataset, variables, console)
                results = _evaluate(folder, config, dataset, records)
                summary = log_summary(folder, config, _summarise(config, dataset, records, results, counts, began))
    console.print(results_table(summary))
    return summary


def open_source(config: TransferConfig) -> Source:
    """The weights that a transfer begins with, and their network as it is to be fine-tuned.

    Raises:
        InputError: when they are not there or cannot be read.
    """
    try:
        there = config.source.exists()
    except OSError as error:
        raise InputError(f"source={str(config.source)!r} cannot be read: {reason(error)}") from error
    if not there:
        raise InputError(
            f"source={str(config.source)!r} does not exist; train one with python -m experiments.cifar10, "
            "or give --source a run's folder or a model.pth"
        )
    source = read_source(
        config.source,
        input_size=config.input_size,
        apply_pooling=config.apply_pooling,
        activation_function=config.activation_function,
    )
    if config.dropout_rate is not None:
        source = source._replace(config=replace(source.config, dropout_rate=config.dropout_rate))
    return source


def first_variables(config: ExperimentConfig, source: Source | None) -> tuple[dict[str, Any], list[str]]:
    """The variables that a run begins with, and what there is to say of what a transfer takes over."""
    key = jax.random.key(config.seed)
    if source is None or not isinstance(config, TransferConfig) or config.freeze.mask == "scratch":
        return dict(init_variables(config.model, key)), []
    made = transplant(
        source,
        num_classes=config.model.num_classes,
        head=config.head,
        key=key,
        keep_fitting_head=config.protocol == "original",
    )
    notes = [f"assumed of the source, as its weights do not tell: {assumption}" for assumption in source.assumed]
    notes += [f"taken over from {config.source}: {', '.join(made.taken)}; new: {', '.join(made.new) or 'nothing'}"]
    return made.variables, notes


def select_device(device: Device) -> None:
    """Has JAX compute on a kind of device, and keep compiled programs for the next start.

    Raises:
        InputError: when the machine has no such device, or JAX no support for it installed.
    """
    if device != "auto":
        _configure("jax_platforms", {"gpu": "cuda"}.get(device, device))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxcnn" / "compiled"
    _configure("jax_compilation_cache_dir", str(cache))
    _configure("jax_persistent_cache_min_compile_time_secs", 0.1)
    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # the latter where JAX has no support for the device installed
        why = reason(error) if isinstance(error, RuntimeError) else "JAX has no support for it installed"
        remedy = {
            "tpu": "run it on a machine with a TPU and jax[tpu]",
            "gpu": "for one of NVIDIA's install jaxcnn[cuda12]",
        }
        raise InputError(
            f"device={device!r} cannot be had: {why}; {remedy.get(device, 'install jax anew')}, or give --device cpu"
        ) from error
    if device not in ("auto", found):
        raise InputError(f"device={device!r} cannot be had: JAX already computes on {found} in this process")


def _configure(name: str, value: str | float) -> None:
    jax.config.update(name, value)  # type: ignore[no-untyped-call]  # JAX leaves this one function untyped


def _count(variables: dict[str, Any], config: ExperimentConfig) -> list[tuple[str, int, bool]]:
    # What trains in the end: gradual unfreezing and probing begin with less.
    frozen = frozen_stages(config.freeze, config.model, config.train.epochs - 1)
    return count_parameters(variables["params"], config.model, frozen)


def _train(
    folder: Path, config: ExperimentConfig, dataset: Dataset, variables: dict[str, Any], console: Console
) -> list[EpochRecord]:
    """Trains to the end, from where an earlier start got to; leaves the best weights in `model.pth`."""

    def state_in(epoch: int) -> TrainState:
        frozen = frozen_stages(config.freeze, config.model, epoch)
        return init_state(variables, config.model, config.optim, seed=config.seed, frozen_stages=frozen)

    images = len(dataset.train.labels)
    steps = -(-images // config.train.batch_size)
    with (
        noted() as signals,
        open_checkpoints(folder / "checkpoints") as checkpoints,
        closing(Board(folder / "logs")) as board,
    ):
        found = checkpoints.restore(state_in)
        state, records, part = found or Progress(state_in(0), [])
        if found is not None:
            console.print(f"continuing after {_where(records, part, steps)}")
        if records:
            convert.read_state_dict(folder / "model.pth")  # now rather than when all is trained
        for record in records:
            board.add_record(record)
        with Bar(console, config.train.epochs, images, len(records)) as progress:
            epochs = fit(
                state, config, dataset, history=records, part=part, on_step=progress.step, should_stop=signals.came
            )
            try:
                for trained, record in epochs:
                    records.append(record)
                    part = None
                    best = _kept(records, config)
                    if best == len(records) - 1:  # before the checkpoint: a run that resumes finds its best weights
                        convert.write_state_dict(folder / "model.pth", _variables(trained), config.model)
                    checkpoints.save(trained, records)
                    write_metrics(folder, records)
                    board.add_record(record)
                    progress.epoch(record, is_best=best == len(records) - 1)
                    if signals.came():
                        break
            except Paused as paused:
                part = paused.part
                checkpoints.save(paused.state, records, part)
            if signals.came():
                console.print(f"stopping after {_where(records, part, steps)}")
    return records


def _where(records: Sequence[EpochRecord], part: Metrics | None, steps: int) -> str:
    return f"epoch {len(records)}" + (f" and {len(part.loss)} of {steps} steps" if part else "")


class _Results(NamedTuple):
    best: int
    """Index of the epoch whose weights count."""
    test_loss: float
    test_accuracy: float


def _evaluate(folder: Path, config: ExperimentConfig, dataset: Dataset, records: Sequence[EpochRecord]) -> _Results:
    """Reads the test set with the best weights; leaves figures and arrays."""
    best = _kept(records, config)
    variables = convert.from_torch(convert.read_state_dict(folder / "model.pth"), config.model)
    eval_step = jax.jit(
        make_eval_step(
            model=config.model,
            mean=dataset.mean,
            std=dataset.std,
            augmentation=config.data.augment if config.protocol == "original" else "none",
            vectorized=backend_form().vectorized,
            precision=config.train.precision,
        )
    )
    loss, accuracy, predictions = evaluate(eval_step, variables, dataset.test, config.train.batch_size)
    with closing(Board(folder / "logs")) as board:
        for record in records:
            board.add_record(record)
        board.add(records[best].epoch, {"Loss/test": loss, "Accuracy/test": accuracy})
    write_metrics(folder, records)  # a process killed between checkpoint and table left a line too few
    matrix = confusion_matrix(dataset.test.labels, predictions, dataset.num_classes)
    plot_curves(folder / "curves.png", records, best)
    plot_confusion(folder / "confusion.png", matrix, dataset.class_names)
    for name, values in (
        ("train_loss", [r.train_loss for r in records]),
        ("val_loss", [r.val_loss for r in records if r.val_loss is not None]),
        ("val_accuracy", [r.val_accuracy for r in records if r.val_accuracy is not None]),
        ("test_loss", [loss]),
        ("test_accuracy", [accuracy]),
        ("predictions", predictions),
        ("labels", dataset.test.labels),
    ):
        write_npy(folder / "results" / f"{name}.npy", np.asarray(values))
    return _Results(best, loss, accuracy)


def _summarise(
    config: ExperimentConfig,
    dataset: Dataset,
    records: Sequence[EpochRecord],
    results: _Results,
    counts: Sequence[tuple[str, int, bool]],
    began: float,
) -> Summary:
    best = records[results.best]
    return {
        "name": config.run_name,
        "dataset": dataset.name,
        "mask": config.freeze.mask,
        "seed": config.seed,
        "test_accuracy": results.test_accuracy,
        "test_loss": results.test_loss,
        "val_accuracy": best.val_accuracy,
        "val_loss": best.val_loss,
        "best_epoch": best.epoch,
        "epochs": len(records),
        "stopped": stopped(records, config) or f"all {config.train.epochs} epochs are done",
        "seconds": sum(r.seconds for r in records),
        "images_per_second": float(np.median([r.images_per_second for r in records])),
        "trainable_parameters": sum(count for _, count, trains in counts if trains),
        "total_parameters": sum(count for _, count, _ in counts),
        "wall_seconds": time.perf_counter() - began,
    }


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def _kept(records: Sequence[EpochRecord], config: ExperimentConfig) -> int:
    """Index of the epoch whose weights count: the best by validation, or the last where there is none."""
    if config.protocol == "original":
        return len(records) - 1
    pairs = [(r.val_loss, r.val_accuracy) for r in records if r.val_loss is not None and r.val_accuracy is not None]
    if not pairs:
        return len(records) - 1
    losses, accuracies = zip(*pairs, strict=True)
    return best_epoch(losses, accuracies)
