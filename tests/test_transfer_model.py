"""The start of a transfer: copied weights, new layers, and what is reported about both."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import jax
import numpy as np
import pytest
import torch
from test_parity import REFERENCE, load
from test_transfer import MASKS, TINY

from jaxcnn import InputError, ModelConfig
from jaxcnn.files import write_json
from jaxcnn.weights.convert import entries
from jaxcnn.weights.pytorch_network import TorchCNN
from jaxcnn.weights.source import create_transfer_model, read_source
from jaxcnn.weights.transfer import Source, transplant


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ["small", pytest.param("deep", marks=pytest.mark.slow)])
def test_trainable_names_are_the_originals(name: str, mask: str) -> None:
    wanted = json.loads((REFERENCE / name / "meta.json").read_text())["trainable"][mask]
    config = replace(load(name)[0], num_classes=100)
    _, variables, trains = create_transfer_model(
        REFERENCE / name / "model.pth",
        100,
        mask=mask,
        input_size=config.input_size,
        apply_pooling=config.apply_pooling,
        activation_function=config.activation_function,
    )
    names = []
    for entry in entries(config):
        if entry.path[0] == "params":
            leaf = trains
            for part in entry.path[1:]:
                leaf = leaf[part]
            names += [entry.torch_name] if leaf else []
    assert names == wanted
    assert jax.tree.structure(trains) == jax.tree.structure(variables["params"])


def test_a_transplant_takes_all_but_the_head() -> None:
    source = read_source(REFERENCE / "small" / "model.pth")
    fc3 = transplant(source, num_classes=9, key=jax.random.key(0))
    assert (fc3.taken, fc3.new) == (["block_0", "block_1", "block_2", "block_3", "fc1", "fc2"], ["fc3"])
    assert fc3.variables["params"]["fc3"]["kernel"].shape == (32, 9)
    for name in fc3.taken:
        jax.tree.map(np.testing.assert_array_equal, fc3.variables["params"][name], source.variables["params"][name])
    classifier = transplant(source, num_classes=10, copied_stages=4, key=jax.random.key(0))
    assert classifier.new == ["fc1", "fc2", "fc3"]
    for name in classifier.new:
        assert np.any(classifier.variables["params"][name]["kernel"] != source.variables["params"][name]["kernel"])


def test_the_head_is_new_even_where_it_would_fit_save_under_the_originals_protocol() -> None:
    source = read_source(REFERENCE / "small" / "model.pth")
    old = source.variables["params"]["fc3"]["kernel"]
    assert np.all(transplant(source, num_classes=10, key=jax.random.key(0)).variables["params"]["fc3"]["kernel"] != old)
    kept = transplant(source, num_classes=10, key=jax.random.key(0), keep_fitting_head=True)
    np.testing.assert_array_equal(kept.variables["params"]["fc3"]["kernel"], old)
    assert transplant(source, num_classes=9, key=jax.random.key(0), keep_fitting_head=True).new == ["fc3"]


def test_weights_of_another_shape_are_an_error_that_names_them() -> None:
    source = read_source(REFERENCE / "small" / "model.pth")
    other = Source(source.variables, replace(source.config, hidden_dims=(8, 16, 20, 32, 64, 32)), [])
    with pytest.raises(InputError, match="block_2 is"):
        transplant(other, num_classes=10, key=jax.random.key(0))


@pytest.fixture
def other(tmp_path: Path) -> tuple[Path, ModelConfig]:
    """Weights without their configuration, of a network with tanh and its pools behind."""
    config = replace(TINY, activation_function="tanh", apply_pooling=(0, 1), dropout_rate=0.2)
    torch.save(TorchCNN(config).state_dict(), tmp_path / "other.pth")
    return tmp_path / "other.pth", config


def test_what_is_assumed_of_a_source_is_a_warning_and_kept(other: tuple[Path, ModelConfig]) -> None:
    path, config = other
    with pytest.warns(UserWarning, match="does not describe its network completely") as caught:
        made = create_transfer_model(path, 7, input_size=8, mask="frozen")
    (warning,) = caught
    assert str(warning.message) == (
        f"{path} does not describe its network completely; assumed: activation_function=relu; "
        "apply_pooling=[1, 0] (the first blocks pool). If that is wrong, "
        "give the argument of that name, or a file with only the right weights"
    )
    assert warning.filename == __file__
    assert made.assumed == ("activation_function=relu", "apply_pooling=[1, 0] (the first blocks pool)")
    assert made.notes == ()
    model, variables, mask = made
    assert (model, variables, mask) == (made.model, made.variables, made.mask)
    assert model.config == replace(config, num_classes=7, activation_function="relu", apply_pooling=(1, 0))
    assert mask["block_1"]["conv_0"] == {"kernel": False, "bias": False}
    assert mask["fc3"] == {"kernel": True, "bias": True}

    with pytest.warns(UserWarning, match=r"assumed: activation_function=relu\. If"):
        assert create_transfer_model(path, 7, input_size=8, apply_pooling=(0, 1)).assumed == made.assumed[:1]


def test_a_source_that_tells_all_or_is_told_all_warns_of_nothing(other: tuple[Path, ModelConfig]) -> None:
    """A warning is an error here."""
    path, config = other
    told = {"input_size": 8, "apply_pooling": (0, 1), "activation_function": "tanh"}
    made = create_transfer_model(path, 7, **told)
    assert (made.model.config, made.assumed) == (replace(config, num_classes=7), ())
    write_json(path.parent / "config.json", {"model": asdict(config)})
    made = create_transfer_model(str(path), 7)
    assert (made.model.config, made.assumed) == (replace(config, num_classes=7), ())


def test_a_choice_between_two_networks_is_a_warning_too(other: tuple[Path, ModelConfig]) -> None:
    path, config = other
    write_json(path.parent / "config.json", {"model": asdict(config)})
    weights = torch.load(path, weights_only=True)
    averaged = {name: value + 1 for name, value in weights.items()}
    torch.save({"model": weights, "model_ema": averaged, "epoch": 3}, path)
    with pytest.warns(UserWarning, match=r"assumed: the weights in model_ema \(an average\), not those in model\."):
        made = create_transfer_model(path, 7)
    assert made.notes == ("ignored: model, epoch",)
    np.testing.assert_array_equal(made.variables["params"]["fc1"]["bias"], averaged["fc1.bias"])


def test_a_mask_beyond_the_network_is_refused() -> None:
    with pytest.raises(InputError, match=r"freeze_until_block=9 .* blocks 0 to 3"):
        create_transfer_model(REFERENCE / "small" / "model.pth", 10, freeze_until_block=9)


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        create_transfer_model(tmp_path / "model.pth", 10)


def test_a_head_that_is_none_is_refused() -> None:
    with pytest.raises(InputError, match=r"head='fc2' is not usable: choose one of fc3, all"):
        create_transfer_model(REFERENCE / "small" / "model.pth", 10, head="fc2")
