"""Train the three baselines one after the other, and compare them; runs that fail do not stop the others."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import tyro

from experiments.cli import baseline, main
from experiments.config_file import Existing
from jaxcnn.config import ExperimentConfig
from jaxcnn.errors import InputError


@dataclass(frozen=True)
class Flags:
    """Settings that the three runs share; everything else is the seed document's."""

    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of every run."""
    dir: Path | None = None
    """Folder of prepared tfds data sets; tfds's own default if not given."""
    archives: Path | None = None
    """Folder of archives already downloaded."""
    epochs: int = 200
    """Most epochs of each run."""
    names: tuple[str, ...] = ("cifar10", "cifar100", "svhn")
    """The data sets."""
    overwrite: bool = False
    """Begin anew those whose folders are there already."""


class Outcome(NamedTuple):
    """How one of several runs ended."""

    name: str
    summary: dict[str, Any] | None
    error: str | None


def run_experiments(experiments: Sequence[tuple[str, ExperimentConfig]], *, overwrite: bool = False) -> list[Outcome]:
    """Runs named experiments in order, going on past one that fails; prints a summary and names the best.

    Args:
        experiments: pairs of a run's name, which replaces the configuration's own, and its configuration.
        overwrite: begin anew those whose folders are there already.

    Returns:
        What became of each, in order.
    """
    from rich.console import Console
    from rich.table import Table

    from experiments.run import run_experiment

    console = Console(soft_wrap=True)
    outcomes = []
    for name, config in experiments:
        try:
            outcomes.append(
                Outcome(name, run_experiment(replace(config, name=name), Existing(overwrite=overwrite)), None)
            )
        except InputError as error:
            print(f"error: {name}: {error}", file=sys.stderr)
            outcomes.append(Outcome(name, None, str(error)))
    table = Table("run", "test accuracy", "validation accuracy", "best epoch", "time", title="All runs")
    for name, summary, _ in outcomes:
        if summary is None:
            table.add_row(name, "failed", "", "", "")
            continue
        validation = "" if summary["val_accuracy"] is None else f"{summary['val_accuracy']:.2f} %"
        test = f"{summary['test_accuracy']:.2f} %"
        table.add_row(name, test, validation, str(summary["best_epoch"]), f"{summary['seconds']:.0f} s")
    console.print(table)
    if done := [outcome for outcome in outcomes if outcome.summary is not None]:
        best = max(done, key=lambda outcome: outcome.summary["test_accuracy"] if outcome.summary else 0)
        assert best.summary is not None
        console.print(f"best run: {best.name}, test accuracy {best.summary['test_accuracy']:.2f} %")
    return outcomes


def run_baselines(flags: Flags) -> None:
    """Trains the baselines that the flags ask for.

    Raises:
        InputError: when a run failed, after all have been tried.
    """
    experiments = []
    for name in flags.names:
        config = baseline(name)
        data = replace(config.data, dir=flags.dir, archives=flags.archives)
        train = replace(config.train, epochs=flags.epochs)
        experiments.append((name, replace(config, runs_dir=flags.runs_dir, seed=flags.seed, data=data, train=train)))
    failed = [outcome.name for outcome in run_experiments(experiments, overwrite=flags.overwrite) if outcome.error]
    if failed:
        raise InputError(f"{len(failed)} of {len(experiments)} runs failed: {', '.join(failed)}; see above")


if __name__ == "__main__":
    main(lambda: run_baselines(tyro.cli(Flags, description=__doc__)))
