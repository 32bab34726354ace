"""One run: training, and its results in `runs/<name>/`."""

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jax.sharding import Mesh

from jaxcnn.config.experiment import CONTINUE, Existing, ExperimentConfig, TransferConfig
from jaxcnn.config.training import FreezeConfig
from jaxcnn.data.sets import as_original, load_dataset
from jaxcnn.data.splits import Dataset
from jaxcnn.errors import DivergedError, InputError, MachineError, is_out_of_memory, reason
from jaxcnn.files import is_there
from jaxcnn.kernels.backend import fixed_settings, is_cpu
from jaxcnn.masks import count_parameters, frozen_stages, stages_to_unfreeze
from jaxcnn.model import init_variables, key_of
from jaxcnn.runs.calibration import fit_temperature
from jaxcnn.runs.console import Terminal
from jaxcnn.runs.device import select_device
from jaxcnn.runs.display import Bar, print_start, results_table
from jaxcnn.runs.folder import claim_folder, digest_source, find_finished, is_unfinished, resolve, with_precision
from jaxcnn.runs.kept import read_best, write_weights
from jaxcnn.runs.log import check_log, update_log
from jaxcnn.runs.metrics import Board, count_metrics, write_metrics
from jaxcnn.runs.present import present, remove_products
from jaxcnn.runs.results import write_results
from jaxcnn.runs.saving import Saver, is_any_set
from jaxcnn.runs.signals import defer_signals
from jaxcnn.runs.streams import only_warns
from jaxcnn.runs.style import Figures
from jaxcnn.runs.summary import Summary
from jaxcnn.training.decisions import kept_epoch, reason_to_stop, validates
from jaxcnn.training.devices import image_limit, make_mesh
from jaxcnn.training.epoch import evaluate
from jaxcnn.training.features import SharedFeatures
from jaxcnn.training.loop import Paused, evaluation_step, fit
from jaxcnn.training.processes import from_first, is_first, together
from jaxcnn.training.records import EpochRecord, Metrics, TrainState
from jaxcnn.training.soundness import require_trainable
from jaxcnn.training.step import init_state
from jaxcnn.weights.checkpoint import Progress, open_checkpoints
from jaxcnn.weights.pretrained import locate_weights, names_hint
from jaxcnn.weights.source import read_source
from jaxcnn.weights.transfer import Source, copied_stages, transplant


@fixed_settings()
def run_experiment(
    config: ExperimentConfig,
    existing: Existing = CONTINUE,
    figures: Figures | None = "png",
    features: SharedFeatures | None = None,
) -> Summary:
    """Trains a network and writes the results to the run's folder.

    An interrupted run continues. A finished run is not trained again; only what it lacks of figures, tables, its page
    `report.html` and its row in the log is made. Validation images decide the learning rate, early stopping and the
    best epoch. The test set is evaluated once, with the weights of the best epoch (of the last epoch, without
    validation images). A figure, page or log that cannot be written causes only a warning.

    Args:
        config: the run; a `TransferConfig` starts it from saved weights.
        existing: what to do if the folder already holds a run.
        figures: the format of the figures. None makes no figures, tables of classes or page; `jaxcnn report` makes them
            later.
        features: cached features of the last run, to use if they fit, and to replace.

    Returns:
        The content of `summary.json`.

    Raises:
        InputError: when the configuration, the data or the run's folder cannot be used.
        MachineError: when there is not enough memory or disk space.
        DivergedError: when the loss or a weight is no longer finite.
        Interrupted: when a signal arrived during training. The same call continues the run.
    """
    select_device(config.device)  # first, because asking JAX for its processes chooses a device
    console = Terminal(soft_wrap=True, quiet=not is_first())
    folder, config, source, dataset, mesh, resolved, found = together(lambda: plan(config, existing))
    summary = from_first(lambda: found)
    was_finished = summary is not None
    if summary is None:
        with _explain_out_of_memory():
            variables, notes = first_variables(config, source)  # first, because it may raise before the folder exists
        with ExitStack() as lock, _explain_out_of_memory():
            summary = from_first(lambda: lock.enter_context(claim_folder(folder, config, resolved, existing)))
            if summary is None:
                if config.train.precision == "bfloat16" and is_cpu():
                    notes = [*notes, "train.precision=bfloat16 is for accelerators; a CPU is seldom faster with it"]
                for note in notes:
                    console.print(note, markup=False)
                began = time.perf_counter()
                counts = _count(variables, config)
                print_start(console, folder, config, dataset, counts)
                if is_first():  # now, while the user is still there
                    with only_warns(f"row of {folder.name} in the table of all runs"):
                        check_log(folder.parent, transfers=isinstance(config, TransferConfig))
                records, best, board = _train(folder, config, dataset, variables, mesh, console, features, lock)
                evaluated = partial(evaluate, evaluation_step(config, dataset, mesh=mesh), best, mesh=mesh)
                tested = evaluated(dataset.test, config.train.batch_size)
                temperature = None
                if config.train.temperature_scaling and (split := dataset.validation) is not None:
                    temperature = fit_temperature(evaluated(split, config.train.batch_size).logits, split.labels)

                def write() -> Summary:
                    if temperature is not None:
                        write_weights(folder, best, config, dataset, ("model.safetensors",), temperature)
                    events = board  # which may have failed: then once more, as the cause may be gone
                    if events is None or not events.works:
                        events = lock.enter_context(closing(Board(folder / "logs", records)))
                    written = write_results(
                        folder, config, dataset, records, counts, tested, temperature, events, began
                    )
                    remove_products(folder)  # of what the folder held before
                    return written

                summary = from_first(write)
    if not is_first():
        return summary
    if figures is not None:
        present(folder, figures)
    with only_warns(f"row of {folder.name} in the table of all runs"):
        update_log(folder.parent, transfers=isinstance(config, TransferConfig))
    if was_finished:
        console.print(f"{folder} is finished; --overwrite trains it again, --name uses another folder", markup=False)
    console.print(results_table(summary))
    return summary


@contextmanager
def _explain_out_of_memory() -> Iterator[None]:
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
    """Everything that a run needs, after all checks have passed."""

    folder: Path
    config: ExperimentConfig
    """The configuration, completed by the number of classes and, for a transfer, by the source's network."""
    source: Source | None
    dataset: Dataset
    mesh: Mesh | None
    """The devices that share each batch; None for one device."""
    resolved: dict[str, Any]
    """What `config.json` records under "resolved"."""
    summary: Summary | None
    """The result, if the run is already finished."""


@_explain_out_of_memory()
@fixed_settings()
def plan(config: ExperimentConfig, existing: Existing = CONTINUE) -> Plan:
    """Loads and checks everything that a run needs, without changing anything.

    Raises:
        InputError: when the configuration, the data, the source or the run's folder cannot be used.
    """
    select_device(config.device)
    folder = config.runs_dir / config.run_name
    config = with_precision(config, folder, existing)
    if not isinstance(config, TransferConfig) and config.freeze != FreezeConfig():
        raise InputError("freeze needs weights to start from: use jaxcnn transfer")
    if original := config.protocol == "original":  # trains on all training images and validates on the test split
        config = replace(config, data=replace(config.data, validation=0.0))
    source = None
    if isinstance(config, TransferConfig):
        if existing.overwrite and config.source.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"--overwrite would remove {folder}, and with it the source; give another --name")
        source = open_source(config)
        copied_stages(config, source.config)  # raises if the network does not have the stages to copy and freeze
    model = config.model if source is None else source.config
    mesh = make_mesh(config.devices)
    most = {"auto": image_limit(), "always": 0, "never": None}[config.data.stream]
    dataset = load_dataset(
        config.data, input_size=model.input_size, in_channels=model.in_channels, seed=config.seed, most_bytes=most
    )
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
    resolved = resolve(dataset, 1 if mesh is None else mesh.size) | (
        {} if source is None else {"source_digest": digest_source(source.variables, folder, existing)}
    )
    return Plan(folder, config, source, dataset, mesh, resolved, find_finished(folder, config, resolved, existing))


def open_source(config: TransferConfig) -> Source:
    """Reads the weights that a transfer starts from, with their network's configuration.

    Raises:
        InputError: when they do not exist or cannot be read.
    """
    if not is_there(locate_weights(config.source)):
        raise InputError(
            f"source={str(config.source)!r} does not exist; train one with jaxcnn cifar10, "
            f"or give --source a run's folder or a model.pth{names_hint()}"
        )
    source = read_source(config.source, config)
    if config.dropout_rate is not None:
        source = source._replace(config=replace(source.config, dropout_rate=config.dropout_rate))
    return source


def first_variables(config: ExperimentConfig, source: Source | None) -> tuple[dict[str, Any], list[str]]:
    """The variables that a run starts from, and lines to print about them."""
    key = key_of(config.seed)
    if source is None or not isinstance(config, TransferConfig):
        return dict(init_variables(config.model, key)), []
    notes = [f"assumed of the source, whose files do not say: {assumption}" for assumption in source.assumed]
    notes += [f"source: {note}" for note in source.notes]
    path = locate_weights(config.source)
    if is_unfinished(path if path.is_dir() else path.parent):
        notes.append(f"the run in {config.source} is not finished; its best epoch so far is used")
    made = transplant(
        source,
        num_classes=config.model.num_classes,
        copied_stages=copied_stages(config, config.model),
        key=key,
        keep_fitting_head=config.protocol == "original",
    )
    if not made.taken:
        return made.variables, [*notes, f"no weights are used from {config.source}"]
    notes.append(f"weights from {config.source}: {', '.join(made.taken)}")
    if made.new:
        old, new = source.config.num_classes, config.model.num_classes
        why = "" if old == new else f" (the source's fc3 has {old} classes, the target {new})"
        notes.append(f"new weights: {', '.join(made.new)}{why}")
    return made.variables, notes


def _count(variables: dict[str, Any], config: ExperimentConfig) -> list[tuple[str, int, bool]]:
    # As in the last epoch: with gradual unfreezing or probing, earlier epochs train fewer.
    frozen = frozen_stages(config.freeze, config.model, config.train.epochs - 1)
    return count_parameters(variables["params"], config.model, frozen)


def _train(
    folder: Path,
    config: ExperimentConfig,
    dataset: Dataset,
    variables: dict[str, Any],
    mesh: Mesh | None,
    console: Terminal,
    features: SharedFeatures | None,
    resources: ExitStack,
) -> tuple[list[EpochRecord], dict[str, Any], Board | None]:
    """Trains all remaining epochs.

    Returns:
        All records; the best weights, which are in `model.pth` too; and the first process's board, still open.
    """

    def state_in(epoch: int) -> TrainState:
        frozen = frozen_stages(config.freeze, config.model, epoch)
        return init_state(variables, config.model, config.optim, seed=config.seed, frozen_stages=frozen)

    images = len(dataset.train.labels)
    steps = -(-images // config.train.batch_size)
    with (
        defer_signals() as signals,
        open_checkpoints(folder / "checkpoints") as checkpoints,
    ):
        found = checkpoints.restore(state_in)
        state, records, part = found or Progress(state_in(0), [])
        if (lost := count_metrics(folder)) > len(records):
            console.print(f"the checkpoint after epoch {lost} is missing")
        if found is not None:
            console.print(f"continuing after {_where(records, part, steps)}")
        saver = Saver(
            checkpoints.save,
            lambda best: write_weights(folder, best, config, dataset),
            lambda saved: write_metrics(folder, saved),
        )
        if records and part is None and kept_epoch(records, config) == len(records) - 1:
            saver.keep(state)  # because a kill between checkpoint and weights leaves them out
        elif records:
            saver.best = read_best(folder, config)  # it may raise: better now than after training
            if is_first():
                write_weights(folder, saver.best, config, dataset, ("model.safetensors",))
        behind = 0 if part is None else config.train.batch_size * len(part.loss)
        board = resources.enter_context(closing(Board(folder / "logs", records))) if is_first() else None
        with Bar(console, config.train.epochs, images, len(records), behind) as bar:
            stop = partial(is_any_set, signals)
            epochs = fit(
                state, config, dataset, history=records, part=part, on_step=bar.step, should_stop=stop, mesh=mesh,
                features=features,
            )  # fmt: skip
            try:
                for trained, record in epochs:
                    records.append(record)
                    part = None
                    is_best = kept_epoch(records, config) == len(records) - 1
                    ends = len(records) == config.train.epochs or reason_to_stop(records, config) is not None
                    stops = is_any_set(signals)
                    saver.epoch(trained, records, is_best=is_best, last=ends or stops)
                    if board is not None:
                        board.add_record(record)
                    bar.epoch(record, is_best=is_best and validates(config, record))
                    if unfrozen := stages_to_unfreeze(config.freeze, config.model, len(records), config.train.epochs):
                        console.print(
                            f"from the next epoch on, these train too: {', '.join(unfrozen)}", highlight=False
                        )
                        bar.show_compiling()
                    if stops:
                        break
            except Paused as paused:
                part = paused.part
                saver.part(paused.state, records, part)
            except DivergedError:
                saver.flush()
                raise
            if signals.is_set():
                console.print(f"stopping after {_where(records, part, steps)}")
    return records, saver.best, board


def _where(records: Sequence[EpochRecord], part: Metrics | None, steps: int) -> str:
    return f"epoch {len(records)}" + (f" and {len(part.loss)} of {steps} steps" if part else "")
