"""Short versions of the checks that kill processes and damage files. The full versions are commands."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.checks import attempts, faults, fuzz

HERE = Path(__file__).parent


@pytest.mark.slow
def test_a_killed_and_a_stopped_process_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = faults.run(kills=1, terms=1, seed=0, cases=["plateau"], folder=tmp_path)
    assert report.failures == []
    assert (report.kills, report.terms) == (1, 1)
    assert report.finished_runs_compared >= 1


@pytest.mark.slow
def test_killed_and_stopped_processes_of_several_kinds_resume_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    report = faults.run(kills=2, terms=1, seed=1, cases=["gradual", "early stopping"], folder=tmp_path)
    assert report.failures == []
    assert (report.kills, report.terms) == (2, 1)
    assert report.kills_inside_a_checkpoint >= 1


def test_the_suite_of_faults_notices_what_differs(tmp_path: Path) -> None:
    assert faults.plan(50, 20, faults.random.Random(0)).count("checkpoint") == 20
    trial = faults.Trial(["train"], tmp_path / "run")
    trial.position = "epoch 3 and 4 of 21 steps"
    lost = "import signal, os; print('continuing after epoch 3'); os.kill(os.getpid(), signal.SIGTERM)"
    trial.words = [sys.executable, "-uc", lost]
    assert trial.end(trial.start(), -signal.SIGTERM) == [
        "continued after epoch 3, not epoch 3 and 4 of 21 steps",
    ]
    trial.words = [sys.executable, "-c", "1 / 0"]
    status, trace = trial.end(trial.start(), 143)
    assert status.startswith("status 1, not 143")
    assert trace.startswith("a traceback")


@pytest.mark.parametrize(("configs", "files"), [(40, 12), pytest.param(200, 60, marks=pytest.mark.slow)])
def test_strange_configurations_and_damaged_files_work_or_are_refused(configs: int, files: int, tmp_path: Path) -> None:
    report = fuzz.run(configs=configs, files=files, seed=1, folder=tmp_path)
    assert report.failures == []
    assert report.configurations == configs
    assert sum(report.files.values()) == files
    assert 0.1 * configs < report.accepted < 0.9 * configs  # both kinds occur


def test_the_fuzz_notices_what_is_no_refusal() -> None:
    report = attempts.Report()
    assert not attempts.attempt(report, "this", lambda: 1 / 0)
    assert not attempts.attempt(report, "that", lambda: sys.exit(1))
    assert [failure.partition(" (")[0] for failure in report.failures] == [
        "this: ZeroDivisionError: division by zero",
        "that: status 1",
    ]


# A data set

PREPARE = """
import os, shutil, signal, sys, time
from pathlib import Path
import tensorflow_datasets
from experiments.checks import make_archives as archives
from jaxcnn.data import prepare
from jaxcnn.data.sets import load_dataset
from jaxcnn.config import DataConfig

root, what = Path(sys.argv[1]), sys.argv[2]
checksums = archives.sha256s(root / "archives")
os.environ["XDG_CACHE_HOME"] = str(root / "cache")


def work():
    prepare.prepare("cifar10", root / "sets", root / "archives", checksums)
    load_dataset(DataConfig(dir=root / "sets"), input_size=32, in_channels=3, seed=0)


def folders():
    return list((root / ("cache/jaxcnn" if what == "cache" else "sets/cifar10")).glob("*"))


def unfinished(folder):
    return folder.name.startswith((".", "incomplete."))


if what == "cache":
    child = os.fork()  # preparing starts threads, which forks of this process would miss
    if child == 0:
        prepare.prepare("cifar10", root / "sets", root / "archives", checksums)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
left = 0
for attempt in range(60):
    before = len(folders())
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    while len(folders()) == before and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        pass
    time.sleep(attempt % 3 * 0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    left = sum(map(unfinished, folders()))
    if left == 3:
        break
    for folder in folders():
        if not unfinished(folder):
            shutil.rmtree(folder)  # too late; once more
work()
print(left)
"""


@pytest.mark.slow
@pytest.mark.parametrize("what", ["set", "cache"])
def test_a_preparation_or_cache_that_was_killed_is_never_taken_for_a_whole_one(what: str, tmp_path: Path) -> None:
    import numpy as np

    from experiments.checks import make_archives as archives
    from jaxcnn.data.locate import find_prepared
    from jaxcnn.data.reader import load_prepared
    from jaxcnn.data.splits import Split

    batches = archives.cifar10(150)
    archives.write_official(tmp_path / "archives", "cifar10", batches)
    words = [sys.executable, "-c", PREPARE, str(tmp_path), what]
    environment = {**os.environ, "PYTHONPATH": f"{HERE}:{HERE.parent}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 1, done.stderr  # what was killed while it was being written
    # What is there now is whole: the images of the archive, from the set and from the cache.
    folder = find_prepared("cifar10", tmp_path / "sets")
    assert folder is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        cached = load_prepared(folder, lambda image: image, (32, 32, 3))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
        stored = load_prepared(folder, lambda image: image, (32, 32, 3))
    for found in (cached, stored):
        for split, names in (("train", [f"data_batch_{i}" for i in range(1, 6)]), ("test", ["test_batch"])):
            images = np.concatenate([batches[name]["image"] for name in names])
            got: Split = getattr(found, split)
            assert sorted(map(bytes, got.images)) == sorted(map(bytes, images))


def test_both_suites_print_their_report_and_end_with_a_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fuzz.main(["--configs", "4", "--files", "2", "--seed", "1"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("4 configurations, ")
    assert "; 2 damaged files (" in out
    assert "; 0 failures; " in out
    done = faults.Report(kills=3, failures=["plateau: a differs"], seconds=1.5)
    monkeypatch.setenv("XDG_CACHE_HOME", "")  # which the program sets
    monkeypatch.setattr(faults, "run", lambda *_: done)
    assert faults.main(["--kills", "3", "--cases", "plateau"]) == 1
    out = capsys.readouterr().out
    assert out.startswith("3 SIGKILLs, ")
    assert out.endswith("; 1 failures; 2 s\nFAILED plateau: a differs")
    assert faults.main(["--json"]) == 1
    assert json.loads(capsys.readouterr().out)["failures"] == ["plateau: a differs"]
