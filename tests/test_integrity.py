"""Checksums of weights and of files, and what a checkpoint's prove."""

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from refusals import message
from test_checkpoint import MODEL, assert_same_bits, draw_records, draw_state

from jaxcnn import files as integrity
from jaxcnn.errors import UnreadableError
from jaxcnn.files import MANIFEST, digest, find_damage, made_by_older_version, older_digest, write_manifest
from jaxcnn.weights.checkpoint import open_checkpoints

TREE = {"params": {"a": np.float32([1, 2]), "b": {"c": np.int32(3)}}, "stats": {}}


def test_a_digest_is_of_paths_dtypes_shapes_and_bytes_and_of_nothing_else() -> None:
    one = hashlib.sha256(b"float32 (2,)" + struct.pack("<2f", 1, 2)).digest()
    other = hashlib.sha256(b"int32 (1,)" + struct.pack("<i", 3)).digest()
    known = "2:" + hashlib.sha256(b"/params/a\0" + one + b"/params/b/c\0" + other).hexdigest()
    assert digest(TREE) == known
    assert digest({"stats": {}, "params": {"b": {"c": np.int32(3)}, "a": np.float32([1, 2])}}) == known
    assert digest({**TREE, "more": {}}) == known
    assert digest(jax.tree.map(jax.numpy.asarray, TREE)) == known
    for changed in (
        {"params": {"A": np.float32([1, 2]), "b": {"c": np.int32(3)}}},
        {"params": {"a": np.float32([1, 2]), "b": np.int32(3)}},
        {"params": {"a": np.float64([1, 2]), "b": {"c": np.int32(3)}}},
        {"params": {"a": np.float32([[1, 2]]), "b": {"c": np.int32(3)}}},
        {"params": {"a": np.float32([1, 2.0000002]), "b": {"c": np.int32(3)}}},
        {"params": {"a": np.float32([1, 2])}},
    ):
        assert digest(changed) != known


def test_the_two_kinds_of_digest_are_told_apart() -> None:
    assert made_by_older_version(older_digest(TREE))
    assert not made_by_older_version(digest(TREE))


def fill(folder: Path) -> Path:
    (folder / "in").mkdir(parents=True)
    (folder / "in" / "one").write_bytes(b"12")
    (folder / "two").write_bytes(b"")
    return folder


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: (folder / "in/one").write_bytes(b"13"), "the checksum of in/one does not match"),
        (lambda folder: (folder / "in/one").write_bytes(b"1"), "the checksum of in/one does not match"),
        (lambda folder: (folder / "two").unlink(), "two is missing"),
        (lambda folder: shutil.rmtree(folder / "in"), "in/one is missing"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"{"), "sha256.json is not a list of checksums"),
        (lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"), "sha256.json is not a list of checksums"),
        (lambda folder: (folder / ".DS_Store").write_bytes(b"1"), None),  # what a system or a person adds
        (lambda folder: (folder / MANIFEST).unlink(), None),  # nothing is listed, so nothing is proven
        (lambda folder: os.utime(folder / "two", (0, 0)), None),
    ],
)
def test_damage_is_what_the_list_of_checksums_proves(
    damage: Callable[[Path], None], told: str | None, tmp_path: Path
) -> None:
    write_manifest(fill(tmp_path / "folder"))
    assert find_damage(tmp_path / "folder") is None
    damage(tmp_path / "folder")
    assert find_damage(tmp_path / "folder") == told


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints after the steps 1 and 2; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "checkpoints"
    with open_checkpoints(folder) as checkpoints:
        for epochs in (1, 2):
            checkpoints.save(draw_state(epochs), draw_records(epochs))
    return folder


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, os.strerror(errno.EMFILE)),
        OSError(errno.ESTALE, os.strerror(errno.ESTALE)),  # a network's file system that was away
        PermissionError(errno.EACCES, os.strerror(errno.EACCES)),
        OSError(errno.EIO, os.strerror(errno.EIO)),
    ],
)
def test_what_cannot_be_read_now_is_not_damaged(
    error: OSError, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoints"))

    def fail(path: Path) -> bytes:
        raise error

    before = contents(folder)
    with open_checkpoints(folder) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(integrity, "_file_digest", fail)
        told = message(lambda: checkpoints.restore(lambda epoch: draw_state(0)), UnreadableError)
    assert f"checkpoints/2 cannot be read: {error}. Nothing was changed" in told
    assert contents(folder) == before
    with open_checkpoints(folder) as checkpoints:  # the cause is gone
        restored = checkpoints.restore(lambda epoch: draw_state(0))
    assert restored is not None
    assert_same_bits(restored.state, draw_state(2))


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (RuntimeError("the library has a fault"), ValueError, "cannot be restored, though its checksums do not prove"),
        (ValueError("NOT_FOUND: Error opening"), ValueError, "from the previous one"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), MemoryError, "Out of memory"),
        (MemoryError("Unable to allocate 1 GiB"), MemoryError, "Unable to allocate"),
    ],
)
def test_an_error_in_restoring_proves_no_damage(
    error: Exception, kind: Any, told: str, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoints"))

    def fail(*_: Any, **__: Any) -> None:
        raise error

    before = contents(folder)
    with open_checkpoints(folder) as checkpoints, monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "restore", fail)
        with pytest.raises(kind, match=told):
            checkpoints.restore(lambda epoch: draw_state(0))
    assert contents(folder) == before


def test_a_damaged_checkpoint_is_kept_until_a_newer_one_is_written(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "checkpoints"))
    (folder / "2" / "state" / "key" / "0").write_bytes(b"")
    damaged = contents(folder / "2")
    with open_checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(lambda epoch: draw_state(0))
        assert restored is not None
        assert_same_bits(restored.state, draw_state(1))
        assert "the checkpoint after step 2 is damaged: the checksum of state/key/0" in capsys.readouterr().err
        (aside,) = folder.glob("*.damaged")
        assert contents(aside) == damaged
        checkpoints.save(draw_state(2), draw_records(2))
        assert not list(folder.glob("*.damaged"))
    with open_checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(lambda epoch: draw_state(0))
    assert restored is not None
    assert_same_bits(restored.state, draw_state(2))


def test_a_checkpoint_of_another_precision_is_not_damaged_and_says_what_differs(saved: Path) -> None:
    before = contents(saved)

    def doubled(epoch: int) -> Any:
        with jax.enable_x64(True):
            return jax.tree.map(
                lambda leaf: np.asarray(leaf, np.float64) if leaf.dtype == np.float32 else leaf, draw_state(0)
            )

    with open_checkpoints(saved, read_only=True) as checkpoints:
        told = message(lambda: checkpoints.restore(doubled))
    assert "batch_stats/block_0/bn_0/mean as float32[2], and this run wants float64[2]" in told
    assert "JAX_ENABLE_X64" in told
    assert contents(saved) == before


def test_a_checkpoint_of_another_network_says_what_differs(saved: Path) -> None:
    for changes, told in (
        ({"num_classes": 7}, "opt_state/fc3/1/mu/bias as float32[3], and this run wants float32[7]"),
        ({"apply_bn": (0, 0)}, "batch_stats/block_0/bn_0/count as int32[], and this run wants nothing"),
    ):
        other = type(MODEL)(**{**vars(MODEL), **changes})
        with open_checkpoints(saved, read_only=True) as checkpoints:
            assert told in message(lambda c=checkpoints, o=other: c.restore(lambda epoch: draw_state(0, o)))


@pytest.mark.parametrize("comparable", [True, False])
def test_a_checkpoint_of_an_older_version_is_used(
    comparable: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no list of files, but a checksum that hashes how JAX printed the structure of the state."""
    state, records = draw_state(1), draw_records(1)
    behind = {"records": [record._asdict() for record in records], "part": None}
    old = older_digest(state, json.dumps(behind) + ("" if comparable else "another JAX"))
    with open_checkpoints(tmp_path) as checkpoints:
        parts = {"state": ocp.args.PyTreeSave(state), "progress": ocp.args.JsonSave({**behind, "digest": old})}
        checkpoints._manager.save(1, args=ocp.args.Composite(**parts))
    with open_checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(lambda epoch: draw_state(0))
    assert restored is not None
    assert_same_bits(restored.state, state)
    assert restored.records == records
    assert ("has a checksum of another version" in capsys.readouterr().err) != comparable
