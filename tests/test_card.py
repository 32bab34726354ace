"""What is stored with the weights: the network, class names, mean, std and resizing."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from refusals import message
from safetensors.torch import load_file, save_file
from test_convert import SMALL, assert_same_variables, draw_weights
from tiny_run import MODEL, weights

from jaxcnn.cli.convert import Flags, convert
from jaxcnn.config.card import Card
from jaxcnn.config.network import NetworkOverrides
from jaxcnn.weights.card import KEY, card_of_run, from_metadata, to_metadata
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.files import read_metadata, write_state_dict
from jaxcnn.weights.source import read_source
from jaxcnn.weights.weights_only import save_weights

CARD = Card(("Fuß", "b c", "d\n"), (0.1,), (1 / 3,), "pad")
MODEL_OF_CARD = replace(SMALL, apply_pooling=(0, 1), activation_function="gelu", dropout_rate=0.4)


def test_metadata_give_back_what_was_written() -> None:
    metadata = to_metadata(MODEL_OF_CARD, CARD)
    assert from_metadata(metadata, Path("x")) == (MODEL_OF_CARD, CARD)
    assert from_metadata({"format": "pt"}, Path("x")) is None
    assert from_metadata(to_metadata(SMALL, Card()), Path("x")) == (SMALL, Card())


def edited(**changes: Any) -> str:
    return json.dumps(json.loads(to_metadata(SMALL, CARD)[KEY]) | changes)


@pytest.mark.parametrize(
    ("entry", "told"),
    [
        ("{", "Expecting property name"),
        ("[" * 100_000, "recursion"),
        ("[1]", "an object of named values"),
        (edited(version=2), "version=2"),
        (edited(version=None), "version=None"),
        (edited(model=None), "model=None"),
        (edited(model={"depth": 3}), "model.depth=3"),
        (edited(model={"num_blocks": 2}), "model.hidden_dims"),
        (edited(mean=0.5), "mean=0.5"),
        (edited(mean=[0.5, 0.5]), "mean=(0.5, 0.5) is not usable: give 1"),
        (edited(mean=[float("nan")]), "mean=nan"),
        (edited(std=[0]), "std=0"),
        (edited(std=["1"]), "std='1'"),
        (edited(class_names=["a"]), "class_names=('a',) is not usable: give 3"),
        (edited(class_names=[1, 2, 3]), "class_names=(1, 2, 3)"),
        (edited(class_names="abc"), "class_names='abc'"),
        (edited(resize="stretch"), "resize='stretch'"),
        (edited(colour="grey"), "colour='grey'"),
    ],
)
def test_metadata_that_are_damaged_are_refused_by_the_files_name(entry: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    write_state_dict(path, from_torch(draw_weights(SMALL), SMALL), SMALL, {KEY: entry})
    problem = message(lambda: read_source(path))
    assert problem.startswith(f"{path} has metadata that cannot be used: ")
    assert told in problem


def test_the_metadata_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    other = replace(SMALL, hidden_dims=(2, 3, 4, 6))
    write_state_dict(path, from_torch(draw_weights(SMALL), SMALL), SMALL, to_metadata(other, Card()))
    assert f"{path} and the network in its metadata disagree" in message(lambda: read_source(path))


def test_a_safetensors_file_needs_no_flags(tmp_path: Path) -> None:
    """Only the metadata contain dropout, the activation, and that the second block pools and not the first."""
    variables = from_torch(draw_weights(MODEL_OF_CARD), MODEL_OF_CARD)
    for name in ("x.safetensors", "x.pth"):
        write_state_dict(tmp_path / name, variables, MODEL_OF_CARD, to_metadata(MODEL_OF_CARD, CARD))
    assert read_metadata(tmp_path / "x.pth") == {}
    read = read_source(tmp_path / "x.safetensors")
    assert (read.config, read.card, read.assumed, list(read.notes)) == (MODEL_OF_CARD, CARD, [], [])
    assert_same_variables(read.variables, variables)
    changed = read_source(
        tmp_path / "x.safetensors", NetworkOverrides(activation_function="elu", input_size=8, apply_pooling=(1, 0))
    )
    assert changed.config == replace(MODEL_OF_CARD, activation_function="elu", apply_pooling=(1, 0))
    assert changed.card == CARD


def test_metadata_of_other_programs_are_not_looked_at(tmp_path: Path) -> None:
    save_file(draw_weights(SMALL), tmp_path / "x.safetensors", {"format": "pt", "epoch": "3"})
    read = read_source(tmp_path / "x.safetensors", NetworkOverrides(input_size=8))
    assert (read.config, read.card) == (SMALL, None)


def test_a_run_writes_its_weights_in_both_forms(finished: Path) -> None:
    resolved = json.loads((finished / "config.json").read_text())["resolved"]
    tensors, wanted = load_file(finished / "model.safetensors"), weights(finished)
    assert tensors.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert tensors[name].numpy().tobytes() == tensor.numpy().tobytes(), name
    told = from_metadata(read_metadata(finished / "model.safetensors"), finished)
    card = Card(tuple("0123456789"), tuple(resolved["mean"]), tuple(resolved["std"]), "squash")
    assert told == (MODEL, card)
    for source in (finished, finished / "model.pth"):
        assert read_source(source).card == card


def test_a_conversion_keeps_what_the_source_tells(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, again = tmp_path / "run.safetensors", tmp_path / "again.safetensors"
    convert(Flags(finished, run))
    convert(Flags(run, again))
    assert read_metadata(run) == read_metadata(again) == read_metadata(finished / "model.safetensors")
    save_weights(tmp_path / "checkpoint", read_source(finished).variables, MODEL)
    convert(Flags(tmp_path / "checkpoint", again, overwrite=True))
    assert from_metadata(read_metadata(again), again) == (MODEL, Card())
    assert "to read it again" not in capsys.readouterr().out


def test_the_card_of_a_run_of_an_earlier_version(tmp_path: Path) -> None:
    resolved = {"mean": [0.5], "std": [0.25], "class_names": ["a", "b", "c"]}
    wanted = Card(("a", "b", "c"), (0.5,), (0.25,), "squash")
    assert card_of_run({"resolved": resolved, "data": {"name": "digits"}}, SMALL, tmp_path) == wanted
    assert card_of_run({"resolved": resolved, "data": {"resize": "crop"}}, SMALL, tmp_path) == replace(
        wanted, resize="crop"
    )
    assert card_of_run({}, SMALL, tmp_path) == Card()
    for bad in ({"mean": ["0"]}, {"mean": [1, 2]}, {"class_names": None}):
        assert str(tmp_path) in message(lambda bad=bad: card_of_run({"resolved": resolved | bad}, SMALL, tmp_path))
