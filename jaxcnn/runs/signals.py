"""Signals that end a program: where they do so at once, and where work in hand is finished first."""

import _thread
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_NUMBERS = (
    *(signal.SIGINT, signal.SIGTERM, signal.SIGHUP),
    *(signal.SIGUSR1, signal.SIGUSR2),  # warnings of SLURM, LSF and Grid Engine that a job's time is nearly over
    signal.SIGXCPU,  # the limit of processor time; it comes again every second
)
_IMPATIENT = (signal.SIGINT, signal.SIGTERM)  # who sends these twice will not wait
_AGAIN = signal.SIGURG  # what this module sends itself; it does no harm to a program that expects none
_LIBRARIES = {
    *("importlib", "_frozen_importlib", "_frozen_importlib_external", "logging"),
    *("jax", "jaxlib", "flax", "orbax", "tensorstore", "torch"),
}


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(
            f"stopped by {signal.Signals(number).name}; the same command, without --overwrite, continues what had begun"
        )
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
        # _AGAIN is of a signal that came before, and which `raise_on_signal` has not forgotten.
        self.number = self.number or (signal.SIGTERM if number == _AGAIN else number)


@contextmanager
def note_signals() -> Iterator[Noted]:
    """Signals are noted within, and raise `Interrupted` only on the way out."""
    note = Noted()
    with _handle_signals(note._handle):
        yield note
    if note.number is not None:
        raise Interrupted(note.number)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Signals raise `Interrupted` at once, unless the program is inside a library; then when that call returns."""
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if number != _AGAIN:
            came.append(number)
        if _in_library(frame) and (len(came) < 2 or number not in _IMPATIENT):
            _signal_again()
        elif came:
            raise Interrupted(came[0])

    with _handle_signals(handle):
        try:
            yield
        except BaseException:
            if came:  # perhaps a library made an error of its own of it
                raise Interrupted(came[0]) from None
            raise
        if came:
            raise Interrupted(came[0])


def _in_library(frame: FrameType | None) -> bool:
    """Whether Python is loading a module, or within a library whose compiled part an exception from nowhere can crash
    or have print a traceback.
    """
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
            return True
        frame = frame.f_back
    return False


def _signal_again() -> None:
    def send() -> None:
        time.sleep(0.02)
        os.kill(os.getpid(), _AGAIN)

    _thread.start_new_thread(send, ())  # threading takes locks, which the program may hold where the signal met it


class _Handler:
    """By which a handler of this module's is known."""

    def __init__(self, handle: Callable[[int, FrameType | None], Any]) -> None:
        self._handle = handle

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._handle(number, frame)


def _is_free(handler: Any) -> bool:
    """Whether nobody else decided what a signal does: `nohup` has SIGHUP ignored, and schedulers' libraries requeue."""
    return handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(handler, _Handler)


@contextmanager
def _handle_signals(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    report = sys.unraisablehook

    def again(unraisable: Any) -> None:
        # Raised in a callback, of the garbage collector for one, from where no exception gets out.
        if isinstance(unraisable.exc_value, Interrupted):
            _signal_again()
        else:
            report(unraisable)

    try:
        heeded = [number for number in (*_NUMBERS, _AGAIN) if _is_free(signal.getsignal(number))]
        before = {number: signal.signal(number, _Handler(handle)) for number in heeded}
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
