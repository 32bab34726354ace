"""SIGINT and SIGTERM: where they end the program at once, and where work in hand is finished first."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; the same command, without --overwrite, continues what had begun"
        )
        self.number = number
        self.status = 128 + number
        """The exit status by which shells tell that a signal ended a program."""


class Noted:
    """Takes note of the first signal; a second SIGINT, from someone who will not wait, raises `Interrupted`."""

    def __init__(self) -> None:
        self.number: int | None = None

    def came(self) -> bool:
        """Whether there was a signal."""
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise Interrupted(number)
        self.number = self.number or number


@contextmanager
def noted() -> Iterator[Noted]:
    """Signals are noted within, and raise `Interrupted` only on the way out."""
    note = Noted()
    with _handled(note._handle):
        yield note
    if note.number is not None:
        raise Interrupted(note.number)


@contextmanager
def raised() -> Iterator[None]:
    """Signals raise `Interrupted` within, wherever the program is."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        raise Interrupted(number)

    with _handled(handle):
        try:
            yield
        except BaseException:
            if came:  # perhaps a library, loading its compiled part for one, made an error of its own of it
                raise Interrupted(came[0]) from None
            raise
        if came:
            raise Interrupted(came[0])


@contextmanager
def _handled(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    report = sys.unraisablehook

    def again(unraisable: Any) -> None:
        # Raised in a callback, of the garbage collector for one, from where no exception gets out.
        if isinstance(unraisable.exc_value, Interrupted):
            threading.Timer(0.02, os.kill, (os.getpid(), unraisable.exc_value.number)).start()
        else:
            report(unraisable)

    try:
        before = {number: signal.signal(number, handle) for number in _NUMBERS}
    except ValueError:  # not in the main thread, which alone is told of signals
        yield
        return
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, old in before.items():
            signal.signal(number, old)
