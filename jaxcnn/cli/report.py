"""Draw the figures, tables and page of finished runs again, without training; compare runs."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxcnn.cli.flags import parse_flags
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
    """A folder to write a comparison of the runs to: a table by mask, over seeds, and a figure."""


def report(flags: Flags) -> None:
    """Makes what there is to look at of each run.

    Raises:
        InputError: when a folder holds no finished run, or lacks what is needed.
    """
    from jaxcnn.runs.comparison import comparison_table, write_comparison
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.present import present_again
    from jaxcnn.runs.reading import read_summary

    if not flags.runs:
        raise InputError("there is nothing to show; give the folder of at least one run, before the flags")
    console = Terminal(soft_wrap=True, highlight=False)
    runs = [local_path("runs", run) for run in flags.runs]
    for run in runs:
        made = present_again(run, flags.figures)
        console.print(f"{run}: wrote {', '.join(path.name for path in made)}", markup=False)
    if flags.comparison is not None:
        folder = local_path("--comparison", flags.comparison)
        summaries = [read_summary(run / "summary.json") for run in runs]
        write_comparison(folder, runs, summaries, flags.figures)
        console.print(comparison_table(summaries))
        console.print(f"comparison in {folder}", markup=False)


def program(argv: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    report(parse_flags(Flags, __doc__, argv))
