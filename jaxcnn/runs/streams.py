"""Printing that never stops a run: on a closed terminal, a full disk, or characters that the encoding lacks."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any, TextIO, cast

from jaxcnn.errors import JaxcnnError, reason


class _Output:
    """See `output`."""

    def __init__(self, stream: IO[str] | None, is_stderr: bool) -> None:
        self._stream, self._warned, self._is_stderr = stream, is_stderr, is_stderr

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
        except (OSError, ValueError) as error:  # ValueError: the stream was closed
            if isinstance(error, BrokenPipeError) and not self._is_stderr:
                raise
            if not self._warned:
                self._warned = True
                warn(f"what is printed is lost ({reason(error)}); results and logs are not")


def output(stream: IO[str] | None, *, is_stderr: bool = False) -> TextIO:
    """Wraps a stream so that writing to it does not fail.

    Characters that the encoding lacks are escaped. If writing fails, the text is lost, and one warning is printed on
    stderr. Only a closed pipe raises, as `BrokenPipeError`.

    Args:
        stream: the stream; None (Python's stdout in a process without one) discards everything.
        is_stderr: the stream is stderr: errors, a closed pipe too, are ignored without a warning.
    """
    return cast(TextIO, _Output(stream, is_stderr))


def warn(message: str) -> None:
    """Prints a warning on stderr, or nothing if that fails."""
    print(f"warning: {message}", file=output(sys.stderr, is_stderr=True))


@contextlib.contextmanager
def only_warns(missing: str, remedy: str = "Once that is fixed, the same command makes it") -> Iterator[None]:
    """Turns an exception within the context into a one-line warning on stderr.

    Args:
        missing: what could not be made, for the message.
        remedy: how to get it, for the message.
    """
    try:
        yield
    except Exception as error:  # any kind: matplotlib can raise anything
        text = str(error) if isinstance(error, JaxcnnError) else f"{type(error).__name__}: {reason(error)}"
        warn(f"no {missing}: {text}. {remedy}")


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Wraps stdout and stderr with `output` within the context. On exit, text that cannot be flushed is dropped."""
    streams = sys.stdout, sys.stderr
    with contextlib.redirect_stdout(output(streams[0])), contextlib.redirect_stderr(output(streams[1], is_stderr=True)):
        try:
            yield
        finally:
            for stream in streams:
                _drop_unwritable(stream)


def _drop_unwritable(stream: TextIO | None) -> None:
    """Flushes a stream. If that fails, redirects it to the null device, because Python would fail at exit."""
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, cast(TextIO, stream).fileno())
            os.close(null)
