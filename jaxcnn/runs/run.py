"""One run: train, keep what comes of it in `runs/<name>/`, show it."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import CONTINUE, RESOLVED, Existing, ExperimentConfig, TransferConfig
from jaxcnn.config.training import FreezeConfig
from jaxcnn.data.sets import as_original, load_dataset
from jaxcnn.data.splits import Dataset
from jaxcnn.errors import InputError, MachineError, is_out_of_memory, reason
from jaxcnn.files import digest, is_there, made_by_older_version, older_digest
from jaxcnn.kernels.backend import fixed_settings, is_cpu
from jaxcnn.masks import count_parameters, frozen_stages
from jaxcnn.model import init_variables, key_of
from jaxcnn.runs.calibration import fit_temperature
from jaxcnn.runs.console import Terminal
from jaxcnn.runs.device import select_device
from jaxcnn.runs.display import Bar, print_start, results_table
from jaxcnn.runs.folder import claim_folder, find_finished, is_unfinished, read_json, resolve, with_precision
from jaxcnn.runs.log import check_log, update_log
from jaxcnn.runs.metrics import Board, count_metrics, write_metrics
from jaxcnn.runs.present import present, remove_products
from jaxcnn.runs.results import write_results
from jaxcnn.runs.signals import note_signals
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.style import Figures
from jaxcnn.runs.summary import Summary
from jaxcnn.training.decisions import kept_epoch, validates
from jaxcnn.training.loop import Paused, evaluate, evaluation_step, fit
from jaxcnn.training.records import EpochRecord, Metrics, TrainState
from jaxcnn.training.soundness import require_trainable
from jaxcnn.training.step import init_state
from jaxcnn.weights.card import to_metadata
from jaxcnn.weights.checkpoint import Progress, open_checkpoints
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.files import read_state_dict, write_state_dict
from jaxcnn.weights.source import read_source
from jaxcnn.weights.transfer import Source, transplant


@fixed_settings()
def run_experiment(config: ExperimentConfig, existing: Existing = CONTINUE, figures: Figures | None = "png") -> Summary:
    """Trains, or finishes what an earlier call began, and returns what `summary.json` holds.

    Validation decides the learning rate, when to stop and the best epoch; the test set is read once, at the end, with
    the best weights (the last ones where nothing is held out for validation). Figures, tables, the page `report.html`
    and the run's row in the log, which are made last, only cause a warning where they fail; a call for a finished run
    makes those that are missing.

    Args:
        config: of the run.
        existing: what is to become of a run that is in its folder.
        figures: the format of the figures; None makes no figures, tables of classes or page. `jaxcnn report` makes them
            later.

    Raises:
        InputError: when the configuration, the data or the run's folder cannot be used.
        Interrupted: when a signal to end came while it trained; the same call continues.
    """
    console = Terminal(soft_wrap=True)
    folder, config, source, dataset, resolved, summary = plan(config, existing)
    was_finished = summary is not None
    if summary is None:
        with _enough_memory():
            variables, notes = first_variables(config, source)  # may refuse, so before the folder is made
        with claim_folder(folder, config, resolved, existing) as summary, _enough_memory():
            if summary is None:
                if config.train.precision == "bfloat16" and is_cpu():
                    notes = [*notes, "train.precision=bfloat16 is for accelerators; this CPU is faster in float32"]
                for note in notes:
                    console.print(note, markup=False)
                began = time.perf_counter()
                counts = _count(variables, config)
                print_start(console, folder, config, dataset, counts)
                with only_warns(f"row of {folder.name} in the table of all runs"):  # said while someone is there
                    check_log(folder.parent, transfers=isinstance(config, TransferConfig))
                records, best = _train(folder, config, dataset, variables, console)
                step = evaluation_step(config, dataset)
                tested = evaluate(step, best, dataset.test, config.train.batch_size)
                temperature = None
                if config.train.temperature_scaling and (split := dataset.validation) is not None:
                    temperature = fit_temperature(evaluate(step, best, split, config.train.batch_size)[2], split.labels)
                    _write_weights(folder, best, config, dataset, ("model.safetensors",), temperature)
                summary = write_results(folder, config, dataset, records, counts, tested, temperature, began)
                remove_products(folder)  # of what the folder held before
    if figures is not None:
        present(folder, figures)
    with only_warns(f"row of {folder.name} in the table of all runs"):
        update_log(folder.parent, transfers=isinstance(config, TransferConfig))
    if was_finished:
        console.print(f"{folder} is finished; --overwrite trains again, --name trains beside it", markup=False)
    console.print(results_table(summary))
    return summary


@contextmanager
def _enough_memory() -> Iterator[None]:
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise MachineError(
            f"there is not enough memory for this run ({reason(error)}); lower model.input_size, train.batch_size or "
            "model.hidden_dims"
        ) from error


class Plan(NamedTuple):
    """A run that nothing is known to stand against."""

    folder: Path
    config: ExperimentConfig
    """With the network that the data set, and the source if there is one, ask for."""
    source: Source | None
    dataset: Dataset
    resolved: dict[str, Any]
    """What `config.json` keeps beside the configuration."""
    summary: Summary | None
    """Of the run, if it is finished."""


@_enough_memory()
@fixed_settings()
def plan(config: ExperimentConfig, existing: Existing = CONTINUE) -> Plan:
    """Opens all that a run needs, and changes nothing.

    Raises:
        InputError: when the configuration, the data, the source or the run's folder cannot be used.
    """
    select_device(config.device)
    folder = config.runs_dir / config.run_name
    config = with_precision(config, folder, existing)
    if not isinstance(config, TransferConfig) and config.freeze != FreezeConfig():
        raise InputError("freeze is for weights that are taken over: use jaxcnn transfer")
    if original := config.protocol == "original":  # all training images train; the test split steers
        config = replace(config, data=replace(config.data, validation=0.0))
    source = None
    if isinstance(config, TransferConfig):
        if existing.overwrite and config.source.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"--overwrite would remove {folder}, and with it the source; give another --name")
        source = open_source(config)
    model = config.model if source is None else source.config
    frozen_stages(config.freeze, model, 0)  # refuses a mask that the network does not have
    dataset = load_dataset(config.data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed)
    if original:
        if model.in_channels != 3:
            raise InputError(f"protocol='original' is for RGB images, not model.in_channels={model.in_channels}")
        dataset = as_original(dataset)
    config = replace(config, model=replace(model, num_classes=dataset.num_classes))
    require_trainable(config, dataset)
    if config.train.temperature_scaling and (original or dataset.validation is None):
        raise InputError(
            "train.temperature_scaling=True needs validation images that are no test images: give data.validation "
            "above 0, and protocol='sound'"
        )
    resolved = resolve(dataset) | ({} if source is None else {"source_digest": _digest(source, folder, existing)})
    return Plan(folder, config, source, dataset, resolved, find_finished(folder, config, resolved, existing))


def _digest(source: Source, folder: Path, existing: Existing) -> str:
    """The source's digest; the older one that a run began with, where the source is still the same."""
    new, path = digest(source.variables), folder / "config.json"
    if existing.overwrite or not path.is_file():
        return new
    resolved = read_json(path).get(RESOLVED, {})
    began_with = resolved.get("source_digest")
    if not isinstance(began_with, str) or not made_by_older_version(began_with):
        return new
    if older_digest(source.variables) == began_with:
        return began_with
    if resolved.get("versions", {}).get("jax") == jax.__version__:  # which computes it alike: it is another source
        return new
    print(
        f"{folder} was begun by another version, whose checksum of the source cannot be compared; the source is "
        "taken to be the same",
        file=sys.stderr,
    )
    return began_with


def open_source(config: TransferConfig) -> Source:
    """The weights that a transfer begins with, and their network as it is to be fine-tuned.

    Raises:
        InputError: when they are not there or cannot be read.
    """
    if not is_there(config.source):
        raise InputError(
            f"source={str(config.source)!r} does not exist; train one with jaxcnn cifar10, "
            "or give --source a run's folder or a model.pth"
        )
    source = read_source(config.source, config)
    if config.dropout_rate is not None:
        source = source._replace(config=replace(source.config, dropout_rate=config.dropout_rate))
    return source


def first_variables(config: ExperimentConfig, source: Source | None) -> tuple[dict[str, Any], list[str]]:
    """The variables that a run begins with, and what there is to say of what a transfer takes over."""
    key = key_of(config.seed)
    if source is None or not isinstance(config, TransferConfig):
        return dict(init_variables(config.model, key)), []
    notes = [f"assumed of the source, as its weights do not tell: {assumption}" for assumption in source.assumed]
    notes += [f"of the source: {note}" for note in source.notes]
    if is_unfinished(config.source if config.source.is_dir() else config.source.parent):
        notes.append(f"the run in {config.source} is not finished; its best epoch so far is taken")
    if config.freeze.mask == "scratch":
        return dict(init_variables(config.model, key)), [*notes, f"nothing is taken over from {config.source}"]
    made = transplant(
        source,
        num_classes=config.model.num_classes,
        head=config.head,
        key=key,
        keep_fitting_head=config.protocol == "original",
    )
    notes.append(f"taken over from {config.source}: {', '.join(made.taken)}")
    if made.new:
        old, new = source.config.num_classes, config.model.num_classes
        why = "" if old == new else f" (the source's fc3 has {old} classes, the target {new})"
        notes.append(f"begins with new weights: {', '.join(made.new)}{why}")
    return made.variables, notes


def _count(variables: dict[str, Any], config: ExperimentConfig) -> list[tuple[str, int, bool]]:
    # What trains in the end: gradual unfreezing and probing begin with less.
    frozen = frozen_stages(config.freeze, config.model, config.train.epochs - 1)
    return count_parameters(variables["params"], config.model, frozen)


def _train(
    folder: Path, config: ExperimentConfig, dataset: Dataset, variables: dict[str, Any], console: Console
) -> tuple[list[EpochRecord], dict[str, Any]]:
    """Trains to the end, from where an earlier start got to; returns the best weights, which `model.pth` has too."""

    def state_in(epoch: int) -> TrainState:
        frozen = frozen_stages(config.freeze, config.model, epoch)
        return init_state(variables, config.model, config.optim, seed=config.seed, frozen_stages=frozen)

    images = len(dataset.train.labels)
    steps = -(-images // config.train.batch_size)
    best_variables: dict[str, Any] = {}
    with (
        note_signals() as signals,
        open_checkpoints(folder / "checkpoints") as checkpoints,
    ):
        found = checkpoints.restore(state_in)
        state, records, part = found or Progress(state_in(0), [])
        if (lost := count_metrics(folder)) > len(records):
            console.print(f"the checkpoint after epoch {lost} is gone")
        if found is not None:
            console.print(f"continuing after {_where(records, part, steps)}")
        if records and part is None and kept_epoch(records, config) == len(records) - 1:
            # Perhaps the earlier start was killed between the two.
            best_variables = jax.tree.map(np.array, _variables(state))  # the next epoch reuses buffers
            _write_weights(folder, best_variables, config, dataset)
        elif records:
            best_variables = _best_weights(folder, config)  # which may refuse: now rather than when all is trained
            _write_weights(folder, best_variables, config, dataset, ("model.safetensors",))
        behind = 0 if part is None else config.train.batch_size * len(part.loss)
        with (
            closing(Board(folder / "logs", records)) as board,
            Bar(console, config.train.epochs, images, len(records), behind) as bar,
        ):
            epochs = fit(state, config, dataset, history=records, part=part, on_step=bar.step, should_stop=signals.came)
            try:
                for trained, record in epochs:
                    records.append(record)
                    part = None
                    best = kept_epoch(records, config)
                    checkpoints.save(trained, records)
                    if best == len(records) - 1:
                        best_variables = jax.tree.map(np.array, _variables(trained))
                        _write_weights(folder, best_variables, config, dataset)
                    write_metrics(folder, records)
                    board.add_record(record)
                    bar.epoch(record, is_best=best == len(records) - 1 and validates(config, record))
                    if thawed := _thawing_stages(config, len(records)):
                        console.print(f"from the next epoch on, these train too: {', '.join(thawed)}", highlight=False)
                        bar.compiling()
                    if signals.came():
                        break
            except Paused as paused:
                part = paused.part
                checkpoints.save(paused.state, records, part)
            if signals.came():
                console.print(f"stopping after {_where(records, part, steps)}")
    return records, best_variables


def _write_weights(
    folder: Path,
    variables: dict[str, Any],
    config: ExperimentConfig,
    dataset: Dataset,
    names: Sequence[str] = ("model.pth", "model.safetensors"),
    temperature: float = 1.0,
) -> None:
    card = Card(dataset.class_names, dataset.mean, dataset.std, config.data.resize, temperature)
    for name in names:
        write_state_dict(folder / name, variables, config.model, to_metadata(config.model, card))


def _best_weights(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
    try:
        return from_torch(read_state_dict(folder / "model.pth"), config.model)
    except InputError as error:
        raise InputError(f"{folder} has lost its best epoch: {error}; --overwrite begins the run again") from error


def _thawing_stages(config: ExperimentConfig, epoch: int) -> list[str]:
    """The stages that begin to train with an epoch (counted from 0)."""
    if epoch == config.train.epochs:
        return []
    before, now = (frozen_stages(config.freeze, config.model, each) for each in (epoch - 1, epoch))
    n = config.model.num_blocks
    return [f"block_{stage}" if stage < n else f"fc{stage - n + 1}" for stage in range(now, before)]


def _where(records: Sequence[EpochRecord], part: Metrics | None, steps: int) -> str:
    return f"epoch {len(records)}" + (f" and {len(part.loss)} of {steps} steps" if part else "")


def _variables(state: TrainState) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}
