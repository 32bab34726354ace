"""Signals that end a program: at once, or after the current training step.

Outside of training, `raise_on_signal` turns a signal into an `Interrupted` exception. In training, `defer_signals` sets
a flag instead, so that the run can write a checkpoint first.
"""

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
    *(signal.SIGUSR1, signal.SIGUSR2),  # SLURM, LSF and Grid Engine warn with these before a job's time limit
    signal.SIGXCPU,  # limit of processor time; sent every second
)
_IMPATIENT = (signal.SIGINT, signal.SIGTERM)  # a second one of these is not deferred
_AGAIN = signal.SIGURG  # sent by this module to its own process; ignored by default
_LIBRARIES = {
    *("importlib", "_frozen_importlib", "_frozen_importlib_external", "logging"),
    *("jax", "jaxlib", "flax", "orbax", "tensorstore", "torch"),
}


CONTINUES = "the same command, without --overwrite, continues"
"""What is said of a run that ended early."""


class Interrupted(KeyboardInterrupt):
    """A signal asked the program to end."""

    def __init__(self, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}")
        self.status = 128 + number
        """Exit status of the program, by the shells' convention."""


def as_interrupted(error: KeyboardInterrupt) -> Interrupted:
    """The error itself if it is an `Interrupted`; Python's own KeyboardInterrupt comes of SIGINT."""
    return error if isinstance(error, Interrupted) else Interrupted(signal.SIGINT)


class SignalFlag:
    """A flag that the first signal sets. After that, SIGINT raises `Interrupted` at once."""

    def __init__(self) -> None:
        self.number: int | None = None

    def is_set(self) -> bool:
        """Whether a signal has arrived."""
        return self.number is not None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise Interrupted(number)
        # _AGAIN repeats a signal that arrived earlier, inside a library: see `raise_on_signal`.
        self.number = self.number or (signal.SIGTERM if number == _AGAIN else number)


@contextmanager
def defer_signals() -> Iterator[SignalFlag]:
    """Within the context a signal only sets the flag. On exit, `Interrupted` is raised if it is set."""
    flag = SignalFlag()
    with _handle_signals(flag._handle):
        yield flag
    if flag.number is not None:
        raise Interrupted(flag.number)


@contextmanager
def raise_on_signal() -> Iterator[None]:
    """Within the context a signal raises `Interrupted`: at once, or after the current call into JAX, Orbax, ..."""
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
            if came:  # a library may have turned the Interrupted into an error of its own
                raise Interrupted(came[0]) from None
            raise
        if came:
            raise Interrupted(came[0])


def _in_library(frame: FrameType | None) -> bool:
    """Whether the program is importing a module or inside a library that does not survive an exception at any point.

    Compiled code of these libraries can crash or print a traceback.
    """
    while frame is not None:
        if str(frame.f_globals.get("__name__")).partition(".")[0] in _LIBRARIES:
            return True
        frame = frame.f_back
    return False


def _signal_again() -> None:
    """Sends _AGAIN to this process shortly after, so that the handler runs again."""

    def send() -> None:
        time.sleep(0.02)
        os.kill(os.getpid(), _AGAIN)

    _thread.start_new_thread(send, ())  # `threading` takes locks, which the interrupted code may hold


class _Handler:
    """A signal handler of this module, recognisable by its type."""

    def __init__(self, handle: Callable[[int, FrameType | None], Any]) -> None:
        self._handle = handle

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self._handle(number, frame)


def _is_free(handler: Any) -> bool:
    """Whether a signal has its default handler or ours. nohup ignores SIGHUP; schedulers' libraries set handlers."""
    return handler in (signal.SIG_DFL, signal.default_int_handler) or isinstance(handler, _Handler)


@contextmanager
def _handle_signals(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Installs a handler for all signals that nobody else handles. Does nothing outside of the main thread."""
    report = sys.unraisablehook

    def again(unraisable: Any) -> None:
        # An exception in a callback, such as the garbage collector's, is reported here and not raised.
        if isinstance(unraisable.exc_value, Interrupted):
            _signal_again()
        else:
            report(unraisable)

    try:
        handled = [number for number in (*_NUMBERS, _AGAIN) if _is_free(signal.getsignal(number))]
        before = {number: signal.signal(number, _Handler(handle)) for number in handled}
    except ValueError:  # not the main thread: Python does not allow it
        yield
        return
    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = report
        for number, old in before.items():
            signal.signal(number, old)
