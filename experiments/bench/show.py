"""Rows as a table on the terminal, in Markdown, as a chart and as JSON."""

import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from experiments.bench.flops import H100, floors, forward_flops, step_bytes, step_flops
from experiments.bench.measure import Row
from experiments.bench.setting import Setting
from jaxcnn.errors import InputError

MARKERS = ("<!-- experiments.bench writes from here -->", "<!-- to here -->")
HEADER = ("row", "unit", "jaxcnn", "PyTorch", "ratio", "its range", "n", "also")


def number(value: float | None) -> str:
    """Three digits or so, as a reader wants them."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def cells(row: Row) -> tuple[str, ...]:
    """A row of the table, under `HEADER`."""
    spread = row.ratio_spread
    others = [c for c in row.values if c not in ("jaxcnn", "pytorch") and row.values[c]]
    also = [f"{column.replace('_', ' ')} {number(row.median(column))}" for column in others]
    return (
        row.name,
        row.unit,
        number(row.median("jaxcnn")),
        number(row.median("pytorch")),
        number(row.ratio),
        f"{number(spread[0])} to {number(spread[1])}" if spread else "",
        str(max((len(values) for values in row.values.values()), default=0)),
        "; ".join([*also, *([row.note] if row.note else [])]),
    )


def rich_table(rows: Sequence[Row]) -> Table:
    """The table for a terminal."""
    table = Table(
        title="medians over n rounds in turn; ratio above 1: jaxcnn is better", box=box.SIMPLE, pad_edge=False
    )
    for name in HEADER[:-1]:
        table.add_column(name, justify="left" if name in ("row", "unit") else "right", no_wrap=True)
    for row in rows:
        *values, _ = cells(row)
        values[4] = f"[bold]{values[4]}[/]" if row.ratio is not None and row.ratio >= 1 else values[4]
        table.add_row(*values)
    return table


def remarks(rows: Sequence[Row]) -> list[str]:
    """What the table for a terminal has no room for: further columns and notes."""
    return [f"{row.name}: {cells(row)[-1]}" for row in rows if cells(row)[-1]]


def markdown(rows: Sequence[Row], machine: dict[str, Any], command: str) -> str:
    """The table for a page, with what each row is and where it was measured."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for row in rows:
        name, *rest = cells(row)
        lines.append("| " + " | ".join([f"`{name}`", *rest]) + " |")
    meanings = [f"- `{row.name}`: {row.what}" for row in rows]
    lines += ["", "<details><summary>What the rows are</summary>", "", *meanings, "", "</details>"]
    lines += ["", f"`{command}`, on {where(machine)}."]
    return "\n".join(lines) + "\n"


def put(text: str, page: str) -> str:
    """`page` with `text` between its two markers; `text` alone for an empty page.

    Raises:
        InputError: when the page has something to lose and no such place.
    """
    before, begin, rest = page.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if page and not end:
        raise InputError(f"--markdown: the page has no place for the table; give it the lines {' and '.join(MARKERS)}")
    return f"{before}{begin}\n{text}\n{end}{after}" if page else text


def paper(setting: Setting) -> str:
    """What an accelerator would reach by its data sheet, in Markdown: computed, not measured."""
    model, batch = setting.model, setting.batch_size
    megabytes = ", ".join(f"{step_bytes(model, batch, width) / 1e6:,.0f} MB" for width in (4, 2))
    lines = [
        f"On paper, not measured: {setting.preset}, batch {batch}, {H100.name} ({H100.bandwidth / 1e12:.2f} TB/s, "
        f"dense peaks of its data sheet): {forward_flops(model) / 1e6:.0f} MFLOP an image forward and "
        f"{step_flops(model) / 1e6:.0f} in a full step; at least {megabytes} a step with activations of 4 and 2 bytes.",
        "",
        "| arithmetic | peak | arithmetic alone | bytes alone | images/s at the larger |",
        "| --- | --- | --- | --- | --- |",
    ]
    for floor in floors(model, batch):
        peak = f"{H100.flops[floor.arithmetic] / 1e12:,.0f} TFLOP/s"
        times = f"{1e3 * floor.compute:.2f} ms | {1e3 * floor.memory:.2f} ms"
        lines.append(f"| {floor.arithmetic} | {peak} | {times} | {floor.images_per_second:,.0f} |")
    return "\n".join(lines) + "\n"


def machine_facts() -> dict[str, Any]:
    """Where this runs and with what."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip()
            for line in cpuinfo.read_text(encoding="utf-8").splitlines()
            if "model name" in line
        ]
        name = models[0] if models else name
    packages = {name: version(name) for name in ("jax", "flax", "torch", "pillow", "numpy")}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"hardware": f"{cores} cores of {name}", "versions": {"python": platform.python_version(), **packages}}


def where(machine: dict[str, Any]) -> str:
    """The facts in a line."""
    versions = ", ".join(f"{name} {value}" for name, value in machine["versions"].items())
    return f"{machine['hardware']}; {versions}"


def chart(path: Path, rows: Sequence[Row]) -> None:
    """Writes the ratios as bars from a line at 1, on a logarithmic axis, as PNG.

    Raises:
        InputError: when the file cannot be written.
    """
    from jaxcnn.runs.figures import new_figure

    bars = [(row.name, row.ratio, row.ratio_spread) for row in reversed(rows) if row.compares and row.ratio is not None]
    with new_figure(path, 8, 1.2 + 0.32 * len(bars)) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for i, (_, ratio, spread) in enumerate(bars):
            axes.barh(i, ratio - 1, left=1, color="tab:blue" if ratio >= 1 else "tab:orange")
            ends = spread or (ratio, ratio)
            axes.plot(ends, (i, i), color="black", linewidth=1)
            axes.annotate(f" {number(ratio)} ", (max(1, ratio, *ends), i), va="center")
        axes.set_yticks(range(len(bars)), [name for name, _, _ in bars])
        axes.axvline(1, color="black", linestyle=":")
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="PyTorch = 1; to the right jaxcnn is better (black: range of the rounds)")
