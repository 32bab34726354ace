"""Rows as a table for the terminal, as Markdown and as a chart."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from experiments.bench.flops import H100, forward_flops, step_bounds, step_bytes, step_flops
from experiments.bench.machine import where
from experiments.bench.measure import Row
from experiments.bench.setting import Setting
from jaxcnn.errors import InputError

MARKERS = ("<!-- experiments.bench writes from here -->", "<!-- to here -->")
BEST = ("best jaxcnn", "best PyTorch", "best ratio")
HEADER = ("row", "unit", "jaxcnn", "PyTorch", "ratio", "its range", *BEST, "n", "also")


def number(value: float | None) -> str:
    """A number with about three significant digits; empty for None."""
    if value is None:
        return ""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def best_form(row: Row, program: str) -> str:
    """The median of a program's best form, and the name of the form."""
    column = row.best(program)
    if column is None:
        return ""
    form = column.removeprefix(program).strip("_").replace("_", " ") or "float32"
    return f"{number(row.median(column))} {form}"


def cells(row: Row) -> tuple[str, ...]:
    """The cells of a row, as text under `HEADER`."""
    spread = row.ratio_spread
    best = (best_form(row, "jaxcnn"), best_form(row, "pytorch"), number(row.best_ratio))
    others = [c for c in row.values if c not in ("jaxcnn", "pytorch") and row.values[c]]
    also = [f"{column.replace('_', ' ')} {number(row.median(column))}" for column in others]
    return (
        row.name,
        row.unit,
        number(row.median("jaxcnn")),
        number(row.median("pytorch")),
        number(row.ratio),
        f"{number(spread[0])} to {number(spread[1])}" if spread else "",
        *(best if row.has_forms else ("", "", "")),
        str(max((len(values) for values in row.values.values()), default=0)),
        "; ".join([*also, *([row.note] if row.note else [])]),
    )


def rich_table(rows: Sequence[Row]) -> Table:
    """The table for the terminal."""
    title = "medians over n rounds in turn, jaxcnn and PyTorch in float32, and each in its best form; "
    table = Table(title=f"{title}ratio above 1: jaxcnn is better", box=box.SIMPLE, pad_edge=False)
    shown = [name for name in HEADER if name not in ("its range", "also")]
    for name in shown:
        table.add_column(name, justify="left" if name in ("row", "unit") else "right", no_wrap=True)
    for row in rows:
        values = dict(zip(HEADER, cells(row), strict=True))
        for name, ratio in (("ratio", row.ratio), ("best ratio", row.best_ratio)):
            values[name] = f"[bold]{values[name]}[/]" if ratio is not None and ratio >= 1 else values[name]
        table.add_row(*(values[name] for name in shown))
    return table


def remarks(rows: Sequence[Row]) -> list[str]:
    """Other columns and notes, for which the terminal's table has no room."""
    return [f"{row.name}: {cells(row)[-1]}" for row in rows if cells(row)[-1]]


def markdown(rows: Sequence[Row], machine: dict[str, Any], command: str) -> str:
    """The table in Markdown, with the meaning of each row, the command and the machine."""
    lines = ["| " + " | ".join(HEADER) + " |", "|" + " --- |" * len(HEADER)]
    for row in rows:
        name, *rest = cells(row)
        lines.append("| " + " | ".join([f"`{name}`", *rest]) + " |")
    meanings = [f"- `{row.name}`: {row.what}" for row in rows]
    lines += ["", "<details><summary>What the rows are</summary>", "", *meanings, "", "</details>"]
    lines += ["", f"`{command}`, on {where(machine)}."]
    return "\n".join(lines) + "\n"


def insert(text: str, page: str) -> str:
    """Replaces what is between the two markers of `page` by `text`. For an empty page, returns `text`.

    Raises:
        InputError: when the page is not empty and has no markers.
    """
    before, begin, rest = page.partition(MARKERS[0])
    _, end, after = rest.partition(MARKERS[1])
    if page and not end:
        raise InputError(f"--markdown: the page has no place for the table; give it the lines {' and '.join(MARKERS)}")
    return f"{before}{begin}\n{text}\n{end}{after}" if page else text


def accelerator_bounds(setting: Setting) -> str:
    """Least step times of an accelerator by its data sheet, in Markdown: computed, not measured."""
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
    for bound in step_bounds(model, batch):
        peak = f"{H100.flops[bound.arithmetic] / 1e12:,.0f} TFLOP/s"
        times = f"{1e3 * bound.compute:.2f} ms | {1e3 * bound.memory:.2f} ms"
        lines.append(f"| {bound.arithmetic} | {peak} | {times} | {bound.images_per_second:,.0f} |")
    return "\n".join(lines) + "\n"


def chart(path: Path, rows: Sequence[Row]) -> None:
    """Plots the ratios as bars that start at 1, on a logarithmic axis.

    Raises:
        MachineError: when the file cannot be written.
    """
    from jaxcnn.runs.palette import RIGHT, WRONG
    from jaxcnn.runs.style import new_figure

    bars = [
        (row.name, row.ratio, row.ratio_spread, row.best_ratio if row.has_forms else None)
        for row in reversed(rows)
        if row.compares and row.ratio is not None
    ]
    with new_figure(path, 8, 1.2 + 0.32 * len(bars)) as figure:
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for i, (_, ratio, spread, best) in enumerate(bars):
            axes.barh(i, ratio - 1, left=1, color=RIGHT if ratio >= 1 else WRONG)
            ends = spread or (ratio, ratio)
            axes.plot(ends, (i, i), color="black", linewidth=1)
            if best is not None:
                axes.plot(best, i, "D", color="black", markersize=4)
            axes.annotate(f" {number(ratio)} ", (max(1, ratio, *ends), i), va="center")
        axes.set_yticks(range(len(bars)), [name for name, *_ in bars])
        axes.axvline(1, color="black", linestyle=":")
        axes.margins(x=0.12)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set(xlabel="PyTorch = 1; to the right jaxcnn is better (line: range of rounds; diamond: best forms)")
