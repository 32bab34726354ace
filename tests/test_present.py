"""Missing plots and log rows of a finished run are made from its folder; a failure is a warning."""

import json
import math
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from test_log import make_run
from tiny_run import TINY, assert_same_run, ended, rows

from jaxcnn.errors import InputError
from jaxcnn.files import write_json, write_npy
from jaxcnn.runs import present as present_module
from jaxcnn.runs import run
from jaxcnn.runs.log import update_log
from jaxcnn.runs.metrics import read_metrics, write_metrics
from jaxcnn.runs.present import present, remove_products
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.runs.run import run_experiment
from jaxcnn.runs.streams import only_warns
from jaxcnn.training.records import EpochRecord


def complete(folder: Path) -> None:
    """What `run_experiment` does for a finished run."""
    present(folder)
    with only_warns(f"row of {folder.name} in the table of all runs"):
        update_log(folder.parent, transfers="source" in read_json(folder / "config.json"))


RECORDS = [
    EpochRecord(1, 2.0, 10.0, 3.0, 20.0, 1e-3, 1.0, 1.0),
    EpochRecord(2, 1e30, 12.5, 2.5, 30.0, 1e-3, 1.0, 1.0),
]
MADE = ("curves.png", "confusion.png", "classes.md", "classes.tex", "report.html")
PICTURES = MADE[:2]


def make_finished(runs: Path, **changes: Any) -> Path:
    """The folder of a run that could not draw anything."""
    folder = make_run(runs, "a", **changes)
    config = json.loads((folder / "config.json").read_bytes())
    write_json(folder / "config.json", {**config, "resolved": {"class_names": ["$x", "é\n", "[red]"]}})
    write_metrics(folder, RECORDS)
    write_npy(folder / "results/labels.npy", np.array([0, 1, 2, 2]))
    write_npy(folder / "results/predictions.npy", np.array([0, 1, 1, 2]))
    write_npy(folder / "results/probabilities.npy", np.float32([[1, 0, 0], [0, 1, 0], [0, 0.9, 0.1], [0, 0, 1]]))
    return folder


def times(runs: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in runs.rglob("*")}


def test_what_is_missing_is_made_from_the_folder_alone_and_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_finished(tmp_path)
    before = times(folder)
    complete(folder)
    assert [row["name"] for row in rows(tmp_path / "experiment_logs.csv")] == ["a"]
    for name in PICTURES:
        with Image.open(folder / name) as picture:
            picture.load()
    after = times(tmp_path)
    assert before.items() <= after.items()
    complete(folder)
    assert times(tmp_path) == after  # nothing is made twice
    (folder / "curves.png").unlink()
    complete(folder)
    assert (folder / "confusion.png").stat().st_mtime_ns == after[folder / "confusion.png"]
    assert (folder / "curves.png").exists()
    remove_products(folder)
    assert not any((folder / name).exists() for name in MADE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("file", "missing", "told"),
    [
        ("metrics.csv", {"curves.png", "report.html"}, "cannot be read as a table: [Errno 2] No such file"),
        ("results/predictions.npy", {*MADE} - {"curves.png"}, "cannot be read: [Errno 2] No such file"),
    ],
)
def test_what_cannot_be_made_is_a_warning_and_the_rest_is_made(
    file: str, missing: set[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_finished(tmp_path)
    (folder / file).rename(folder / "away")
    (folder / f".jaxcnn-{min(missing)}-0123.png").write_bytes(b"what a killed process was writing")
    complete(folder)
    lines = capsys.readouterr().err.splitlines()
    assert {line.partition(": ")[2].partition(":")[0] for line in lines} == {f"no {folder / name}" for name in missing}
    assert all(told in line for line in lines)
    assert {name for name in MADE if not (folder / name).exists()} == missing
    assert (tmp_path / "experiment_logs.csv").exists()
    (folder / "away").rename(folder / file)
    complete(folder)
    assert all((folder / name).exists() for name in MADE)
    assert not list(folder.glob(".jaxcnn-*"))
    assert capsys.readouterr().err == ""


def test_no_picture_costs_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(error: Exception) -> None:
        raise error

    folder = make_finished(tmp_path)
    for error in (
        RuntimeError("Failed to process string with tex because latex could not be found"),
        OSError("No space left on device"),
        ImportError("libfreetype.so.6: cannot open shared object file"),
        MemoryError(),
        InputError("cannot write it"),
    ):
        (tmp_path / "experiment_logs.csv").unlink(missing_ok=True)
        with pytest.MonkeyPatch.context() as patch:
            for name in ("plot_curves", "plot_confusion"):
                patch.setattr(present_module, name, lambda *_, error=error: fail(error))
            complete(folder)
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 2
        for line in told:
            assert (str(error) or "MemoryError") in line
            assert line.endswith("Once that is fixed, the same command makes it")
        assert rows(tmp_path / "experiment_logs.csv")[0]["name"] == "a"
    complete(folder)
    assert all((folder / name).exists() for name in MADE)


def test_metrics_are_read_as_they_were_written_and_as_spreadsheets_save_them(tmp_path: Path) -> None:
    folder = make_finished(tmp_path)
    write_metrics(folder, [*RECORDS, RECORDS[1]._replace(epoch=3, val_loss=None, val_accuracy=None)])
    read = read_metrics(folder)
    assert read == [*RECORDS, RECORDS[1]._replace(epoch=3, val_loss=None, val_accuracy=None)]
    assert type(read[0].epoch) is int
    path = folder / "metrics.csv"
    path.write_bytes(path.read_text().replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"))
    assert read_metrics(folder) == read
    for text, told in (
        ("", "it is empty"),
        ("epoch\n", "holds no epoch"),
        ("epoch,loss\n1,2\n", "lacks 'train_loss'"),
        (path.read_text().replace("2.5", "2,5"), "could not convert"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=told):
            read_metrics(folder)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1" * 400, '"1"', "null", "[]"])
def test_a_summary_with_what_is_no_number_is_refused_and_large_ones_are_not(text: str, tmp_path: Path) -> None:
    path = make_run(tmp_path, "a", test_loss=1e300, seconds=2.0**60) / "summary.json"
    assert read_summary(path)["test_loss"] == 1e300
    path.write_text(path.read_text().replace("93.75", text))
    with pytest.raises(InputError, match="lacks test_accuracy, or has unusable values there"):
        read_summary(path)


# Whole runs


@pytest.mark.usefixtures("own_cache")
def test_a_run_whose_pictures_and_log_fail_is_finished_and_the_same_command_makes_them(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    folder, log = tmp_path / "tiny", tmp_path / "experiment_logs.csv"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()  # trained, and not evaluated
    old = (folder / "confusion.png").stat().st_mtime_ns
    seen: list[set[str]] = []

    def fail(*_: object) -> None:
        seen.append({str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()})
        raise RuntimeError("no font")

    evaluate = run.evaluate
    log.write_bytes(b"PK\3\4\xff")  # a workbook
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(present_module, "plot_curves", fail)
        patch.setattr(run, "evaluate", lambda *given, **more: evaluate(*given, **more)._replace(loss=math.inf))
        summary = run_experiment(config)
    out, err = capsys.readouterr()
    assert {"model.pth", "summary.json", "config.json", "metrics.csv", "results/predictions.npy"} <= seen[0]
    assert summary["test_loss"] is None
    assert "not finite" in out
    untouched = log.read_bytes()
    assert untouched == b"PK\3\4\xff"
    warnings = err.splitlines()
    assert [line.partition(": ")[0] for line in warnings] == ["warning"] * 3  # of the log before training, too
    assert "no row of tiny in the table of all runs" in warnings[0]
    assert f"no {folder / 'curves.png'}: RuntimeError: no font" in warnings[1]
    assert warnings[2] == warnings[0]
    assert not (folder / "curves.png").exists()  # that of the time before would be another run's
    assert (folder / "confusion.png").stat().st_mtime_ns != old
    log.unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "fit", lambda *_, **__: pytest.fail("it trains"))
        assert run_experiment(config) == summary
    assert (folder / "curves.png").exists()
    assert [row["name"] for row in rows(log)] == ["tiny"]
    assert capsys.readouterr().err == ""


@pytest.mark.usefixtures("own_cache")
def test_a_reader_that_has_seen_enough_ends_the_program_after_what_was_due(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    (tmp_path / "tiny/curves.png").unlink()
    reading, writing = os.pipe()
    os.close(reading)
    with pytest.MonkeyPatch.context() as patch, os.fdopen(writing, "w", buffering=1) as closed:
        patch.setattr(sys, "stdout", closed)
        status, _, err = ended(lambda: run_experiment(replace(TINY, runs_dir=tmp_path)), capsys)
    assert (status, err) == (141, "")
    assert (tmp_path / "tiny/curves.png").exists()
    assert [row["name"] for row in rows(tmp_path / "experiment_logs.csv")] == ["tiny"]


@pytest.mark.usefixtures("own_cache")
def test_a_run_that_an_earlier_version_left_before_its_log_is_finished(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    (tmp_path / "tiny/summary.json").rename(tmp_path / "tiny/summary.pending.json")
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("it trains"))
    run_experiment(replace(TINY, runs_dir=tmp_path))
    assert not (tmp_path / "tiny/summary.pending.json").exists()
    assert_same_run(tmp_path / "tiny", finished)
    assert [row["name"] for row in rows(tmp_path / "experiment_logs.csv")] == ["tiny"]
