"""Programs that several processes run together, each with two devices, as if on several hosts."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from tiny_run import assert_same_run, rows, weights

from jaxcnn.cli import transfer
from jaxcnn.errors import InputError
from jaxcnn.runs import hosts
from jaxcnn.runs.folder import _lock_folder
from jaxcnn.runs.signals import CONTINUES, Interrupted

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "experiments.train"]
FLAGS = """
    --data.name digits --data.fraction 0.1 --model.input-size 8 --model.hidden-dims 4 6 8 8 --model.num-blocks 2
    --model.layers-per-block 1 1 --model.apply-pooling 1 1 --model.apply-bn 1 1 --train.epochs 5 --train.batch-size 22
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("localhost", port)) != 0


def start(folder: Path, name: str, count: int = 2, *, slurm: bool = False) -> list[subprocess.Popen[str]]:
    """Starts the program's processes, told of each other by flags or as a step of SLURM; one has just one device."""
    devices = 2 if count > 1 else 1
    words = [*COMMAND, *FLAGS.split(), "--runs-dir", str(folder), "--name", name, "--devices", str(devices)]
    forced = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_ENABLE_X64": "1"}
    if count == 1:
        return [launch(words, forced)]
    if slurm:
        return [launch(words, forced | own) for own in slurm_step(count)]
    words += ["--coordinator", f"localhost:{free_port()}", "--processes", str(count)]
    return [launch([*words, "--process", str(process)], forced) for process in range(count)]


def slurm_step(count: int) -> list[dict[str, str]]:
    """The variables that SLURM gives each task of a step on this machine."""
    port = next(port for port in range(61440 + os.getpid() % 4000, 65536) if is_free(port))
    job = port - 61440  # JAX makes the port from the job's number
    common = {"SLURM_STEP_NUM_TASKS": str(count), "SLURM_NTASKS": str(count)}
    common |= {"SLURM_JOB_ID": str(job), "SLURM_STEP_NODELIST": "localhost"}
    return [{**common, "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)} for task in range(count)]


def launch(words: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    return subprocess.Popen(words, cwd=ROOT, env={**os.environ, **environment}, text=True, stdout=pipe, stderr=pipe)


def end(begun: list[subprocess.Popen[str]], seconds: float = 150) -> list[tuple[int, str, str]]:
    """Status, stdout and stderr of each process."""
    ended = []
    for process in begun:
        out, err = process.communicate(timeout=seconds)
        ended.append((process.returncode, out, err))
    return ended


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def epochs_in(folder: Path) -> int:
    path = folder / "metrics.csv"
    return len(rows(path)) if path.exists() else 0


@pytest.mark.slow
def test_a_run_of_two_processes_gives_what_one_device_gives_and_continues_after_a_kill(tmp_path: Path) -> None:
    both = end(start(tmp_path, "whole", slurm=True))
    assert [status for status, _, _ in both] == [0, 0], both
    assert both[0][1].count("epoch ") >= 5
    assert "epoch" not in both[1][1] + both[1][2]  # process 0 alone prints
    assert json.loads((tmp_path / "whole/config.json").read_text())["resolved"]["devices"] == 4

    ((status, _, err),) = end(start(tmp_path, "alone", count=1))
    assert status == 0, err
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "whole")
    assert all((one[name] - two[name]).abs().max() <= 1e-6 for name in one)  # float32's rounding of both
    assert len(rows(tmp_path / "experiment_logs.csv")) == 2

    cut = tmp_path / "cut"
    begun = start(tmp_path, "cut")
    wait_for(lambda: epochs_in(cut) >= 1)
    begun[1].send_signal(signal.SIGKILL)
    killed = time.monotonic()
    (first, _, err), _ = end(begun, 60)
    assert time.monotonic() - killed < 60
    assert first != 0
    assert "another process of this run was lost" in err or "JAX distributed service detected" in err
    assert not (cut / "summary.json").exists()

    continued = end(start(tmp_path, "cut"))
    assert [status for status, _, _ in continued] == [0, 0], continued
    assert "continuing after epoch" in continued[0][1]
    assert_same_run(cut, tmp_path / "whole")


@pytest.mark.slow
def test_an_error_of_process_0_ends_all_with_status_2_and_its_message(tmp_path: Path) -> None:
    with _lock_folder(tmp_path / "busy"):  # as a run that is in progress does
        (first, _, err), (second, _, other) = end(start(tmp_path, "busy"), 60)
    assert (first, second) == (2, 2), (err, other)
    assert "busy is in use by another process" in err
    assert "process 1: error: process 0 has stopped: " in other
    assert "Traceback" not in err + other


@pytest.mark.slow
def test_an_error_of_another_process_ends_all_with_status_2_and_its_message(tmp_path: Path) -> None:
    port = free_port()
    words = [*COMMAND, *FLAGS.split(), "--runs-dir", str(tmp_path), "--coordinator", f"localhost:{port}"]
    lacking = ["--data.name", "folder", "--data.dir", str(tmp_path / "missing")]
    begun = [launch([*words, "--processes", "2", "--process", "0"], {})]
    begun.append(launch([*words, *lacking, "--processes", "2", "--process", "1"], {}))
    (first, _, err), (second, _, other) = end(begun, 60)
    assert (first, second) == (2, 2), (err, other)
    assert "error: process 1 has stopped, and its output says why" in err
    assert "process 1: error: " in other
    assert f"{tmp_path}/missing" in other
    assert not (tmp_path / "digits").exists()
    assert "Traceback" not in err + other


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_after_the_epoch(tmp_path: Path) -> None:
    begun = start(tmp_path, "cut")
    wait_for(lambda: epochs_in(tmp_path / "cut") >= 1)
    begun[1].send_signal(signal.SIGTERM)
    stopped = end(begun)
    assert [status for status, _, _ in stopped] == [143, 143], stopped
    assert "stopping after epoch" in stopped[0][1]
    assert "without --overwrite, continues" in stopped[0][2]
    assert not (tmp_path / "cut/summary.json").exists()
    assert any((tmp_path / "cut/checkpoints").iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("localhost:1", None, None), "--coordinator, --processes and --process belong together"),
        (("", 2, 0), "--coordinator, --processes and --process belong together"),
        (("localhost", 2, 0), "coordinator='localhost' is not an address; give HOST:PORT of process 0"),
        (("localhost:99999", 2, 0), "coordinator='localhost:99999' is not an address"),
        (("localhost:1", 2, 2), "process=2 is not usable"),
        (("localhost:1", 0, 0), "processes=0 is not usable"),
    ],
)
def test_a_process_that_is_told_too_little_or_nonsense_is_refused(
    arguments: tuple[str, int | None, int | None], told: str
) -> None:
    with pytest.raises(InputError) as refused, hosts.join("auto", *arguments):
        pytest.fail("it goes on")
    assert told in str(refused.value)


def test_a_comparison_of_masks_refuses_the_flags_of_several_hosts() -> None:
    with pytest.raises(InputError, match="--coordinator, --processes and --process belong to a single run"):
        transfer.program(["--mask", "all", "--target", "digits", "--coordinator", "localhost:1"])


@pytest.mark.parametrize(
    ("variables", "several"),
    [
        ({}, False),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, False),  # a batch script
        ({"SLURM_STEP_NODELIST": "n[1-2]", "SLURM_STEP_NUM_TASKS": "2"}, True),
        ({"SLURM_STEP_NODELIST": "n1", "SLURM_STEP_NUM_TASKS": "1"}, False),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:5", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"TPU_WORKER_HOSTNAMES": "localhost"}, False),
    ],
)
def test_a_launcher_of_several_processes_is_noticed(
    variables: dict[str, str], several: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("SLURM_", "OMPI_", "TPU_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert hosts._is_one_of_several() is several


class Left(BaseException):
    """In the place of the process's end."""


@pytest.mark.parametrize(
    ("error", "number", "status", "told"),
    [
        (InputError("x=1 is not usable"), 0, 2, "error: x=1 is not usable"),
        (InputError("x=1 is not usable"), 1, 2, "process 1: error: x=1 is not usable"),
        (KeyboardInterrupt(), 1, 130, f"process 1: stopped by SIGINT; {CONTINUES}\n"),
        (Interrupted(signal.SIGTERM), 0, 143, f"stopped by SIGTERM; {CONTINUES}\n"),
        (jax.errors.JaxRuntimeError("gone"), 1, 2, "process 1: error: another process of this run was lost (gone); "),
    ],
)
def test_an_error_ends_its_process_at_once(
    error: BaseException,
    number: int,
    status: int,
    told: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def leave(status: int) -> None:
        raise Left(status)

    monkeypatch.setattr(os, "_exit", leave)
    monkeypatch.setattr(hosts, "_LAST", 0.0)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(jax, "process_index", lambda: number)
    with pytest.raises(Left, match=str(status)), hosts.join("auto", "localhost:1", 2, number):
        raise error
    assert capsys.readouterr().err.startswith(told)


def test_processes_that_do_not_find_each_other_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED: timed out")

    monkeypatch.setattr(jax.distributed, "initialize", fail)
    with (
        pytest.raises(InputError, match="the processes have not found each other: DEADLINE_EXCEEDED"),
        hosts.join("auto", "localhost:1", 2, 1),
    ):
        pytest.fail("it goes on")
