"""Finding the network in what training programs save; ambiguous files are refused."""

import re
from collections import OrderedDict
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from refusals import message
from safetensors.torch import save_file
from test_convert import POOLS, SMALL, assert_same_tensors, draw_weights
from torch import nn
from torch.optim.swa_utils import AveragedModel

from jaxcnn import CNN
from jaxcnn.weights.files import read_state_dict
from jaxcnn.weights.pytorch_network import TorchCNN
from jaxcnn.weights.source import read_source
from jaxcnn.weights.state_dicts import find_network

IMAGES = np.random.default_rng(0).standard_normal((4, 8, 8, 1), np.float32)
PATH = Path("other.pth")


@pytest.fixture(scope="module")
def apply() -> Callable[[Any], np.ndarray]:
    compiled = jax.jit(CNN(SMALL).apply)
    return lambda variables: np.asarray(compiled(variables, IMAGES))


def network(seed: int = 0) -> TorchCNN:
    """With running statistics that matter."""
    torch.manual_seed(seed)
    net = TorchCNN(SMALL)
    for name, buffer in net.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 2)
    return net.eval()


def logits(net: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return net(torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy())).numpy()


def averaged(steps: int) -> AveragedModel:
    """The average of other networks, or, of none, the one that it began with."""
    average = AveragedModel(network(1), use_buffers=True)
    for seed in range(steps):
        average.update_parameters(network(seed + 2))
    return average.eval()


def in_part(wrap: Callable[[nn.Module], nn.Module]) -> dict[str, Any]:
    net = network()
    net.blocks, net.fc1 = wrap(net.blocks), wrap(net.fc1)
    return net.state_dict()


def training_state(net: nn.Module) -> dict[str, Any]:
    """What a program keeps to go on training, with an optimiser's moments under the network's names."""
    weights = net.state_dict()
    return {
        "epoch": 3,
        "optimizer": {"exp_avg": weights, "state": {0: {"step": torch.tensor(1.0)}}},
        "rng": torch.ones(9),
    }


def under(prefix: str, weights: dict[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in weights.items()}


def renamed(part: str) -> dict[str, Any]:
    return {name.replace(part, f"{part}_orig_mod."): value for name, value in network().state_dict().items()}


NET, WEIGHTS = network(), network().state_dict()
ACTIVATED = {name.replace(".0.weight", ".0._fsdp_wrapped_module._checkpoint_wrapped_module.weight"): value
             for name, value in WEIGHTS.items()}  # fmt: skip

SAVED: dict[str, tuple[Any, nn.Module]] = {
    **{
        f"as {key}": ({key: WEIGHTS, **training_state(NET)}, NET)
        for key in ("model", "model_state_dict", "state_dict", "net", "ema", "params", "module", 7)
    },
    **{
        f"as {key}": ({key: WEIGHTS, **training_state(NET)}, NET)
        for key in ("optimal_weights", "optimized", "optim_model", "optical_flow", "options")
    },
    "in a list": ([WEIGHTS], NET),
    "in a list of a dictionary": ({"models": [WEIGHTS], "optimizers": [training_state(NET)]}, NET),
    "beside states of optimisers": (
        {
            "model": WEIGHTS,
            **{
                key: {"exp_avg": WEIGHTS}
                for key in (
                    "opt",
                    "optim",
                    "Optimizer",
                    "optimisers",
                    "opt_state",
                    "optimizer_state_dict",
                    "optimizer_0",
                )
            },
        },
        NET,
    ),
    "twice wrapped": ({"checkpoint": {"model": WEIGHTS}, "epoch": 3}, NET),
    "DataParallel": (nn.DataParallel(network()).state_dict(), NET),
    "DataParallel in part, as VGG's features are": (in_part(nn.DataParallel), NET),
    "compiled": (under("_orig_mod.", WEIGHTS), NET),
    "compiled, in DataParallel, compiled": (under("_orig_mod.module._orig_mod.", WEIGHTS), NET),
    "blocks compiled": (renamed("blocks."), NET),
    "one block compiled": (renamed("blocks.0."), NET),
    "fc1 compiled": (renamed("fc1."), NET),
    "FSDP with recomputed activations": (under("_fsdp_wrapped_module.", ACTIVATED), NET),
    "FairScale": (under("_fsdp_wrapped_module._fpw_module.", WEIGHTS), NET),
    "Lightning": (
        {"state_dict": under("model.", WEIGHTS) | {"criterion.weight": torch.ones(3), "acc.tp": torch.zeros(3)}},
        NET,
    ),
    "Lightning, compiled": ({"state_dict": under("net._orig_mod.", WEIGHTS), "loops": {}}, NET),
    "a task's attribute": (under("task.student.encoder.", WEIGHTS), NET),
    "LitEma, which drops the points": (
        {
            "state_dict": under("model.", WEIGHTS)
            | {"model_ema.fc3bias": torch.ones(3), "model_ema.decay": torch.ones(1)}
        },
        NET,
    ),
    "without counts": ({n: v for n, v in WEIGHTS.items() if "num_batches" not in n}, NET),
    "AveragedModel": (averaged(2).state_dict(), averaged(2)),
    "torchvision": ({"model": WEIGHTS, "model_ema": averaged(1).state_dict(), "args": None}, averaged(1)),
    "timm": ({"state_dict": WEIGHTS, "state_dict_ema": under("module.", averaged(1).module.state_dict())}, averaged(1)),
    "BasicSR": ({"params": WEIGHTS, "params_ema": averaged(1).module.state_dict()}, averaged(1)),
    "ema-pytorch": (
        under("online_model.", WEIGHTS)
        | under("ema_model.", averaged(1).module.state_dict())
        | {"initted": torch.tensor(True), "step": torch.tensor(9)},
        averaged(1),
    ),
    "an average in the network's module": (WEIGHTS | under("swa.", averaged(1).state_dict()), averaged(1)),
    "an average that has not begun": ({"model": WEIGHTS, "model_ema": averaged(0).state_dict()}, NET),
    "an average without statistics": (
        {"model": WEIGHTS, "ema": {n: v for n, v in averaged(1).module.state_dict().items() if "running" not in n}},
        NET,
    ),
}


@pytest.mark.parametrize("saved", SAVED)
def test_logits_equal_those_of_the_network_that_was_saved(
    saved: str, apply: Callable[[Any], np.ndarray], tmp_path: Path
) -> None:
    content, net = SAVED[saved]
    torch.save(content, tmp_path / "other.pth")
    variables = read_source(tmp_path / "other.pth", POOLS).variables
    np.testing.assert_allclose(apply(variables), logits(net), rtol=0, atol=1e-5)


def test_the_networks_above_can_be_told_apart() -> None:
    every = [logits(net) for net in (NET, averaged(0), averaged(1), averaged(2))]
    for i, one in enumerate(every):
        assert all(np.abs(one - other).max() > 1e-2 for other in every[:i])


def test_what_is_chosen_ignored_and_filled_in_is_told() -> None:
    def told(content: Any) -> tuple[list[str], list[str]]:
        return find_network(content, PATH)[1:]

    def case(name: str) -> tuple[list[str], list[str]]:
        return told(SAVED[name][0])

    assert told(WEIGHTS) == case("DataParallel") == case("blocks compiled") == case("AveragedModel") == ([], [])
    assert case("as model") == ([], ["ignored: epoch, optimizer, rng"])
    assert case("twice wrapped") == ([], ["ignored: epoch"])
    assert case("Lightning") == ([], ["ignored: criterion.weight, acc.tp"])
    assert case("torchvision") == (
        ["the weights in model_ema (an average), not those in model"], ["ignored: model, args"],
    )  # fmt: skip
    assert case("ema-pytorch")[0] == ["the weights in ema_model (an average), not those in online_model"]
    assert case("an average in the network's module")[0] == [
        "the weights in swa (an average), not those in the top level"
    ]
    assert case("an average that has not begun") == (
        ["the weights in model (the average has averaged nothing yet), not those in model_ema"],
        ["ignored: model_ema"],
    )
    assert case("an average without statistics") == ([], ["ignored: ema"])
    assert case("without counts") == (
        [], ["not in the file, and set to 0: blocks.0.1.num_batches_tracked, blocks.0.4.num_batches_tracked"],
    )  # fmt: skip
    assert told(averaged(0).state_dict()) == (
        [], ["the top level has averaged nothing yet (n_averaged is 0): these are its initial weights"],
    )  # fmt: skip
    many = {f"entry\n{i}": i for i in range(8)}
    (note,) = told({"model": WEIGHTS, **many})[1]
    assert note == "ignored: " + ", ".join(f"'entry\\n{i}'" for i in range(6)) + " and 2 more"


def test_counts_that_are_missing_are_zero() -> None:
    found = find_network(SAVED["without counts"][0], PATH).tensors
    for name in ("blocks.0.1.num_batches_tracked", "blocks.0.4.num_batches_tracked"):
        assert (found[name].dtype, found[name].item()) == (torch.int64, 0)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "net."])
def test_safetensors_follow_the_same_rule(prefix: str, tmp_path: Path) -> None:
    weights = draw_weights(SMALL)
    save_file(under(prefix, weights), tmp_path / "model.safetensors")
    assert_same_tensors(read_state_dict(tmp_path / "model.safetensors"), weights, ordered=False)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("fc3.bias", "module.fc3.bias"),
        ("fc1.weight", "_orig_mod.fc1.weight"),
        ("blocks.0.1.running_var", "blocks.module.0.1.running_var"),
        ("fc3.bias", "net.fc3.bias"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("change", [0, 1])
def test_a_tensor_that_is_there_twice_is_refused(one: str, other: str, first: bool, change: int) -> None:
    """Whichever comes first in the file, and whether or not the two are equal."""
    twice = {other: WEIGHTS[one] + change}
    problem = message(lambda: find_network(twice | WEIGHTS if first else WEIGHTS | twice, PATH))
    assert problem in {
        f"other.pth holds {a!r} and {b!r}, which are one tensor; save one of them"
        for a, b in ((one, other), (other, one))
    }


@pytest.mark.parametrize(
    ("content", "places"),
    [
        ({"model": WEIGHTS, "best_model": deepcopy(WEIGHTS)}, "model and best_model"),
        (
            {"state_dict": under("student.", WEIGHTS) | under("teacher.", WEIGHTS)},
            r"state_dict\.student and state_dict\.t",
        ),
        (under("models.0.", WEIGHTS) | under("models.1.", WEIGHTS), r"models\.0 and models\.1"),
        ({"m": WEIGHTS, "ema": deepcopy(WEIGHTS), "swa": deepcopy(WEIGHTS)}, "ema and swa"),
    ],
    ids=["best", "teacher", "ensemble", "averages"],
)
def test_networks_among_which_nothing_decides_are_refused(content: Any, places: str) -> None:
    assert re.search(
        f"several networks, in {places}.*; save only one of them", message(lambda: find_network(content, PATH))
    )


def test_a_network_in_parts_is_refused() -> None:
    blocks = {n: v for n, v in WEIGHTS.items() if n.startswith("blocks")}
    head = {n: v for n, v in WEIGHTS.items() if n.startswith("fc")}
    for content in ({"backbone": blocks, "head": head}, under("backbone.", blocks) | under("head.", head)):
        assert "parts of a network in backbone and head" in message(lambda content=content: find_network(content, PATH))


def test_what_lies_under_the_networks_prefix_must_belong_to_it(tmp_path: Path) -> None:
    for prefix in ("", "model."):
        torch.save(under(prefix, {**WEIGHTS, "fc4.weight": torch.zeros(3, 3)}), tmp_path / "model.pth")
        assert "'fc4.weight' is not part of" in message(lambda: read_source(tmp_path / "model.pth", POOLS))


def without(name: str, **more: Any) -> dict[str, Any]:
    weights = {n: v for n, v in WEIGHTS.items() if n != name}
    return weights | {f"{name}_{key}": value for key, value in more.items()}


def parametrized(change: Callable[[nn.Module], object]) -> dict[str, Any]:
    net = TorchCNN(SMALL)
    change(net.fc1)
    return net.state_dict()


def lora(name: str) -> dict[str, Any]:
    return {f"base_model.model.fc1.lora_{each}.{name}": torch.zeros(2, 2) for each in "AB"}


@pytest.mark.parametrize(
    ("content", "name", "remedy"),
    [
        (lora("weight"), "base_model.model.fc1.lora_A.weight", "merge_and_unload"),
        ({**WEIGHTS, "fc1.lora_A": torch.zeros(2, 2)}, "fc1.lora_A", "merge_and_unload"),
        (
            under("base_model.model.", {n.replace("fc1.", "fc1.base_layer."): v for n, v in WEIGHTS.items()}),
            "base_model.model.fc1.base_layer.weight", "merge_and_unload",
        ),
        (
            parametrized(torch.nn.utils.parametrizations.weight_norm),
            "fc1.parametrizations.weight.original0", "remove_parametrizations",
        ),
        (
            under("model.", parametrized(torch.nn.utils.parametrizations.spectral_norm)),
            "model.fc1.parametrizations.weight.original", "remove_parametrizations",
        ),
        (without("fc1.weight", g=torch.ones(4, 1), v=torch.ones(4, 48)), "fc1.weight_g", "remove_weight_norm"),
        (without("fc1.weight", orig=torch.ones(4, 48), u=torch.ones(4)), "fc1.weight_u", "remove_spectral_norm"),
        (without("fc1.weight", orig=torch.ones(4, 48), mask=torch.ones(4, 48)), "fc1.weight_mask", "prune.remove"),
        (
            without("fc1.weight") | {"fc1.scale": torch.tensor(1.0), "fc1.zero_point": torch.tensor(0),
                                     "fc1._packed_params._packed_params": (None, None)},
            "fc1.zero_point", "before it was quantised",
        ),
        (without("fc1.weight") | {"fc1.qweight": torch.zeros(4)}, "fc1.qweight", "before it was quantised"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("wrap", [lambda content: content, lambda content: {"model": content, "epoch": 1}])
def test_weights_in_another_form_are_called_what_they_are(
    content: Any, name: str, remedy: str, wrap: Callable[[Any], Any]
) -> None:
    problem = message(lambda: find_network(wrap(content), PATH))
    assert problem.startswith(f"other.pth holds {name!r}")
    assert remedy in problem


@pytest.mark.parametrize("content", [[torch.zeros(2)], {}, {"epoch": 3}, torch.zeros(2), {"fc3.bias": "text"}, None])
def test_what_holds_no_named_tensors_is_refused(content: Any, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "model.pth")
    assert "holds no state_dict" in message(lambda: read_state_dict(tmp_path / "model.pth"))


def test_another_networks_weights_are_refused_by_their_names(tmp_path: Path) -> None:
    torch.save({"encoder.weight": torch.zeros(2, 2), 7: torch.zeros(1)}, tmp_path / "model.pth")
    for read in (read_state_dict, read_source):
        problem = message(lambda read=read: read(tmp_path / "model.pth"))
        assert "not the weights of this network" in problem
        assert "found 'encoder.weight', '7'" in problem
    transformer = {f"blocks.{i}.mlp.fc{j}.weight": torch.zeros(2, 2) for i in range(3) for j in (1, 2)}
    assert "found 'blocks.0.mlp.fc1.weight', 'bl" in message(lambda: find_network({"model": transformer}, PATH))
    torch.save({"model": {"fc1.weight": torch.zeros(2, 2)}}, tmp_path / "model.pth")  # some of it
    assert "found 'fc1.weight'" in message(lambda: read_source(tmp_path / "model.pth"))


def test_a_dictionary_that_holds_itself_is_searched_once() -> None:
    content: dict[str, Any] = {"model": OrderedDict(WEIGHTS)}
    content["again"] = content
    assert_same_tensors(find_network(content, PATH).tensors, WEIGHTS)
