"""Where programs print what a person is to see."""

from rich.console import Console


class Terminal(Console):
    """A console that leaves it to the program what a closed pipe means; rich would end it with status 1."""

    def on_broken_pipe(self) -> None:
        """Is called while the error is handled."""
        raise BrokenPipeError
