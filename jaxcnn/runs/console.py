"""The console that programs print to."""

import sys
from typing import Any

from rich.console import Console

from jaxcnn.runs.streams import output


class Terminal(Console):
    """A rich console that raises BrokenPipeError on a closed pipe; rich would exit with status 1.

    Text like `:on:` is not replaced by an emoji, and a notebook gets plain lines.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"file": output(sys.stdout), "emoji": False, "force_jupyter": False, **settings})
        if self.width < 1:  # COLUMNS=0 of a terminal without a known width: rich would print nothing
            self.width = 80

    def on_broken_pipe(self) -> None:
        """Called by rich while it handles the BrokenPipeError."""
        raise BrokenPipeError
