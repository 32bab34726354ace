"""`python -m experiments.transfer`: settings, comparison, resumption, and what it refuses."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
import torch

from experiments.checks import make_archives as archives
from jaxcnn import InputError, ModelConfig, init_variables
from jaxcnn.cli.config_file import read_config
from jaxcnn.cli.transfer import program as transfer
from jaxcnn.cli.transfer_flags import parse
from jaxcnn.config import Augment, TransferConfig
from jaxcnn.config.experiment import to_json
from jaxcnn.config.network import NetworkOverrides
from jaxcnn.data.prepare import prepare
from jaxcnn.data.sets import as_original, load_dataset
from jaxcnn.files import write_json
from jaxcnn.runs.run import first_variables
from jaxcnn.studies import study
from jaxcnn.studies.plan import Study
from jaxcnn.training.epoch import evaluate
from jaxcnn.training.step import make_eval_step
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.files import read_state_dict, write_state_dict
from jaxcnn.weights.source import read_source

REFERENCE = Path(__file__).parent / "reference" / "small" / "model.pth"
TINY = ModelConfig(
    input_size=8, hidden_dims=(4, 8, 16, 8), layers_per_block=(1, 1), apply_pooling=(1, 0), apply_bn=(1, 1),
    num_blocks=2, num_classes=4,
)  # fmt: skip


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "given" / "model.pth"
    write_state_dict(path, init_variables(TINY, jax.random.key(0)), TINY)
    return path


def flags(source: Path, runs: Path, *more: str) -> list[str]:
    return [
        "--source", str(source), "--input-size", "8", "--target", "digits", "--data.augment", "none",
        "--runs-dir", str(runs), "--train.epochs", "3", *more,
    ]  # fmt: skip


def test_the_default_source_lies_in_the_folder_of_runs_however_that_is_spelt() -> None:
    for words in (["--runs-dir", "there"], ["--runs_dir", "there"], ["--runs_dir=there"]):
        (config,), *_ = parse([*words, "--mask", "frozen"])
        assert (config.runs_dir, config.source) == (Path("there"), Path("there/cifar10"))


def summary(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "summary.json").read_text()))


@pytest.mark.parametrize(
    ("target", "mask", "epochs", "rate", "patience", "accuracy"),
    [
        ("cifar100", "frozen", 100, 1e-3, 10, 95),
        ("cifar100", "partial", 150, 1e-3, 15, 95),
        ("cifar100", "full", 200, 5e-4, 15, 95),
        ("svhn", "frozen", 100, 1e-3, 10, 98),
        ("svhn", "partial", 150, 1e-3, 15, 98),
        ("svhn", "full", 200, 5e-4, 15, 98),
        ("digits", "full", 200, 5e-4, 15, None),
    ],
)
def test_the_originals_settings_are_the_defaults(
    target: str, mask: str, epochs: int, rate: float, patience: int, accuracy: float | None
) -> None:
    (config,), *_ = parse(["--target", target, "--mask", mask])
    assert config.data.name == target
    assert (config.train.epochs, config.optim.learning_rate) == (epochs, rate)
    assert (config.train.early_stopping_patience, config.train.early_stopping_target) == (patience, accuracy)
    assert config.optim.schedule == "constant"
    assert config.source == Path("runs/cifar10")
    assert config.name == f"transfer_cifar10_to_{target}_{mask}"


@pytest.mark.slow
def test_all_masks_are_compared_under_one_budget(source: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    transfer(flags(source, runs, "--mask", "all", "--seeds", "0", "1"))
    folder = runs / "transfer_given_to_digits_comparison"
    with (folder / "comparison.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["mask"] for row in table] == ["scratch", "frozen", "partial", "full"]
    assert all(row["runs"] == "2" for row in table)
    fc = sum(p.numel() for n, p in read_state_dict(source).items() if n.startswith("fc")) + (10 - 4) * 9
    assert table[1]["trainable_parameters"] == str(fc)
    assert (folder / "study.html").exists()
    assert (folder / "comparison.md").read_text().startswith("| case | runs | test accuracy (%) | sd between seeds |")
    with (runs / "transfer_learning_logs.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 8
    name = "transfer_given_to_digits_frozen_seed1"
    tuned, given = read_state_dict(runs / name / "model.pth"), read_state_dict(source)
    for key in tuned:
        if key.startswith("blocks."):
            assert torch.equal(tuned[key], given[key]), key
        else:
            assert tuned[key].shape != given[key].shape or not torch.equal(tuned[key], given[key]), key
    config = json.loads((runs / name / "config.json").read_text())
    (again,), *_ = parse(["--config", str(runs / name / "config.json")])
    assert again.freeze.mask == "frozen"
    assert again.seed == config["seed"] == 1


@pytest.mark.slow
def test_a_model_of_the_original_is_a_source_with_no_other_flag(tmp_path: Path) -> None:
    words = ["--source", str(REFERENCE), "--target", "digits", "--mask", "frozen", "--train.epochs", "1"]
    transfer([*words, "--data.augment", "none", "--data.fraction", "0.2", "--runs-dir", str(tmp_path)])
    tuned = read_state_dict(tmp_path / "transfer_small_to_digits_frozen" / "model.pth")
    for name, value in read_state_dict(REFERENCE).items():
        if name.startswith("blocks."):
            assert torch.equal(tuned[name], value), name


@pytest.mark.slow
def test_the_originals_protocol_steers_by_the_test_split_and_keeps_the_last_weights(
    source: Path, tmp_path: Path
) -> None:
    transfer(flags(source, tmp_path, "--mask", "frozen", "--protocol", "original", "--name", "original"))
    result = summary(tmp_path / "original")
    config = json.loads((tmp_path / "original" / "config.json").read_text())
    assert result["best_epoch"] == result["epochs"] == 3
    assert config["resolved"]["images"] == {"train": 1438, "validation": 359, "test": 359}
    assert config["resolved"]["mean"] == [0.4914, 0.4822, 0.4465]
    assert result["val_accuracy"] == pytest.approx(result["test_accuracy"], abs=1e-9)  # nothing is augmented here
    tuned, given = read_state_dict(tmp_path / "original" / "model.pth"), read_state_dict(source)
    assert torch.equal(tuned["blocks.0.0.weight"], given["blocks.0.0.weight"])


@pytest.mark.slow
def test_under_the_originals_protocol_the_test_images_are_augmented_too(source: Path, tmp_path: Path) -> None:
    transfer(flags(source, tmp_path, "--protocol", "original", "--name", "original", "--data.augment", "flipcrop"))
    config = read_config(tmp_path / "original" / "config.json", TransferConfig)
    data = replace(config.data, validation=0.0)
    dataset = as_original(load_dataset(data, input_size=8, in_channels=3, seed=0))
    variables = from_torch(read_state_dict(tmp_path / "original" / "model.pth"), config.model)

    def loss(kind: Augment) -> float:
        step = make_eval_step(model=config.model, standardisation=dataset.standardisation, augmentation=kind)
        return evaluate(jax.jit(step), variables, dataset.test, config.train.batch_size)[0]

    assert summary(tmp_path / "original")["test_loss"] == pytest.approx(loss("flipcrop"), rel=1e-6)
    assert abs(loss("flipcrop") - loss("none")) > 1e-4


def test_a_comparison_is_refused_before_anything_is_trained(source: Path, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with pytest.raises(InputError, match=r"freeze_until_block=9"):
        transfer(flags(source, runs, "--mask", "all", "--freeze-until-block", "9"))
    assert not runs.exists()


@pytest.mark.parametrize("name", ["from_scratch", "a_scratch_b", ""])
def test_a_comparison_is_named_after_all_its_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = []

    def take(planned: Study, existing: object, **figures: object) -> SimpleNamespace:
        folders.append(planned.folder.name)
        return SimpleNamespace(failed=[])

    monkeypatch.setattr(study, "run_study", take)
    words = ["--mask", "all", "--target", "digits", *(["--name", name] if name else [])]
    transfer(words)
    transfer([*words, "--seeds", "3"])
    assert folders == [f"{name or 'transfer_cifar10_to_digits'}_comparison"] * 2


def test_folders_that_differ_behind_a_dot_are_different_sources() -> None:
    names = [parse(["--source", f"runs/lr0.{i}", "--mask", "full"])[0][0].name for i in (1, 5)]
    assert names == ["transfer_lr0.1_to_cifar100_full", "transfer_lr0.5_to_cifar100_full"]


@pytest.mark.slow
def test_what_is_taken_over_and_what_trains_is_printed(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--mask", "partial", "--freeze-until-block", "0", "--probe-epochs", "1", "--name"]
    transfer(flags(source, tmp_path, *words, "sound"))
    lines = capsys.readouterr().out.splitlines()
    assert lines[:5] == [
        f"assumed of the source, whose files do not say: {each}"
        for each in ("activation_function=relu", "apply_pooling=[1, 0] (the first blocks pool)")
    ] + [
        f"weights from {source}: block_0, block_1, fc1, fc2",
        "new weights: fc3 (the source's fc3 has 4 classes, the target 10)",
        f"{tmp_path}/sound: digits, 10 classes, 1,294 training, 144 validation, 359 test images; augmentation none; "
        "seed 0; on cpu",
    ]
    assert lines[5] == (
        "trains 2,602 of 2,722 parameters: block_0 120 (frozen), block_1 312, fc1 2,064, fc2 136, fc3 90"
    )
    assert "from the next epoch on, these train too: block_1, fc1, fc2" in lines
    torch.save({"model": torch.load(source, weights_only=True), "epoch": 3}, source)
    transfer(flags(source, tmp_path, "--mask", "scratch", "--name", "new", "--train.epochs", "1"))
    out = capsys.readouterr().out
    assert f"no weights are used from {source}" in out
    assert "assumed of the source" in out
    assert "source: ignored: epoch\n" in out


def test_what_begins_with_new_weights_is_told(source: Path) -> None:
    read = read_source(source, NetworkOverrides(input_size=8, apply_pooling=(1, 0), activation_function="relu"))
    taken = f"weights from {source}: block_0, block_1"
    for head, classes, wanted in (
        ("all", 4, [taken, "new weights: fc1, fc2, fc3"]),
        ("all", 7, [taken, "new weights: fc1, fc2, fc3 (the source's fc3 has 4 classes, the target 7)"]),
        ("fc3", 4, [f"{taken}, fc1, fc2", "new weights: fc3"]),
    ):
        config = TransferConfig(source=source, head=head, model=replace(read.config, num_classes=classes))
        assert first_variables(config, read)[1] == wanted
    original = TransferConfig(source=source, protocol="original", model=read.config)
    assert first_variables(original, read)[1] == [f"{taken}, fc1, fc2, fc3"]


def test_a_grey_network_and_a_coloured_target_do_not_fit(source: Path, tmp_path: Path) -> None:
    checksums = archives.write_official(tmp_path / "archives", "cifar10", archives.cifar10(2))
    prepare("cifar10", tmp_path / "sets", tmp_path / "archives", checksums)
    grey = tmp_path / "grey" / "model.pth"
    config = replace(TINY, in_channels=1)
    write_state_dict(grey, init_variables(config, jax.random.key(0)), config)
    with pytest.raises(InputError, match=r"data.name='cifar10' does not fit the network: .* model.in_channels=1"):
        transfer(
            ["--source", str(grey), "--input-size", "8", "--target", "cifar10", "--data.dir", str(tmp_path / "sets")]
        )


def test_saved_settings_keep_their_source_and_leave_their_name_to_others(tmp_path: Path) -> None:
    words = ["--mask", "frozen", "--source", "runs/cifar10", "--runs-dir", str(tmp_path)]
    (config,), *_ = parse(words)
    write_json(tmp_path / "config.json", to_json(config))
    saved = ["--config", str(tmp_path / "config.json")]
    (same,), *_ = parse(saved)
    assert same == config
    (other,), *_ = parse([*saved, "--mask", "full", "--data.name", "svhn"])
    assert other.source == Path("runs/cifar10")
    assert other.name == "transfer_cifar10_to_svhn_full"
    (named,), *_ = parse([*saved, "--mask", "full", "--name", "mine"])
    assert named.name == "mine"


@pytest.mark.slow
def test_an_unfinished_source_is_told(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (source.parent / ".lock").touch()
    transfer(flags(source, tmp_path / "runs", "--mask", "frozen", "--train.epochs", "1"))
    assert "is not finished; its best epoch so far is used" in capsys.readouterr().out


def test_a_source_that_changes_meanwhile_ends_the_comparison(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(config: TransferConfig, **_: object) -> dict[str, Any]:
        digest = str(len(list((tmp_path / "runs").glob("*"))))  # another one each time
        write_json(config.runs_dir / config.run_name / "config.json", {"resolved": {"source_digest": digest}})
        return {"test_accuracy": 1.0}

    monkeypatch.setattr(study, "run_experiment", train)
    with pytest.raises(InputError, match=r"the weights that .*_scratch started from have changed meanwhile"):
        transfer(flags(source, tmp_path / "runs", "--mask", "all"))
