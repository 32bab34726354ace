"""Train the three baselines one after the other, and compare them. If one fails, the others still run."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

from jaxcnn.cli.flags import baseline, fields_of, parse_flags
from jaxcnn.config.experiment import Device, Existing, ExperimentConfig
from jaxcnn.config.network import PRESETS
from jaxcnn.config.training import Augment
from jaxcnn.errors import InputError, JaxcnnError, reason
from jaxcnn.runs.summary import Summary


@dataclass(frozen=True)
class DataFlags:
    """Images."""

    dir: Path | None = None
    """Folder of prepared tfds data sets; tfds's own default if not given."""
    archives: Path | None = None
    """Folder of archives that are already downloaded."""
    augment: Augment = "autoaugment"
    """Augmentation of the training images."""


@dataclass(frozen=True)
class ModelFlags:
    """Network."""

    preset: Literal["shallow", "deep"] = "shallow"
    """A network of the original."""


@dataclass(frozen=True)
class TrainFlags:
    """Training."""

    epochs: int = 200
    """Maximum number of epochs of each run."""
    batch_size: int = 256
    """Images per step."""


@dataclass(frozen=True)
class Flags:
    """Settings of all runs. Everything else is as in the original."""

    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of every run."""
    device: Device = "auto"
    """Device to compute on; auto takes the best one that JAX finds."""
    data: DataFlags = field(default_factory=DataFlags)
    """Images."""
    model: ModelFlags = field(default_factory=ModelFlags)
    """Network."""
    train: TrainFlags = field(default_factory=TrainFlags)
    """Training."""
    names: tuple[str, ...] = ("cifar10", "cifar100", "svhn")
    """The data sets."""
    overwrite: bool = False
    """Delete existing runs in these folders and start again."""


class Outcome(NamedTuple):
    """The result of one of several runs: a summary or an error."""

    name: str
    summary: Summary | None
    error: str | None


def run_experiments(experiments: Sequence[tuple[str, ExperimentConfig]], *, overwrite: bool = False) -> list[Outcome]:
    """Runs experiments in order and prints a table of the results. After an error the next one runs.

    The best run is named only if all successful runs have the same test images.

    Args:
        experiments: pairs of a name, which replaces that of the configuration, and a configuration.
        overwrite: delete existing runs in these folders and start again.

    Returns:
        The outcome of each experiment, in order.
    """
    from rich.table import Table
    from rich.text import Text

    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.display import print_turn
    from jaxcnn.runs.run import run_experiment

    console = Terminal(soft_wrap=True)
    outcomes = []
    for number, (name, config) in enumerate(experiments, 1):
        print_turn(console, number, len(experiments), name)
        try:
            outcomes.append(
                Outcome(name, run_experiment(replace(config, name=name), Existing(overwrite=overwrite)), None)
            )
        except Exception as error:  # any kind, so that the other runs are not lost
            text = str(error) if isinstance(error, JaxcnnError) else f"{type(error).__name__}: {reason(error)}"
            print(f"error: {name}: {text}", file=sys.stderr)
            outcomes.append(Outcome(name, None, text))
    table = Table("run", "test accuracy", "validation accuracy", "best epoch", "time", title="All runs")
    for name, summary, _ in outcomes:
        if summary is None:
            table.add_row(Text(name), "failed", "", "", "")
            continue
        validation = "" if summary["val_accuracy"] is None else f"{summary['val_accuracy']:.2f} %"
        test = f"{summary['test_accuracy']:.2f} %"
        table.add_row(Text(name), test, validation, str(summary["best_epoch"]), f"{summary['seconds']:.0f} s")
    console.print(table)
    done = [config for (_, config), outcome in zip(experiments, outcomes, strict=True) if outcome.summary is not None]
    images = {(config.data.name, config.data.dir, config.data.classes, config.protocol) for config in done}
    accuracies = {outcome.name: outcome.summary["test_accuracy"] for outcome in outcomes if outcome.summary is not None}
    if len(images) == 1:
        best = max(accuracies, key=lambda name: accuracies[name])
        console.print(f"best run: {best}, test accuracy {accuracies[best]:.2f} %", markup=False)
    return outcomes


def run_baselines(flags: Flags) -> None:
    """Trains the network on each of `flags.names`, one after the other, and prints a table of the results.

    Raises:
        InputError: after all runs, when at least one of them failed.
    """
    experiments = []
    for name in flags.names:
        default = baseline(name)
        config = replace(
            default,
            runs_dir=flags.runs_dir,
            seed=flags.seed,
            device=flags.device,
            data=replace(default.data, **fields_of(flags.data)),
            model=PRESETS[flags.model.preset],
            train=replace(default.train, **fields_of(flags.train)),
        )
        experiments.append((name, config))
    failed = [outcome.name for outcome in run_experiments(experiments, overwrite=flags.overwrite) if outcome.error]
    if failed:
        raise InputError(f"{len(failed)} of {len(experiments)} runs failed: {', '.join(failed)}; see above")


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments."""
    run_baselines(parse_flags(Flags(), __doc__, argv))
