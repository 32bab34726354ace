"""A progress bar on stderr."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def show_progress(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yields the `total` items, and shows a progress bar meanwhile if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, title, total, console=console, transient=True, disable=not console.is_terminal)
