"""Where weights come from: a run, a checkpoint, or a file with or without its configuration beside it."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from refusals import message
from test_convert import POOLS, SMALL, assert_same_variables, draw_weights

from jaxcnn import InputError, ModelConfig
from jaxcnn.config import DataConfig, ExperimentConfig
from jaxcnn.config.network import NetworkOverrides
from jaxcnn.weights.convert import from_torch, to_torch
from jaxcnn.weights.files import write_state_dict
from jaxcnn.weights.pytorch_network import TorchCNN
from jaxcnn.weights.source import read_source
from jaxcnn.weights.weights_only import save_weights


def write_config(path: Path, model: ModelConfig) -> None:
    config = asdict(ExperimentConfig(model=model, data=DataConfig()))
    path.write_text(json.dumps({**config, "resolved": {"mean": [0.5]}}, default=str))


def test_a_source_may_be_a_run_a_file_beside_its_configuration_or_a_checkpoint(tmp_path: Path) -> None:
    """Only the configuration contains dropout, the activation, and that the second block pools and not the first."""
    model = replace(SMALL, apply_pooling=(0, 1), activation_function="gelu", dropout_rate=0.4)
    variables = from_torch(draw_weights(model), model)
    write_config(tmp_path / "config.json", model)
    for name in ("model.pth", "other.safetensors"):
        write_state_dict(tmp_path / name, variables, model)
    save_weights(tmp_path / "checkpoint", variables, model)
    for source in (".", "model.pth", "other.safetensors", "checkpoint"):
        read = read_source(tmp_path / source)
        assert read.config == model, source
        assert read.assumed == []
        assert_same_variables(read.variables, variables)
        changed = read_source(
            tmp_path / source, NetworkOverrides(activation_function="elu", input_size=8, apply_pooling=(1, 0))
        )
        assert changed.config == replace(model, activation_function="elu", apply_pooling=(1, 0))


def test_a_checkpoint_is_read_as_the_network_that_the_arguments_describe(tmp_path: Path) -> None:
    """fc1 reads 6x6 pixels of four channels, which must not be taken for 12x12 of one."""
    model = replace(SMALL, hidden_dims=(2, 4, 4, 5), input_size=12)
    state_dict = TorchCNN(model).state_dict()
    save_weights(tmp_path / "checkpoint", from_torch(state_dict, model), model)
    other = read_source(tmp_path / "checkpoint", NetworkOverrides(input_size=24, apply_pooling=(1, 1)))
    for name, tensor in to_torch(other.variables, other.config).items():
        assert torch.equal(tensor, state_dict[name]), name
    with pytest.raises(InputError, match=r"fc1\.weight has shape"):
        read_source(tmp_path / "checkpoint", NetworkOverrides(input_size=24))


def test_what_lies_beside_the_weights_must_be_readable_and_fit(tmp_path: Path) -> None:
    write_state_dict(tmp_path / "model.pth", from_torch(draw_weights(SMALL), SMALL), SMALL)
    beside = tmp_path / "config.json"
    write_config(beside, replace(SMALL, num_classes=4))
    for source in (tmp_path, tmp_path / "model.pth"):
        problem = message(lambda source=source: read_source(source))
        assert problem.startswith(f"{tmp_path / 'model.pth'} and the network in {beside} disagree")
        assert "fc3.weight has shape (3, 5), not (4, 5)" in problem
    for text in ("{", "\x00", "[" * 100_000):
        beside.write_text(text)
        assert str(beside) in message(lambda: read_source(tmp_path))
    beside.write_text(json.dumps({"model": {"num_blocks": 2, "depth": 3}}))
    assert re.search(r"config\.json: model\.depth", message(lambda: read_source(tmp_path)))


@pytest.mark.parametrize(
    "content",
    [
        {"name": "a web site"},
        [1, 2],
        {"model_type": "resnet", "architectures": ["ResNet"], "num_channels": 3},
        {"model": "resnet50", "num_classes": 10},
        {"model": {"name": "resnet", "num_classes": 10, "depth": 50}},
        {"model": ["encoder", "decoder"]},
        {"model": None},
        {"model": {}},
    ],
)
def test_another_programs_configuration_is_told_and_not_used(content: Any, tmp_path: Path) -> None:
    write_state_dict(tmp_path / "model.pth", from_torch(draw_weights(SMALL), SMALL), SMALL)
    (tmp_path / "config.json").write_text(json.dumps(content))
    read = read_source(tmp_path, POOLS)
    assert read.config == SMALL
    assert [text.partition("=")[0] for text in read.assumed] == ["activation_function", "apply_pooling"]
    assert read.notes == [f"{tmp_path / 'config.json'} does not describe a network of this program and is ignored"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_configuration_is_read_as_editors_save_it(encoding: str, tmp_path: Path) -> None:
    model = replace(SMALL, activation_function="tanh", apply_pooling=(0, 1))
    write_state_dict(tmp_path / "model.pth", from_torch(draw_weights(model), model), model)
    text = json.dumps({"name": "Größe", "model": asdict(model)}, ensure_ascii=False, indent=2)
    (tmp_path / "config.json").write_bytes(text.replace("\n", "\r\n").encode(encoding))
    read = read_source(tmp_path)
    assert (read.config, read.assumed, list(read.notes)) == (model, [], [])


def test_a_run_without_weights_is_told_from_other_folders(tmp_path: Path) -> None:
    """For example one that was stopped in its first epoch."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match=rf"^{tmp_path} is a run without weights: no epoch of it has ended, or its"):
        read_source(tmp_path)


def test_a_folder_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    assert str(tmp_path) in message(lambda: read_source(tmp_path))
