"""The table of all runs: a row for each finished run, whatever else is in the folder or was done to the table."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from refusals import message
from tiny_run import TINY, rows

from jaxcnn.config import ExperimentConfig, FreezeConfig, OptimConfig, TransferConfig
from jaxcnn.config.experiment import to_json
from jaxcnn.errors import MachineError
from jaxcnn.files import write_json
from jaxcnn.runs.log import check_log, log_path, update_log

SUMMARY = {
    "dataset": "digits", "mask": "full", "copied_stages": 0, "frozen_stages": 0, "seed": 0,
    "test_accuracy": 93.75, "balanced_accuracy": 92.5,
    "top5_accuracy": None, "calibration_error": 0.125, "temperature": None,
    "test_loss": 0.25, "val_accuracy": None,
    "val_loss": None, "best_epoch": 1, "epochs": 2, "stopped": "all 2 epochs are done", "seconds": 1.5,
    "images_per_second": 10.0, "trainable_parameters": 5, "total_parameters": 6, "wall_seconds": 2.5,
}  # fmt: skip
COLUMNS = ["name", *SUMMARY]


def make_run(runs: Path, name: str, config: ExperimentConfig = TINY, **changes: Any) -> Path:
    """A finished run's folder, as far as the log reads it."""
    values = {**to_json(replace(config, name=name, runs_dir=runs)), "resolved": {"device": name}}
    write_json(runs / name / "config.json", values)
    write_json(runs / name / "summary.json", {"name": name, **SUMMARY, **changes})
    number = len(list(runs.iterdir()))
    os.utime(runs / name / "summary.json", (number, number))
    return runs / name


def logged(runs: Path, *names: str) -> Path:
    """The log of finished runs of these names."""
    for name in names:
        make_run(runs, name)
    update_log(runs, transfers=False)
    return log_path(runs, transfers=False)


def add_column(log: Path, *cells: str) -> None:
    lines = log.read_text().splitlines()
    log.write_text("".join(f"{line},{cell}\n" for line, cell in zip(lines, cells, strict=True)))


def log_rows(runs: Path, *, transfers: bool = False) -> list[dict[str, str]]:
    update_log(runs, transfers=transfers)
    return rows(log_path(runs, transfers=transfers))


def test_a_single_runs_row_is_its_summary(tmp_path: Path) -> None:
    make_run(tmp_path, "one", test_loss=None)
    (row,) = log_rows(tmp_path)
    assert list(row) == COLUMNS
    assert row == {"name": "one", **{k: "" if v is None else str(v) for k, v in SUMMARY.items()}, "test_loss": ""}


def test_a_run_that_is_overwritten_has_one_row_and_settings_that_differ_a_column(tmp_path: Path) -> None:
    def config(until: int) -> TransferConfig:
        return TransferConfig(freeze=FreezeConfig(mask="partial", freeze_until_block=until))

    make_run(tmp_path, "a", config(0), mask="partial")
    assert list(log_rows(tmp_path, transfers=True)[0]) == COLUMNS
    make_run(tmp_path, "a", config(2), mask="partial", test_accuracy=50.0)
    (row,) = log_rows(tmp_path, transfers=True)
    assert row["test_accuracy"] == "50.0"
    make_run(tmp_path, "b", config(1), mask="partial")
    one, other = log_rows(tmp_path, transfers=True)
    assert list(one) == [*COLUMNS, "freeze.freeze_until_block"]
    assert (one["name"], one["freeze.freeze_until_block"]) == ("a", "2")
    assert (other["name"], other["freeze.freeze_until_block"]) == ("b", "1")
    shutil.rmtree(tmp_path / "b")
    (row,) = log_rows(tmp_path, transfers=True)
    assert list(row) == COLUMNS  # there is nothing left to tell apart


def test_columns_tell_what_and_not_where_and_nothing_twice(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    optim = OptimConfig(learning_rate=0.5, clip_norm=1.0)
    data = replace(TINY.data, name="svhn", dir=Path("sets"), classes=(1, 2))
    model = replace(TINY.model, hidden_dims=(4, 8, 16, 9))
    other = replace(TINY, seed=3, device="cpu", data=data, model=model, optim=optim)
    make_run(tmp_path, "b", other, seed=3, dataset="svhn")
    one, two = log_rows(tmp_path)
    differing = ["data.classes", "model.hidden_dims", "optim.learning_rate", "optim.clip_norm"]
    assert list(one) == [*COLUMNS, *differing]
    assert [one[name] for name in differing] == ["[]", "[4, 8, 16, 8]", "0.01", ""]
    assert [two[name] for name in differing] == ["[1, 2]", "[4, 8, 16, 9]", "0.5", "1.0"]


def test_a_copy_of_a_run_and_a_renamed_one_have_rows_of_their_own(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    shutil.copytree(tmp_path / "a", tmp_path / "a copy")
    assert [row["name"] for row in log_rows(tmp_path)] == ["a", "a copy"]
    (tmp_path / "a").rename(tmp_path / "old")
    assert [row["name"] for row in log_rows(tmp_path)] == ["a copy", "old"]


def test_transfers_and_other_runs_have_a_log_each(tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    make_run(tmp_path, "b", TransferConfig())
    assert [row["name"] for row in log_rows(tmp_path)] == ["a"]
    assert [row["name"] for row in log_rows(tmp_path, transfers=True)] == ["b"]


def test_damaged_unfinished_and_foreign_folders_are_passed_over(tmp_path: Path) -> None:
    make_run(tmp_path, "good")
    for name, file, text in (
        ("cut", "summary.json", '{"name": "c'),
        ("without", "config.json", None),
        ("unfinished", "summary.json", None),
        ("list", "config.json", "[]"),
        ("number", "summary.json", json.dumps({"name": "n", **SUMMARY, "test_loss": float("inf")})),
    ):
        path = make_run(tmp_path, name) / file
        path.unlink() if text is None else path.write_text(text)
    write_json(tmp_path / "foreign/summary.json", {"accuracy": 1})
    (tmp_path / "folder/summary.json").mkdir(parents=True)
    assert [row["name"] for row in log_rows(tmp_path)] == ["good"]


def test_a_folders_name_that_is_no_text_is_escaped(tmp_path: Path) -> None:
    make_run(tmp_path, "a").rename(tmp_path / os.fsdecode(b"\xffb"))
    assert [row["name"] for row in log_rows(tmp_path)] == ["\\udcffb"]


@pytest.mark.parametrize(
    "saved",
    [
        lambda text: text.encode(),
        lambda text: text.replace("\n", "\r\n").encode(),
        lambda text: text.replace("\n", "\r").encode(),
        lambda text: text.rstrip("\n").encode("utf-8-sig"),
        lambda text: text.replace(",", ";").replace("\n", "\r\n").encode("utf-8-sig"),
        lambda text: text.replace(",", "\t").replace("\n", "\r\n").encode("utf-16"),
        lambda text: text.replace("\n", ",,\n").encode(),
        lambda text: f"{text},,,\n\n".encode(),
    ],
    ids=["plain", "CRLF", "CR", "BOM", "semicolons", "UTF-16", "empty columns", "empty rows"],
)
def test_a_users_column_survives_however_a_spreadsheet_saved_it(saved: Any, tmp_path: Path) -> None:
    log = logged(tmp_path, "a", "b")
    first, one, other = log.read_text().splitlines()
    # Inserted in front, and the rows sorted the other way.
    log.write_bytes(saved(f"my note,{first}\nschön,{other}\n,{one}\n"))
    make_run(tmp_path, "c", test_accuracy=1.0)
    table = log_rows(tmp_path)
    assert list(table[0]) == [*COLUMNS, "my note"]
    told = [(row["name"], row["my note"], row["test_accuracy"]) for row in table]
    assert told == [("b", "schön", "93.75"), ("a", "", "93.75"), ("c", "", "1.0")]
    assert b"\r" not in log.read_bytes()
    before = log.stat().st_mtime_ns
    update_log(tmp_path, transfers=False)
    assert log.stat().st_mtime_ns == before


def test_two_columns_of_a_user_may_have_one_name_and_that_of_another_logs_setting(tmp_path: Path) -> None:
    log = logged(tmp_path, "a")
    names, cells = log.read_text().splitlines()
    log.write_text(f"{names},note,note,source,device\n{cells},1,2,me,mine\n")
    update_log(tmp_path, transfers=False)
    assert log.read_text() == f"{names},note,note,source,device\n{cells},1,2,me,mine\n"


def test_the_index_that_pandas_adds_is_a_column_of_the_users(tmp_path: Path) -> None:
    log = logged(tmp_path, "a", "b")
    lines = log.read_text().splitlines()
    log.write_text("".join(f"{index},{line}\n" for index, line in zip(["", "0", "1"], lines, strict=True)))
    update_log(tmp_path, transfers=False)
    assert log.read_text().splitlines() == [f"{line},{i}" for line, i in zip(lines, ["", "0", "1"], strict=True)]


def test_rows_whose_run_is_gone_go_and_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = logged(tmp_path, "a", "b", "c")
    add_column(log, "note", "", "good one", "")
    (tmp_path / "b").rename(tmp_path.parent / f"{tmp_path.name}-elsewhere")
    shutil.rmtree(tmp_path / "c")
    table = [(row["name"], row["test_accuracy"], row["note"]) for row in log_rows(tmp_path)]
    assert table == [("a", "93.75", ""), ("b", "", "good one")]  # what a user wrote is the user's to delete
    assert capsys.readouterr().err == f"warning: {log} no longer lists c, whose folder is gone\n"


def test_a_name_that_a_spreadsheet_took_for_a_number_costs_no_note(tmp_path: Path) -> None:
    log = logged(tmp_path, "0012")
    header, row = log.read_text().splitlines()
    log.write_text(f"{header},note\n{row.removeprefix('00')},mine\n")
    assert [(row["name"], row["note"]) for row in log_rows(tmp_path)] == [("12", "mine"), ("0012", "")]


def test_what_a_user_noted_of_a_run_outlives_its_training_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = logged(tmp_path, "a", "b", "c")
    add_column(log, "note", "mine", "", "")
    for name in ("a", "b"):
        (tmp_path / name / "summary.json").rename(tmp_path / name / "away")  # --overwrite and --extend remove it
    table = log_rows(tmp_path)  # as another run does that finishes meanwhile
    assert [(row["name"], row["test_accuracy"], row["note"]) for row in table] == [
        ("a", "", "mine"),
        ("c", "93.75", ""),
    ]
    for name in ("a", "b"):
        (tmp_path / name / "away").rename(tmp_path / name / "summary.json")
    table = log_rows(tmp_path)
    assert [(row["name"], row["note"]) for row in table] == [("a", "mine"), ("c", ""), ("b", "")]
    assert capsys.readouterr().err == ""


def test_the_log_of_an_earlier_version_is_taken_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It had a row for each time that a run came to its end."""
    make_run(tmp_path, "a", test_accuracy=2.0)
    cells = ",".join(str(value) for value in SUMMARY.values())
    log_path(tmp_path, transfers=False).write_text(f"{','.join(COLUMNS)}\na,{cells}\na,{cells}\n")
    assert [(row["name"], row["test_accuracy"]) for row in log_rows(tmp_path)] == [("a", "2.0")]
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("name,n\na,schön\n".encode("cp1252"), "can't decode byte 0xf6"),
        (b"title,accuracy\na,1\n", "no column `name`"),
        (b"name,name\na,1\n", "no column `name`, or several"),
        (b"name,note\na,1,2\n", "more cells"),
        (b'name,note\na,"1"2\n', "expected after"),
        (b"PK\3\4\x14\0\6\0\x08\xff", "cannot be read as a table"),
    ],
    ids=["another encoding", "other columns", "two names", "long row", "stray quote", "workbook"],
)
def test_a_log_that_cannot_be_understood_is_left_alone(data: bytes, why: str, tmp_path: Path) -> None:
    make_run(tmp_path, "a")
    log = log_path(tmp_path, transfers=False)
    log.write_bytes(data)
    for call in (check_log, update_log):
        told = message(partial(call, tmp_path, transfers=False))
        assert why in told
        assert str(log) in told
        assert "move it away" in told
    assert log.read_bytes() == data
    log.unlink()
    check_log(tmp_path, transfers=False)
    assert len(log_rows(tmp_path)) == 1


def test_a_log_that_cannot_be_written_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = logged(tmp_path, "a").read_bytes()
    make_run(tmp_path, "b")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    assert "No space left on device; free space" in message(lambda: update_log(tmp_path, transfers=False), MachineError)
    assert log_path(tmp_path, transfers=False).read_bytes() == before


def test_rows_of_runs_that_finish_at_once_are_all_there(tmp_path: Path) -> None:
    """The lock belongs to an opened file, so threads that open it keep each other out as processes do."""
    ready = threading.Barrier(4)

    def work(number: int) -> None:
        ready.wait()
        for i in range(5):
            make_run(tmp_path, f"{number}_{i}")
            update_log(tmp_path, transfers=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    names = sorted(row["name"] for row in rows(log_path(tmp_path, transfers=False)))
    assert names == [f"{number}_{i}" for number in range(4) for i in range(5)]


def test_what_a_killed_process_was_writing_goes(tmp_path: Path) -> None:
    make_run(tmp_path, "one")
    (tmp_path / ".jaxcnn-experiment_logs.csv-0123.csv").write_text("half a")
    update_log(tmp_path, transfers=False)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "experiment_logs.csv", ".experiment_logs.csv.lock"}
