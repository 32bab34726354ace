"""Bad input in one table: the command, and what its message must name. No files may be left behind."""

import runpy
import sys
from pathlib import Path
from typing import Any

import jax
import pytest
import torch
from test_cli import contents, run, squeezed
from test_config_file import save

from jaxcnn.cli import train
from jaxcnn.cli.flags import parse
from jaxcnn.config import DataConfig, ExperimentConfig, ModelConfig, TrainConfig
from jaxcnn.config.experiment import to_json
from jaxcnn.model import init_variables
from jaxcnn.runs.summary import SUMMARY
from jaxcnn.weights.convert import to_torch

FINISHED = to_json(parse(train.DIGITS, "", ["--data.name", "digits"])[0])
PLATEAU = "--optim.schedule plateau --train.epochs"
EXTENSIBLE = to_json(parse(train.DIGITS, "", ["--data.name", "digits", *PLATEAU.split(), "200"])[0])
OTHER = to_json(ExperimentConfig(seed=5, data=DataConfig("digits"), train=TrainConfig(epochs=3)))
TEXTS = ("name", "dataset", "mask", "stopped")
FILES: dict[str, Any] = {
    "text": "no JSON",
    "array.json": [1, 2],
    "unknown.json": {"trian": {}},
    "unknown_inside.json": {"train": {"epoch": 3}},
    "type.json": {"train": {"epochs": "many"}},
    "boolean.json": {"train": {"epochs": True}},
    "null.json": {"train": None},
    "null_inside.json": {"train": {"epochs": None}},
    "deep.json": "[" * 100_000,
    "number_as_name.json": {"name": 7},
    "number_as_data.json": {"data": {"name": 7}},
    "number_as_folder.json": {"runs_dir": 7},
    "object_as_folder.json": {"data": {"dir": {}}},
    "text_as_sequence.json": {"model": {"hidden_dims": "abc"}},
    "huge.json": '{"optim": {"learning_rate": 1' + "0" * 400 + "}}",
    "nan.json": '{"optim": {"learning_rate": NaN}}',
    "runs/other/config.json": OTHER,
    "runs/damaged/config.json": '{"seed": ',
    "runs/foreign/photo.jpg": "not ours",
    "runs/file": "in the way",
    "runs/folder/config.json/x": "",
    "empty/x": "",
    "section_as_list.json": {"train": [1, 2]},
    "negative.json": {"train": {"batch_size": -4}},
    "infinite.json": '{"optim": {"weight_decay": Infinity}}',
    "enormous.json": '{"model": {"hidden_dims": [1' + "0" * 300 + ", 1, 1, 1, 1, 1]}}",
    "epochs.json": '{"train": {"epochs": 1' + "0" * 30 + "}}",
    "bytes.json": b"\xff\xfe\x00",
    "source.json": {"source": 5},
    "head.json": {"head": "fc4"},
    "mask.json": {"freeze": {"mask": "all"}},
    "frozen.json": {"freeze": {"mask": "frozen"}},
    "runs/lacking/config.json": FINISHED,
    "runs/lacking/summary.json": {"name": "lacking"},
    "runs/mistyped/config.json": FINISHED,
    "runs/mistyped/summary.json": {**dict.fromkeys(SUMMARY, 1), **dict.fromkeys(TEXTS, "x"), "test_accuracy": "high"},
    "runs/broken/config.json": FINISHED,
    "runs/broken/summary.json": "{",
    "runs/huge_number/config.json": FINISHED,
    "runs/huge_number/summary.json": {
        **dict.fromkeys(SUMMARY, 1),
        **dict.fromkeys(TEXTS, "x"),
        "test_accuracy": 10**400,
    },
    "runs/data/config.json": {**FINISHED, "resolved": {"images": {"train": 1, "validation": 0, "test": 1}}},
    "runs/short/config.json": EXTENSIBLE,
    "runs/cosine/config.json": FINISHED,
    "runs/stopped/config.json": EXTENSIBLE,
    "runs/stopped/summary.json": {
        **dict.fromkeys(SUMMARY, 1),
        **dict.fromkeys(TEXTS, "the target is reached"),
    },
    "runs/list/config.json": "[]",
    "runs/null/config.json": "null",
    "prepared/cifar10/3.0.2/features.json": "{}",
    "notensors/config.json": {"model": 3},
    "text.pth": "no weights",
    "text.safetensors": "no weights",
    "empty.pth": "",
    "header.safetensors": b"\xff" * 8 + b"{}",
    "nocheckpoint/_CHECKPOINT_METADATA": "{}",
    "python/cifar-10-batches-py/batches.meta": "no pickle",
    "binary/cifar-10-binary.tar.gz": "no archive",
    "mats/train_32x32.mat": "no matrix",
    "mats/test_32x32.mat": "no matrix",
}

BAD: list[tuple[str, str]] = [
    # The program and its flags, and what the message must name.
    ("train --seed x", "--seed"),
    ("train --seed -1", "--seed=-1"),
    ("train --seed 4294967296", "--seed=4294967296"),
    ("train --seed", "--seed"),
    ("train --nonsense 1", "--nonsense"),
    ("train stray", "stray"),
    ("train --model.num-classes 5", "--model.num-classes"),
    ("train --name a/b", "--name='a/b'"),
    ("train --name ..", "--name='..'"),
    ("train --device abacus", "'abacus'"),
    ("train --model.preset huge", "'huge'"),
    ("train --model.hidden-dims 1 2", "--model.hidden-dims=(1, 2)"),
    ("train --model.hidden-dims 0 1 1 1 1 1", "--model.hidden-dims=(0, 1, 1, 1, 1, 1)"),
    ("train --model.layers-per-block 1 1 1 0", "--model.layers-per-block="),
    ("train --model.apply-bn 1 1 1 2", "--model.apply-bn=(1, 1, 1, 2)"),
    ("train --model.apply-pooling 1 1 1", "--model.apply-pooling="),
    ("train --model.num-blocks 3", "num_blocks=3"),
    ("train --model.input-size 4", "input_size=4"),
    ("train --model.dropout-rate 1", "--model.dropout-rate=1"),
    ("train --model.activation-function sine", "'sine'"),
    ("train --model.in-channels 2", "model.in_channels=2"),
    ("train --optim.optimizer magic", "'magic'"),
    ("train --optim.learning-rate 0", "--optim.learning-rate=0"),
    ("train --optim.learning-rate nan", "--optim.learning-rate=nan"),
    ("train --optim.learning-rate inf", "--optim.learning-rate=inf"),
    ("train --optim.weight-decay -1", "--optim.weight-decay=-1"),
    ("train --optim.clip-norm 0", "--optim.clip-norm=0"),
    ("train --optim.label-smoothing 1", "--optim.label-smoothing=1"),
    ("train --train.epochs 0", "--train.epochs=0"),
    ("train --train.epochs many", "--train.epochs"),
    ("train --train.batch-size 0", "--train.batch-size=0"),
    ("train --train.early-stopping-target 101", "--train.early-stopping-target=101"),
    ("train --data.augment blur", "'blur'"),
    ("train --data.fraction 0", "--data.fraction=0"),
    ("train --data.validation 1.0", "--data.validation=1.0"),
    ("train --data.validation 0.0001", "data.validation=0.0001"),
    ("train --data.classes 1", "--data.classes=(1,)"),
    ("train --data.classes 1 1", "--data.classes=(1, 1)"),
    ("train --data.classes 1 10", "data.classes=(1, 10)"),
    ("train --data.name mnist --data.dir {d}/empty", "data.name='mnist'"),
    ("train --data.name ../up", "data.name='../up'"),
    ("train --data.name cifar10 --data.dir {d}/sets --data.archives {d}/missing", "{d}/missing"),
    ("train --data.name svhn --data.dir {d}/sets --data.archives {d}/empty", "train_32x32.mat"),
    ("train --data.name cifar10 --data.dir {d}/sets", "cifar-10-binary.tar.gz"),
    ("train --data.name cifar100 --data.dir {d}/sets --data.archives {d}/empty", "{d}/empty"),
    ("train --config {d}/missing.json", "{d}/missing.json"),
    ("train --config {d}/empty", "{d}/empty"),
    ("train --config {d}/text", "{d}/text"),
    ("train --config {d}/array.json", "{d}/array.json"),
    ("train --config {d}/unknown.json", "trian"),
    ("train --config {d}/unknown_inside.json", "train.epoch="),
    ("train --config {d}/type.json", "train.epochs='many'"),
    ("train --config {d}/boolean.json", "train.epochs=True"),
    ("train --config {d}/null.json", "train"),
    ("train --config {d}/null_inside.json", "train.epochs=None"),
    ("train --config {d}/deep.json", "{d}/deep.json"),
    ("train --config {d}/number_as_name.json", "name=7"),
    ("train --config {d}/number_as_data.json", "data.name=7"),
    ("train --config {d}/number_as_folder.json", "runs_dir=7"),
    ("train --config {d}/object_as_folder.json", "data.dir={{}}"),
    ("train --config {d}/text_as_sequence.json", "model.hidden_dims='abc'"),
    ("train --config {d}/huge.json", "optim.learning_rate"),
    ("train --config {d}/nan.json", "optim.learning_rate=nan"),
    ("train --runs-dir {d}/runs --name other --seed 6", "seed=5 there, 6 here"),
    ("train --runs-dir {d}/runs --name damaged", "{d}/runs/damaged/config.json"),
    ("train --runs-dir {d}/runs --name foreign", "{d}/runs/foreign"),
    ("train --runs-dir {d}/runs --name foreign --overwrite", "{d}/runs/foreign"),
    ("train --runs-dir {d}/runs --name file", "{d}/runs/file"),
    ("train --runs-dir {d}/runs --name file --overwrite", "{d}/runs/file"),
    ("train --runs-dir {d}/runs --name folder", "{d}/runs/folder"),
    ("train --runs-dir {d}/text", "{d}/text"),
    ("train --runs-dir {d}/" + 300 * "x", "File name too long"),
    ("transfer --target digits --data.name svhn", "--data.name svhn contradicts --target digits"),
    ("convert {d}/good.pth {d}/model.onnx --input-size 8", "{d}/model.onnx is not a weight file that can be written"),
    ("transfer --name new --source {d}/" + 300 * "x", "File name too long"),
    ("train --name " + "n" * 300, "--name='" + "n" * 300),
    ("train --optim.momentum 1", "--optim.momentum=1"),
    ("train --optim.plateau-factor 1", "--optim.plateau-factor=1"),
    ("train --optim.plateau-patience -1", "--optim.plateau-patience=-1"),
    ("train --optim.warmup-epochs -0.5", "--optim.warmup-epochs=-0.5"),
    ("train --optim.schedule steps", "'steps'"),
    ("train --train.early-stopping-patience 0", "--train.early-stopping-patience=0"),
    ("train --train.early-stopping-target nan", "--train.early-stopping-target=nan"),
    ("train --train.batch-size 99999999999", "--train.batch-size=99999999999"),
    ("train --train.epochs 99999999999", "--train.epochs=99999999999"),
    ("train --model.hidden-dims 9999999 9999999 1 1 1 1", "--model.hidden-dims=(9999999, 9999999, 1, 1, 1, 1)"),
    ("train --model.input-size 99999999", "--model.input-size=99999999"),
    ("train --model.weight-init ones", "'ones'"),
    ("train --model.num-blocks 0", "--model.num-blocks=0"),
    ("train --protocol other", "'other'"),
    ("train --protocol original --model.in-channels 1", "model.in_channels=1"),
    ("train --data.validation -0.1", "--data.validation=-0.1"),
    ("train --data.fraction nan", "--data.fraction=nan"),
    ("train --data.classes -1 2", "data.classes=(-1, 2)"),
    ("train --overwrite --extend", "--overwrite"),
    ("train --data.name cifar10 --data.dir {d}/prepared", "{d}/prepared/cifar10/3.0.2"),
    ("train --data.name cifar10:9.9.9 --data.dir {d}/prepared", "cifar10:9.9.9"),
    ("train --data.name cifar10 --data.dir {d}/new --data.archives {d}/python", "{d}/python"),
    ("train --data.name cifar10 --data.dir {d}/new --data.archives {d}/binary", "cifar-10-binary.tar.gz"),
    ("train --data.name svhn --data.dir {d}/new --data.archives {d}/mats", "_32x32.mat"),
    ("train --config {d}/section_as_list.json", "train=[1, 2]"),
    ("train --config {d}/negative.json", "train.batch_size=-4"),
    ("train --config {d}/infinite.json", "optim.weight_decay=inf"),
    ("train --config {d}/enormous.json", "model.hidden_dims"),
    ("train --config {d}/epochs.json", "train.epochs"),
    ("train --config {d}/bytes.json", "{d}/bytes.json"),
    ("train --config {d}/source.json", "source=5"),
    ("train --runs-dir {d}/runs --name lacking", "{d}/runs/lacking/summary.json lacks dataset"),
    ("train --runs-dir {d}/runs --name mistyped", "lacks test_accuracy"),
    ("train --runs-dir {d}/runs --name broken", "{d}/runs/broken/summary.json cannot be read"),
    ("train --runs-dir {d}/runs --name list", "{d}/runs/list/config.json"),
    ("train --runs-dir {d}/runs --name null --overwrite --extend", "--overwrite"),
    ("train --runs-dir {d}/runs --name null", "{d}/runs/null/config.json"),
    (f"train --runs-dir {{d}}/runs --name short {PLATEAU} 300", "--extend"),
    (f"train --runs-dir {{d}}/runs --name short {PLATEAU} 2 --extend", "train.epochs=200 there, 2 here"),
    (f"train --runs-dir {{d}}/runs --name short {PLATEAU} 300 --extend --seed 1", "seed=0 there, 1 here"),
    ("train --runs-dir {d}/runs --name cosine --train.epochs 300 --extend", "cosine"),
    (f"train --runs-dir {{d}}/runs --name stopped {PLATEAU} 300 --extend", "the target is reached"),
    ("transfer --source {d}/missing.pth", "{d}/missing.pth"),
    ("transfer --source {d}/text.pth", "{d}/text.pth"),
    ("transfer --source {d}/empty.pth", "{d}/empty.pth"),
    ("transfer --source {d}/text.safetensors", "{d}/text.safetensors"),
    ("transfer --source {d}/header.safetensors", "{d}/header.safetensors"),
    ("transfer --source {d}/empty", "{d}/empty"),
    ("transfer --source {d}/nocheckpoint", "{d}/nocheckpoint"),
    ("transfer --source {d}/cut.pth", "{d}/cut.pth"),
    ("transfer --source {d}/list.pth", "{d}/list.pth"),
    ("transfer --source {d}/foreign.pth", "blocks.0.0.weight"),
    ("transfer --source {d}/strings.pth", "{d}/strings.pth"),
    ("transfer --source {d}/shape.pth --input-size 8", "fc3.bias"),
    ("transfer --source {d}/nan.pth --apply-pooling 1", "apply_pooling"),
    ("transfer --source {d}/good.pth --input-size 8 --mask partial --freeze-until-block 9", "freeze_until_block=9"),
    ("transfer --source {d}/good.pth --input-size 8 --mask some", "--mask"),
    ("transfer --source {d}/good.pth --seeds 0 1", "--mask all"),
    ("transfer --source {d}/good.pth --layer-decay 0", "--layer-decay=0"),
    ("transfer --source {d}/good.pth --probe-epochs 2 --unfreeze-every 1", "drop probe_epochs"),
    ("transfer --source {d}/good.pth --head all --probe-epochs 2", "--head='all'"),
    ("transfer --source {d}/good.pth --head fc2", "'fc2'"),
    ("transfer --source {d}/good.pth --dropout-rate 1", "--dropout-rate=1"),
    ("transfer --source {d}/good.pth --input-size 0", "--input-size=0"),
    ("transfer --source {d}/good.pth --input-size 64", "fc1.weight"),
    ("transfer --source {d}/good.pth --input-size 8 --apply-pooling 1 1", "fc1.weight"),
    ("transfer --source {d}/good.pth --activation-function sine", "'sine'"),
    ("transfer --config {d}/head.json", "head='fc4'"),
    ("transfer --config {d}/mask.json", "freeze.mask='all'"),
    ("convert {d}/missing.pth {d}/out.pth", "{d}/missing.pth"),
    ("convert {d}/text.pth {d}/out.pth", "{d}/text.pth"),
    ("convert {d}/cut.pth {d}/out", "{d}/cut.pth"),
    ("convert {d}/good.pth {d}/text.pth --input-size 8", "{d}/text.pth exists"),
    ("convert {d}/good.pth {d}/text/out.pth --input-size 8", "cannot write {d}/text/out.pth"),
    ("convert {d}/good.pth {d}/text/out --input-size 8", "{d}/text/out"),
    ("convert {d}/good.pth {d}/empty --input-size 8 --overwrite", "{d}/empty"),
    ("convert {d}/notensors {d}/out.pth", "{d}/notensors"),
    ("convert {d}/good.pth", "DESTINATION"),
    ("convert {d}/" + 300 * "x" + " {d}/out.pth", "File name too long"),
    ("convert {d}/good.pth {d}/" + 300 * "x" + ".pth --input-size 8", "File name too long"),
    ("train --data.name cifar10 --data.dir {d}/new --data.archives {d}/" + 300 * "x", "File name too long"),
    ("train --data.name cifar10 --data.dir ~nosuchuser/sets", "data.dir='~nosuchuser/sets'"),
    ("train --data.name svhn --data.dir {d}/new --data.archives ~nosuchuser", "data.archives='~nosuchuser'"),
    ("transfer --source {d}/good.pth --input-size 8 --mask all --freeze-until-block 9", "freeze_until_block=9"),
    ("transfer --source {d}/flipped.pth", "{d}/flipped.pth is damaged"),
    ("transfer --source {d}/runs/other/checkpoints", "{d}/runs/other/checkpoints"),
    ("train --runs-dir {d}/runs --name huge_number", "lacks test_accuracy"),
    ("train --runs-dir {d}/runs --name data", "other images than digits has now"),
    ("baselines --train.epochs x", "--train.epochs"),
    ("train --data.name digits --config {d}/frozen.json --runs-dir {d}/new", "use jaxcnn transfer"),
    ("transfer --source {d}/integers.pth --input-size 8", "fc3.bias holds int64, not floating-point numbers"),
    ("baselines --names mnist --runs-dir {d}/new", "data.name='mnist'"),
]


def write_weights(folder: Path) -> None:
    model = ModelConfig(8, 1, 3, (4, 8, 16, 8), (1, 1), (1, 0), (1, 0), 2)
    good = to_torch(init_variables(model, jax.random.key(0)), model)
    torch.save(good, folder / "good.pth")
    (folder / "cut.pth").write_bytes((folder / "good.pth").read_bytes()[:-3000])
    flipped = bytearray((folder / "good.pth").read_bytes())
    flipped[flipped.index(good["fc1.weight"].numpy().tobytes()) + 5] ^= 4
    (folder / "flipped.pth").write_bytes(flipped)
    torch.save([1, 2], folder / "list.pth")
    torch.save({"layer.weight": torch.zeros(2, 2)}, folder / "foreign.pth")
    torch.save({"blocks.0.0.weight": "text"}, folder / "strings.pth")
    torch.save({**good, "fc3.bias": torch.zeros(7)}, folder / "shape.pth")
    torch.save({**good, "fc3.bias": torch.zeros(10, dtype=torch.int64)}, folder / "integers.pth")
    torch.save({**good, "fc3.bias": torch.full((3,), torch.nan)}, folder / "nan.pth")


@pytest.fixture(scope="module")
def surroundings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("d")
    for name, values in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(values, bytes):
            (folder / name).write_bytes(values)
        else:
            save(folder / name, values)
    write_weights(folder)
    return folder


pytestmark = pytest.mark.usefixtures("isolated")


def program(name: str, argv: list[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    """What `python -m experiments.NAME` does, in this process."""
    monkeypatch.setattr(sys, "argv", [name, *argv])
    monkeypatch.delitem(sys.modules, f"experiments.{name}", raising=False)  # or runpy warns
    return run(lambda: runpy.run_module(f"experiments.{name}", run_name="__main__"))


@pytest.mark.parametrize(("words", "named"), BAD, ids=[words[:70] for words, _ in BAD])
def test_bad_input_ends_in_one_message_that_names_it(
    words: str, named: str, surroundings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(surroundings)
    name, *argv = words.format(d=surroundings).split()
    if name == "train" and "--data.name" not in argv:
        argv = ["--data.name", "digits", *argv]
    if name == "transfer":
        argv = ["--target", "digits", "--data.augment", "none", *argv]
    before = contents(surroundings)
    status, out, err = program(name, argv, monkeypatch)
    assert status == 2
    assert "Traceback" not in err
    assert contents(surroundings) == before
    assert squeezed(named.format(d=surroundings)) in squeezed(err)
    if name == "baselines" and err.startswith("error: "):  # a line for each run that failed, then the count
        assert err.count("\n") == 2
    elif err.startswith("error: "):
        assert out == "" or (name == "convert" and "wrote" not in out)
        assert err.count("\n") == 1
        assert err.endswith("\n")
    else:  # the frame that tyro draws around what it finds itself
        assert out == ""
        assert err.startswith("╭")
        assert err.count("╭") == 1


def test_the_table_of_bad_input_is_a_long_one() -> None:
    assert len({words for words, _ in BAD}) == len(BAD) >= 140
