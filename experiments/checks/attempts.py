"""Running work that must succeed or raise a `JaxcnnError` within a time limit."""

import contextlib
import io
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

ROOT = Path(__file__).parent.parent.parent
LIMIT = 10  # seconds


@dataclass
class Report:
    configurations: int = 0
    accepted: int = 0
    built: int = 0
    files: dict[str, int] = field(default_factory=dict)
    read_all_the_same: int = 0
    slowest: float = 0
    failures: list[str] = field(default_factory=list)
    seconds: float = 0


class Hang(BaseException):
    """The time limit is over. Not an `Exception`, which a library might catch."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    def handle(number: int, frame: FrameType | None) -> None:
        raise Hang(f"more than {LIMIT} s")

    before = signal.signal(signal.SIGALRM, handle)
    signal.alarm(LIMIT)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def attempt(report: Report, what: str, work: Callable[..., object], *args: Any) -> bool:
    """Runs `work`, and returns whether it succeeded.

    Any exception other than a JaxcnnError with a one-line message, or tyro's exit for a wrong flag, is added to the
    report's failures.
    """
    from jaxcnn.errors import JaxcnnError

    began = time.monotonic()
    quiet = io.StringIO()
    try:
        with time_limit(), contextlib.redirect_stderr(quiet), contextlib.redirect_stdout(quiet):
            work(*args)
        return True
    except JaxcnnError as error:
        if "\n" in str(error) or not str(error):
            report.failures.append(f"{what}: a message of several lines or none: {error}")
    except SystemExit as end:
        if end.code not in (0, 2):
            report.failures.append(f"{what}: status {end.code}")
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        where = traceback.extract_tb(error.__traceback__)[-1]
        report.failures.append(f"{what}: {type(error).__name__}: {str(error)[:200]} ({where.filename}:{where.lineno})")
    finally:
        report.slowest = max(report.slowest, round(time.monotonic() - began, 2))
    return False


def explore(count: int, seed: int, one: Callable[[random.Random], None]) -> None:
    """Calls `one` with `count` random generators that hypothesis seeds. Examples are not shrunk."""

    @hypothesis.seed(seed)
    @settings(
        max_examples=count,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.randoms(use_true_random=True))
    def example(rng: random.Random) -> None:
        one(rng)

    example()
