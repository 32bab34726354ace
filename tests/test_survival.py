"""Runs with problems: other processes, a full disk, divergence, too little memory."""

import errno
import gc
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from orbax.checkpoint import CheckpointManager
from test_cli import contents
from tiny_run import STEPS, TINY, assert_same_run, ended, rows, send, weights

from jaxcnn.cli.main import main
from jaxcnn.config import DataConfig, OptimConfig, TrainConfig
from jaxcnn.config.experiment import Existing
from jaxcnn.errors import DivergedError, InputError, MachineError
from jaxcnn.runs import folder as folder_module
from jaxcnn.runs import results, run
from jaxcnn.runs.run import run_experiment
from jaxcnn.training import loop as train_module

ROOT = Path(__file__).parent.parent
EXTEND, OVERWRITE = Existing(extend=True), Existing(overwrite=True)


pytestmark = pytest.mark.usefixtures("own_cache", "every_epoch_saved")


HOLDER = """
import sys
from pathlib import Path
from jaxcnn.runs.folder import _lock_folder

with _lock_folder(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.mark.slow
def test_a_second_process_on_a_run_is_refused_until_the_first_is_gone(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(results, "write_npy", lambda *_: send(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config)
    words = [sys.executable, "-c", HOLDER, str(tmp_path / "tiny")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, **pipes) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        before = contents(tmp_path)
        for existing in (Existing(), OVERWRITE):
            with pytest.raises(InputError, match=r"tiny is in use by another process; wait"):
                run_experiment(config, existing)
        assert contents(tmp_path) == before
        holder.kill()
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)


def test_a_run_that_is_in_use_is_refused(finished: Path, tmp_path: Path) -> None:
    """The lock belongs to an opened file: within one process too, it keeps a second one out."""
    shutil.copytree(finished, tmp_path / "tiny")
    (tmp_path / "tiny/summary.json").unlink()  # trained, and not evaluated
    with folder_module._lock_folder(tmp_path / "tiny"):
        before = contents(tmp_path)
        for existing in (Existing(), OVERWRITE):
            with pytest.raises(InputError, match=r"tiny is in use by another process; wait"):
                run_experiment(replace(TINY, runs_dir=tmp_path), existing)
        assert contents(tmp_path) == before


@pytest.mark.slow
def test_what_a_killed_start_left_is_no_obstacle(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "results").mkdir(parents=True)
    for name in (".lock", ".note", ".jaxcnn-config.json-abc.json", "results/.jaxcnn-labels.npy-abc.npy"):
        (tmp_path / "tiny" / name).write_text("{")
    run_experiment(replace(TINY, runs_dir=tmp_path))
    (tmp_path / "tiny" / ".note").unlink()  # the user's own
    assert_same_run(tmp_path / "tiny", finished)
    assert [path.name for path in (tmp_path / "tiny").rglob(".*") if path.name != ".zarray"] == [".lock"]


@pytest.mark.slow
def test_a_removal_that_is_cut_short_leaves_a_run_that_can_be_removed(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path, train=TrainConfig(1, 64))
    shutil.copytree(finished, tmp_path / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module.shutil, "rmtree", lambda path: send(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), folder_module._lock_folder(tmp_path / "tiny"):
            folder_module._delete_contents(tmp_path / "tiny")
    assert not (tmp_path / "tiny/summary.json").exists()
    assert run_experiment(config, OVERWRITE)["epochs"] == 1


# Divergence and a full disk


def test_a_run_that_diverges_keeps_the_last_good_weights(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "plateau_scale", lambda losses, optim: 1e30 if len(losses) == 2 else 1.0)
        with pytest.raises(DivergedError, match=rf"the loss is (nan|inf) at step ({2 * STEPS + 1}|\d+) \(epoch 3\)"):
            run_experiment(config)
    assert {path.name for path in (tmp_path / "tiny/checkpoints").iterdir()} == {str(STEPS), str(2 * STEPS)}
    assert len(rows(tmp_path / "tiny/metrics.csv")) == 2
    kept = weights(tmp_path / "tiny")
    assert kept["blocks.0.1.num_batches_tracked"] in (STEPS, 2 * STEPS)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    run_experiment(config)  # from there, without the mishap
    assert_same_run(tmp_path / "tiny", finished)


@pytest.mark.slow
def test_weights_that_the_last_step_spoils_are_not_kept_without_validation(tmp_path: Path) -> None:
    """A step's loss is computed before its update, so only the weights show that the update diverged."""
    data = DataConfig("digits", augment="none", validation=0.0)
    config = replace(
        TINY, runs_dir=tmp_path, data=data, optim=OptimConfig("sgd", 1e38, 1e3), train=TrainConfig(1, 2048)
    )
    with pytest.raises(
        DivergedError, match=r"a weight is no longer finite after step 0 \(epoch 1\): training diverged"
    ):
        run_experiment(config)
    assert not (tmp_path / "tiny/model.pth").exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "named"),
    [
        pytest.param("orbax.checkpoint.CheckpointManager.save", "checkpoints", marks=pytest.mark.slow),
        pytest.param("jaxcnn.weights.files.save_torch_file", "model.pth", marks=pytest.mark.slow),
        pytest.param("numpy.save", "train_loss.npy", marks=pytest.mark.slow),
        pytest.param("jaxcnn.files.os.fsync", "config.json", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_clear_error_and_the_run_goes_on_once_there_is_space(
    place: str, named: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    run_experiment(replace(config, train=replace(TINY.train, epochs=1)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(place, full)
        status, _, err = ended(lambda: run_experiment(config, EXTEND), capsys)
    assert status == 2
    assert err.startswith("error: cannot write ")
    assert named in err
    assert "No space left on device; free space or choose another folder" in err
    assert err.count("\n") == 1
    run_experiment(config, EXTEND)
    assert_same_run(tmp_path / "tiny", finished)


def small_disk(patch: pytest.MonkeyPatch) -> None:
    """Too little is free for a checkpoint before it is begun."""
    patch.setattr("jaxcnn.weights.checkpoint.shutil.disk_usage", lambda path: SimpleNamespace(free=2_600_000))


def small_files(patch: pytest.MonkeyPatch) -> None:
    """The system takes a megabyte of a file while a checkpoint is written, whoever writes it."""
    save, limit = CheckpointManager.save, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited(*arguments: Any, **options: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, limit[1]))
        try:
            return save(*arguments, **options)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    patch.setattr(CheckpointManager, "save", limited)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fill", "told"),
    [(small_disk, "No space left on device: 6,"), (small_files, "File too large")],
)
def test_a_checkpoint_that_the_disk_does_not_take_whole_is_one_clear_error(
    fill: Callable[[pytest.MonkeyPatch], None], told: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = replace(TINY.model, input_size=16, hidden_dims=(8, 32, 256, 64))
    config = replace(TINY, model=model, runs_dir=tmp_path, train=replace(TINY.train, epochs=1))
    with pytest.MonkeyPatch.context() as patch:
        fill(patch)
        with pytest.raises(SystemExit, match="2"):
            main(lambda: run_experiment(config))
    gc.collect()  # as at the program's end: what is left behind must not complain
    err = capfd.readouterr().err  # of threads and of what is written in C too
    assert err.startswith(f"error: cannot write the checkpoints in {tmp_path}/tiny/")
    assert told in err
    assert err.count("\n") == 1
    run_experiment(config)
    run_experiment(replace(config, runs_dir=tmp_path / "elsewhere"))
    assert_same_run(tmp_path / "tiny", tmp_path / "elsewhere/tiny")


def test_too_little_memory_is_one_clear_error(tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 36.6 GiB")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_dataset", refuse)
        with pytest.raises(MachineError, match=r"not enough memory .*36\.6 GiB.*lower model\.input_size"):
            run_experiment(replace(TINY, runs_dir=tmp_path))
    assert contents(tmp_path) == {}
