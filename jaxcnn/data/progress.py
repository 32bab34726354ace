"""A bar on stderr, where that is a terminal."""

from collections.abc import Iterable, Iterator
from typing import TypeVar

Item = TypeVar("Item")


def show_progress(items: Iterable[Item], title: str, total: int) -> Iterator[Item]:
    """Yields the items, of which there are `total`, beside a bar that goes away in the end."""
    from rich.console import Console
    from rich.progress import track

    console = Console(stderr=True)
    yield from track(items, title, total, console=console, transient=True, disable=not console.is_terminal)
