"""Files that are whole or not there, whatever happens meanwhile."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import InputError
from jaxcnn.files import append_row, write_json, write_npy, write_whole


def fail(error: BaseException) -> Any:
    def save(temporary: Path) -> None:
        temporary.write_text("half of it")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("unexpected pos 7")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("old")
    with pytest.raises(InputError, match=rf"cannot write {path}: {error}"):
        write_whole(path, fail(error))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug")])
def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(error: BaseException, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("old")
    with pytest.raises(type(error)):
        write_whole(path, fail(error))
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_first_write_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        write_whole(tmp_path / "new/model.pth", fail(OSError("full")))
    assert list((tmp_path / "new").iterdir()) == []


def test_a_write_replaces_the_old_file_and_makes_its_folder(tmp_path: Path) -> None:
    path = tmp_path / "a/b/values.json"
    for values in ({"x": 0.1, "y": [1, None]}, {"x": 2}):
        write_json(path, values)
        assert json.loads(path.read_text()) == values
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644
    array = np.arange(6.0).reshape(2, 3)
    write_npy(tmp_path / "a/array.npy", array)
    np.testing.assert_array_equal(np.load(tmp_path / "a/array.npy"), array)


def test_the_file_is_written_under_its_own_suffix(tmp_path: Path) -> None:
    """Savers such as NumPy's and matplotlib's go by it."""
    seen = []
    write_whole(tmp_path / "curves.png", lambda temporary: seen.append(temporary))
    assert seen[0].suffix == ".png"
    assert seen[0].parent == tmp_path


def test_a_place_that_takes_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file/values.json", tmp_path / "folder"):
        with pytest.raises(InputError, match="cannot write"):
            write_json(path, {})
    with pytest.raises(InputError, match="cannot write"):
        append_row(tmp_path / "file/log.csv", {"a": 1})
    with pytest.raises(InputError, match="cannot write"):
        append_row(tmp_path / "folder", {"a": 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_a_last_row_without_its_line_end_is_kept_and_half_a_row_is_not(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    for row in ({"a": 1, "b": 2}, {"a": 3, "b": 45}):
        append_row(path, row)
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])  # as an editor may save it
    append_row(path, {"a": 6, "b": 7})
    assert path.read_bytes() == whole + b"6,7\n"
    for cut in (whole[:-4], whole[:-1], whole[:-2]):  # what a killed process left of a row that it writes again
        path.write_bytes(cut)
        append_row(path, {"a": 3, "b": 45})
        assert path.read_bytes() == whole
    for part in range(1, 6):  # of the names, up to all but their line end
        path.write_bytes(b"a,bcd\n"[:part])
        append_row(path, {"a": 1, "bcd": 2})
        assert path.read_bytes() == b"a,bcd\n1,2\n"


WRITER = """
import sys
from pathlib import Path
from jaxcnn.files import append_row

sys.stdin.read()  # all begin at once
for i in range(25):
    append_row(Path(sys.argv[1]), {"writer": sys.argv[2], "row": i, "text": "long, quoted " * 200})
"""


def test_rows_of_several_processes_are_all_there_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs/log.csv"
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), str(i)], stdin=subprocess.PIPE) for i in range(4)
    ]
    for writer in writers:
        assert writer.stdin is not None
        writer.stdin.close()
    assert [writer.wait(60) for writer in writers] == [0] * 4
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["writer", "row", "text"]
    assert {text for _, _, text in rows} == {"long, quoted " * 200}
    for i in range(4):
        assert [int(row) for writer, row, _ in rows if writer == str(i)] == list(range(25))
    assert len(rows) == 100


def test_a_row_that_the_disk_does_not_take_leaves_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "rows.csv"
    append_row(path, {"a": 1, "b": "x"})
    before = path.read_bytes()

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(InputError, match=rf"cannot write {path}: No space left on device; free space"):
        append_row(path, {"a": 2, "b": "y"})
    assert path.read_bytes() == before


def test_a_row_of_other_columns_is_refused_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    append_row(path, {"a": 1, "b": 'x, "y"\nz'})
    before = path.read_bytes()
    for row in ({"a": 1}, {"b": 1, "a": 2}, {"a": 1, "b": 2, "c": 3}):
        with pytest.raises(InputError, match="other columns"):
            append_row(path, row)
    assert path.read_bytes() == before
    append_row(path, {"a": 2, "b": None})
    with path.open(newline="") as file:
        assert list(csv.reader(file)) == [["a", "b"], ["1", 'x, "y"\nz'], ["2", ""]]
