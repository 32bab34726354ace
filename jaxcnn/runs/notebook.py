"""A bar in a notebook's cell, which moves in place; lines are printed beside it as anywhere."""

import builtins
import html
import time
from typing import Any

_PAUSE = 0.2
"""Seconds between two changes: each is a message to the browser."""


class CellBar:
    """A bar with a text in the output of the cell that runs."""

    def __init__(self) -> None:
        from IPython.display import HTML, display

        self._html: Any = HTML
        self._handle: Any = display(HTML(""), display_id=True)
        self._shown = 0.0

    def show(self, done: float, text: str) -> None:
        """Shows how much is `done`, from 0 to 1, and a text; calls in quick succession are left out."""
        now = time.perf_counter()
        if now - self._shown >= _PAUSE:
            self._shown = now
            bar = f'<progress max="1" value="{done:.3f}" style="width: 24em"></progress>'
            self._handle.update(self._html(f"{bar} <code>{html.escape(text)}</code>"))

    def close(self) -> None:
        """Takes the bar away."""
        self._handle.update(self._html(""))


def open_cell_bar() -> CellBar | None:
    """A bar, if this is a notebook's kernel."""
    shell = getattr(builtins, "get_ipython", lambda: None)()
    return None if getattr(shell, "kernel", None) is None else CellBar()
