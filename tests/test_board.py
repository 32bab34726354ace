"""TensorBoard's events, whatever happens to the processes that write them."""

import errno
import os
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import board
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from jaxcnn.runs import metrics
from jaxcnn.runs.metrics import Board
from jaxcnn.training.records import EpochRecord

TAGS = {"Loss/train", "Loss/val", "Accuracy/train", "Accuracy/val", "LearningRate", "ImagesPerSecond"}


def record(epoch: int, *, validated: bool = True) -> EpochRecord:
    val = (2.0 / epoch, 9.0 * epoch) if validated else (None, None)
    return EpochRecord(epoch, 1.0 / epoch, 10.0 * epoch, *val, 1e-3, 1.0, 500.0)


def records(epochs: int) -> list[EpochRecord]:
    return [record(epoch) for epoch in range(1, epochs + 1)]


class Clock:
    """A clock that stands until it is set."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000.0
        patch.setattr(metrics, "time", SimpleNamespace(time=lambda: self.now))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def train(folder: Path, done: int, until: int, clock: Clock) -> None:
    """A start that goes on after `done` epochs; each takes ten seconds."""
    with closing(Board(folder, records(done))) as made:
        for epoch in range(done + 1, until + 1):
            clock.now += 10
            made.add_record(record(epoch))


def evaluate(folder: Path, epochs: int, best: int, clock: Clock) -> None:
    with closing(Board(folder, records(epochs))) as made:
        clock.now += 1
        made.add(best, {"Loss/test": 1.5, "Accuracy/test": 50.0})


def times(folder: Path, tag: str = "Loss/train") -> dict[int, float]:
    return {value.step: value.wall_time - 1_700_000_000 for value in board.shown(folder)[tag]}


def test_each_epoch_is_written_when_it_is_over_and_the_test_once(tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 3, clock)
    evaluate(tmp_path, 3, 2, clock)
    shown = board.shown(tmp_path)
    assert shown.keys() == TAGS | {"Loss/test", "Accuracy/test"}
    for tag in TAGS:
        assert times(tmp_path, tag) == {1: 10, 2: 20, 3: 30}
    assert [(value.step, value.value) for value in shown["Accuracy/val"]] == [(1, 9.0), (2, 18.0), (3, 27.0)]
    assert [tuple(value) for value in shown["Accuracy/test"]] == [(2, 50.0, 1_700_000_031)]
    assert board.shown_fast(tmp_path) == shown
    assert all(event.session_log.status != SessionLog.START for event in board.events(tmp_path))


def test_what_was_not_measured_is_not_written(tmp_path: Path) -> None:
    with closing(Board(tmp_path, [])) as made:
        made.add_record(record(1, validated=False))
    assert board.shown(tmp_path).keys() == TAGS - {"Loss/val", "Accuracy/val"}


def test_a_start_that_ends_before_its_first_epoch_leaves_no_file(tmp_path: Path, clock: Clock) -> None:
    for done in (0, 0):
        train(tmp_path / "logs", done, done, clock)
    assert list((tmp_path / "logs").iterdir()) == []


def test_a_resumed_run_goes_on_beside_what_is_there(tmp_path: Path, clock: Clock) -> None:
    """An open TensorBoard follows the files: none may change but at its end, and none come before another."""
    for done in range(3):
        before = {path: path.read_bytes() for path in tmp_path.iterdir()}
        train(tmp_path, done, done + 1, clock)
        clock.now += 1000
        assert {path: path.read_bytes() for path in before} == before
        (new,) = set(tmp_path.iterdir()) - set(before)
        assert all(new.name > path.name for path in before)
    assert times(tmp_path) == {1: 10, 2: 1020, 3: 2030}
    assert all(event.session_log.status != SessionLog.START for event in board.events(tmp_path))


def test_what_was_written_beyond_the_checkpoint_is_dropped_and_written_again(tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 4, clock)
    train(tmp_path, 2, 3, clock)  # the checkpoints of the last two epochs are gone
    assert times(tmp_path) == {1: 10, 2: 20, 3: 50}
    train(tmp_path, 1, 5, clock)
    assert times(tmp_path) == {1: 10, 2: 60, 3: 70, 4: 80, 5: 90}
    assert board.shown_fast(tmp_path) == board.shown(tmp_path)
    starts = [event.step for event in board.events(tmp_path) if event.session_log.status == SessionLog.START]
    assert starts == [3, 3, 2, 2]  # twice: TensorBoard drops nothing at the first one of a folder


def test_an_epoch_whose_events_a_kill_cost_is_written_by_the_next_start(tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 2, clock)
    clock.now += 100
    train(tmp_path, 3, 4, clock)  # the third had its checkpoint
    assert times(tmp_path) == {1: 10, 2: 20, 3: 120, 4: 130}
    assert board.shown_fast(tmp_path) == board.shown(tmp_path)


@pytest.mark.parametrize("cut", [1, 10, 60, 150])
def test_a_record_that_a_kill_left_half_written_is_replaced(cut: int, tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 3, clock)
    (path,) = tmp_path.iterdir()
    os.truncate(path, path.stat().st_size - cut)
    train(tmp_path, 3, 4, clock)
    assert times(tmp_path) == {1: 10, 2: 20, 3: 30, 4: 40}
    assert board.shown(tmp_path).keys() == TAGS


def test_beyond_a_damaged_record_nothing_is_taken_for_shown(tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 3, clock)
    (path,) = tmp_path.iterdir()
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1  # in the second epoch's
    path.write_bytes(data)
    assert metrics._read([path]).keys() == {(1, tag) for tag in TAGS}


def test_a_run_that_is_extended_shows_its_last_result_on_the_test_set(tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 3, clock)
    evaluate(tmp_path, 3, 2, clock)
    train(tmp_path, 3, 5, clock)
    assert "Loss/test" not in board.shown(tmp_path)  # which it has not yet
    evaluate(tmp_path, 5, 4, clock)
    assert times(tmp_path) == {1: 10, 2: 20, 3: 30, 4: 41, 5: 51}
    assert times(tmp_path, "Loss/test") == {4: 52}


def test_an_evaluation_that_is_repeated_shows_once(tmp_path: Path, clock: Clock) -> None:
    train(tmp_path, 0, 3, clock)
    for _ in range(3):
        train(tmp_path, 3, 3, clock)
        evaluate(tmp_path, 3, 1, clock)
    assert times(tmp_path) == {1: 10, 2: 20, 3: 30}
    assert times(tmp_path, "Accuracy/test") == {1: 33}
    assert board.shown_fast(tmp_path) == board.shown(tmp_path)


def test_starts_within_one_second_and_clocks_that_go_back_keep_their_order(tmp_path: Path, clock: Clock) -> None:
    names = []
    for done, now in enumerate((100.0, 100.4, 50.0, 100.9, 101.2)):
        clock.now = now
        with closing(Board(tmp_path, records(done))) as made:
            made.add_record(record(done + 1))
        names += [path.name for path in tmp_path.iterdir() if path.name not in names]
    assert [name.split(".")[3] for name in names] == [f"{stamp:010}" for stamp in (100, 101, 102, 103, 104)]
    assert names == sorted(set(names))
    assert [value.wall_time for value in board.shown(tmp_path)["Loss/val"]] == [100.0, 100.4, 50.0, 100.9, 101.2]


def test_a_file_that_holds_all_epochs_so_far_is_continued(tmp_path: Path, clock: Clock) -> None:
    """As the first version of this program left it: an event for each value, and no session."""
    old: list[Any] = [Event(wall_time=1.0, file_version="brain.Event:2")]
    for each in records(3):
        for tag, value in metrics._values(each).items():
            old.append(Event(wall_time=float(each.epoch), step=each.epoch, summary=scalar(tag, value)))
    path = tmp_path / "events.out.tfevents.1600000000.here"
    path.write_bytes(b"".join(map(board.frame_record, old[:-2])))  # killed within the third epoch's
    train(tmp_path, 2, 4, clock)
    assert {tag: [value.step for value in values] for tag, values in board.shown(tmp_path).items()} == {
        tag: [1, 2, 3, 4] for tag in TAGS
    }
    assert [value.wall_time for value in board.shown(tmp_path)["Loss/val"]][:2] == [1.0, 2.0]
    assert board.shown_fast(tmp_path) == board.shown(tmp_path)


def last_event(folder: Path) -> Any:
    return list(board.events(folder))[-1]


@settings(max_examples=20, deadline=None, derandomize=True)
@given(st.data())
def test_any_sequence_of_ends_shows_each_step_once(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("logs")
    saved = 0
    with pytest.MonkeyPatch.context() as patch:
        clock = Clock(patch)
        written: dict[int, float] = {}
        for _ in range(data.draw(st.integers(1, 5), "starts")):
            saved = max(saved - data.draw(st.sampled_from([0, 0, 1, 2]), "checkpoints lost"), 0)
            clock.now += data.draw(st.sampled_from([0, 0.2, 500, -30]), "pause")
            written = {epoch: written.get(epoch, clock.now) for epoch in range(1, saved + 1)}
            with closing(Board(folder, records(saved))) as made:
                for _ in range(data.draw(st.integers(0, 3), "epochs")):
                    clock.now += 10
                    saved += 1
                    if data.draw(st.sampled_from([True, True, False]), "written"):
                        made.add_record(record(saved))
                        written[saved] = clock.now
                    else:  # killed between the checkpoint and the events
                        break
            if saved in written and data.draw(st.booleans(), "torn") and (last := last_event(folder)).step == saved:
                path = max(folder.iterdir())
                lost = data.draw(st.integers(1, len(board.frame_record(last)) - 1), "bytes")
                os.truncate(path, path.stat().st_size - lost)
                written.pop(saved)
            if data.draw(st.booleans(), "evaluated") and saved:
                written = {epoch: written.get(epoch, clock.now) for epoch in range(1, saved + 1)}
                evaluate(folder, saved, data.draw(st.integers(1, saved), "best"), clock)
        written = {epoch: written.get(epoch, clock.now) for epoch in range(1, saved + 1)}
        if saved:
            evaluate(folder, saved, saved, clock)
            assert [value.step for value in board.shown(folder)["Loss/test"]] == [saved]
        shown, fast = board.shown(folder), board.shown_fast(folder)
    for tag in TAGS if saved else ():
        assert {value.step: value.wall_time for value in shown[tag]} == written
        assert [value for value in fast[tag] if value.step <= saved] == shown[tag]  # the others will be written again
    for each in records(saved):
        for tag, value in metrics._values(each).items():
            assert shown[tag][each.epoch - 1].value == np.float32(value)


def damage_by(name: str) -> Callable[[Path, pytest.MonkeyPatch], None]:
    def full(*_: Any) -> Any:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def damage(folder: Path, patch: pytest.MonkeyPatch) -> None:
        if name == "a full disk":
            patch.setattr(metrics, "frame_record", full)
        elif name == "a file in the folder's place":
            folder.write_bytes(b"")
        elif name == "a link to what is gone":
            folder.symlink_to(folder.parent / "gone")
        elif name == "a folder of an events' name":
            (folder / "events.out.tfevents.1700000000.host").mkdir(parents=True)
        else:  # another program's records
            folder.mkdir()
            (folder / "events.out.tfevents.1600000000.host").write_bytes(metrics.frame_record(b"\xff no protobuf"))

    return damage


@pytest.mark.parametrize(
    ("cause", "told"),
    [
        ("a full disk", "No space left on device"),
        ("a file in the folder's place", "File exists"),
        ("a link to what is gone", "File exists"),
        ("a folder of an events' name", "Is a directory"),
        ("another program's records", "Error parsing message"),
    ],
)
def test_events_that_cannot_be_written_are_told_once_and_added_by_the_next_start(
    cause: str, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "logs"
    with monkeypatch.context() as patch:
        damage_by(cause)(folder, patch)
        with closing(Board(folder, records(1))) as made:
            made.add_record(record(2))
            made.add_record(record(3))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert err.startswith(f"warning: no more events in {folder}: ")
    assert told in err
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
    else:
        folder.unlink(missing_ok=True)
    with closing(Board(folder, records(3))):
        assert times(folder).keys() == {1, 2, 3}
    assert capsys.readouterr().err == ""
