"""Draw the figures, tables and page of finished runs again, without training; compare runs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from jaxcnn.cli.config_file import read_config
from jaxcnn.cli.flags import parse_flags
from jaxcnn.config.experiment import ExperimentConfig, TransferConfig
from jaxcnn.errors import InputError, local_path
from jaxcnn.runs.style import Figures


@dataclass(frozen=True)
class Flags:
    """Which runs to show, and how. Give the runs first."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN ...")]
    """Folders of finished runs."""
    figures: Figures = "png"
    """The format of the figures; svg and pdf are for print."""
    comparison: Path | None = None
    """A folder to write a comparison of the runs to: by the settings that differ, over seeds."""


def report(flags: Flags) -> None:
    """Makes what there is to look at of each run.

    Raises:
        InputError: when a folder holds no finished run, or lacks what is needed.
    """
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.present import present_again

    if not flags.runs:
        raise InputError("there is nothing to show; give the folder of at least one run, before the flags")
    console = Terminal(soft_wrap=True, highlight=False)
    runs = [local_path("runs", run) for run in flags.runs]
    for run in runs:
        made = present_again(run, flags.figures)
        console.print(f"{run}: wrote {', '.join(path.name for path in made)}", markup=False)
    if flags.comparison is not None:
        compare(runs, local_path("--comparison", flags.comparison), flags.figures)


def compare(runs: Sequence[Path], folder: Path, figures: Figures) -> None:
    """Compares finished runs by the settings that differ, over seeds, as `jaxcnn study` does.

    The comparison is written and printed.

    Raises:
        InputError: when two runs have the same settings and seed, or the files of one cannot be read.
    """
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.reading import read_json, read_summary
    from jaxcnn.studies.plan import compare_runs
    from jaxcnn.studies.records import Finished
    from jaxcnn.studies.report import print_comparison, write_report
    from jaxcnn.studies.rows import make_row

    configs: list[ExperimentConfig] = []
    for run in runs:
        path = run.resolve()  # where the run is now: it may have been moved or renamed
        kind = TransferConfig if "source" in read_json(path / "config.json") else ExperimentConfig
        configs.append(replace(read_config(path / "config.json", kind), runs_dir=path.parent, name=path.name))
    study = compare_runs(configs, folder)
    finished = [
        Finished(case, run, make_row(config, settings, read_summary(run / "summary.json")))
        for run, (case, settings, config) in zip(runs, study.runs, strict=True)
    ]
    print_comparison(Terminal(soft_wrap=True), write_report(study, finished, figures=figures), folder)


def program(argv: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    report(parse_flags(Flags, __doc__, argv))
