"""Printing that fails without a loss of anything else: the terminal is gone, the disk is full, a letter is unknown."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO, cast

from jaxcnn.errors import JaxcnnError, reason


class _Output:
    """See `output`."""

    def __init__(self, stream: IO[str] | None, is_stderr: bool) -> None:
        self._stream, self._told, self._is_stderr = stream, is_stderr, is_stderr

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        if (stream := self._stream) is not None:
            encoding = getattr(stream, "encoding", None) or "utf-8"
            shown = text.encode(encoding, "backslashreplace").decode(encoding)
            self._attempt(lambda: stream.write(shown))
        return len(text)

    def flush(self) -> None:
        if self._stream is not None:
            self._attempt(self._stream.flush)

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def _attempt(self, action: Callable[[], object]) -> None:
        try:
            action()
        except (OSError, ValueError) as error:  # the latter of a stream that was closed
            if isinstance(error, BrokenPipeError) and not self._is_stderr:
                raise
            if not self._told:
                self._told = True
                warn(f"what is printed is lost ({reason(error)}); results and logs are not")


def output(stream: IO[str] | None, *, is_stderr: bool = False) -> TextIO:
    """A stream that writes to another one as far as that can be written to.

    What its encoding lacks is escaped. An error of the device is told once on stderr, and costs what is printed. A
    closed pipe raises `BrokenPipeError`.

    Args:
        stream: the other one; None, which is Python's stdout where it was started without one, takes everything.
        is_stderr: nothing is told of an error, and a closed pipe is one like others.
    """
    return cast(TextIO, _Output(stream, is_stderr))


def warn(message: str) -> None:
    """Prints a warning on stderr, if that can be printed on."""
    print(f"warning: {message}", file=output(sys.stderr, is_stderr=True))


@contextlib.contextmanager
def only_warns(missing: str, remedy: str = "Once that is mended, the same command makes it") -> Iterator[None]:
    """Turns an error within into one line on stderr.

    Args:
        missing: what there is not because of the error.
        remedy: how to get it nevertheless.
    """
    try:
        yield
    except Exception as error:  # of whatever kind: pictures are drawn by a large library
        told = str(error) if isinstance(error, JaxcnnError) else f"{type(error).__name__}: {reason(error)}"
        warn(f"no {missing}: {told}. {remedy}")


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Within, printing fails only for a closed pipe; on the way out, what cannot be written is dropped."""
    streams = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(output(streams[0])), contextlib.redirect_stderr(output(streams[1], is_stderr=True)):
        try:
            yield
        finally:
            for stream in streams:
                _drop_unwritable(stream)


def _drop_unwritable(stream: TextIO | None) -> None:
    """Flushes a stream, or has Python, which would fail at its end, write what is left to nowhere."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, cast(TextIO, stream).fileno())
            os.close(null)
