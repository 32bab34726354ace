"""Studies that train: continued after a stop, and handed out to workers of which one is killed."""

import os
import runpy
import signal
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_run import TIMES, TINY, assert_same_run, rows

from jaxcnn import InputError, study
from jaxcnn.config import ExperimentConfig, TransferConfig
from jaxcnn.studies.cluster import _shares, _train, open_executor
from jaxcnn.studies.execute import Executor, Turns, one_by_one
from jaxcnn.training.features import compute_features

pytestmark = pytest.mark.usefixtures("own_cache")
# Values that leave the compiled program of TINY as it is.
VARIED = {"train.early_stopping_patience": [9, 10]}


def table(folder: Path) -> list[dict[str, str]]:
    """`results.csv` without what was measured of time."""
    return [{name: cell for name, cell in row.items() if name not in TIMES} for row in rows(folder / "results.csv")]


def test_a_study_that_was_stopped_goes_on_to_the_same_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = replace(TINY, runs_dir=tmp_path, name="s")
    once = study(base, vary=VARIED)
    wanted = table(once.folder)
    assert [row["run"] for row in wanted] == [f"early_stopping_patience={n}_seed0" for n in (9, 10)]
    assert wanted[0]["test_accuracy"] == wanted[1]["test_accuracy"]
    assert wanted[0]["threads"] == str(len(os.sched_getaffinity(0)))
    assert not list(once.folder.rglob("*.png"))
    (once.folder / wanted[1]["run"] / "summary.json").unlink()  # as if it had been killed before its end
    (once.folder / "results.csv").unlink()
    capsys.readouterr()
    again = study(base, vary=VARIED)
    assert "1 are finished" in capsys.readouterr().out
    assert table(again.folder) == wanted
    with pytest.raises(InputError, match="holds another run"):
        study(replace(base, seed=1, optim=replace(TINY.optim, learning_rate=0.5)), vary=VARIED)


@pytest.mark.slow
def test_the_program_compares_depths_on_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = "--model.input-size 8 --model.in-channels 1 --model.num-blocks 2 --model.hidden-dims 4 8 16 8"
    layers = "--model.layers-per-block 1 1 --model.apply-pooling 1 0 --model.apply-bn 1 0 --train.epochs 2"
    words = f"--preset yosinski --target digits --depths 1 --seeds 0 --runs-dir {tmp_path} {network} {layers}"
    monkeypatch.setattr(sys, "argv", ["study", *words.split()])
    runpy.run_module("experiments.study", run_name="__main__")
    found = table(tmp_path / "yosinski_digits")
    assert [(row["source_task"], row["copied_stages"], row["frozen_stages"]) for row in found] == [
        *(("none", "0", "0"), ("other", "1", "1"), ("other", "1", "0")),
        *(("same", "1", "1"), ("same", "1", "0")),
    ]
    assert "same 1 frozen" in capsys.readouterr().out
    assert (tmp_path / "yosinski_digits" / "study.html").is_file()


def test_workers_share_the_processors_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2, 4, 5, 6})
    assert _shares(2) == ((0, 2), (4, 5))
    assert _shares(5) == ((0,), (2,), (4,), (5,), (6,))
    assert _shares(6)[5] == (0,)


def test_without_jobs_and_cluster_runs_go_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    with open_executor() as (execute, at_once):
        assert (execute, at_once) == (one_by_one, 1)
    with pytest.raises(InputError, match="give one of them"), open_executor(jobs=2, cluster="tcp://x:1"):
        pass
    monkeypatch.setattr("jaxcnn.studies.cluster.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'jaxcnn\[cluster\]'"), open_executor(jobs=2):
        pass


@pytest.mark.slow
def test_runs_of_a_study_use_the_features_of_the_run_before(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    computed = []

    def count(*args: Any, **settings: Any) -> Any:
        computed.append(settings["end_stage"])
        return compute_features(*args, **settings)

    monkeypatch.setattr("jaxcnn.training.features.compute_features", count)
    base = TransferConfig(
        source=finished, runs_dir=tmp_path, name="s", data=TINY.data, train=replace(TINY.train, epochs=1)
    )
    vary = {"mask": ["frozen", "full"], **VARIED}
    rows = study(base, vary=vary).rows
    assert computed == [2]  # the two frozen runs, whose blocks are two
    assert rows[0]["test_loss"] == rows[1]["test_loss"]
    computed.clear()
    study(replace(base, name="t"), vary=dict(reversed(vary.items())))
    assert computed == [2, 2]  # a run that caches no features frees them


def runs_with_sources(folder: Path) -> list[ExperimentConfig]:
    """Two sources, and two runs that start from each of them."""
    sources = [replace(TINY, runs_dir=folder, name=name) for name in ("good", "bad")]
    transfers = [
        TransferConfig(runs_dir=folder, name=f"{source}{seed}", source=folder / source, data=TINY.data, seed=seed)
        for source in ("bad", "good")
        for seed in (0, 1)
    ]
    return [*sources, *transfers]


def fail_bad(config: ExperimentConfig, /, *, features: object) -> Any:
    """In place of training: it writes a file, which those that start from it need."""
    if config.name == "bad":
        raise InputError("no")
    if isinstance(config, TransferConfig):
        assert config.source.read_text() == "trained"
    time.sleep(0.2)
    (config.runs_dir / config.name).write_text("trained")
    return {"test_accuracy": 1.0}


def assert_runs_follow_their_sources(execute: Executor, folder: Path) -> list[str]:
    turns = Turns(Console(quiet=True), 6)
    outcomes = list(execute(runs_with_sources(folder), fail_bad, turns))
    assert {outcome.config.run_name: outcome.error for outcome in outcomes} == {
        "good": None,
        "bad": "no",
        "bad0": "its source bad failed",
        "bad1": "its source bad failed",
        "good0": None,
        "good1": None,
    }
    return [outcome.config.run_name for outcome in outcomes]


def test_a_run_whose_source_failed_is_not_trained(tmp_path: Path) -> None:
    assert assert_runs_follow_their_sources(one_by_one, tmp_path) == ["good", "bad", "bad0", "bad1", "good0", "good1"]


@pytest.mark.filterwarnings("default")  # of Dask's own
def test_a_worker_that_trains_is_not_profiled() -> None:
    from distributed import Client, LocalCluster, get_worker

    def is_profiled(*_: object, **__: object) -> bool:
        profiler = get_worker().periodic_callbacks["profile"]
        until = time.monotonic() + 30
        while profiler.is_running() and time.monotonic() < until:
            time.sleep(0.01)
        return bool(profiler.is_running())

    with LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster, Client(cluster) as client:
        (before,) = client.run(lambda dask_worker: dask_worker.periodic_callbacks["profile"].is_running()).values()
        assert before
        assert client.submit(_train, is_profiled, TINY, (), None, None).result() == (False, None)


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("default")  # of Dask's own
def test_workers_begin_a_run_when_its_source_is_trained(tmp_path: Path) -> None:
    with open_executor(jobs=2) as (execute, at_once):
        assert at_once == 2
        assert_runs_follow_their_sources(execute, tmp_path)


@pytest.mark.slow
@pytest.mark.extra
@pytest.mark.filterwarnings("default")  # of Dask's own
def test_a_killed_workers_run_is_taken_up_by_another_to_the_same_table(tmp_path: Path) -> None:
    from distributed import Client, LocalCluster

    train = replace(TINY.train, epochs=100)
    base = replace(TINY, runs_dir=tmp_path, name="handed_out", train=train)
    killed: list[int] = []

    def kill_one(pids: list[int], folder: Path) -> None:
        until = time.monotonic() + 300
        while not killed and time.monotonic() < until:
            begun = {path.parent for path in folder.glob("*/metrics.csv")}
            if any(not (each / "summary.json").exists() for each in begun):
                os.kill(pids[0], signal.SIGKILL)
                killed.append(pids[0])
            time.sleep(0.05)

    with LocalCluster(n_workers=2, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster:
        with Client(cluster) as client:
            pids = list(client.run(os.getpid).values())
        watcher = threading.Thread(target=kill_one, args=(pids, tmp_path / "handed_out"))
        watcher.start()
        result = run_four(base, cluster=cluster.scheduler_address)
        watcher.join()
    assert killed
    reference = run_four(replace(base, name="one_by_one"))
    assert result.failed == reference.failed == []
    assert table(result.folder) == table(reference.folder)
    for row in table(reference.folder):
        assert_same_run(result.folder / row["run"], reference.folder / row["run"])


def run_four(base: ExperimentConfig, **options: Any) -> Any:
    return study(base, vary=VARIED, seeds=(0, 1), **options)
