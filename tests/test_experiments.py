"""Whole runs on a small data set: what they leave behind, and several of them."""

import json
import math
import re
import shutil
import sys
import time
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import tyro
from board import shown
from PIL import Image
from small_training import draw_dataset
from tiny_run import MODEL, STEPS, TINY, assert_same_run, rows, scalars, weights

from jaxcnn import __version__
from jaxcnn.cli import baselines
from jaxcnn.cli.baselines import run_baselines, run_experiments
from jaxcnn.cli.config_file import read_config
from jaxcnn.cli.flags import baseline
from jaxcnn.cli.main import run_program
from jaxcnn.config import DEEP, DataConfig, ExperimentConfig, OptimConfig, TrainConfig
from jaxcnn.config.experiment import Existing, to_json
from jaxcnn.data.sets import load_dataset
from jaxcnn.errors import DivergedError, InputError
from jaxcnn.runs import folder, run
from jaxcnn.runs.run import run_experiment
from jaxcnn.studies.execute import Outcome
from jaxcnn.training.records import EpochRecord
from jaxcnn.weights.pytorch_network import TorchCNN

FILES = {
    "classes.csv",
    "classes.md",
    "classes.tex",
    "config.json",
    "confusion.png",
    "curves.png",
    "metrics.csv",
    "model.pth",
    "model.safetensors",
    "report.html",
    "summary.json",
    *(
        f"results/{name}.npy"
        for name in ("train_loss", "val_loss", "val_accuracy", "test_loss", "test_accuracy", "labels")
    ),
    "results/examples.npy",
    "results/example_images.npy",
    "results/predictions.npy",
    "results/probabilities.npy",
}

LOG = {"experiment_logs.csv", ".experiment_logs.csv.lock"}

pytestmark = pytest.mark.usefixtures("own_cache")


def test_a_run_leaves_every_file_and_nothing_half_written(finished: Path) -> None:
    there = {str(path.relative_to(finished)) for path in finished.rglob("*") if path.is_file()}
    assert there >= FILES
    others = {name.split("/")[0] for name in there - FILES}
    assert others == {".lock", "checkpoints", "logs"}
    assert max(int(path.name) for path in (finished / "checkpoints").iterdir()) == 3 * STEPS
    assert {path.name for path in finished.parent.iterdir()} == {"tiny", *LOG}


def test_the_saved_configuration_is_the_runs_own(finished: Path) -> None:
    assert read_config(finished / "config.json", ExperimentConfig) == replace(TINY, runs_dir=finished.parent)
    resolved = json.loads((finished / "config.json").read_text())["resolved"]
    assert resolved["images"] == {"train": 1294, "validation": 144, "test": 359}
    assert resolved["class_names"] == list("0123456789")
    assert len(resolved["mean"]) == len(resolved["std"]) == 1
    assert {"jax", "jaxlib", "flax", "optax", "numpy", "jaxcnn"} <= resolved["versions"].keys()


def test_a_package_on_the_path_alone_has_a_version(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name == "jaxcnn":
            raise PackageNotFoundError(name)
        return "1.2.3"

    monkeypatch.setattr(folder, "version", version)
    versions = folder.resolve(draw_dataset())["versions"]
    assert versions.pop("jaxcnn") == __version__
    assert set(versions.values()) == {"1.2.3"}


def test_the_summary_agrees_with_the_other_files(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    assert summary.keys() == {
        *(
            "name",
            "dataset",
            "seed",
            "copied_stages",
            "frozen_stages",
            "test_accuracy",
            "balanced_accuracy",
            "test_loss",
            "val_accuracy",
            "val_loss",
            "best_epoch",
            "epochs",
        ),
        *(
            "stopped",
            "seconds",
            "images_per_second",
            "trainable_parameters",
            "total_parameters",
            "wall_seconds",
            "mask",
            "top5_accuracy",
            "calibration_error",
            "temperature",
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
    images = (dataset.test.images / np.float32(255) - np.float32(dataset.standardisation.mean)) / np.float32(
        dataset.standardisation.std
    )
    with torch.no_grad():
        logits = network(torch.from_numpy(images.astype(np.float32).transpose(0, 3, 1, 2).copy()))
    np.testing.assert_array_equal(logits.argmax(1).numpy(), np.load(finished / "results" / "predictions.npy"))
    probabilities = np.load(finished / "results" / "probabilities.npy")
    assert probabilities.dtype == np.float32
    np.testing.assert_allclose(probabilities, torch.softmax(logits, 1).numpy(), atol=1e-6)
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


def test_tensorboard_shows_when_an_epoch_was_over(finished: Path) -> None:
    values = shown(finished / "logs")
    ends, table = [value.wall_time for value in values["Loss/train"]], rows(finished / "metrics.csv")
    assert (finished / "config.json").stat().st_mtime < ends[0]
    for before, after, row in zip(ends[:-1], ends[1:], table[1:], strict=True):
        assert after - before > 0.9 * float(row["seconds"])
    (test,) = values["Loss/test"]
    assert ends[-1] < test.wall_time < time.time()


@pytest.mark.parametrize("name", ["curves", "confusion"])
def test_the_pictures_are_pictures(name: str, finished: Path) -> None:
    with Image.open(finished / f"{name}.png") as picture:
        picture.load()
        assert picture.format == "PNG"
        assert min(picture.size) > 300
        assert len(picture.convert("RGB").getcolors(2**24)) > 5


def test_the_table_of_all_runs_has_a_row_for_the_run(finished: Path) -> None:
    summary = json.loads((finished / "summary.json").read_text())
    (row,) = rows(finished.parent / "experiment_logs.csv")
    assert row == {name: "" if value is None else str(value) for name, value in summary.items()}


@pytest.mark.slow
def test_augmented_images_are_trained_on_too(tmp_path: Path) -> None:
    data = DataConfig("digits", fraction=0.1)
    model = replace(MODEL, in_channels=3, hidden_dims=(2, 2, 4, 4))
    config = replace(TINY, runs_dir=tmp_path, data=data, model=model, train=TrainConfig(1, 64))
    assert data.augment == "autoaugment"
    assert math.isfinite(run_experiment(config)["test_loss"])


def test_without_validation_the_last_weights_count_and_chosen_classes_decide_the_width(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = replace(TINY.data, validation=0.0, classes=(7, 1, 4))
    summary = run_experiment(replace(TINY, runs_dir=tmp_path, data=data, train=TrainConfig(2, 64)))
    assert (summary["best_epoch"], summary["val_loss"], summary["val_accuracy"]) == (2, None, None)
    assert not re.search(r"^epoch.* best$", capsys.readouterr().out, re.MULTILINE)
    images = json.loads((tmp_path / "tiny/config.json").read_text())["resolved"]["images"]
    assert images == {"train": 434, "validation": 0, "test": 108}
    trained = weights(tmp_path / "tiny")
    assert trained["blocks.0.1.num_batches_tracked"] == 2 * math.ceil(images["train"] / 64)
    assert [row["val_loss"] for row in rows(tmp_path / "tiny" / "metrics.csv")] == ["", ""]
    assert not {"Loss/val", "Accuracy/val"} & scalars(tmp_path / "tiny" / "logs").keys()
    assert len(np.load(tmp_path / "tiny" / "results" / "val_loss.npy")) == 0
    assert trained["fc3.weight"].shape == (3, 8)
    assert read_config(tmp_path / "tiny" / "config.json", ExperimentConfig).model.num_classes == 3


# Again, beside, instead


def test_the_saved_configuration_under_another_name_gives_the_same_bits(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = f"--config {finished}/config.json --runs-dir {tmp_path} --name again"
    monkeypatch.setattr(sys, "argv", ["train", *flags.split()])
    run_program("train")
    assert_same_run(tmp_path / "again", finished)
    assert [row["name"] for row in rows(tmp_path / "experiment_logs.csv")] == ["again"]


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


def test_overwriting_begins_anew_and_leaves_nothing_of_the_old_run(finished: Path, tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path)
    shutil.copytree(finished, tmp_path / "tiny")
    (tmp_path / "tiny" / "note.txt").write_text("of the old run")
    changed = replace(config, train=TrainConfig(1, 64))
    assert run_experiment(changed, Existing(overwrite=True))["epochs"] == 1
    assert not (tmp_path / "tiny" / "note.txt").exists()
    assert len(rows(tmp_path / "tiny" / "metrics.csv")) == 1
    assert read_config(tmp_path / "tiny" / "config.json", ExperimentConfig) == changed
    assert [row["epochs"] for row in rows(tmp_path / "experiment_logs.csv")] == ["1"]


@pytest.mark.slow
def test_a_run_that_diverges_says_at_which_step(tmp_path: Path) -> None:
    config = replace(TINY, runs_dir=tmp_path, optim=OptimConfig("sgd", 1e20), train=TrainConfig(2, 64))
    with pytest.raises(DivergedError, match=r"at step \d+ .*diverged"):
        run_experiment(config)


@pytest.mark.slow
def test_a_failing_run_does_not_stop_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = replace(TINY, runs_dir=tmp_path, train=TrainConfig(1, 64))
    bad = replace(short, data=replace(short.data, classes=(0, 99)))
    good = replace(short, train=TINY.train)
    broken: Any = replace(short)
    object.__setattr__(broken, "optim", None)  # an error of another kind
    outcomes = run_experiments([("short", short), ("bad", bad), ("broken", broken), ("good", good)])
    assert [outcome.config.run_name for outcome in outcomes] == ["short", "bad", "broken", "good"]
    assert [outcome.summary is None for outcome in outcomes] == [False, True, True, False]
    accuracies = {o.config.run_name: o.summary["test_accuracy"] for o in outcomes if o.summary is not None}
    best = outcomes[-1].summary
    assert best is not None
    assert accuracies["good"] > accuracies["short"]
    out, err = capsys.readouterr()
    assert "error: bad: " in err
    assert "label 99" in err
    assert "error: broken: " in err
    assert "Error: " in err.partition("error: broken: ")[2]  # its kind
    told = f"good ({best['val_accuracy']:.2f} %), test accuracy {accuracies['good']:.2f} %"
    assert f"best run by validation accuracy: {told}" in out
    turns = ["run 1 of 4: short", "run 2 of 4: bad", "run 3 of 4: broken", "run 4 of 4: good"]
    assert re.findall(r"^(run .*?)(?:;.*)?$", out, re.MULTILINE) == turns
    assert "failed" in out
    assert {path.name for path in tmp_path.iterdir()} - {"broken"} == {"short", "good", *LOG}


def test_the_baselines_share_their_flags_and_report_failures_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, ExperimentConfig]] = []

    def take(experiments: Any, *, overwrite: bool) -> list[Outcome]:
        assert overwrite
        seen.extend(experiments)
        return [
            Outcome(replace(config, name=name), None, "why" if name == "svhn" else None) for name, config in experiments
        ]

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


def test_a_configuration_written_for_people_and_programs_is_plain_json() -> None:
    values = to_json(TINY)
    assert json.loads(json.dumps(values)) == values
    assert values["model"] == json.loads(json.dumps(asdict(MODEL)))
