"""Steps, epochs and evaluation: padded batches against PyTorch without padding, and forms against each other."""

from collections.abc import Iterator
from dataclasses import replace

import jax
import numpy as np
import pytest
import torch
from small_training import (
    MODEL,
    STANDARDISATION,
    assert_same_bits,
    begin,
    copy,
    draw_split,
    experiment,
    torch_inputs,
    variables_of,
)

from jaxcnn.config import OptimConfig
from jaxcnn.data.splits import Split, epoch_order
from jaxcnn.kernels.executables import jit
from jaxcnn.training.epoch import batches, evaluate, make_train_epoch
from jaxcnn.training.records import Batch, Metrics, softmax
from jaxcnn.training.step import init_state, make_eval_step, make_train_step
from jaxcnn.weights.convert import from_torch, to_torch
from jaxcnn.weights.pytorch_network import TorchCNN

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.fixture
def in_double_precision() -> Iterator[None]:
    """Has the whole step compute in float64, so that a comparison with PyTorch may be exact."""
    with jax.enable_x64(True):
        yield


RATE = 2.0**-7  # float32 holds it
OPTIMIZERS = {
    "adam": lambda p: torch.optim.Adam(p, RATE, weight_decay=0.02),
    "adamw": lambda p: torch.optim.AdamW(p, RATE, weight_decay=0.02),
    "sgd": lambda p: torch.optim.SGD(p, RATE, momentum=0.9, weight_decay=0.02),
}


@pytest.mark.usefixtures("in_double_precision")
@pytest.mark.parametrize(
    ("optimizer", "frozen_stages", "clip_norm", "smoothing"),
    [
        pytest.param("adam", 0, None, 0.0, marks=pytest.mark.slow),
        ("sgd", 1, 0.03, 0.1),
        pytest.param("adamw", 2, 0.03, 0.0, marks=pytest.mark.slow),
        pytest.param("sgd", 3, None, 0.0, marks=pytest.mark.slow),
        ("adam", 4, 0.03, 0.1),
    ],
)
def test_an_epoch_with_a_short_last_batch_equals_pytorch_on_the_real_images(
    optimizer: str, frozen_stages: int, clip_norm: float | None, smoothing: float
) -> None:
    """23 images in batches of 8, so the last batch is one image of padding; frozen stages are in evaluation mode."""
    torch.manual_seed(frozen_stages)
    network = TorchCNN(MODEL).double()
    with torch.no_grad():  # statistics that are not those of a fresh network
        for name, buffer in network.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand_like(buffer) + 0.5)
    split, order = draw_split(23, 5), np.random.default_rng(6).permutation(23)
    optim = OptimConfig(
        optimizer=optimizer, weight_decay=0.02, clip_norm=clip_norm, label_smoothing=smoothing, schedule="constant"
    )  # fmt: skip
    state = init_state(from_torch(network.state_dict(), MODEL), MODEL, optim, seed=0, frozen_stages=frozen_stages)
    before = copy(state)
    step = make_train_step(
        model=MODEL, optim=optim, schedule=lambda step: RATE, standardisation=STANDARDISATION, augmentation="none",
        frozen_stages=frozen_stages,
    )  # fmt: skip
    train_epoch = make_train_epoch(step, split, 8, steps_per_call=2)
    state, metrics = train_epoch(state, order, 1.0, lambda seen, total: None)

    stages = [*network.blocks, network.fc1, network.fc2]
    for stage in stages[:frozen_stages]:
        stage.requires_grad_(False)
    trained = [p for p in network.parameters() if p.requires_grad]
    torch_optimizer = OPTIMIZERS[optimizer](trained)
    network.train()
    for stage in stages[:frozen_stages]:
        stage.eval()
    for i, indices in enumerate(np.split(order, [8, 16])):
        logits = network(torch_inputs(Split(split.images[indices], split.labels[indices])))
        labels = torch.from_numpy(split.labels[indices]).long()
        loss = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=smoothing)
        torch_optimizer.zero_grad()
        loss.backward()
        if clip_norm is not None:
            norm = torch.nn.utils.clip_grad_norm_(trained, clip_norm)
            assert norm > clip_norm
            for p in trained:  # PyTorch divides by the norm + 1e-6
                p.grad *= (norm + 1e-6) / norm
        torch_optimizer.step()
        assert metrics.loss[i] == pytest.approx(loss.item() * len(indices), abs=1e-9)
        assert metrics.correct[i] == (logits.argmax(1) == labels).sum().item()
        assert metrics.count[i] == len(indices)

    for name, value in to_torch(variables_of(state), MODEL).items():
        np.testing.assert_allclose(value.numpy(), network.state_dict()[name].numpy(), rtol=0, atol=1e-8, err_msg=name)
    assert int(state.step) == 3
    modules = ["block_0", "block_1", "fc1", "fc2", "fc3"]
    assert set(state.opt_state) == set(modules[frozen_stages:])
    for name in modules[:frozen_stages]:
        assert_same_bits(state.params[name], before.params[name])
        assert_same_bits(state.batch_stats.get(name, {}), before.batch_stats.get(name, {}))
    for name in modules[frozen_stages:]:
        changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), state.params[name], before.params[name])
        assert all(jax.tree.leaves(changed))


@pytest.mark.usefixtures("in_double_precision")
def test_what_the_padding_shows_changes_nothing() -> None:
    config = experiment()
    step = jit(make_train_step(
        model=MODEL, optim=config.optim, schedule=lambda step: 0.01, standardisation=STANDARDISATION,
        augmentation="none",
    ))  # fmt: skip
    split, other = draw_split(12, 0), draw_split(12, 1)
    mask = np.arange(12) < 7
    results = []
    for padding in (split, other):
        images = np.where(mask[:, None, None, None], split.images, padding.images)
        results.append(step(begin(config), Batch(images, np.where(mask, split.labels, padding.labels), mask), 1.0))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "steps_per_call", [2, pytest.param(1, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)]
)
def test_steps_in_one_call_are_steps_one_by_one(steps_per_call: int | None) -> None:
    """Augmented and with dropout, so that the keys have to be the same, too."""
    config = experiment(model=replace(MODEL, dropout_rate=0.3), optimizer="sgd", learning_rate=0.05)
    step = make_train_step(
        model=config.model,
        optim=config.optim,
        schedule=lambda step: 0.05,
        standardisation=STANDARDISATION,
        augmentation="flipcrop",
    )
    split, order = draw_split(37, 0), epoch_order(0, 0, 37)
    by_hand, losses, jitted = begin(config), [], jax.jit(step)
    for batch in batches(split, order, 16):
        by_hand, metrics = jitted(by_hand, batch, np.float32(0.5))
        losses.append(float(metrics.loss))
    calls: list[tuple[int, Metrics]] = []
    train_epoch = make_train_epoch(step, split, 16, steps_per_call=steps_per_call)
    state, metrics = train_epoch(begin(config), order, 0.5, lambda seen, total: calls.append((seen, total)))
    assert jax.tree.structure(state) == jax.tree.structure(by_hand)
    for a, b in zip(jax.tree.leaves(state), jax.tree.leaves(by_hand), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6)
    np.testing.assert_allclose(metrics.loss, losses, rtol=1e-6)
    assert metrics.count.tolist() == [16, 16, 5]
    # Progress within the epoch: the images seen, and sums over them.
    seen = {1: [16, 32, 37], 2: [32, 37], None: [37]}[steps_per_call]
    assert [s for s, _ in calls] == [float(total.count) for _, total in calls] == seen
    ends = np.asarray({1: [0, 1, 2], 2: [1, 2], None: [2]}[steps_per_call])
    np.testing.assert_allclose([t.loss for _, t in calls], np.cumsum(metrics.loss.astype(float))[ends], rtol=1e-12)


@pytest.mark.parametrize("batch_size", [16, 37, 50])
def test_evaluation_sums_exactly_over_a_set_that_no_batch_divides(batch_size: int) -> None:
    split = draw_split(37, 3)
    torch.manual_seed(0)
    network = TorchCNN(MODEL).double().eval()
    with torch.no_grad():
        logits = network(torch_inputs(split)).numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    variables = from_torch(network.float().state_dict(), MODEL)
    loss, accuracy, found = evaluate(
        jax.jit(make_eval_step(model=MODEL, standardisation=STANDARDISATION)), variables, split, batch_size
    )
    assert loss == pytest.approx(-log_probabilities[np.arange(37), split.labels].mean(), rel=1e-6)
    assert accuracy == 100 * np.sum(logits.argmax(1) == split.labels) / 37
    np.testing.assert_allclose(found, logits, atol=1e-5)
    np.testing.assert_allclose(softmax(found), np.exp(log_probabilities), atol=1e-6)


def test_probabilities_of_large_and_infinite_logits() -> None:
    logits = np.array([[1e4, 0, -1e4], [2, 2, 2], [np.inf, 0, 0]], np.float32)
    found = softmax(logits)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found[:2], [[1, 0, 0], [1 / 3] * 3], rtol=1e-7)
    assert np.isnan(found[2, 0])
