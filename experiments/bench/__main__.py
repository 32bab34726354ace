"""Measure this project against an equivalent PyTorch program, in turn, on this machine.

Without --rows everything runs but the scale_* rows (epochs of 5,000, 20,000 and 50,000 images; batches of 64, 256 and
1,024). The images are noise in CIFAR-10's shape, so that nothing need be downloaded, unless --data.dir is given.
"""

import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.main import main
from jaxcnn.errors import InputError, reason, require, set_path


@dataclass(frozen=True)
class DataFlags:
    """Images."""

    dir: Path | None = None
    """Folder of prepared tfds data sets with CIFAR-10 in it; noise if not given."""

    def __post_init__(self) -> None:
        if self.dir is not None:
            set_path(self, "dir", "data.")


@dataclass(frozen=True)
class ModelFlags:
    """Network."""

    preset: tuple[Literal["shallow", "deep"], ...] = ("shallow",)
    """Networks of the original; the rows of the deep one are shown as deep/..."""

    def __post_init__(self) -> None:
        require(bool(self.preset), "model.preset", self.preset, "give shallow, deep, or both")


@dataclass(frozen=True)
class Flags:
    """What to measure, how often, and what to keep."""

    rows: tuple[str, ...] = ()
    """Names or patterns such as 'step_*', without the network's; all but scale_* if none are given."""
    rounds: int = 5
    """How often each program has its turn; processes of their own run half as often."""
    batch_size: int = 256
    """Images a step."""
    steps: int = 4
    """Steps that are timed together."""
    images: int = 1024
    """Images of an epoch."""
    json: Path | None = None
    """Write the rows to this file."""
    chart: Path | None = None
    """Draw the ratios as PNG."""
    markdown: Path | None = None
    """Write the table and the floors of an accelerator in Markdown: between the markers of a page that has them."""
    data: DataFlags = field(default_factory=DataFlags)
    """Images."""

    def __post_init__(self) -> None:
        for name in ("json", "chart", "markdown"):
            if getattr(self, name) is not None:
                set_path(self, name)

    model: ModelFlags = field(default_factory=ModelFlags)
    """Network."""


def read_page(path: Path | None) -> str:
    """The Markdown that is there already; empty if there is none.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--markdown {path} cannot be read: {reason(error)}") from error


def bench(flags: Flags) -> None:
    """Measures, and shows and keeps what came of it.

    Raises:
        InputError: when a flag cannot be used, or a file cannot be written.
    """
    from experiments.bench import rows, show
    from experiments.bench.setting import Setting, load_images
    from jaxcnn.files import write_text
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.device import select_device

    select_device("cpu")  # where the PyTorch program computes
    console = Terminal(soft_wrap=True, highlight=False)
    data_dir = None if flags.data.dir is None else str(flags.data.dir)
    settings = [
        Setting(preset, flags.batch_size, flags.rounds, flags.steps, flags.images, data_dir)
        for preset in flags.model.preset
    ]
    load_images(settings[0], 1)  # refuses a folder without the set before anything is measured
    show.put("", read_page(flags.markdown))  # refuses a page without a place for the table
    machine, command = show.machine_facts(), shlex.join(["python", "-m", "experiments.bench", *sys.argv[1:]])
    console.print(show.where(machine), markup=False)
    measured = []
    for setting in settings:
        for row in rows.measure(setting, flags.rows):
            measured.append(row)
            name, unit, ours, theirs, ratio, *_ = show.cells(row)
            console.print(f"{name}: {ours} {unit}, PyTorch {theirs or 'none'}, ratio {ratio or 'none'}", markup=False)
            if flags.json is not None:  # after each row: a run that is cut short keeps what it has
                kept = [
                    {**row.to_dict(), "preset": "deep" if row.name.startswith("deep/") else "shallow"}
                    | {"command": command, **machine}
                    for row in measured
                ]
                write_text(flags.json, json.dumps(kept, indent=2) + "\n")
    console.print(show.rich_table(measured), width=max(console.width, 110), crop=False)  # pipes count as 80 columns
    for remark in show.remarks(measured):
        console.print(remark, markup=False)
    if flags.markdown is not None:
        floors = "\n".join(show.paper(setting) for setting in settings)
        text = show.put(f"{show.markdown(measured, machine, command)}\n{floors}", read_page(flags.markdown))
        write_text(flags.markdown, text)
    if flags.chart is not None:
        show.chart(flags.chart, measured)


if __name__ == "__main__":
    main(lambda: bench(parse_flags(Flags(), __doc__, sys.argv[1:])))
