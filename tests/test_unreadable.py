"""Files that cannot be read at the moment are not called damaged, and no message asks to delete them."""

import errno
import io
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
import torch
from refusals import message
from tiny_run import TINY

from jaxcnn.config.experiment import RESOLVED, Existing
from jaxcnn.data import prepare, reader
from jaxcnn.errors import InputError, JaxcnnError, UnreadableError, is_out_of_memory, unreadable
from jaxcnn.files import digest, older_digest, write_json
from jaxcnn.runs.folder import digest_source
from jaxcnn.runs.kept import read_best
from jaxcnn.runs.reading import read_json, read_summary
from jaxcnn.weights import files as weight_files
from jaxcnn.weights.files import read_state_dict
from jaxcnn.weights.weights_only import load_weights

MACHINES = [errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EIO, errno.ESTALE, errno.ETIMEDOUT]
OF_TENSORSTORE = "RESOURCE_EXHAUSTED: Error opening local file: Too many open files [os_error_code='24']"


def fail(number: int) -> Callable[..., Any]:
    def raise_it(*_: Any, **__: Any) -> Any:
        raise OSError(number, os.strerror(number))

    return raise_it


def weight_file(path: Path) -> None:
    torch.save({"fc1.weight": torch.ones(2)}, path)


READERS: dict[str, tuple[Callable[[Path], None], Callable[[Path], object]]] = {
    "weights": (weight_file, read_state_dict),
    "a run's configuration": (lambda path: write_json(path, {"seed": 1}), read_json),
    "a run's summary": (lambda path: write_json(path, {"seed": 1}), read_summary),
    "an archive": (
        lambda path: path.write_bytes(b"1"),
        lambda path: prepare._require_checksum(path, "0" * 32, path, "delete it"),
    ),
}


@pytest.mark.parametrize("number", MACHINES, ids=errno.errorcode.get)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_cannot_be_opened_is_not_damaged(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, read = READERS[name]
    make(tmp_path / "file")
    original = io.open

    def opened(file: Any, *arguments: Any, **options: Any) -> Any:
        return fail(number)() if str(file) == str(tmp_path / "file") else original(file, *arguments, **options)

    for place in ("io.open", "builtins.open"):
        monkeypatch.setattr(place, opened)
    with pytest.raises(UnreadableError) as caught:
        read(tmp_path / "file")
    monkeypatch.undo()
    assert str(caught.value) == (
        f"{tmp_path / 'file'} cannot be read: [Errno {number}] {os.strerror(number)}. Nothing was changed; try again "
        "later"
    )


def test_weights_that_pytorch_cannot_open_or_hold_are_not_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.pth"
    weight_file(path)
    monkeypatch.setattr(torch, "load", fail(errno.EMFILE))
    assert "cannot be read: [Errno 24] Too many open files. Nothing was changed" in message(
        lambda: weight_files.load_file(path), UnreadableError
    )

    def too_large(*_: Any, **__: Any) -> None:
        raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(torch, "load", too_large)
    with pytest.raises(MemoryError, match="can't allocate memory"):
        weight_files.load_file(path)


def test_a_checkpoint_of_weights_that_cannot_be_read_is_not_called_unreadable_for_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ocp.Checkpointer, "restore", fail(errno.ESTALE))
    assert message(lambda: load_weights(tmp_path), UnreadableError).startswith(
        f"{tmp_path} cannot be read: [Errno 116]"
    )


def test_a_prepared_set_that_cannot_be_read_is_not_damaged(tmp_path: Path) -> None:
    def read(error: Exception, kind: type[JaxcnnError]) -> str:
        def work() -> None:
            with reader._reading(tmp_path):
                raise RuntimeError("array_record") from error

        return message(work, kind)

    assert f"{tmp_path} cannot be read: [Errno 24]" in read(
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)), UnreadableError
    )
    assert "is no whole prepared data set: array_record; delete the folder" in read(
        ValueError("a checksum"), InputError
    )


@pytest.mark.parametrize(
    ("error", "memory", "later"),
    [
        (MemoryError(), True, False),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."), True, False),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), True, False),
        (ValueError(OF_TENSORSTORE), False, True),
        (OSError(errno.EMFILE, "Too many open files"), False, True),
        (FileNotFoundError(errno.ENOENT, "No such file"), False, False),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), False, False),
        (pickle.UnpicklingError("invalid load key"), False, False),
        (EOFError("Compressed file ended"), False, False),
    ],
)
def test_errors_of_the_machine_are_told_from_those_of_a_file(error: Exception, memory: bool, later: bool) -> None:
    assert is_out_of_memory(error) == memory
    assert (unreadable("x", error) is not None) == later


def test_a_damaged_summary_is_computed_again_and_not_begun_again(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"seed"')
    assert "delete it, and the same command computes it again" in message(
        lambda: read_summary(tmp_path / "summary.json")
    )


def test_best_weights_that_cannot_be_read_now_are_not_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weight_file(tmp_path / "model.pth")
    monkeypatch.setattr(torch, "load", fail(errno.EIO))
    told = message(lambda: read_best(tmp_path, TINY), UnreadableError)
    assert "Input/output error. Nothing was changed" in told
    assert "--overwrite" not in told


WEIGHTS = {"params": {"fc1": {"kernel": np.float32([1, 2])}}, "batch_stats": {}}
CHANGED = {"params": {"fc1": {"kernel": np.float32([1, 3])}}, "batch_stats": {}}


@pytest.mark.parametrize(
    ("began_with", "jax_then", "existing", "wanted", "told"),
    [
        (older_digest(WEIGHTS), "0.0.1", Existing(), older_digest(WEIGHTS), False),
        (older_digest(CHANGED), "0.0.1", Existing(), older_digest(CHANGED), True),  # not comparable
        (older_digest(CHANGED), jax.__version__, Existing(), digest(WEIGHTS), False),  # refused later: it did change
        (older_digest(CHANGED), "0.0.1", Existing(overwrite=True), digest(WEIGHTS), False),
        (digest(CHANGED), "0.0.1", Existing(), digest(WEIGHTS), False),
        (None, "0.0.1", Existing(), digest(WEIGHTS), False),
    ],
)
def test_the_source_of_a_run_of_an_older_version_is_compared_where_that_is_possible(
    began_with: str | None,
    jax_then: str,
    existing: Existing,
    wanted: str,
    told: bool,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    resolved = {"versions": {"jax": jax_then}, **({} if began_with is None else {"source_digest": began_with})}
    write_json(tmp_path / "config.json", {RESOLVED: resolved})
    assert digest_source(WEIGHTS, tmp_path, existing) == wanted
    assert ("checksum of the source cannot be compared" in capsys.readouterr().err) == told


def test_a_configuration_that_is_damaged_can_be_overwritten(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{")
    assert digest_source(WEIGHTS, tmp_path, Existing(overwrite=True)) == digest(WEIGHTS)
    with pytest.raises(InputError, match="--overwrite starts the run again"):
        digest_source(WEIGHTS, tmp_path, Existing())
