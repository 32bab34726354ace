"""Transfers: against the original's recorded steps, and frozen, unfrozen and new parameters leaf by leaf."""

from dataclasses import replace
from itertools import pairwise, product
from typing import Any

import jax
import numpy as np
import pytest
import torch
from test_parity import NETWORKS, compare_weights, load

from jaxcnn import CNN, DataConfig, ExperimentConfig, ModelConfig, OptimConfig, TrainConfig
from jaxcnn.config import FreezeConfig, Mask, Precision
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.data.augment import standardise
from jaxcnn.data.splits import Dataset, ImageRows, Split
from jaxcnn.kernels.executables import jit
from jaxcnn.masks import frozen_stages
from jaxcnn.model import init_variables
from jaxcnn.training.features import SharedFeatures, compute_features
from jaxcnn.training.loop import fit
from jaxcnn.training.records import Batch
from jaxcnn.training.step import init_state, make_train_step
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.pytorch_network import TorchCNN

MASKS = ("frozen", "partial", "full")


def recorded_start(name: str, mask: str) -> tuple[ModelConfig, dict[str, Any], dict[str, np.ndarray]]:
    config, _, trace = load(name)
    config = replace(config, num_classes=100)
    prefix = f"{mask}/before/"
    return config, {k.removeprefix(prefix): v for k, v in trace.items() if k.startswith(prefix)}, trace


def five_steps(config: ModelConfig, weights: Any, trace: Any, frozen: int, **options: Any) -> tuple[Any, list[float]]:
    optim = OptimConfig(schedule="constant")
    step = jit(
        make_train_step(
            model=config, optim=optim, schedule=lambda step: 1e-3,
            standardisation=Standardisation(trace["mean"], trace["std"]), augmentation="none", frozen_stages=frozen,
            **options,
        )
    )  # fmt: skip
    state = init_state(from_torch(weights, config), config, optim, seed=0, frozen_stages=frozen)
    losses = []
    for i in range(5):
        batch = Batch(trace["images"][i], trace["labels"][i], np.ones(16, bool))
        state, metrics = step(state, batch, 1.0)
        losses.append(float(metrics.loss) / 16)
    return state, losses


def recorded_rounding(
    config: ModelConfig, weights: Any, trace: dict[str, np.ndarray], mask: str, frozen: int
) -> dict[str, np.ndarray]:
    """How far the recorded float32 weights are from PyTorch's in float64.

    Where a gradient all but vanishes, Adam turns its rounding into a step: one weight of small/full is off by 1.5e-5.
    """
    network = TorchCNN(config).double()
    network.load_state_dict({name: torch.from_numpy(value) for name, value in weights.items()})
    for block in network.blocks[:frozen]:
        block.requires_grad_(False)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3, weight_decay=1e-5)
    for i in range(5):
        images = (trace["images"][i] / 255 - trace["mean"]) / trace["std"]
        logits = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(trace["labels"][i])).backward()
        optimizer.step()
    exact = {name: value.numpy() for name, value in network.state_dict().items()}
    return {name: np.abs(exact[name] - trace[f"{mask}/after/{name}"]) for name in exact}


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize(
    ("name", "mask"),
    [
        pytest.param(name, mask, marks=() if (name, mask) == ("small", "partial") else pytest.mark.slow)
        for name, mask in product(NETWORKS, MASKS)
    ],
)
def test_five_steps_under_the_originals_protocol_equal_the_originals(name: str, mask: str) -> None:
    config, weights, trace = recorded_start(name, mask)
    frozen = frozen_stages(FreezeConfig(mask=mask), config, 0)
    state, losses = five_steps(config, weights, trace, frozen, drifting_stats=True)
    np.testing.assert_allclose(losses, trace[f"{mask}/losses"], rtol=0, atol=1e-5)
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    compare_weights(variables, config, trace, mask, recorded_rounding(config, weights, trace, mask, frozen))
    logits = jax.jit(CNN(config).apply)(
        variables, standardise(trace["images"][5], Standardisation(trace["mean"], trace["std"]))
    )
    np.testing.assert_allclose(logits, trace[f"{mask}/logits"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("mask", ["frozen", "partial"])
@pytest.mark.parametrize("name", ["small", pytest.param("deep", marks=pytest.mark.slow)])
def test_frozen_means_bit_identical_and_without_optimiser_state(name: str, mask: str) -> None:
    config, weights, trace = recorded_start(name, mask)
    before = from_torch(weights, config)
    frozen = frozen_stages(FreezeConfig(mask=mask), config, 0)
    state, _ = five_steps(config, weights, trace, frozen)
    kept = [f"block_{i}" for i in range(frozen)]
    moved = [n for n in before["params"] if n not in kept]
    assert sorted(state.opt_state) == sorted(moved)
    for block in kept:
        jax.tree.map(np.testing.assert_array_equal, state.params[block], before["params"][block])
        if block in before["batch_stats"]:
            jax.tree.map(np.testing.assert_array_equal, state.batch_stats[block], before["batch_stats"][block])
    for module in moved:
        for a, b in zip(jax.tree.leaves(state.params[module]), jax.tree.leaves(before["params"][module]), strict=True):
            assert np.any(np.asarray(a) != b)


@pytest.mark.slow
def test_the_compiled_step_does_less_the_more_is_frozen() -> None:
    config, weights, trace = recorded_start("small", "full")
    flops = {}
    for mask in MASKS:
        frozen = frozen_stages(FreezeConfig(mask=mask), config, 0)
        optim = OptimConfig()
        step = make_train_step(
            model=config, optim=optim, schedule=lambda step: 1e-3,
            standardisation=Standardisation(trace["mean"], trace["std"]), augmentation="none", frozen_stages=frozen,
        )  # fmt: skip
        state = init_state(from_torch(weights, config), config, optim, seed=0, frozen_stages=frozen)
        batch = Batch(trace["images"][0], trace["labels"][0], np.ones(16, bool))
        flops[mask] = jax.jit(step).lower(state, batch, 1.0).compile().cost_analysis()["flops"]
    assert flops["frozen"] < flops["partial"] < flops["full"]


TINY = ModelConfig(
    input_size=8, hidden_dims=(4, 6, 8, 6), layers_per_block=(1, 1), apply_pooling=(1, 1), apply_bn=(1, 0),
    num_blocks=2, num_classes=3, dropout_rate=0.3,
)  # fmt: skip


def tiny_data(n: int = 20) -> Dataset:
    rng = np.random.default_rng(0)
    split = Split(rng.integers(0, 256, (n, 8, 8, 3), np.uint8), rng.integers(0, 3, n).astype(np.int32))
    return Dataset("tiny", split, split, split, ("a", "b", "c"), Standardisation((0.5,) * 3, (0.3,) * 3))


def tiny_run(
    freeze: FreezeConfig,
    epochs: int,
    precision: Precision = "float32",
    model: ModelConfig = TINY,
    variables: Any = None,
    **optim: Any,
) -> list[Any]:
    """The parameters before training and after each epoch, and the last state."""
    config = ExperimentConfig(
        model=model,
        data=DataConfig(augment="none"),
        optim=OptimConfig(schedule="constant", **optim),
        train=TrainConfig(
            epochs=epochs, batch_size=8, early_stopping_patience=None, early_stopping_target=None, precision=precision
        ),
        freeze=freeze,
    )
    variables = variables or init_variables(model, jax.random.key(0))
    frozen = frozen_stages(freeze, model, 0)
    state = init_state(variables, model, config.optim, seed=0, frozen_stages=frozen)
    seen = [jax.device_get(variables["params"])]
    for trained, _ in fit(state, config, tiny_data()):
        seen.append(jax.device_get(trained.params))
    return [*seen, jax.device_get(trained)]


def moved(before: Any, after: Any) -> set[str]:
    same = {n: jax.tree.leaves(jax.tree.map(np.array_equal, before[n], after[n])) for n in before}
    for name, leaves in same.items():
        assert all(leaves) or not any(leaves), f"{name} moved in part"
    return {name for name, leaves in same.items() if not any(leaves)}


@pytest.mark.slow
@pytest.mark.parametrize("cache", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_linear_probing_then_fine_tuning_moves_the_head_then_what_the_mask_says(cache: bool) -> None:
    freeze = FreezeConfig(mask="partial", freeze_until_block=0, probe_epochs=2, cache_features=cache)
    *params, state = tiny_run(freeze, 4)
    assert [moved(a, b) for a, b in pairwise(params)] == [
        {"fc3"},
        {"fc3"},
        {"block_1", "fc1", "fc2", "fc3"},
        {"block_1", "fc1", "fc2", "fc3"},
    ]
    # 20 images in batches of 8 are three steps an epoch; what thawed after two epochs began its own count.
    counts = {name: int(s[1].count) for name, s in state.opt_state.items()}
    assert counts == {"block_1": 6, "fc1": 6, "fc2": 6, "fc3": 12}


@pytest.mark.slow
def test_gradual_unfreezing_adds_a_stage_at_a_time_from_the_top() -> None:
    *params, state = tiny_run(FreezeConfig(mask="full", unfreeze_every=1), 6)
    modules = ["fc3", "fc2", "fc1", "block_1", "block_0"]
    assert [moved(a, b) for a, b in pairwise(params)] == [set(modules[: min(i + 1, 5)]) for i in range(6)]
    counts = {name: int(s[1].count) for name, s in state.opt_state.items()}
    assert counts == {"fc3": 18, "fc2": 15, "fc1": 12, "block_1": 9, "block_0": 6}


def test_discriminative_rates_are_powers_of_the_decay() -> None:
    """With plain gradient descent, one step moves each leaf by its rate times the gradient."""
    sgd = OptimConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0, schedule="constant")
    data = tiny_data()
    deltas = {}
    for decay in (1.0, 0.5):
        step = make_train_step(
            model=TINY, optim=sgd, schedule=lambda step: 1e3, standardisation=data.standardisation, augmentation="none",
            layer_decay=decay,
        )  # fmt: skip
        variables = init_variables(TINY, jax.random.key(0))
        batch = Batch(data.train.images, data.train.labels, np.ones(20, bool))
        state, _ = jit(step)(init_state(variables, TINY, sgd, seed=0), batch, 1.0)
        deltas[decay] = jax.tree.map(lambda a, b: np.asarray(b) - a, jax.device_get(variables["params"]), state.params)
    for stage, name in enumerate(["block_0", "block_1", "fc1", "fc2", "fc3"]):
        for plain, decayed in zip(jax.tree.leaves(deltas[1.0][name]), jax.tree.leaves(deltas[0.5][name]), strict=True):
            np.testing.assert_allclose(decayed, plain * 0.5 ** (4 - stage), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("mask", "precision"),
    [
        ("frozen", "float32"),
        pytest.param("partial", "bfloat16", marks=pytest.mark.slow),
        pytest.param("frozen", "bfloat16", marks=pytest.mark.slow),
        pytest.param("partial", "float32", marks=pytest.mark.slow),
    ],
)
def test_cached_features_train_the_same_weights(mask: Mask, precision: Precision) -> None:
    runs = [
        tiny_run(FreezeConfig(mask=mask, freeze_until_block=0, cache_features=cache), 5, precision, learning_rate=1e-2)
        for cache in (True, False)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), runs[0][-1], runs[1][-1])


def half_dead() -> tuple[ModelConfig, Any]:
    """A network whose last block has 512 channels, 300 of which are zero for every image; fc1 reads 2 x 2 of each."""
    model = replace(TINY, hidden_dims=(4, 512, 8, 6))
    variables = init_variables(model, jax.random.key(0))
    bias = variables["params"]["block_1"]["conv_0"]["bias"]
    dead = np.random.default_rng(0).permutation(512)[:300]
    variables["params"]["block_1"]["conv_0"]["bias"] = bias.at[dead].set(-100)
    return model, variables


def test_features_leave_out_what_is_zero_for_every_image() -> None:
    model, variables = half_dead()
    data = tiny_data()
    black = Split(np.zeros_like(data.train.images), data.train.labels)
    found = compute_features(
        variables, [black, data.train], model=model, standardisation=data.standardisation, end_stage=2, batch_size=8
    )
    whole = [
        np.asarray(CNN(model).apply(variables, standardise(s.images, data.standardisation), end_stage=2)).reshape(
            20, -1
        )
        for s in (black, data.train)
    ]
    needed = np.flatnonzero(np.any(np.concatenate(whole), 0))
    assert len(needed) <= 4 * 212  # of 2,048
    assert len(np.setdiff1d(needed, np.flatnonzero(whole[0].any(0)))) > 200  # the first split alone does not tell
    for split, features in zip(found, whole, strict=True):
        columns = split.images.columns
        assert set(needed) <= set(columns)
        assert len(columns) <= len(needed) + 2 * 64
        assert np.all(np.diff(columns) > 0)
        restored = np.zeros_like(features)
        restored[:, columns] = split.images.values
        np.testing.assert_allclose(restored, features, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_features_without_zeros_train_the_same_weights() -> None:
    model, variables = half_dead()
    runs = [
        tiny_run(FreezeConfig(mask="frozen", cache_features=cache), 5, model=model, variables=variables, clip_norm=0.5)
        for cache in (True, False)
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5), runs[0][-1], runs[1][-1])
    before, after = (run["fc1"]["kernel"] for run in (runs[0][0], runs[0][-2]))
    assert np.mean(before != after) > 0.99  # L2 moves the weights of zeros, too


def test_runs_share_the_features_of_equal_weights_and_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data, variables = tiny_data(), init_variables(TINY, jax.random.key(0))
    head = jax.tree.map(np.zeros_like, variables["params"]["fc3"])
    images, labels = data.train.images, data.train.labels
    settings = {"model": TINY, "standardisation": data.standardisation, "batch_size": 8}
    computed = []

    def count(*args: Any, **options: Any) -> list[Split]:
        computed.append(options["end_stage"])
        return compute_features(*args, **options)

    def get(images: Any = images, variables: Any = variables, end_stage: int = 1, **options: Any) -> bool:
        """Whether the features were computed. They are right in any case, and have the labels of this call."""
        computed.clear()
        splits = [Split(images, labels), Split(images, labels[::-1])]
        options = {**settings, "end_stage": end_stage, **options}
        found, wanted = shared.compute(variables, splits, **options), compute_features(variables, splits, **options)
        assert jax.tree.structure(found) == jax.tree.structure(wanted)
        jax.tree.map(np.testing.assert_array_equal, found, wanted)
        assert computed in ([], [end_stage])
        return bool(computed)

    monkeypatch.setattr("jaxcnn.training.features.compute_features", count)
    shared = SharedFeatures()
    assert get()
    assert not get(images.copy(), {**variables, "params": {**variables["params"], "fc3": head}})
    others: list[dict[str, Any]] = [
        {"images": 255 - images},
        {"variables": init_variables(TINY, jax.random.key(1))},
        {"end_stage": 2},
        {"precision": "bfloat16"},
        {"standardisation": Standardisation((0.4,) * 3, (0.3,) * 3)},
    ]
    for other in others:
        assert get(**other)
        assert not get(**other)
        assert get()  # only the last ones are kept
    assert get(ImageRows(images, np.arange(len(images))))
    assert get(ImageRows(images, np.arange(len(images))))
    assert [get(), get()] == [True, False]
    shared.drop()
    assert get()
