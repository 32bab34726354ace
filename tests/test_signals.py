"""Signals that end a program, within training and elsewhere."""

import contextlib
import gc
import importlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_run import STEPS, TINY, assert_same_run, ended, rows, send

from jaxcnn.cli.main import PROGRAMS, main, run_program
from jaxcnn.runs import results, run
from jaxcnn.runs.display import Bar
from jaxcnn.runs.run import run_experiment
from jaxcnn.runs.signals import Interrupted, defer_signals

pytestmark = pytest.mark.usefixtures("own_cache")


# Four steps are one call, and an epoch's last call is one step.
@pytest.mark.parametrize(
    ("number", "status", "step"),
    [
        (signal.SIGTERM, 143, 8),
        pytest.param(signal.SIGINT, 130, 4, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, 138, 20, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, STEPS, marks=pytest.mark.slow),
    ],
)
def test_a_signal_within_an_epoch_loses_no_step(
    number: int, status: int, step: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    original = Bar.step

    def at_step(self: Any, seen: int, total: Any) -> None:
        original(self, seen, total)
        if self._done == 1 and -(-seen // 64) == step:
            send(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", at_step)
        got, out, err = ended(lambda: run_experiment(config), capsys)
    assert (got, err) == (
        status,
        f"stopped by {signal.Signals(number).name}; the same command, without --overwrite, continues\n",
    )
    where = f"epoch 1 and {step} of {STEPS} steps" if step < STEPS else "epoch 2"
    assert out.endswith(f"stopping after {where}\n")
    assert max(int(path.name) for path in (tmp_path / "tiny/checkpoints").iterdir()) == STEPS + step
    run_experiment(config)
    assert f"continuing after {where}\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "tiny", finished)


@pytest.mark.slow
def test_a_signal_after_each_call(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    told = []

    def always(self: Any, seen: int, total: Any) -> None:
        told.append(seen)
        send(signal.SIGTERM)

    starts = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", always)
        while starts < 3:
            starts += 1
            with pytest.raises(Interrupted):
                run_experiment(config)
    assert told == [4 * 64] * starts
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (run, "evaluate"),
        *(
            pytest.param(*place, marks=pytest.mark.slow)
            for place in (
                (run, "load_dataset"),
                (run, "first_variables"),
                (results, "write_npy"),
                (run, "present"),
            )
        ),
    ],
)
def test_a_signal_outside_of_training_ends_at_once_and_the_run_resumes(
    module: Any, name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, name, lambda *_, **__: send(signal.SIGTERM))
        status, _, err = ended(lambda: run_experiment(config), capsys)
    assert (status, err) == (
        143,
        "stopped by SIGTERM; the same command, without --overwrite, continues\n",
    )
    assert (tmp_path / "tiny").exists() == (name not in ("load_dataset", "first_variables"))
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)
    assert len(rows(tmp_path / "experiment_logs.csv")) == 1


def noting(*numbers: int) -> int:
    """How many of the signals sent only set the flag before one ended the program, and the exit status."""
    count = 0
    try:
        with defer_signals() as signals:
            for number in numbers:
                send(number)
                assert signals.is_set()
                count += 1
    except Interrupted as error:
        return 1000 * count + error.status
    return count


def test_a_signal_that_is_swallowed_still_ends_the_program_in_its_status() -> None:
    def deaf(leave: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            with contextlib.suppress(BaseException):
                send(signal.SIGTERM)
            leave()

        return work

    for leave in (lambda: None, lambda: sys.exit(1)):
        with pytest.raises(SystemExit) as end:
            main(deaf(leave))
        assert end.value.code == 143


def test_signals_are_noted_and_end_the_program_on_the_way_out() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert noting() == 0
    assert noting(signal.SIGTERM) == 1143
    assert noting(signal.SIGTERM, signal.SIGTERM) == 2143  # some send it until the program has ended
    assert noting(signal.SIGINT) == 1130
    assert noting(signal.SIGINT, signal.SIGINT) == 1130  # someone will not wait
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


@pytest.mark.parametrize(
    ("name", "status"), [("HUP", 129), ("USR1", 138), ("USR2", 140), ("XCPU", 152), ("TERM", 143), ("INT", 130)]
)
def test_what_schedulers_and_terminals_send_is_noted_and_ends_the_program(
    name: str, status: int, capsys: pytest.CaptureFixture[str]
) -> None:
    number = signal.Signals[f"SIG{name}"]
    assert noting(number) == 1000 + status
    assert ended(lambda: send(number), capsys)[::2] == (
        status,
        f"stopped by SIG{name}; the same command, without --overwrite, continues\n",
    )


@pytest.mark.parametrize("name", PROGRAMS)
def test_what_cannot_continue_does_not_say_so(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("jaxcnn.cli.main.find_program", lambda name: lambda arguments: send(signal.SIGTERM))
    with pytest.raises(SystemExit, match=r"^143$"):
        run_program(name, [])
    again = name in ("predict", "report", "convert", "publish")
    more = "" if again else "; the same command, without --overwrite, continues"
    assert capsys.readouterr().err == f"stopped by SIGTERM{more}\n"


@contextlib.contextmanager
def handled(number: int, handler: Any) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def send_unnoted(number: int) -> None:
    with defer_signals() as signals:
        send(number)
        assert not signals.is_set()


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_is_ignored_stays_ignored(number: int) -> None:
    """As nohup ignores SIGHUP, and a shell script ignores SIGINT for its background processes."""
    reached = []

    def work() -> None:
        send_unnoted(number)
        send(number)
        reached.append(signal.getsignal(number))

    with handled(number, signal.SIG_IGN):
        main(work)
    assert reached == [signal.SIG_IGN]


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_handler_of_a_users_own_is_called(number: int) -> None:
    """Libraries of schedulers put a job back into the queue by one."""
    came: list[int] = []
    with handled(number, lambda number, frame: came.append(number)):
        main(lambda: send_unnoted(number))
    assert came == [number]


@pytest.mark.parametrize(("number", "waits"), [(signal.SIGXCPU, True), (signal.SIGUSR1, True), (signal.SIGINT, False)])
def test_only_who_will_not_wait_is_not_kept_waiting_by_a_library(
    number: int, waits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGXCPU comes again every second, and an exception from nowhere can crash what a library is doing."""
    (tmp_path / "is_loaded.py").write_text("__import__('sys').modules[__name__ + '_work']()\n")
    monkeypatch.syspath_prepend(tmp_path)
    reached = []

    def load() -> None:
        send(number)
        send(number)
        time.sleep(0.05)
        reached.append("the library's end")

    monkeypatch.setitem(sys.modules, "is_loaded_work", load)
    monkeypatch.delitem(sys.modules, "is_loaded", raising=False)
    with pytest.raises(SystemExit) as end:
        main(lambda: importlib.import_module("is_loaded"))
    assert end.value.code == 128 + number
    assert reached == (["the library's end"] if waits else [])


def test_a_signal_waits_until_a_module_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled modules crash or print a traceback if an exception is raised while they are loaded."""
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nLOADED.append(1)\n"
    (tmp_path / "sends_a_signal.py").write_text(code.replace("LOADED", "__import__('sys').modules[__name__ + '_told']"))
    monkeypatch.syspath_prepend(tmp_path)
    told: Any = []
    monkeypatch.setitem(sys.modules, "sends_a_signal_told", told)
    reached = []

    def work() -> None:
        importlib.import_module("sends_a_signal")
        time.sleep(5)
        reached.append(True)

    with pytest.raises(SystemExit) as end:
        main(work)
    assert (end.value.code, told, reached) == (143, [1], [])


def test_a_signal_that_comes_where_no_exception_gets_out_is_not_lost() -> None:
    """In a callback of the garbage collector, such as JAX has, what is raised is reported and forgotten."""

    def callback(phase: str, info: Any) -> None:
        if phase == "start":
            gc.callbacks.remove(callback)
            send(signal.SIGTERM)

    def work() -> None:
        gc.callbacks.append(callback)
        gc.collect()
        assert callback not in gc.callbacks
        time.sleep(20)
        pytest.fail("it goes on")

    with pytest.raises(SystemExit) as end:
        main(work)
    assert end.value.code == 143


def test_a_signal_that_a_library_takes_for_an_error_of_its_own_is_not_lost() -> None:
    """What is raised while a compiled module is loaded comes out as an ImportError."""

    def load() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("Encountered an error while initializing the extension.") from None

    with pytest.raises(SystemExit) as end:
        main(load)
    assert end.value.code == 143
