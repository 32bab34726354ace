"""Where programs print what a person is to see."""

import sys
from typing import Any

from rich.console import Console

from experiments.streams import output


class Terminal(Console):
    """A console that leaves it to the program what a closed pipe means; rich would end it with status 1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(file=output(sys.stdout), emoji=False, **options)  # names like `:dog:` are no emoji

    def on_broken_pipe(self) -> None:
        """Is called while the error is handled."""
        raise BrokenPipeError
