"""Whole runs on a small data set: what they leave behind, and how they go on after an end before their time."""

import csv
import io
import json
import math
import os
import re
import signal
import struct
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from PIL import Image
from rich.console import Console
from tensorboardX.proto.event_pb2 import Event

from experiments import baselines, run
from experiments.baselines import run_baselines, run_experiments
from experiments.cli import baseline, main, train_main
from experiments.config_file import Existing, read_config, to_json
from experiments.convert import Flags, convert
from experiments.display import Bar
from experiments.pytorch_network import TorchCNN
from experiments.run import run_experiment
from jaxcnn.checkpoint import Checkpoints
from jaxcnn.config import DEEP, DataConfig, ExperimentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxcnn.data import load_dataset
from jaxcnn.errors import InputError
from jaxcnn.step import Metrics
from jaxcnn.train import EpochRecord

MODEL = ModelConfig(
    input_size=8,
    in_channels=1,
    hidden_dims=(4, 8, 16, 8),
    layers_per_block=(1, 1),
    apply_pooling=(1, 0),
    apply_bn=(1, 0),
    num_blocks=2,
)
TINY = ExperimentConfig(
    name="tiny",
    data=DataConfig("digits", augment="none"),
    model=MODEL,
    optim=OptimConfig(learning_rate=0.01),
    train=TrainConfig(epochs=3, batch_size=64),
)
STEPS = 21  # of an epoch: 1,294 training images in batches of 64
FILES = {
    "config.json",
    "confusion.png",
    "curves.png",
    "metrics.csv",
    "model.pth",
    "summary.json",
    *(
        f"results/{name}.npy"
        for name in ("train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "predictions", "labels")
    ),
}
TIMES = ("seconds", "images_per_second", "wall_seconds")


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def finished(own_cache: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run; not to be changed."""
    runs_dir = tmp_path_factory.mktemp("runs")
    run_experiment(replace(TINY, runs_dir=runs_dir))
    return runs_dir / "tiny"


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "model.pth", weights_only=True)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def without_times(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in TIMES}


def assert_same_run(one: Path, other: Path) -> None:
    """Equal to the last bit in all but times, names and folders."""
    mine, wanted = weights(one), weights(other)
    assert list(mine) == list(wanted)
    for name, tensor in wanted.items():
        assert mine[name].dtype == tensor.dtype
        assert mine[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    metrics = [[without_times(row) for row in rows(folder / "metrics.csv")] for folder in (one, other)]
    assert metrics[0] == metrics[1]
    for path in (other / "results").iterdir():
        np.testing.assert_array_equal(np.load(one / "results" / path.name), np.load(path))
    summaries = [without_times(json.loads((folder / "summary.json").read_text())) for folder in (one, other)]
    assert {**summaries[0], "name": ""} == {**summaries[1], "name": ""}


def scalars(folder: Path) -> dict[str, dict[int, float]]:
    """The scalars of a TensorBoard folder by tag and step; every record's frame must be whole."""
    found: dict[str, dict[int, float]] = {}
    (path,) = folder.glob("events.out.tfevents.*")
    data = path.read_bytes()
    while data:
        (length,) = struct.unpack("<Q", data[:8])  # then its checksum, the event, and that one's checksum
        assert len(data) >= 16 + length
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            assert event.step not in found.setdefault(value.tag, {})
            found[value.tag][event.step] = value.simple_value
    return found


# What a run leaves behind


def test_a_run_leaves_every_file_and_nothing_half_written(finished: Path) -> None:
    there = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert there >= FILES
    others = {name.split("/")[0] for name in there - FILES}
    assert others == {".lock", "checkpoints", "logs"}
    assert {path.name for path in (finished / "checkpoints").iterdir()} == {str(2 * STEPS), str(3 * STEPS)}
    assert {path.name for path in finished.parent.iterdir()} == {"tiny", "experiment_logs.csv"}


def test_the_saved_configuration_is_the_runs_own(finished: Path) -> None:
    assert read_config(finished / "config.json", ExperimentConfig) == replace(TINY, runs_dir=finished.parent)
    resolved = json.loads((finished / "config.json").read_text())["resolved"]
    assert resolved["images"] == {"train": 1294, "validation": 144, "test": 359}
    assert resolved["class_names"] == list("0123456789")
    assert len(resolved["mean"]) == len(resolved["std"]) == 1
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "jaxcnn"} <= resolved["versions"].keys()


def test_the_summary_agrees_with_the_other_files(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.keys() == {
        *("name", "dataset", "seed", "test_accuracy", "test_loss", "val_accuracy", "val_loss", "best_epoch", "epochs"),
        *(
            "stopped",
            "seconds",
            "images_per_second",
            "trainable_parameters",
            "total_parameters",
            "wall_seconds",
            "mask",
        ),
    }
    assert (summary["name"], summary["dataset"], summary["seed"], summary["epochs"]) == ("tiny", "digits", 0, 3)
    results = {path.stem: np.load(path) for path in (finished / "results").iterdir()}
    right = np.mean(results["predictions"] == results["labels"])
    assert summary["test_accuracy"] == results["test_accuracy"] == pytest.approx(100 * right, abs=1e-9)
    assert summary["test_loss"] == results["test_loss"]
    best = summary["best_epoch"] - 1
    assert (summary["val_loss"], summary["val_accuracy"]) == (results["val_loss"][best], results["val_accuracy"][best])
    tensors = weights(finished)
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    parameters = sum(tensor.numel() for name, tensor in tensors.items() if not name.endswith(statistics))
    assert summary["total_parameters"] == summary["trainable_parameters"] == parameters
    assert summary["test_accuracy"] > 30  # it has learned: chance is 10 %


def test_the_table_of_metrics_holds_the_same_numbers_as_the_arrays(finished: Path) -> None:
    table = rows(finished / "metrics.csv")
    assert tuple(table[0]) == EpochRecord._fields
    assert [row["epoch"] for row in table] == ["1", "2", "3"]
    for name in ("train_loss", "val_loss", "val_accuracy"):
        assert [float(row[name]) for row in table] == np.load(finished / "results" / f"{name}.npy").tolist()


def test_pytorch_gets_the_same_predictions_from_the_weights(finished: Path) -> None:
    network = TorchCNN(MODEL).eval()
    network.load_state_dict(weights(finished), strict=True)
    dataset = load_dataset(TINY.data, input_size=8, in_channels=1, seed=0)
    images = (dataset.test.images / np.float32(255) - np.float32(dataset.mean)) / np.float32(dataset.std)
    with torch.no_grad():
        logits = network(torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2).copy()))
    np.testing.assert_array_equal(logits.argmax(1).numpy(), np.load(finished / "results" / "predictions.npy"))
    np.testing.assert_array_equal(dataset.test.labels, np.load(finished / "results" / "labels.npy"))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(dataset.test.labels).long())
    assert float(loss) == pytest.approx(np.load(finished / "results" / "test_loss.npy")[0], abs=1e-5)


def test_the_weights_are_those_of_the_best_epoch(finished: Path) -> None:
    loss, accuracy = (np.load(finished / "results" / f"val_{name}.npy") for name in ("loss", "accuracy"))
    best = min(range(len(loss)), key=lambda i: (-accuracy[i], loss[i])) + 1
    assert json.loads((finished / "summary.json").read_text())["best_epoch"] == best
    assert weights(finished)["blocks.0.1.num_batches_tracked"] == best * STEPS


def test_tensorboard_shows_every_epoch_once(finished: Path) -> None:
    found, table = scalars(finished / "logs"), rows(finished / "metrics.csv")
    for tag, name in (
        ("Loss/train", "train_loss"),
        ("Loss/val", "val_loss"),
        ("Accuracy/train", "train_accuracy"),
        ("Accuracy/val", "val_accuracy"),
        ("LearningRate", "learning_rate"),
    ):
        assert found[tag] == {int(row["epoch"]): np.float32(row[name]) for row in table}
    summary = json.loads((finished / "summary.json").read_text())
    assert found["Accuracy/test"] == {summary["best_epoch"]: np.float32(summary["test_accuracy"])}


@pytest.mark.parametrize("name", ["curves", "confusion"])
def test_the_pictures_are_pictures(name: str, finished: Path) -> None:
    with Image.open(finished / f"{name}.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(2**24)) > 5


def test_each_run_adds_a_row_to_the_table_of_all_runs(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    (row,) = rows(finished.parent / "experiment_logs.csv")
    assert row == {name: str(value) for name, value in summary.items()}


def test_augmented_images_are_trained_on_too(tmp_path: Path) -> None:
    data = DataConfig("digits", fraction=0.1)
    model = replace(MODEL, in_channels=3, hidden_dims=(2, 2, 4, 4))
    config = replace(TINY, runs_dir=tmp_path, data=data, model=model, train=TrainConfig(1, 64))
    assert data.augment == "autoaugment"
    assert math.isfinite(run_experiment(config)["test_loss"])


def test_without_validation_the_last_weights_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = replace(TINY, runs_dir=tmp_path, data=replace(TINY.data, validation=0.0), train=TrainConfig(2, 64))
    summary = run_experiment(config)
    assert (summary["best_epoch"], summary["val_loss"], summary["val_accuracy"]) == (2, None, None)
    assert not re.search(r"^epoch.* best$", capsys.readouterr().out, re.MULTILINE)
    assert weights(tmp_path / "tiny")["blocks.0.1.num_batches_tracked"] == 2 * math.ceil(1438 / 64)
    assert [row["val_loss"] for row in rows(tmp_path / "tiny" / "metrics.csv")] == ["", ""]
    assert not {"Loss/val", "Accuracy/val"} & scalars(tmp_path / "tiny" / "logs").keys()
    assert len(np.load(tmp_path / "tiny" / "results" / "val_loss.npy")) == 0


def test_chosen_classes_decide_the_width_of_the_network(tmp_path: Path) -> None:
    data = replace(TINY.data, classes=(7, 1, 4))
    run_experiment(replace(TINY, runs_dir=tmp_path, data=data, train=TrainConfig(1, 64)))
    assert weights(tmp_path / "tiny")["fc3.weight"].shape == (3, 8)
    assert read_config(tmp_path / "tiny" / "config.json", ExperimentConfig).model.num_classes == 3


# Again, beside, instead


def test_the_same_command_under_two_names_gives_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "two"):
        flags = f"--config {finished}/config.json --runs-dir {tmp_path} --name {name}"
        monkeypatch.setattr(sys, "argv", ["train", *flags.split()])
        train_main(ExperimentConfig(), "Train.")
    assert_same_run(tmp_path / "one", tmp_path / "two")
    assert_same_run(tmp_path / "one", finished)
    assert [row["name"] for row in rows(tmp_path / "experiment_logs.csv")] == ["one", "two"]


def test_another_seed_gives_another_run(finished: Path, tmp_path: Path) -> None:
    run_experiment(replace(TINY, runs_dir=tmp_path, seed=1, train=replace(TINY.train, epochs=1)))
    assert rows(tmp_path / "tiny" / "metrics.csv")[0]["train_loss"] != rows(finished / "metrics.csv")[0]["train_loss"]


def test_a_finished_run_is_not_run_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "fit", lambda *_, **__: pytest.fail("it trains"))
    before = {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*")}
    summary = run_experiment(replace(TINY, runs_dir=finished.parent))
    assert summary == json.loads((finished / "summary.json").read_text())
    assert {path: path.stat().st_mtime_ns for path in finished.parent.rglob("*")} == before
    assert "is finished" in capsys.readouterr().out


def test_another_configuration_under_the_same_name_is_refused_by_its_fields(finished: Path) -> None:
    other = replace(TINY, runs_dir=finished.parent, seed=4, train=TrainConfig(9, 64))
    with pytest.raises(InputError, match=r"seed=0 there, 4 here; train\.epochs=3 there, 9 here") as error:
        run_experiment(other)
    assert "--overwrite" in str(error.value)
    assert "batch_size" not in str(error.value)


def test_overwriting_begins_anew_and_leaves_nothing_of_the_old_run(tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path, train=TrainConfig(2, 64))
    run_experiment(config)
    (tmp_path / "tiny" / "note.txt").write_text("of the old run")
    changed = replace(config, seed=4, train=TrainConfig(1, 64))
    assert run_experiment(changed, Existing(overwrite=True))["seed"] == 4
    assert not (tmp_path / "tiny" / "note.txt").exists()
    assert len(rows(tmp_path / "tiny" / "metrics.csv")) == 1
    assert read_config(tmp_path / "tiny" / "config.json", ExperimentConfig) == changed
    assert [row["seed"] for row in rows(tmp_path / "experiment_logs.csv")] == ["0", "4"]


# Interruptions


def interrupt_between_epochs(patch: pytest.MonkeyPatch) -> None:
    original = Bar.epoch

    def epoch(self: Any, record: EpochRecord, *, is_best: bool) -> None:
        original(self, record, is_best=is_best)
        if record.epoch == 1:
            raise KeyboardInterrupt

    patch.setattr(Bar, "epoch", epoch)


def interrupt_within_the_second_epoch(patch: pytest.MonkeyPatch) -> None:
    original = Bar.step

    def step(self: Any, seen: int, total: Any) -> None:
        original(self, seen, total)
        if self._done == 1:
            raise KeyboardInterrupt

    patch.setattr(Bar, "step", step)


def interrupt_before_the_second_checkpoint(patch: pytest.MonkeyPatch) -> None:
    original = Checkpoints.save

    def save(self: Any, state: Any, records: Any, part: Any = None) -> None:
        if len(records) == 2:
            raise KeyboardInterrupt
        original(self, state, records)

    patch.setattr(Checkpoints, "save", save)


def signal_within_the_second_epoch(patch: pytest.MonkeyPatch) -> None:
    original = Bar.step

    def step(self: Any, seen: int, total: Any) -> None:
        original(self, seen, total)
        if self._done == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    patch.setattr(Bar, "step", step)


def stop(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    "interrupt",
    [interrupt_between_epochs, interrupt_within_the_second_epoch, interrupt_before_the_second_checkpoint],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    interrupt: Any, finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path, name="cut")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch)
        with pytest.raises(SystemExit) as end:
            main(lambda: run_experiment(config))
    assert end.value.code == 130
    assert (
        capsys.readouterr().err
        == "stopped by SIGINT; the same command, without --overwrite, continues what had begun\n"
    )
    assert len(rows(tmp_path / "cut" / "metrics.csv")) == 1
    assert not (tmp_path / "cut" / "summary.json").exists()
    run_experiment(config)
    assert "continuing after epoch 1" in capsys.readouterr().out
    assert_same_run(tmp_path / "cut", finished)
    assert scalars(tmp_path / "cut" / "logs")["Loss/train"].keys() == {1, 2, 3}
    assert len(rows(tmp_path / "experiment_logs.csv")) == 1


def test_an_interruption_between_checkpoint_and_weights_leaves_those_of_the_best_epoch(tmp_path: Path) -> None:
    two = replace(TINY, runs_dir=tmp_path, train=TrainConfig(2, 64))
    assert run_experiment(replace(two, name="whole"))["best_epoch"] == 2
    write = run.convert.write_state_dict

    def first_alone(path: Path, *rest: Any) -> None:
        if path.exists():
            raise KeyboardInterrupt
        write(path, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run.convert, "write_state_dict", first_alone)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(replace(two, name="cut"))
    assert not torch.equal(weights(tmp_path / "cut")["fc3.bias"], weights(tmp_path / "whole")["fc3.bias"])
    run_experiment(replace(two, name="cut"))
    assert_same_run(tmp_path / "cut", tmp_path / "whole")


def test_weights_that_are_gone_come_back_from_the_checkpoint_or_are_missed(finished: Path, tmp_path: Path) -> None:
    for interrupt in (interrupt_between_epochs, signal_within_the_second_epoch):
        config = replace(TINY, runs_dir=tmp_path, name=interrupt.__name__)
        with pytest.MonkeyPatch.context() as patch:
            interrupt(patch)
            with pytest.raises(KeyboardInterrupt):
                run_experiment(config)
        (tmp_path / config.name / "model.pth").unlink()
    run_experiment(replace(TINY, runs_dir=tmp_path, name="interrupt_between_epochs"))
    assert_same_run(tmp_path / "interrupt_between_epochs", finished)
    told = r"second_epoch has lost its best epoch: .*model\.pth does not exist.*; --overwrite begins the run anew"
    with pytest.raises(InputError, match=told):
        run_experiment(config)


def test_an_interruption_before_the_first_checkpoint_costs_nothing_but_time(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bar, "step", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config)
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)


def test_an_interruption_after_training_only_reads_the_test_set_again(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "plot_confusion", stop)
        with pytest.raises(KeyboardInterrupt):
            run_experiment(config)
    run_experiment(config)
    assert_same_run(tmp_path / "tiny", finished)


def test_a_run_that_diverges_says_at_which_step(tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path, optim=OptimConfig("sgd", 1e20), train=TrainConfig(2, 64))
    with pytest.raises(InputError, match=r"at step \d+ .*diverged"):
        run_experiment(config)


# Several runs


def test_a_failing_run_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(TINY, runs_dir=tmp_path, train=TrainConfig(1, 64))
    bad = replace(short, data=replace(short.data, classes=(0, 99)))
    good = replace(short, train=TINY.train)
    broken: Any = replace(short)
    object.__setattr__(broken, "optim", None)  # an error of another kind
    outcomes = run_experiments([("short", short), ("bad", bad), ("broken", broken), ("good", good)])
    assert [outcome.name for outcome in outcomes] == ["short", "bad", "broken", "good"]
    assert [outcome.summary is None for outcome in outcomes] == [False, True, True, False]
    accuracies = {o.name: o.summary["test_accuracy"] for o in outcomes if o.summary is not None}
    assert accuracies["good"] > accuracies["short"]
    out, err = capsys.readouterr()
    assert "error: bad: " in err
    assert "label 99" in err
    assert "error: broken: " in err
    assert "Error: " in err.partition("error: broken: ")[2]  # its kind
    assert f"best run: good, test accuracy {accuracies['good']:.2f} %" in out
    assert "failed" in out
    assert {path.name for path in tmp_path.iterdir()} - {"broken"} == {"short", "good", "experiment_logs.csv"}


def test_the_baselines_share_their_flags_and_report_failures_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ExperimentConfig]] = []

    def take(experiments: Any, *, overwrite: bool) -> list[baselines.Outcome]:
        assert overwrite
        seen.extend(experiments)
        return [baselines.Outcome(name, None, "why" if name == "svhn" else None) for name, _ in experiments]

    monkeypatch.setattr(baselines, "run_experiments", take)
    words = f"--runs-dir {tmp_path} --seed 3 --data.dir {tmp_path}/sets --data.augment none --model.preset deep"
    flags = tyro.cli(baselines.Flags, args=[*words.split(), "--train.epochs", "7", "--overwrite"])
    with pytest.raises(InputError, match=r"1 of 3 runs failed: svhn"):
        run_baselines(flags)
    assert [name for name, _ in seen] == ["cifar10", "cifar100", "svhn"]
    for name, config in seen:
        wanted = baseline(name)
        data = replace(wanted.data, dir=tmp_path / "sets", augment="none")
        train = replace(wanted.train, epochs=7)
        assert config == replace(wanted, runs_dir=tmp_path, seed=3, data=data, model=DEEP, train=train)


# Conversion


def command(monkeypatch: pytest.MonkeyPatch, *argv: object) -> None:
    import runpy

    monkeypatch.setattr(sys, "argv", ["convert", *map(str, argv)])
    monkeypatch.delitem(sys.modules, "experiments.convert", raising=False)  # or runpy warns
    runpy.run_module("experiments.convert", run_name="__main__")


def test_weights_go_through_every_form_unchanged(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import load_file

    pth, checkpoint, tensors = (tmp_path / name for name in ("again.pth", "checkpoint", "weights.safetensors"))
    for source, destination in ((finished / "model.pth", checkpoint), (checkpoint, pth), (pth, tensors)):
        command(monkeypatch, source, destination, "--verify", *(["--input-size", 8] if source == pth else []))
        out = capsys.readouterr().out
        assert f"wrote {destination}" in out
        assert ("assumed" in out) == (source == pth)
        difference = float(out.partition("random images: ")[2].split()[0])
        assert difference < 1e-4
    wanted = weights(finished)
    for found in (torch.load(pth, weights_only=True), load_file(tensors)):
        assert found.keys() == wanted.keys()
        for name, tensor in wanted.items():
            assert found[name].dtype == tensor.dtype
            assert torch.equal(found[name], tensor), name
    command(monkeypatch, finished, tmp_path / "folder.pth")
    assert torch.load(tmp_path / "folder.pth", weights_only=True).keys() == wanted.keys()


def test_a_name_is_printed_as_it_is(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    convert(Flags(finished, tmp_path / "of[bold]run[/x].pth"))
    assert f"wrote {tmp_path}/of[bold]run[/x].pth" in capsys.readouterr().out


def test_a_resumed_epochs_bar_counts_what_was_done_before() -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=120)
    with Bar(terminal, epochs=2, images=100, done=0, behind=50) as bar:
        (task,) = bar._bar.tasks
        bar.step(25, Metrics(50.0, 5, 25))
        assert (task.completed, task.total) == (75, 100)
        assert "loss 2.0000  accuracy 20.00 %" in task.fields["numbers"]
        bar._began -= 10  # 25 images in 10 s: 125 more take 50
        bar.step(25, Metrics(50.0, 5, 25))
        assert task.fields["numbers"].endswith("0:51 left")


@pytest.mark.parametrize("name", ["taken.pth", "taken"])
def test_a_conversion_replaces_nothing_unless_asked_to(name: str, finished: Path, tmp_path: Path) -> None:
    destination = tmp_path / name
    convert(Flags(finished, destination))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(InputError, match=r"taken.* exists"):
        convert(Flags(finished, destination))
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    convert(Flags(finished, destination, overwrite=True))


def broken(folder: Path, finished: Path) -> dict[str, Path]:
    (folder / "text.pth").write_text("no weights")
    (folder / "text.safetensors").write_text("no weights")
    (folder / "cut.pth").write_bytes((finished / "model.pth").read_bytes()[:-3000])
    (folder / "empty").mkdir()
    torch.save({"layer.weight": torch.zeros(2, 2)}, folder / "foreign.pth")
    torch.save({**weights(finished), "fc3.bias": torch.zeros(3)}, folder / "shape.pth")
    torch.save({"model": Path()}, folder / "code.pth")
    torch.save([1, 2], folder / "list.pth")
    return {path.name: path for path in folder.iterdir()} | {"missing.pth": folder / "missing.pth"}


@pytest.mark.parametrize(
    "name",
    [
        *("text.pth", "text.safetensors", "cut.pth", "empty", "foreign.pth", "shape.pth", "code.pth", "list.pth"),
        "missing.pth",
    ],
)
def test_what_holds_no_weights_ends_in_status_2_and_one_message(
    name: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = broken(tmp_path, finished)[name]
    with pytest.raises(SystemExit) as end:
        command(monkeypatch, source, tmp_path / "out.pth")
    out, err = capsys.readouterr()
    assert end.value.code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    assert not (tmp_path / "out.pth").exists()


def test_a_configuration_written_for_people_and_programs_is_plain_json() -> None:
    values = to_json(TINY)
    assert json.loads(json.dumps(values)) == values
    assert values["model"] == json.loads(json.dumps(asdict(MODEL)))
