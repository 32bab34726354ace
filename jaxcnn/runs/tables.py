"""Tables as CSV, including those that spreadsheets save, as Markdown and as LaTeX."""

import codecs
import csv
import io
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxcnn.errors import InputError, reason


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Formats rows as CSV with commas and \\n; None becomes an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def markdown_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table in Markdown, with nothing in its cells read as markup."""
    lines = [[escape_markdown(cell) for cell in cells] for cells in (header, *rows)]
    lines.insert(1, ["---"] * len(header))
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def latex_text(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A LaTeX `tabular` with the rules of the package booktabs. All columns except the first are aligned right."""
    first, *rest = (" & ".join(map(_latex_cell, cells)) + r" \\" for cells in (header, *rows))
    columns = "l" + "r" * (len(header) - 1)
    lines = ["% needs \\usepackage{booktabs}", rf"\begin{{tabular}}{{{columns}}}", r"\toprule", first, r"\midrule"]
    return "\n".join([*lines, *rest, r"\bottomrule", r"\end{tabular}", ""])


def _latex_cell(cell: str) -> str:
    text = "".join(_LATEX.get(c, c) for c in cell)
    return re.sub(r"(?<!\S)-(?=\d)", "$-$", text)


_LATEX = {c: rf"\{c}" for c in "&%$#_{}"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}


_MARKDOWN = re.compile(r"([\\`*_\[\]<>|~])")


def escape_markdown(text: str) -> str:
    """A text with nothing in it read as markup."""
    return _MARKDOWN.sub(r"\\\1", text)


def read_table(path: Path) -> list[list[str]]:
    """Reads a CSV file as saved by this program or a spreadsheet.

    The separator is the most frequent of comma, semicolon and tab in the first line. Line ends may be of any kind. The
    text is UTF-8, or UTF-16 with a byte order mark.

    Returns:
        The non-empty rows, the column names first. Short rows are filled with empty cells.

    Raises:
        InputError: when the file is missing or not such a table.
    """
    try:
        data = path.read_bytes()
        wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if wide else "utf-8-sig")
        first = re.split(r"[\r\n]", text, maxsplit=1)[0]
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=max(",;\t", key=first.count), strict=True)
        rows = [row for row in reader if any(row)]
    except (OSError, UnicodeError, csv.Error) as error:
        raise InputError(f"{path} cannot be read as a table: {reason(error)}") from error
    if not rows:
        raise InputError(f"{path} cannot be read as a table: it is empty")
    width = len(rows[0])
    if any(any(row[width:]) for row in rows):
        raise InputError(f"{path} cannot be read as a table: a row has more cells than the first line has names")
    return [(row + [""] * width)[:width] for row in rows]
