"""Train the three baselines one after the other, and compare them. If one fails, the others still run."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jaxcnn.cli.flags import baseline, fields_of, parse_flags
from jaxcnn.config.experiment import Device, Existing, ExperimentConfig
from jaxcnn.config.network import PRESETS
from jaxcnn.config.training import Augment

if TYPE_CHECKING:
    from jaxcnn.studies.execute import Outcome


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


def run_experiments(experiments: Sequence[tuple[str, ExperimentConfig]], *, overwrite: bool = False) -> "list[Outcome]":
    """Runs experiments in order and prints a table of the results. After an error the next one runs.

    The best run by validation accuracy is named only if all successful runs have one, and the same test images.

    Args:
        experiments: pairs of a name, which replaces that of the configuration, and a configuration.
        overwrite: delete existing runs in these folders and start again.

    Returns:
        The outcome of each experiment, in order.
    """
    from rich.table import Table
    from rich.text import Text

    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.run import run_experiment
    from jaxcnn.studies.execute import Turns, one_by_one

    console = Terminal(soft_wrap=True)
    configs = [replace(config, name=name) for name, config in experiments]
    train = partial(run_experiment, existing=Existing(overwrite=overwrite))
    outcomes = list(one_by_one(configs, train, Turns(console, len(configs))))
    table = Table("run", "test accuracy", "validation accuracy", "best epoch", "time", title="All runs")
    for config, summary, _ in outcomes:
        if summary is None:
            table.add_row(Text(config.run_name), "failed", "", "", "")
            continue
        validation = "" if summary["val_accuracy"] is None else f"{summary['val_accuracy']:.2f} %"
        test = f"{summary['test_accuracy']:.2f} %"
        table.add_row(
            Text(config.run_name), test, validation, str(summary["best_epoch"]), f"{summary['seconds']:.0f} s"
        )
    console.print(table)
    done = [outcome.config for outcome in outcomes if outcome.summary is not None]
    images = {(config.data.name, config.data.dir, config.data.classes, config.protocol) for config in done}
    scores = {
        outcome.config.run_name: (outcome.summary["val_accuracy"], outcome.summary["test_accuracy"])
        for outcome in outcomes
        if outcome.summary is not None
    }
    validated = {name: validation for name, (validation, _) in scores.items() if validation is not None}
    if len(images) == 1 and len(validated) == len(scores):
        best = max(validated, key=lambda name: validated[name])
        text = f"{best} ({validated[best]:.2f} %), test accuracy {scores[best][1]:.2f} %"
        console.print(f"best run by validation accuracy: {text}", markup=False)
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
    from jaxcnn.studies.execute import require_all

    outcomes = run_experiments(experiments, overwrite=flags.overwrite)
    require_all([outcome.config.run_name for outcome in outcomes if outcome.error is not None], len(experiments))


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments."""
    run_baselines(parse_flags(Flags(), __doc__, argv))
