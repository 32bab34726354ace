"""Runs that something happens to: signals, other processes, a full disk, divergence, a wish for more epochs."""

import contextlib
import errno
import gc
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_cli import contents
from test_experiments import STEPS, TINY, assert_same_run, rows, weights

from experiments import folder as folder_module
from experiments import run
from experiments.cli import main
from experiments.config_file import Existing
from experiments.display import Bar
from experiments.run import run_experiment
from experiments.signals import Interrupted, noted
from jaxcnn import train as train_module
from jaxcnn.config import DataConfig, FreezeConfig, OptimConfig, TrainConfig, TransferConfig
from jaxcnn.errors import InputError

ROOT = Path(__file__).parent.parent
EXTEND, OVERWRITE = Existing(extend=True), Existing(overwrite=True)


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def finished(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; not to be changed."""
    runs_dir = tmp_path_factory.mktemp("runs")
    run_experiment(replace(TINY, runs_dir=runs_dir))
    return runs_dir / "tiny"


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def ended(work: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as end:
        main(work)
    return (end.value.code, *capsys.readouterr())


# Signals


# Four steps are one call, and an epoch's last call is one step.
@pytest.mark.parametrize(
    ("number", "status", "step"),
    [(signal.SIGINT, 130, 4), (signal.SIGTERM, 143, 8), (signal.SIGTERM, 143, 20), (signal.SIGINT, 130, STEPS)],
)
def test_a_signal_within_an_epoch_loses_no_step(
    number: int, status: int, step: int, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    original = Bar.step

    def at_step(self: Any, seen: int, total: Any) -> None:
        original(self, seen, total)
        if self._done == 1 and -(-seen // 64) == step:
            send(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", at_step)
        got, out, err = ended(lambda: run_experiment(config), capsys)
    assert (got, err) == (
        status,
        f"stopped by {signal.Signals(number).name}; the same command, without --overwrite, continues what had begun\n",
    )
    where = f"epoch 1 and {step} of {STEPS} steps" if step < STEPS else "epoch 2"
    assert out.endswith(f"stopping after {where}\n")
    assert max(int(path.name) for path in (tmp_path / "tiny/checkpoints").iterdir()) == STEPS + step
    run_experiment(config)
    assert f"continuing after {where}\n" in capsys.readouterr().out
    assert_same_run(tmp_path / "tiny", finished)


def test_a_signal_after_each_call(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    told = []

    def always(self: Any, seen: int, total: Any) -> None:
        told.append(seen)
        send(signal.SIGTERM)

    starts = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", always)
        while starts < 3:
            starts += 1
            with pytest.raises(Interrupted):
                run_experiment(config)
    assert told == [4 * 64] * starts
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)


@pytest.mark.parametrize("name", ["load_dataset", "first_variables", "evaluate", "plot_confusion", "write_npy"])
def test_a_signal_outside_of_training_ends_at_once_and_the_run_resumes(
    name: str, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, name, lambda *_, **__: send(signal.SIGTERM))
        status, _, err = ended(lambda: run_experiment(config), capsys)
    assert (status, err) == (
        143,
        "stopped by SIGTERM; the same command, without --overwrite, continues what had begun\n",
    )
    assert (tmp_path / "tiny").exists() == (name not in ("load_dataset", "first_variables"))
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)
    assert len(rows(tmp_path / "experiment_logs.csv")) == 1


def test_an_end_between_the_row_of_a_run_and_its_summary_leaves_one_row(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    original = folder_module.append_row

    def stop(path: Path, row: dict[str, Any]) -> None:
        original(path, row)
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module, "append_row", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config)
    (before,) = rows(tmp_path / "experiment_logs.csv")
    summary = run_experiment(config)
    assert rows(tmp_path / "experiment_logs.csv") == [before]
    assert before == {name: "" if value is None else str(value) for name, value in summary.items()}
    assert_same_run(tmp_path / "tiny", finished)


def noting(*numbers: int) -> int:
    """How many of the signals sent were noted before one ended the program; with the status, on the way out."""
    count = 0
    try:
        with noted() as signals:
            for number in numbers:
                send(number)
                assert signals.came()
                count += 1
    except Interrupted as error:
        return 1000 * count + error.status
    return count


def test_a_signal_that_is_swallowed_still_ends_the_program_in_its_status() -> None:
    def deaf(leave: Callable[[], None]) -> Callable[[], None]:
        def work() -> None:
            with contextlib.suppress(BaseException):
                send(signal.SIGTERM)
            leave()

        return work

    for leave in (lambda: None, lambda: sys.exit(1)):
        with pytest.raises(SystemExit) as end:
            main(deaf(leave))
        assert end.value.code == 143


def test_signals_are_noted_and_end_the_program_on_the_way_out() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    assert noting() == 0
    assert noting(signal.SIGTERM) == 1143
    assert noting(signal.SIGTERM, signal.SIGTERM) == 2143  # some send it until the program has ended
    assert noting(signal.SIGINT) == 1130
    assert noting(signal.SIGINT, signal.SIGINT) == 1130  # someone will not wait
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_waits_until_a_module_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled modules that an exception from nowhere meets while they load crash, or print a traceback."""
    code = "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.1)\nLOADED.append(1)\n"
    (tmp_path / "sends_a_signal.py").write_text(code.replace("LOADED", "__import__('sys').modules[__name__ + '_told']"))
    monkeypatch.syspath_prepend(tmp_path)
    told: Any = []
    monkeypatch.setitem(sys.modules, "sends_a_signal_told", told)
    reached = []

    def work() -> None:
        importlib.import_module("sends_a_signal")
        time.sleep(5)
        reached.append(True)

    with pytest.raises(SystemExit) as end:
        main(work)
    assert (end.value.code, told, reached) == (143, [1], [])


def test_a_signal_that_comes_where_no_exception_gets_out_is_not_lost() -> None:
    """In a callback of the garbage collector, such as JAX has, what is raised is reported and forgotten."""

    def callback(phase: str, info: Any) -> None:
        if phase == "start":
            gc.callbacks.remove(callback)
            send(signal.SIGTERM)

    def work() -> None:
        gc.callbacks.append(callback)
        gc.collect()
        assert callback not in gc.callbacks
        time.sleep(20)
        pytest.fail("it goes on")

    with pytest.raises(SystemExit) as end:
        main(work)
    assert end.value.code == 143


def test_a_signal_that_a_library_takes_for_an_error_of_its_own_is_not_lost() -> None:
    """What is raised while a compiled module is loaded comes out as an ImportError."""

    def load() -> None:
        try:
            send(signal.SIGTERM)
        except KeyboardInterrupt:
            raise ImportError("Encountered an error while initializing the extension.") from None

    with pytest.raises(SystemExit) as end:
        main(load)
    assert end.value.code == 143


# Other processes

HOLDER = """
import sys
from pathlib import Path
from experiments.folder import _locked

with _locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_on_a_run_is_refused_until_the_first_is_gone(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "plot_curves", lambda *_: send(signal.SIGINT))
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


def test_what_a_killed_start_left_is_no_obstacle(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny" / "results").mkdir(parents=True)
    for name in (".lock", ".note", ".jaxcnn-config.json-abc.json", "results/.jaxcnn-labels.npy-abc.npy"):
        (tmp_path / "tiny" / name).write_text("{")
    run_experiment(replace(TINY, runs_dir=tmp_path))
    (tmp_path / "tiny" / ".note").unlink()  # the user's own
    assert_same_run(tmp_path / "tiny", finished)
    assert [path.name for path in (tmp_path / "tiny").rglob(".*") if path.name != ".zarray"] == [".lock"]


def test_a_removal_that_is_cut_short_leaves_a_run_that_can_be_removed(tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path, train=TrainConfig(1, 64))
    run_experiment(config)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module.shutil, "rmtree", lambda path: send(signal.SIGINT))
        with pytest.raises(KeyboardInterrupt), folder_module._locked(tmp_path / "tiny"):
            folder_module._empty(tmp_path / "tiny")
    assert not (tmp_path / "tiny/summary.json").exists()
    assert run_experiment(replace(config, seed=3), OVERWRITE)["seed"] == 3


# Divergence and a full disk


def test_a_run_that_diverges_keeps_the_last_good_weights(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_module, "plateau_scale", lambda losses, optim: 1e30 if len(losses) == 2 else 1.0)
        with pytest.raises(InputError, match=rf"the loss is (nan|inf) at step ({2 * STEPS + 1}|\d+) \(epoch 3\)"):
            run_experiment(config)
    assert {path.name for path in (tmp_path / "tiny/checkpoints").iterdir()} == {str(STEPS), str(2 * STEPS)}
    assert len(rows(tmp_path / "tiny/metrics.csv")) == 2
    kept = weights(tmp_path / "tiny")
    assert kept["blocks.0.1.num_batches_tracked"] in (STEPS, 2 * STEPS)
    assert all(torch.isfinite(tensor).all() for tensor in kept.values())
    run_experiment(config)  # from there, without the mishap
    assert_same_run(tmp_path / "tiny", finished)


def test_weights_that_the_last_step_spoils_are_not_kept_without_validation(tmp_path: Path) -> None:
    """The loss of a step is of the weights before it: nothing but a look at them shows what it did."""
    data = DataConfig("digits", augment="none", validation=0.0)
    config = replace(
        TINY, runs_dir=tmp_path, data=data, optim=OptimConfig("sgd", 1e38, 1e3), train=TrainConfig(1, 2048)
    )
    with pytest.raises(InputError, match=r"a weight is no longer finite after step 0 \(epoch 1\): training diverged"):
        run_experiment(config)
    assert not (tmp_path / "tiny/model.pth").exists()


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    ("place", "named"),
    [
        ("torch.save", "model.pth"),
        ("orbax.checkpoint.CheckpointManager.save", "checkpoints"),
        ("numpy.save", "train_loss.npy"),
        ("tensorboardX.record_writer.masked_crc32c", "logs"),
        ("jaxcnn.files.os.fsync", "config.json"),
        ("jaxcnn.files._line", "experiment_logs.csv"),
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


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2.6 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=2600k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(words, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(
    small_disk: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = replace(TINY.model, input_size=16, hidden_dims=(8, 32, 256, 64))
    config = replace(TINY, model=model, runs_dir=small_disk)
    with pytest.raises(SystemExit) as end:
        main(lambda: run_experiment(config))
    assert end.value.code == 2
    err = capfd.readouterr().err  # of threads and of what is written in C too
    assert err.startswith("error: cannot write ")
    assert f"{small_disk}/tiny/" in err
    assert "No space left on device" in err
    assert err.count("\n") == 1
    subprocess.run(["mount", "-o", "remount,size=100m", str(small_disk)], check=True)
    run_experiment(config)
    run_experiment(replace(config, runs_dir=tmp_path / "elsewhere"))
    assert_same_run(small_disk / "tiny", tmp_path / "elsewhere/tiny")


# More epochs


def test_an_extended_run_is_the_run_that_was_begun_with_more_epochs(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    assert run_experiment(replace(config, train=replace(TINY.train, epochs=2)))["epochs"] == 2
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"train\.epochs=2 there, 3 here.*--extend to train it for longer"):
        run_experiment(config)
    assert contents(tmp_path) == before
    run_experiment(config, EXTEND)
    assert_same_run(tmp_path / "tiny", finished)
    assert [row["epochs"] for row in rows(tmp_path / "experiment_logs.csv")] == ["2", "3"]
    assert json.loads((tmp_path / "tiny/config.json").read_text())["train"]["epochs"] == 3
    before = contents(tmp_path)
    run_experiment(config)  # finished
    run_experiment(config, EXTEND)  # as far as that goes
    assert contents(tmp_path) == before  # not trained again


def test_an_unfinished_run_can_be_extended_too(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", lambda *_: send(signal.SIGTERM))
        with pytest.raises(Interrupted):
            run_experiment(replace(config, train=replace(TINY.train, epochs=2)))
    run_experiment(config, EXTEND)
    assert_same_run(tmp_path / "tiny", finished)


# Transfers


def test_what_only_has_a_config_json_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny/config.json").write_text('{"architectures": ["Foreign"]}')
    with pytest.raises(InputError, match="tiny exists and is no run of this program"):
        run_experiment(replace(TINY, runs_dir=tmp_path), OVERWRITE)
    assert len(contents(tmp_path)) == 2


def test_where_the_images_lie_is_no_part_of_a_run(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = replace(TINY, runs_dir=finished.parent, data=replace(TINY.data, archives=Path("elsewhere")))
    run_experiment(moved)
    assert "is finished" in capsys.readouterr().out


def test_a_transfer_whose_source_has_changed_is_refused(finished: Path, tmp_path: Path) -> None:
    source = tmp_path / "source.pth"
    source.write_bytes((finished / "model.pth").read_bytes())
    config = TransferConfig(
        name="moved", runs_dir=tmp_path, source=source, input_size=8, data=DataConfig("digits", augment="none"),
        train=TrainConfig(1, 64), freeze=FreezeConfig(mask="frozen"),
    )  # fmt: skip
    run_experiment(config)
    changed = weights(finished)
    changed["fc1.bias"] = changed["fc1.bias"] + 1
    torch.save(changed, source)
    before = contents(tmp_path)
    with pytest.raises(InputError, match=r"moved began with other weights than .*source\.pth holds now"):
        run_experiment(config)
    assert contents(tmp_path) == before
    run_experiment(config, OVERWRITE)
    assert not np.array_equal(weights(tmp_path / "moved")["fc1.bias"], weights(finished)["fc1.bias"])


def test_a_transfer_does_not_overwrite_its_own_source(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "tiny")
    before = contents(tmp_path)
    for source in (tmp_path / "tiny", tmp_path / "tiny/model.pth", tmp_path / "tiny/../tiny/checkpoints"):
        config = TransferConfig(name="tiny", runs_dir=tmp_path, source=source, data=TINY.data, train=TINY.train)
        with pytest.raises(InputError, match=r"--overwrite would remove .*tiny, and with it the source"):
            run_experiment(config, OVERWRITE)
    assert contents(tmp_path) == before


def test_too_little_memory_is_one_clear_error(tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate 36.6 GiB")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "load_dataset", refuse)
        with pytest.raises(InputError, match=r"not enough memory .*36\.6 GiB.*lower model\.input_size"):
            run_experiment(replace(TINY, runs_dir=tmp_path))
    assert contents(tmp_path) == {}


def test_a_transfer_that_cannot_begin_leaves_nothing(finished: Path, tmp_path: Path) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise InputError("these weights cannot be taken over")

    config = TransferConfig(name="new", runs_dir=tmp_path / "runs", source=finished, data=TINY.data, train=TINY.train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "transplant", refuse)
        with pytest.raises(InputError, match="cannot be taken over"):
            run_experiment(config)
    assert not (tmp_path / "runs").exists()


# What else can have changed


def test_checkpoints_that_are_gone_are_missed(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    run_experiment(replace(config, train=replace(TINY.train, epochs=2)))
    shutil.rmtree(tmp_path / "tiny" / "checkpoints" / str(2 * STEPS))
    capsys.readouterr()
    run_experiment(config, EXTEND)
    out = capsys.readouterr().out
    assert "the checkpoint after epoch 2 is gone\ncontinuing after epoch 1\n" in out
    assert_same_run(tmp_path / "tiny", finished)


def test_other_versions_are_told_and_other_images_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(TINY, runs_dir=tmp_path, train=replace(TINY.train, epochs=1))
    run_experiment(config)
    path = tmp_path / "tiny" / "config.json"
    began = json.loads(path.read_text())
    capsys.readouterr()
    began["resolved"]["versions"]["jax"] = "0.0.1"
    path.write_text(json.dumps(began))
    run_experiment(replace(config, train=replace(TINY.train, epochs=2)), EXTEND)
    assert "versions.jax was 0.0.1, is " in capsys.readouterr().out
    began["resolved"]["mean"][0] += 1e-3
    path.write_text(json.dumps(began))
    with pytest.raises(InputError, match=r"other images than digits has now: mean differ"):
        run_experiment(config)
