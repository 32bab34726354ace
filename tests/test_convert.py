"""Weights between PyTorch and Flax: every bit of valid files, and a clear message for invalid ones."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from refusals import message
from safetensors.torch import load_file, save_file

from jaxcnn import InputError, ModelConfig
from jaxcnn.config.network import NetworkOverrides
from jaxcnn.errors import MachineError
from jaxcnn.weights.convert import flags_to_read, from_torch, infer_config, to_torch
from jaxcnn.weights.files import read_state_dict, write_state_dict
from jaxcnn.weights.pytorch_network import TorchCNN
from jaxcnn.weights.source import read_source

SMALL = ModelConfig(
    input_size=8, in_channels=1, hidden_dims=(2, 3, 4, 5), layers_per_block=(2, 1), apply_pooling=(1, 0),
    apply_bn=(1, 0), num_blocks=2, num_classes=3,
)  # fmt: skip
POOLS = NetworkOverrides(input_size=8)  # what tells SMALL's pooling
MANY = settings(
    max_examples=20, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@st.composite
def configs(draw: Any) -> ModelConfig:
    blocks = draw(st.integers(1, 3))
    size = draw(st.integers(2, 12))
    flags = st.lists(st.integers(0, 1), min_size=blocks, max_size=blocks)
    return ModelConfig(
        input_size=size,
        in_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(1, 7)),
        hidden_dims=tuple(draw(st.lists(st.integers(1, 6), min_size=blocks + 2, max_size=blocks + 2))),
        layers_per_block=tuple(draw(st.lists(st.integers(1, 3), min_size=blocks, max_size=blocks))),
        apply_pooling=tuple(draw(flags.filter(lambda p: size >> sum(p)))),
        apply_bn=tuple(draw(flags)),
        num_blocks=blocks,
    )


def draw_weights(config: ModelConfig, seed: int = 0) -> dict[str, torch.Tensor]:
    """A state_dict with no two numbers alike, running statistics and counts included."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else torch.randint(2**31 - 1, value.shape, generator=generator)
        for name, value in TorchCNN(config).state_dict().items()
    }


def assert_same_tensors(one: dict[str, Any], other: dict[str, Any], *, ordered: bool = True) -> None:
    assert list(one) == list(other) if ordered else set(one) == set(other)
    for name, value in one.items():
        assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape), name
        assert value.numpy().tobytes() == other[name].numpy().tobytes(), name


def assert_same_variables(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    jax.tree.map(np.testing.assert_array_equal, one, other)


@MANY
@given(config=configs(), seed=st.integers(0, 2**31))
def test_weights_come_back_from_flax_and_from_files_bit_by_bit(config: ModelConfig, seed: int, tmp_path: Path) -> None:
    weights = draw_weights(config, seed)
    variables = from_torch(weights, config)
    assert_same_tensors(to_torch(variables, config), weights)
    TorchCNN(config).load_state_dict(to_torch(variables, config), strict=True)

    write_state_dict(tmp_path / "model.pth", variables, config)
    assert_same_tensors(torch.load(tmp_path / "model.pth", weights_only=True), weights)
    assert_same_tensors(read_state_dict(tmp_path / "model.pth"), weights)
    write_state_dict(tmp_path / "model.safetensors", variables, config)
    assert_same_tensors(load_file(tmp_path / "model.safetensors"), weights, ordered=False)
    assert_same_variables(from_torch(read_state_dict(tmp_path / "model.safetensors"), config), variables)


@MANY
@given(config=configs())
def test_the_configuration_is_inferred_from_the_weights(config: ModelConfig) -> None:
    """The whole configuration, given what shapes do not determine: dropout, activation, input size and pools."""
    told = replace(config, dropout_rate=0.2)
    given = NetworkOverrides(
        input_size=config.input_size, apply_pooling=config.apply_pooling, activation_function="relu"
    )
    inferred, assumed = infer_config(draw_weights(config), given)
    assert inferred == told
    assert assumed == []
    # Without the pools: as many, or as many as make the same fc1, and always the first ones.
    inferred, assumed = infer_config(draw_weights(config), NetworkOverrides(input_size=config.input_size))
    assert inferred.final_size == config.final_size
    assert list(inferred.apply_pooling) == sorted(inferred.apply_pooling, reverse=True)
    assert replace(inferred, apply_pooling=config.apply_pooling) == told
    assert [text.split("=")[0] for text in assumed] == ["activation_function", "apply_pooling"]


def test_what_was_assumed_is_told() -> None:
    config = replace(SMALL, input_size=32, apply_pooling=(1, 1))
    inferred, assumed = infer_config(draw_weights(config))
    assert inferred == config
    assert assumed == [
        "activation_function=relu",
        "input_size=32",
        "apply_pooling=[1, 1] (the first blocks pool)",
    ]


@pytest.mark.parametrize("order", ["sorted", "reversed", "shuffled"])
def test_the_order_of_a_file_changes_nothing(order: str, tmp_path: Path) -> None:
    """Six convolutions of a block, so that 10 comes before 2 where names are sorted as text."""
    config = replace(SMALL, layers_per_block=(6, 2), hidden_dims=(5, 3, 4, 6))
    weights = draw_weights(config)
    names = sorted(weights, reverse=order == "reversed")
    if order == "shuffled":
        names = np.random.default_rng(0).permutation(names).tolist()
    assert names != list(weights)
    torch.save({name: weights[name] for name in names}, tmp_path / "model.pth")
    read = read_source(tmp_path / "model.pth", POOLS)
    assert read.config == config
    assert_same_variables(read.variables, from_torch(weights, config))
    assert_same_tensors(to_torch(read.variables, read.config), weights)
    assert flags_to_read({name: weights[name] for name in names}, config) == flags_to_read(weights, config)


def test_widths_that_a_block_cannot_have_are_refused_in_any_order() -> None:
    """A second layer of other channels than the first: the last one's count, whichever comes first in the file."""
    weights = draw_weights(replace(SMALL, apply_bn=(0, 0)))
    weights["blocks.0.0.weight"] = torch.zeros(9, 1, 3, 3)
    for names in (list(weights), sorted(weights, reverse=True)):
        config, _ = infer_config({name: weights[name] for name in names}, POOLS)
        assert config.channels == (2, 3)
        with pytest.raises(InputError, match=r"blocks\.0\.0\.weight has shape \(9, 1, 3, 3\), not \(2, 1, 3, 3\)"):
            from_torch(weights, config)


def test_weights_that_contradict_what_is_given_are_refused(tmp_path: Path) -> None:
    weights = draw_weights(SMALL)
    assert "fc1.weight reads 48 values" in message(lambda: infer_config(weights))  # 32 pixels are assumed
    assert "fc1.weight reads 48 values" in message(lambda: infer_config(weights, NetworkOverrides(input_size=9 * 8)))
    assert "apply_pooling" in message(
        lambda: infer_config(weights, NetworkOverrides(input_size=8, apply_pooling=(1, 0, 1)))
    )
    assert "input_size=0 is not usable" in message(lambda: infer_config(weights, NetworkOverrides(input_size=0)))
    assert "fc1.weight reads 48 values" in message(
        lambda: infer_config(weights, NetworkOverrides(input_size=np.int64(72)))
    )
    assert "activation_function" in message(
        lambda: infer_config(weights, NetworkOverrides(input_size=8, activation_function="step"))
    )
    torch.save(weights, tmp_path / "model.pth")
    problem = message(lambda: read_source(tmp_path / "model.pth", NetworkOverrides(input_size=8, apply_pooling=(1, 1))))
    assert "fc1.weight has shape (4, 48), not (4, 12)" in problem


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_half_precision_is_read_exactly(dtype: torch.dtype, suffix: str, tmp_path: Path) -> None:
    weights = {n: v.to(dtype) if v.is_floating_point() else v for n, v in draw_weights(SMALL).items()}
    (save_file if suffix == ".safetensors" else torch.save)(weights, tmp_path / f"model{suffix}")
    variables = read_source(tmp_path / f"model{suffix}", POOLS).variables
    wanted = {n: v.float() if v.is_floating_point() else v for n, v in weights.items()}
    assert_same_tensors(to_torch(variables, SMALL), wanted)


def test_whole_numbers_are_no_weights() -> None:
    state_dict = TorchCNN(SMALL).state_dict()
    state_dict["fc2.bias"] = state_dict["fc2.bias"].to(torch.int64)
    with pytest.raises(InputError, match=r"fc2\.bias holds int64, not floating-point numbers"):
        from_torch(state_dict, SMALL)


def test_variables_are_copies_of_the_weights() -> None:
    network = TorchCNN(SMALL)
    variables = from_torch(network.state_dict(), SMALL)
    before = jax.tree.map(np.copy, variables)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    jax.tree.map(np.testing.assert_array_equal, variables, before)


def test_every_tensor_that_does_not_fit_is_listed() -> None:
    weights = draw_weights(SMALL)
    del weights["fc2.bias"], weights["blocks.0.1.running_var"]
    weights["fc4.weight"] = torch.zeros(2)
    weights["blocks.0.0.weight"] = torch.zeros(2, 1, 5, 5)
    weights["fc1.weight"] = weights["fc1.weight"].T
    problem = message(lambda: from_torch(weights, SMALL))
    for part in (
        "fc2.bias is missing",
        "blocks.0.1.running_var is missing",
        "'fc4.weight' is not part of the network",
        "blocks.0.0.weight has shape (2, 1, 5, 5), not (2, 1, 3, 3)",
        "fc1.weight has shape (48, 4), not (4, 48)",
    ):
        assert part in problem
    assert "and 16 more" in message(lambda: from_torch({}, SMALL))  # of 22 tensors, after the first six


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(3, dtype=torch.complex64),
        torch.zeros(3, dtype=torch.bool),
        torch.zeros(3).to(torch.float8_e4m3fn),
        torch.zeros(3).to_sparse(),
        torch.zeros(3, device="meta"),
    ],
    ids=["complex", "bool", "float8", "sparse", "meta"],
)
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(tensor: torch.Tensor, tmp_path: Path) -> None:
    torch.save({**draw_weights(SMALL), "fc3.bias": tensor}, tmp_path / "model.pth")
    assert "fc3.bias" in message(lambda: read_source(tmp_path / "model.pth", POOLS))


INDEX = st.integers(0, 4).map(str) | st.sampled_from(["00", "01", "²", "٣", "-1", "", "9" * 30, "1" * 5000])
NAMES = (
    st.builds("blocks.{}.{}.{}".format, INDEX, INDEX, st.sampled_from(["weight", "bias", "running_mean", "x"]))
    | st.builds("fc{}.{}".format, INDEX, st.sampled_from(["weight", "bias"]))
    | st.text(max_size=8)
)
SHAPES = st.lists(st.integers(0, 5) | st.sampled_from([27, 64, 512, 2**31]), max_size=5).map(tuple)
HEADS = {f"fc{k}.weight": st.tuples(st.integers(0, 4), st.sampled_from([0, 1, 12, 48, 64, 1024])) for k in (1, 2, 3)}


@pytest.mark.slow
@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    shapes=st.dictionaries(NAMES, SHAPES, max_size=8),
    heads=st.fixed_dictionaries({}, optional=HEADS) | st.fixed_dictionaries(HEADS),
    given_=st.fixed_dictionaries(
        {},
        optional={
            "input_size": st.integers(-3, 40) | st.just(10**25),
            "apply_pooling": st.lists(st.integers(-1, 2), max_size=3).map(tuple),
            "activation_function": st.sampled_from(["relu", "nothing"]),
        },
    ),
)
def test_nothing_that_names_and_shapes_can_be_ends_in_another_error(
    shapes: dict[str, tuple[int, ...]], heads: dict[str, tuple[int, ...]], given_: dict[str, Any]
) -> None:
    arrays = {
        name: np.broadcast_to(np.float32(0), shape) for name, shape in (shapes | heads).items() if 2**31 not in shape
    }
    try:
        config, _ = infer_config(arrays, NetworkOverrides(**given_))
    except InputError:
        return
    assert config.num_classes == arrays["fc3.weight"].shape[0]
    with pytest.raises(InputError, match="do not fit the network"):
        from_torch({**arrays, "one too many": np.zeros(1)}, config)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_weights_that_the_disk_does_not_take_are_told(
    suffix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the limit on a file's size, which ends a write as a full disk does."""
    resource, signal = pytest.importorskip("resource"), pytest.importorskip("signal")
    big = replace(SMALL, hidden_dims=(2, 3, 500, 5))  # 24,000 numbers in fc1
    variables = from_torch(draw_weights(big), big)
    path = tmp_path / f"model{suffix}"
    path.write_text("old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        problem = message(lambda: write_state_dict(path, variables, big), MachineError)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert f"cannot write {path}" in problem
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_flipped_bit_in_a_model_pth_is_noticed(tmp_path: Path) -> None:
    """PyTorch itself looks at no checksum, and would load the other number."""
    path = tmp_path / "model.pth"
    torch.save({"fc3.bias": torch.arange(4096.0)}, path)
    data = bytearray(path.read_bytes())
    data[data.index(torch.arange(4096.0).numpy().tobytes()) + 8001] ^= 1
    path.write_bytes(data)
    assert not torch.equal(torch.load(path, weights_only=True)["fc3.bias"], torch.arange(4096.0))
    with pytest.raises(InputError, match=r"model\.pth is damaged.*CRC"):
        read_state_dict(path)


def test_the_flags_that_a_weight_file_needs_to_be_read_again_are_told() -> None:
    plain = ModelConfig(
        hidden_dims=(4, 6, 9, 7), layers_per_block=(1, 1), apply_pooling=(1, 0), apply_bn=(1, 1), num_blocks=2
    )
    odd = replace(plain, input_size=8, apply_pooling=(0, 1), activation_function="gelu")
    for config, wanted in (
        (plain, []),
        (odd, ["--input-size", "8", "--apply-pooling", "0", "1", "--activation-function", "gelu"]),
    ):
        assert flags_to_read(TorchCNN(config).state_dict(), config) == wanted
