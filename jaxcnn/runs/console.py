"""Where programs print what a person is to see."""

import sys
from typing import Any

from rich.console import Console

from jaxcnn.runs.streams import output


class Terminal(Console):
    """A console that leaves it to the program what a closed pipe means; rich would end it with status 1.

    Names are printed as they are (rich makes emojis of `:on:`), and a notebook gets plain lines as a file does.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{"file": output(sys.stdout), "emoji": False, "force_jupyter": False, **settings})
        if self.width < 1:  # COLUMNS=0, of a terminal that does not know its width: rich would print nothing at all
            self.width = 80

    def on_broken_pipe(self) -> None:
        """Is called while the error is handled."""
        raise BrokenPipeError
