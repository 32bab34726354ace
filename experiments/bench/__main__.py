"""Measure this project against an equivalent PyTorch program, in turn, on this machine.

Without --rows, all rows are measured except scale_* (epochs of 5,000, 20,000 and 50,000 images; batches of 64, 256 and
1,024). Without --data.dir the images are noise of CIFAR-10's shape, so nothing is downloaded. With --device gpu both
programs compute on the GPU; there are other rows then, and more work in each of them.
"""

import json
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.main import main
from jaxcnn.errors import InputError, reason, require, set_path

if TYPE_CHECKING:
    from experiments.bench.measure import Row
    from experiments.bench.setting import Setting

TABLE_WIDTH = 130
"""Minimum width of the table. rich takes 80 for a pipe and would cut the table off."""

AMOUNTS = {"cpu": (4, 1_024), "gpu": (64, 50_000)}
"""Steps that are timed together, and images per epoch, where the flags do not say."""


@dataclass(frozen=True)
class DataFlags:
    """Images."""

    dir: Path | None = None
    """Folder of prepared tfds data sets with CIFAR-10; if not given, the images are noise."""

    def __post_init__(self) -> None:
        if self.dir is not None:
            set_path(self, "dir", "data.")


@dataclass(frozen=True)
class ModelFlags:
    """Network."""

    preset: tuple[Literal["shallow", "deep"], ...] = ("shallow",)
    """The original's networks to measure. Rows of the deep one are called deep/..."""

    def __post_init__(self) -> None:
        require(bool(self.preset), "model.preset", self.preset, "give shallow, deep, or both")


@dataclass(frozen=True)
class Flags:
    """What to measure, how often, and what to write."""

    rows: tuple[str, ...] = ()
    """Names or patterns such as 'step_*', without the network's name; if not given, all except scale_*."""
    rounds: int = 5
    """Number of times that each program runs. Rows measured in new processes run half as often."""
    batch_size: int = 256
    """Images per step."""
    steps: int | None = None
    """Steps that are timed together; if not given, 4, and 64 on a GPU."""
    images: int | None = None
    """Images per epoch; if not given, 1,024, and on a GPU 50,000, as CIFAR-10 has."""
    device: Literal["cpu", "gpu"] = "cpu"
    """What both programs compute on."""
    json: Path | None = None
    """Write the rows to this JSON file."""
    chart: Path | None = None
    """Plot the ratios in this PNG file."""
    markdown: Path | None = None
    """Write the table, and the bounds of an accelerator, into this Markdown file. If it exists, between its markers."""
    against: Path | None = None
    """Another checkout of this project, to be timed in turn with this one instead of PyTorch."""
    history: Path | None = None
    """Append the rows to this file, one line of JSON each; the project's own is benchmarks/history/speed.jsonl."""
    data: DataFlags = field(default_factory=DataFlags)
    """Images."""

    def __post_init__(self) -> None:
        for name in ("json", "chart", "markdown", "history", "against"):
            if getattr(self, name) is not None:
                set_path(self, name)
        if self.against is not None:
            for name in ("chart", "markdown", "history"):
                require(getattr(self, name) is None, name, str(getattr(self, name)), "leave it out with --against")
            require(self.device == "cpu", "device", self.device, "leave it out with --against, which is for the CPU")

    model: ModelFlags = field(default_factory=ModelFlags)
    """Network."""


def read_page(path: Path | None) -> str:
    """Reads an existing page; empty if there is none.

    Raises:
        InputError: when it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8") if path is not None and path.exists() else ""
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--markdown {path} cannot be read: {reason(error)}") from error


def make_settings(flags: Flags) -> "list[Setting]":
    """One setting for each network.

    Raises:
        InputError: when a number is too small, or the folder does not have the images.
    """
    from experiments.bench.setting import Setting, load_images

    data_dir = None if flags.data.dir is None else str(flags.data.dir)
    usual_steps, usual_images = AMOUNTS[flags.device]
    steps = usual_steps if flags.steps is None else flags.steps
    images = usual_images if flags.images is None else flags.images
    settings = [
        Setting(preset, flags.batch_size, flags.rounds, steps, images, data_dir, flags.device)
        for preset in flags.model.preset
    ]
    load_images(settings[0], 1)  # raises for a folder without the data set, before anything is measured
    return settings


def write_records(path: Path | None, records: Sequence[dict[str, Any]], facts: dict[str, Any]) -> None:
    """Writes the rows measured so far as JSON, each with the command and the machine; does nothing without a path."""
    from jaxcnn.files import write_text

    if path is not None:
        command = shlex.join(["python", "-m", "experiments.bench", *sys.argv[1:]])
        kept = [{**record, "command": command, **facts} for record in records]
        write_text(path, json.dumps(kept, indent=2) + "\n")


def compare(flags: Flags, other: Path) -> None:
    """Measures this checkout and another one in turn, and prints and writes the results.

    Raises:
        InputError: when a flag cannot be used, a file cannot be written, or a checkout's process fails.
    """
    from experiments.bench import against, machine
    from jaxcnn.runs.console import Terminal

    console = Terminal(soft_wrap=True, highlight=False)
    settings = make_settings(flags)
    against.check(other)
    facts = machine.facts() | {"against": str(other), "against_commit": machine.commit(other)}
    console.print(f"{machine.where(facts)}; against {other} ({facts['against_commit']})", markup=False)
    measured: list[against.Comparison] = []
    records: list[dict[str, Any]] = []
    for setting in settings:
        for row in against.measure(setting, other, flags.rows):
            measured.append(row)
            records.append({**row.to_dict(), **setting.work()})
            console.print(f"{row.name}: {records[-1]['ratio']:.3f}", markup=False)
            write_records(flags.json, records, facts)
    console.width = max(console.width, TABLE_WIDTH)
    console.print(against.table(measured), crop=False)


def bench(flags: Flags) -> None:
    """Measures this project and PyTorch in turn, and prints and writes the results.

    Raises:
        InputError: when a flag cannot be used, or a file cannot be written.
    """
    from experiments.bench import history, machine, rows, show
    from jaxcnn.files import write_text
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.device import select_device

    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # PyTorch needs a GPU's memory, too
    select_device(flags.device)
    console = Terminal(soft_wrap=True, highlight=False)
    settings = make_settings(flags)
    show.insert("", read_page(flags.markdown))  # raises for a page without markers
    if flags.history is not None:
        history.append(flags.history, [])  # raises for a path that cannot be written
    facts, command = machine.facts(flags.device), shlex.join(["python", "-m", "experiments.bench", *sys.argv[1:]])
    console.print(machine.where(facts), markup=False)
    measured: list[Row] = []
    records: list[dict[str, Any]] = []
    for setting in settings:
        for row in rows.measure(setting, flags.rows):
            measured.append(row)
            records.append({**row.to_dict(), **setting.work()})
            name, unit, ours, theirs, ratio, *_ = show.cells(row)
            console.print(f"{name}: {ours} {unit}, PyTorch {theirs or 'none'}, ratio {ratio or 'none'}", markup=False)
            write_records(flags.json, records, facts)
            if flags.history is not None:
                history.append(flags.history, [{**records[-1], **facts}])
    console.width = max(console.width, TABLE_WIDTH)
    console.print(show.rich_table(measured), crop=False)
    for remark in show.remarks(measured):
        console.print(remark, markup=False)
    if flags.markdown is not None:
        bounds = "\n".join(show.accelerator_bounds(setting) for setting in settings)
        text = show.insert(f"{show.markdown(measured, facts, command)}\n{bounds}", read_page(flags.markdown))
        write_text(flags.markdown, text)
    if flags.chart is not None:
        show.chart(flags.chart, measured)


def run(flags: Flags) -> None:
    """Runs the benchmark against PyTorch, or against another checkout."""
    if flags.against is None:
        bench(flags)
    else:
        compare(flags, flags.against)


if __name__ == "__main__":
    main(lambda: run(parse_flags(Flags(), __doc__, sys.argv[1:])), continues=False)
