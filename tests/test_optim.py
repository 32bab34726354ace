"""Optimisers, schedules and what validation decides, against torch.optim and a plain simulation."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxcnn.config import OptimConfig, TrainConfig
from jaxcnn.training.decisions import best_epoch, plateau_scale, stop_reason
from jaxcnn.training.optim import make_optimizer, make_schedule
from jaxcnn.training.step import cross_entropy

SHAPES = ((7, 5), (5,), (3, 3, 2, 4))
OPTIMIZERS: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer]]] = {
    "adam": ({"weight_decay": 0.03}, lambda p, lr: torch.optim.Adam(p, lr, weight_decay=0.03)),
    "adam without decay": (
        {"optimizer": "adam", "weight_decay": 0.0},
        lambda p, lr: torch.optim.Adam(p, lr),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.03},
        lambda p, lr: torch.optim.AdamW(p, lr, weight_decay=0.03),
    ),
    "sgd": (
        {"optimizer": "sgd", "momentum": 0.8, "weight_decay": 0.03},
        lambda p, lr: torch.optim.SGD(p, lr, momentum=0.8, weight_decay=0.03),
    ),
    "sgd without momentum": (
        {"optimizer": "sgd", "momentum": 0.0, "weight_decay": 0.0},
        lambda p, lr: torch.optim.SGD(p, lr),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("dtype", "atol"), [(np.float64, 1e-12), (np.float32, 2e-7)])
def test_twenty_steps_equal_pytorchs(name: str, dtype: type, atol: float) -> None:
    """Gradients of very different sizes, so that Adam's epsilon matters to some of them."""
    fields, make_torch = OPTIMIZERS[name]
    rng = np.random.default_rng(1)
    rate = 0.01 if dtype == np.float64 else 1e-3
    start = [(0.1 * rng.standard_normal(shape)).astype(dtype) for shape in SHAPES]
    sizes = [10.0 ** rng.uniform(-9, 0, shape) for shape in SHAPES]
    gradients = [[(s * rng.standard_normal(s.shape)).astype(dtype) for s in sizes] for _ in range(20)]

    theirs = [torch.nn.Parameter(torch.from_numpy(p.copy())) for p in start]
    optimizer = make_torch(theirs, rate)
    for gradient in gradients:
        for parameter, g in zip(theirs, gradient, strict=True):
            parameter.grad = torch.from_numpy(g.copy())
        optimizer.step()

    with jax.enable_x64(True) if dtype == np.float64 else contextlib.nullcontext():
        ours = [jnp.asarray(p) for p in start]
        transform = make_optimizer(OptimConfig(**fields))
        state, update = transform.init(ours), jax.jit(transform.update)
        for gradient in gradients:
            direction, state = update([jnp.asarray(g) for g in gradient], state, ours)
            ours = [p - rate * d for p, d in zip(ours, direction, strict=True)]
        for mine, wanted, first in zip(ours, theirs, start, strict=True):
            assert mine.dtype == dtype
            np.testing.assert_allclose(mine, wanted.detach().numpy(), rtol=0, atol=atol)
            assert np.abs(np.asarray(mine) - first).max() > 1e-3  # they moved


def test_adams_l2_enters_the_moments_and_adamws_decay_does_not() -> None:
    """With a gradient of zero Adam goes by the sign of the weight, AdamW by its size, wherever it stands."""
    params = jnp.asarray([2.0, -0.5])
    for name, wanted in (("adam", [1.0, -1.0]), ("adamw", [0.2, -0.05])):
        optimizer = make_optimizer(OptimConfig(optimizer=name, weight_decay=0.1))
        direction, _ = optimizer.update(jnp.zeros(2), optimizer.init(params), params)
        np.testing.assert_allclose(direction, wanted, rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 30.0])
def test_clipping_by_global_norm_equals_pytorchs(scale: float) -> None:
    """PyTorch adds 1e-6 to the norm it divides by; but for that the two are equal to the last digits."""
    rng = np.random.default_rng(2)
    gradient = [scale * rng.standard_normal(shape) for shape in SHAPES]
    parameters = [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]
    for parameter, g in zip(parameters, gradient, strict=True):
        parameter.grad = torch.from_numpy(g.copy())
    norm = torch.nn.utils.clip_grad_norm_(parameters, 2.0).item()
    theirs_is_smaller = (norm + 1e-6) / norm if norm > 2 else 1.0
    with jax.enable_x64(True):
        clip = optax.clip_by_global_norm(2.0)
        ours, _ = clip.update([jnp.asarray(g) for g in gradient], clip.init(None))
        for mine, parameter in zip(ours, parameters, strict=True):
            np.testing.assert_allclose(mine, parameter.grad.numpy() * theirs_is_smaller, rtol=1e-12)
        assert float(optax.tree.norm(ours)) == pytest.approx(min(norm, 2.0), rel=1e-12)


# Odd digits: with round ones, the smallest cut of 1e-8 would be decided by how either side rounds.
RATES = st.floats(-8.2, -0.5).map(lambda e: 1.0123 * 10.0**e)
FACTORS = st.sampled_from([0.5123, 0.1037, 0.9071, 0.3])
LEVELS = st.sampled_from([0.5, 0.5 * (1 - 1e-4), 0.5 * (1 - 0.9e-4), 0.5 * (1 - 1.1e-4), 0.4, 0.7, 1.0, 1.0 + 1e-5])
LOSSES = st.lists(LEVELS | st.floats(0, 3) | st.just(math.inf), max_size=40)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(losses=LOSSES, rate=RATES, factor=FACTORS, patience=st.integers(0, 4))
def test_plateaus_cut_when_pytorch_cuts(losses: list[float], rate: float, factor: float, patience: int) -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], rate)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=factor, patience=patience)
    config = OptimConfig(learning_rate=rate, plateau_factor=factor, plateau_patience=patience)
    for epoch, loss in enumerate(losses):
        scheduler.step(loss)
        wanted = optimizer.param_groups[0]["lr"]
        assert rate * plateau_scale(losses[: epoch + 1], config) == pytest.approx(wanted, rel=1e-12)


def test_the_learning_rate_is_cut_until_a_cut_would_be_too_small_to_matter() -> None:
    """PyTorch's floor: after enough plateaus the rate stays, above zero."""
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], 1e-3)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0)
    for _ in range(60):
        scheduler.step(1.0)
    config = OptimConfig(plateau_patience=0)
    assert 1e-3 * plateau_scale([1.0] * 60, config) == optimizer.param_groups[0]["lr"] == 1e-3 * 0.5**16


def test_plateaus_are_nothing_to_the_other_schedules() -> None:
    for schedule in ("cosine", "constant"):
        assert plateau_scale([1.0] * 50, OptimConfig(schedule=schedule, plateau_patience=0)) == 1.0
    assert plateau_scale([], OptimConfig()) == 1.0


def original_stopper(
    losses: list[float], accuracies: list[float], patience: int | None, target: float | None
) -> int | None:
    """The epoch (counted from 1) after which the original's early stopper ends a run of these epochs."""
    best, counter = math.inf, 0
    for epoch, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True), 1):
        if target is not None and accuracy >= target:
            return epoch
        if loss <= best:
            best, counter = loss, 0
        else:
            counter += 1
        if patience is not None and counter >= patience:
            return epoch
    return None


EPOCHS = st.lists(
    st.tuples(
        st.sampled_from([0.1, 0.2, 0.3, 0.4, math.inf]) | st.floats(0, 1), st.sampled_from([10.0, 50.0, 90.0, 95.0])
    ),
    max_size=25,
)


@settings(max_examples=400, deadline=None, derandomize=True)
@given(
    epochs=EPOCHS,
    patience=st.none() | st.integers(1, 4),
    target=st.none() | st.sampled_from([50.0, 90.0, 95.0, 99.0]),
)
def test_training_stops_when_the_original_stops(
    epochs: list[tuple[float, float]], patience: int | None, target: float | None
) -> None:
    losses, accuracies = [loss for loss, _ in epochs], [accuracy for _, accuracy in epochs]
    config = TrainConfig(early_stopping_patience=patience, early_stopping_target=target)
    reasons = [stop_reason(losses[:n], accuracies[:n], config) for n in range(len(epochs) + 1)]
    stops = next((n for n, why in enumerate(reasons) if why is not None), None)
    assert stops == original_stopper(losses, accuracies, patience, target)
    if stops is not None:
        reached = target is not None and accuracies[stops - 1] >= target
        assert ("target" in str(reasons[stops])) == reached


def test_a_tie_and_the_target_decide_as_the_original_does() -> None:
    patient = TrainConfig(early_stopping_patience=2, early_stopping_target=None)
    assert stop_reason([0.5, 0.6, 0.5, 0.6], [0.0] * 4, patient) is None
    assert stop_reason([0.5, 0.6, 0.5, 0.6, 0.7], [0.0] * 5, patient) == "no lower validation loss for 2 epochs"
    both = TrainConfig(early_stopping_patience=1, early_stopping_target=90.0)
    assert stop_reason([0.5, 0.6], [0.0, 90.0], both) == "validation accuracy 90.00 % reached the target of 90 %"
    neither = TrainConfig(early_stopping_patience=None, early_stopping_target=None)
    assert stop_reason([0.1, *[0.5] * 200], [100.0] * 201, neither) is None
    assert stop_reason([], [], both) is None


def test_a_validation_loss_that_is_no_number_counts_as_no_improvement() -> None:
    config = TrainConfig(early_stopping_patience=2, early_stopping_target=None)
    nan = math.nan
    assert stop_reason([nan], [10.0], config) is None
    assert stop_reason([1.0, nan], [10.0] * 2, config) is None
    assert stop_reason([1.0, nan, nan], [10.0] * 3, config) is not None


@settings(max_examples=200, deadline=None, derandomize=True)
@given(epochs=EPOCHS.filter(len))
def test_the_best_epoch_is_the_most_accurate_then_the_lowest_loss_then_the_first(
    epochs: list[tuple[float, float]],
) -> None:
    best = 0
    for i, (loss, accuracy) in enumerate(epochs):
        if accuracy > epochs[best][1] or (accuracy == epochs[best][1] and loss < epochs[best][0]):
            best = i
    assert best_epoch([loss for loss, _ in epochs], [accuracy for _, accuracy in epochs]) == best


def test_cosine_equals_pytorchs_at_every_step() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.02)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=35)
    with jax.enable_x64(True):
        schedule = make_schedule(OptimConfig(learning_rate=0.02, schedule="cosine"), steps_per_epoch=7, epochs=5)
        for step in range(35):
            wanted = optimizer.param_groups[0]["lr"]
            np.testing.assert_allclose(schedule(jnp.asarray(step)), wanted, rtol=0, atol=1e-15)
            optimizer.step()
            scheduler.step()
        assert float(schedule(jnp.asarray(35))) == 0
        assert float(schedule(jnp.asarray(50))) == 0  # and stays there


def test_cosine_begins_after_the_warm_up_and_ends_at_zero() -> None:
    config = OptimConfig(learning_rate=0.4, schedule="cosine", warmup_epochs=1.5)
    with jax.enable_x64(True):
        schedule = make_schedule(config, steps_per_epoch=4, epochs=6)  # 6 steps of warm-up, 18 of cosine
        wanted = {0: 0.4 / 6, 2: 0.2, 5: 0.4, 6: 0.4, 12: 0.3, 15: 0.2, 18: 0.1, 24: 0.0}
        for step, rate in wanted.items():
            assert float(schedule(jnp.asarray(step))) == pytest.approx(rate, abs=1e-15)


@pytest.mark.parametrize("kind", ["constant", "plateau"])
def test_warm_up_rises_by_equal_steps_to_a_constant_rate(kind: str) -> None:
    warm = make_schedule(OptimConfig(learning_rate=0.3, schedule=kind, warmup_epochs=2), steps_per_epoch=5, epochs=9)
    rates = [float(warm(jnp.asarray(step))) for step in range(45)]
    np.testing.assert_allclose(rates, 0.3 * np.minimum(np.arange(1, 46) / 10, 1), rtol=1e-6)
    flat = make_schedule(OptimConfig(learning_rate=0.3, schedule=kind), steps_per_epoch=5, epochs=9)
    assert [float(flat(jnp.asarray(step))) for step in (0, 7, 44)] == [0.3] * 3


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_cross_entropy_equals_pytorchs_with_label_smoothing_too(smoothing: float) -> None:
    rng = np.random.default_rng(3)
    logits, labels = 5 * rng.standard_normal((64, 11)), rng.integers(0, 11, 64)
    logits[0] *= 200  # large enough to overflow what is not written for it
    wanted = torch.nn.functional.cross_entropy(
        torch.from_numpy(logits), torch.from_numpy(labels), label_smoothing=smoothing, reduction="none"
    ).numpy()
    with jax.enable_x64(True):
        ours = cross_entropy(jnp.asarray(logits), jnp.asarray(labels), smoothing)
        assert ours.dtype == np.float64
        np.testing.assert_allclose(ours, wanted, rtol=1e-13, atol=1e-13)
    single = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(labels), smoothing)
    np.testing.assert_allclose(single, wanted, rtol=1e-6, atol=1e-6)
    half = cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.asarray(labels), smoothing)
    assert half.dtype == np.float32  # the sum over classes is never taken in half precision


def test_whole_numbers_are_as_good_as_others() -> None:
    """JAX would take a Python int for an int32, which 2**31 is beyond."""
    config = OptimConfig(weight_decay=2**31, learning_rate=1, clip_norm=10**30)
    assert (config.weight_decay, config.learning_rate, config.clip_norm) == (2.0**31, 1.0, 1e30)
    optimizer = make_optimizer(config)
    direction, _ = optimizer.update(jnp.zeros(3), optimizer.init(jnp.ones(3)), jnp.ones(3))
    np.testing.assert_allclose(direction, np.ones(3), rtol=1e-6)
