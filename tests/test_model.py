"""The Flax network against the PyTorch one, for random configurations."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax.extend.random import threefry_2x32

from jaxcnn import CNN, DEEP, SHALLOW, InputError, ModelConfig, init_variables
from jaxcnn.kernels.dropout import dropout, threefry2x32
from jaxcnn.kernels.executables import jit
from jaxcnn.kernels.features import Features
from jaxcnn.training.step import cross_entropy
from jaxcnn.weights.convert import entries, from_torch, to_torch
from jaxcnn.weights.pytorch_network import TorchCNN


@st.composite
def configs(draw: Any) -> ModelConfig:
    blocks = draw(st.integers(1, 3))
    size = draw(st.integers(4, 13))
    flags = st.lists(st.booleans(), min_size=blocks, max_size=blocks)
    pools = draw(flags.filter(lambda p: size // 2 ** sum(p) >= 1))
    return ModelConfig(
        input_size=size,
        in_channels=draw(st.integers(1, 4)),
        num_classes=draw(st.integers(2, 7)),
        hidden_dims=tuple(draw(st.lists(st.integers(1, 6), min_size=blocks + 2, max_size=blocks + 2))),
        layers_per_block=tuple(draw(st.lists(st.integers(1, 2), min_size=blocks, max_size=blocks))),
        apply_pooling=tuple(pools),
        apply_bn=tuple(draw(flags)),
        num_blocks=blocks,
        activation_function=draw(st.sampled_from(["relu", "gelu", "silu", "tanh", "leaky_relu", "elu"])),
        dropout_rate=0.0,
    )


def torch_gradients(network: TorchCNN) -> dict[str, np.ndarray]:
    """Gradients under the names of a state_dict whose statistics are zero, so that `from_torch` can read them."""
    zeros = {name: np.zeros_like(value) for name, value in network.state_dict().items()}
    return zeros | {name: p.grad.numpy() for name, p in network.named_parameters()}


def assert_equal_to_pytorch(config: ModelConfig, seed: int, padding: int) -> None:
    """Logits, gradients and statistics in float64. Padding, which the Flax batch alone has, must change nothing."""
    torch.manual_seed(seed)
    network = TorchCNN(config).double()
    rng = np.random.default_rng(seed)
    n = 5
    images = rng.standard_normal((n + padding, config.input_size, config.input_size, config.in_channels))
    labels = rng.integers(0, config.num_classes, n + padding)
    mask = np.arange(n + padding) < n
    torch_images = torch.from_numpy(images[:n].transpose(0, 3, 1, 2).copy())

    with jax.enable_x64(True):
        variables = jax.tree.map(jnp.asarray, from_torch(network.state_dict(), config))

        def objective(params: Any) -> Any:
            logits, updated = CNN(config).apply(
                {**variables, "params": params}, images, True, mask=mask, mutable=["batch_stats"]
            )
            losses = cross_entropy(logits, jnp.asarray(labels))
            evaluated = CNN(config).apply({**variables, **updated}, images[:n])
            return jnp.sum(jnp.where(mask, losses, 0)) / n, (logits[:n], evaluated, updated)

        # Compiled once and run once: optimising the code would take longer than it saves.
        program = jit(jax.grad(objective, has_aux=True), xla_backend_optimization_level=0)
        gradient, (logits, evaluated, updated) = program(variables["params"])

        torch_logits = network(torch_images)
        torch.nn.functional.cross_entropy(torch_logits, torch.from_numpy(labels[:n])).backward()
        torch_evaluated = network.eval()(torch_images)
        wanted_gradient = from_torch(torch_gradients(network), config)["params"]
        wanted_stats = from_torch(network.state_dict(), config)["batch_stats"]

        close = {"rtol": 0, "atol": 1e-9}
        np.testing.assert_allclose(logits, torch_logits.detach().numpy(), **close)
        np.testing.assert_allclose(evaluated, torch_evaluated.detach().numpy(), **close)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **close), gradient, wanted_gradient)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, **close),
            updated.get("batch_stats", {}),
            wanted_stats,
        )


def shapes_of_variables(config: ModelConfig) -> Any:
    """Shapes and types alone: nothing is compiled."""
    return jax.eval_shape(lambda: init_variables(config, jax.random.key(0)))


def zeros_of(config: ModelConfig) -> Any:
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes_of_variables(config))


CASES = given(config=configs(), seed=st.integers(0, 2**31 - 1), padding=st.integers(0, 3))
EXAMPLES = settings(deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


@settings(EXAMPLES, max_examples=4)
@CASES
def test_a_few_networks_equal_pytorchs(config: ModelConfig, seed: int, padding: int) -> None:
    assert_equal_to_pytorch(config, seed, padding)


@pytest.mark.slow
@settings(EXAMPLES, max_examples=30)
@CASES
def test_many_networks_equal_pytorchs(config: ModelConfig, seed: int, padding: int) -> None:
    assert_equal_to_pytorch(config, seed, padding)


@pytest.mark.parametrize("config", [SHALLOW, DEEP], ids=["shallow", "deep"])
def test_presets_have_the_tensors_of_the_pytorch_network(config: ModelConfig) -> None:
    shapes = {name: tuple(value.shape) for name, value in TorchCNN(config).state_dict().items()}
    assert {e.torch_name: e.torch_shape for e in entries(config)} == shapes
    exported = to_torch(zeros_of(config), config)
    assert list(exported) == list(shapes)
    TorchCNN(config).load_state_dict(exported, strict=True)


def test_dropout_keeps_the_mean_and_drops_the_share_it_should() -> None:
    config = ModelConfig(
        input_size=2, in_channels=1, hidden_dims=(64, 500, 4), layers_per_block=(1,), apply_pooling=(False,),
        apply_bn=(False,), num_blocks=1, dropout_rate=0.3, num_classes=2,
    )  # fmt: skip
    variables = init_variables(config, jax.random.key(0))
    # Sees what fc1 is given through an fc1 that passes everything on: 2 * 2 * 64 features of value 1.
    params = jax.tree.map(jnp.zeros_like, variables["params"])
    params["block_0"]["conv_0"]["bias"] = jnp.ones(64)
    params["fc1"]["kernel"] = jnp.eye(256, 500)
    fc1 = CNN(config).apply(
        {"params": params}, jnp.zeros((200, 2, 2, 1)), True, end_stage=2, rngs={"dropout": jax.random.key(1)}
    )[:, :256]
    values, counts = np.unique(np.asarray(fc1), return_counts=True)
    dropped = round(0.3 * 2**16)  # the rate, to the nearest 1/65536
    np.testing.assert_allclose(values, [0, 2**16 / (2**16 - dropped)], rtol=1e-7)
    n = 200 * 256
    assert abs(counts[0] / n - 0.3) < 4 * (0.3 * 0.7 / n) ** 0.5


@pytest.mark.parametrize("batch", [1, 3, 5, 256])
def test_dropout_treats_every_element_of_any_batch_alike_and_by_itself(batch: int) -> None:
    x = jnp.ones((batch, 3, 4096))
    kept = np.asarray(dropout(jax.random.key(2), x, 0.25)) > 0
    assert kept.shape == x.shape
    images = kept.reshape(batch, -1)
    assert np.abs(images.mean(1) - 0.75).max() < 5 * (0.25 * 0.75 / 12288) ** 0.5
    if batch > 1:  # no two images share their draws, or parts of them
        correlations = np.corrcoef(images) - np.eye(batch)
        assert np.abs(correlations).max() < 6 / 12288**0.5


def test_dropout_of_a_part_is_that_of_the_whole_array() -> None:
    rows, columns = jnp.array([6, 0, 3, 4]), jnp.array([0, 5, 6, 99])
    key, x = jax.random.key(2), jax.random.normal(jax.random.key(0), (7, 100))
    whole = dropout(key, x, 0.5)
    np.testing.assert_array_equal(dropout(key, x[:, columns], 0.5, columns=columns, shape=x.shape), whole[:, columns])
    np.testing.assert_array_equal(dropout(key, x[rows], 0.5, rows=rows, shape=x.shape), whole[rows])
    both = dropout(key, x[rows][:, columns], 0.5, rows=rows, columns=columns, shape=x.shape)
    np.testing.assert_array_equal(both, whole[rows][:, columns])


@pytest.mark.parametrize("first_stage", [1, 2, 3])
def test_a_dense_stage_needs_no_columns_that_are_zero(first_stage: int) -> None:
    config = ModelConfig(
        input_size=4, hidden_dims=(8, 64, 96), layers_per_block=(1,), apply_pooling=(0,), apply_bn=(0,), num_blocks=1,
        num_classes=3, dropout_rate=0.5,
    )  # fmt: skip
    params = init_variables(config, jax.random.key(0))["params"]
    width = config.dense_widths[first_stage - 1]
    columns = np.arange(3, width, 5)
    x = np.zeros((7, width), np.float32)
    x[:, columns] = np.random.default_rng(0).normal(size=(7, len(columns)))

    def loss(params: Any, x: Any, columns: Any) -> Any:
        logits = CNN(config).apply(
            {"params": params}, Features(x, first_stage, columns), True, rngs={"dropout": jax.random.key(1)}
        )
        return jnp.square(logits).sum(), logits

    gradient = jax.jit(jax.grad(loss, (0, 1), has_aux=True))
    whole, some = (gradient(params, *given) for given in ((x, None), (x[:, columns], columns)))
    (to_params, to_x), logits = whole
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), some, ((to_params, to_x[:, columns]), logits)
    )


@pytest.mark.parametrize("weight_init", ["default", "kaiming"])
def test_variables_and_logits_are_of_the_type_that_is_asked_for(weight_init: str) -> None:
    config = replace(SHALLOW, hidden_dims=(4, 4, 4, 4, 6, 5), weight_init=weight_init)

    def logits_type(model: CNN, variables: Any) -> Any:
        features = Features(jax.ShapeDtypeStruct((2, 64), jnp.float32), 4)
        return jax.eval_shape(model.apply, variables, features).dtype

    single = shapes_of_variables(config)
    with jax.enable_x64(True):
        double = shapes_of_variables(config)
        assert {a.dtype for a in jax.tree.leaves(double["params"])} == {jnp.dtype("float64")}
        assert logits_type(CNN(config), double) == jnp.float64
    assert {a.dtype for a in jax.tree.leaves(single["params"])} == {jnp.dtype("float32")}
    assert logits_type(CNN(config, dtype=jnp.bfloat16), single) == jnp.bfloat16


def test_threefry_gives_the_words_that_jax_gives() -> None:
    key = jax.random.key_data(jax.random.key(7))
    x, y = jnp.arange(1000, dtype=jnp.uint32), jnp.arange(1000, dtype=jnp.uint32) * jnp.uint32(2**31 + 5)
    expected = threefry_2x32(key, jnp.concatenate([x, y]))
    np.testing.assert_array_equal(jnp.concatenate(threefry2x32(key, x, y)), expected)


TORCH_INITS = {
    "xavier": torch.nn.init.xavier_uniform_,
    "kaiming": lambda w: torch.nn.init.kaiming_uniform_(w, nonlinearity="relu"),
    "normal": lambda w: torch.nn.init.normal_(w, 0, 0.01),
    "default": lambda w: None,
}


@pytest.mark.parametrize("kind", TORCH_INITS)
def test_initialisers_draw_from_pytorchs_distributions(kind: str) -> None:
    config = ModelConfig(
        input_size=8, hidden_dims=(64, 96, 80, 48), layers_per_block=(1, 2), apply_pooling=(True, False),
        apply_bn=(True, False), num_blocks=2, weight_init=kind,
    )  # fmt: skip
    ours = to_torch(init_variables(config, jax.random.key(7)), config)
    torch.manual_seed(0)
    for name, theirs in TorchCNN(config).state_dict().items():
        if theirs.ndim > 1:
            TORCH_INITS[kind](theirs)
            n = theirs.numel()
            assert abs(ours[name].std() / theirs.std() - 1) < 5 / n**0.5
            assert abs(ours[name].mean()) < 5 * theirs.std() / n**0.5
            if kind != "normal":  # uniform: the bounds tell the distribution
                assert abs(ours[name].abs().max() / theirs.abs().max() - 1) < 20 / n
        elif name.endswith("bias") and kind != "default" and ".1." not in name:
            assert not ours[name].any()
        elif kind == "default" and name.endswith("bias") and name != "blocks.0.1.bias":
            assert abs(ours[name].abs().max() / theirs.abs().max() - 1) < 0.5


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("hidden_dims", {"hidden_dims": (32, 128, 256, 512, 512)}),
        ("hidden_dims", {"hidden_dims": (32, 128, 0, 512, 512, 128)}),
        ("hidden_dims", {"hidden_dims": (32, 128, 10**400, 512, 512, 128)}),
        ("hidden_dims", {"hidden_dims": (32, 128, 2.5, 512, 512, 128)}),
        ("layers_per_block", {"layers_per_block": (1, 1, 1)}),
        ("layers_per_block", {"layers_per_block": (1, 0, 1, 1)}),
        ("apply_pooling", {"apply_pooling": (1, 1, 1)}),
        ("apply_pooling", {"input_size": 7}),
        ("apply_bn", {"apply_bn": (1, 1, 1, 2)}),
        ("num_blocks", {"num_blocks": 0}),
        ("num_classes", {"num_classes": 0}),
        ("in_channels", {"in_channels": True}),
        ("input_size", {"input_size": "32"}),
        ("activation_function", {"activation_function": "swishy"}),
        ("weight_init", {"weight_init": "he"}),
        ("dropout_rate", {"dropout_rate": 1.0}),
        ("dropout_rate", {"dropout_rate": -0.1}),
        ("dropout_rate", {"dropout_rate": float("nan")}),
    ],
)
def test_a_network_that_cannot_be_is_refused_by_the_name_of_the_field(field: str, changes: dict) -> None:
    with pytest.raises(InputError, match=rf"model\.{field}="):
        ModelConfig(**changes)


def test_images_that_are_no_floating_point_numbers_are_refused() -> None:
    config = ModelConfig(
        input_size=8, hidden_dims=(4, 9, 7), layers_per_block=(1,), apply_pooling=(True,), apply_bn=(False,),
        num_blocks=1,
    )  # fmt: skip
    variables = zeros_of(config)
    with pytest.raises(
        InputError, match=r"the images are uint8, not floating-point; see jaxcnn\.data\.augment\.standardise"
    ):
        CNN(config).apply(variables, jnp.zeros((1, 8, 8, 3), jnp.uint8))
