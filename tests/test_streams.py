"""Printing that fails loses the printed text and nothing else."""

import errno
import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_run import ended

from jaxcnn.cli.main import main
from jaxcnn.errors import InputError
from jaxcnn.runs.console import Terminal
from jaxcnn.runs.streams import only_warns, output, warn

ROOT = Path(__file__).parent.parent


class Failing(io.StringIO):
    """A stream on a device that fails."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error

    def flush(self) -> None:
        raise self.error


DEVICES = {
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "terminal that hung up": OSError(errno.EIO, "Input/output error"),
    "pipe that does not wait": BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
    "closed file": ValueError("I/O operation on closed file"),
}


@pytest.mark.parametrize("error", DEVICES.values(), ids=DEVICES)
def test_a_device_that_fails_is_told_once(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", Failing(error))
        terminal = Terminal()
        for _ in range(3):
            terminal.print("a line")
        print("another", file=output(Failing(error), is_stderr=True))
    assert capsys.readouterr().err == f"warning: what is printed is lost ({error}); results and logs are not\n"


def refuse() -> None:
    raise InputError("no")


@pytest.mark.parametrize("error", DEVICES.values(), ids=DEVICES)
def test_a_program_whose_output_fails_ends_as_it_would_have(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, Failing(error))
    main(lambda: print("x"))
    with pytest.raises(SystemExit) as end:
        main(refuse)
    assert end.value.code == 2


def test_a_closed_pipe_ends_a_program_in_141_and_a_closed_stderr_does_not(capsys: pytest.CaptureFixture[str]) -> None:
    closed = Failing(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", closed)
        status, _, err = ended(lambda: Terminal().print("x"), capsys)
        assert (status, err) == (141, "")
        patch.setattr(sys, "stdout", sys.__stdout__)
        patch.setattr(sys, "stderr", closed)
        warn("of something")
        status, _, _ = ended(refuse, capsys)
        assert status == 2


@pytest.mark.parametrize(
    ("encoding", "shown"),
    [
        ("ascii", "\\xb1 \\u732b \\U0001f408 \\xe9"),
        ("iso-8859-1", "± \\u732b \\U0001f408 é"),
        ("cp437", "± \\u732b \\U0001f408 é"),
        ("utf-8", "± 猫 🐈 é"),
    ],
)
def test_letters_that_an_encoding_lacks_are_escaped(encoding: str, shown: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding=encoding, write_through=True))
    Terminal(soft_wrap=True, highlight=False).print("± 猫 🐈 é", markup=False)
    print("± 猫 🐈 é", file=output(sys.stdout))
    assert raw.getvalue().decode(encoding) == f"{shown}\n{shown}\n"


def test_names_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal(soft_wrap=True).print("a :dog: [red]", markup=False)
    assert capsys.readouterr().out == "a :dog: [red]\n"


def test_a_program_that_was_started_without_streams_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    Terminal().print("x")
    warn("x")
    assert not output(None).isatty()


def test_what_can_be_made_again_only_warns(capsys: pytest.CaptureFixture[str]) -> None:
    errors: list[tuple[Exception, str]] = [
        (InputError("cannot write a.png: no space; free space"), "cannot write a.png: no space; free space"),
        (RuntimeError("latex was not found\nand more"), "RuntimeError: latex was not found"),
        (MemoryError(), "MemoryError: MemoryError"),
    ]
    for error, told in errors:
        with only_warns("a.png"):
            raise error
        assert capsys.readouterr().err == (
            f"warning: no a.png: {told}. Once that is fixed, the same command makes it\n"
        )
    with pytest.raises(KeyboardInterrupt), only_warns("a.png"):
        raise KeyboardInterrupt


PROGRAM = """
import sys
from jaxcnn.cli.main import main
from jaxcnn.files import write_text
from pathlib import Path

def program():
    print("a line \\u00b1", flush=True)
    write_text(Path(sys.argv[1]), "93.75 \\u00b1 8.84")
    print("another" * 5000)

main(program)
"""


def test_a_full_disk_behind_stdout_and_a_poor_locale_cost_no_result(tmp_path: Path) -> None:
    environment: dict[str, Any] = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    words = [sys.executable, "-X", "utf8=0", "-c", PROGRAM, str(tmp_path / "result")]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(words, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    told = b"warning: what is printed is lost ([Errno 28] No space left on device); results and logs are not\n"
    assert (done.returncode, done.stderr) == (0, told)
    assert (tmp_path / "result").read_bytes() == "93.75 ± 8.84".encode()
