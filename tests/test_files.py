"""Files that are whole or not there, whatever happens meanwhile."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxcnn.errors import MachineError
from jaxcnn.files import write_json, write_npy, write_text, write_whole


def fail(error: BaseException) -> Any:
    def save(temporary: Path) -> None:
        temporary.write_text("half of it")
        raise error

    return save


@pytest.mark.parametrize("error", [OSError("No space left on device"), RuntimeError("unexpected pos 7")])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "model.pth"
    path.write_text("old")
    with pytest.raises(MachineError, match=rf"cannot write {path}: {error}"):
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
    with pytest.raises(MachineError):
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
        with pytest.raises(MachineError, match="cannot write"):
            write_json(path, {})
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "folder"]


def test_text_is_utf_8_and_json_is_strict(tmp_path: Path) -> None:
    write_text(tmp_path / "a.md", "93.75 ± 8.84\n")
    assert (tmp_path / "a.md").read_bytes() == b"93.75 \xc2\xb1 8.84\n"
    write_json(tmp_path / "a.json", {"names": ["é", "\ud800"]})
    assert (tmp_path / "a.json").read_bytes().isascii()
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"names": ["é", "\ud800"]}
    for value in (float("nan"), float("inf"), -float("inf")):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(tmp_path / "a.json", {"loss": value})
    assert json.loads((tmp_path / "a.json").read_bytes()) == {"names": ["é", "\ud800"]}
