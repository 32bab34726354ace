"""Steps, epochs and `fit`, against PyTorch on the real images alone and against themselves."""

import logging
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from experiments.pytorch_network import TorchCNN
from jaxcnn import CNN, InputError, ModelConfig
from jaxcnn import train as train_module
from jaxcnn.augment import standardise
from jaxcnn.backend import Form
from jaxcnn.checkpoint import open_checkpoints
from jaxcnn.config import DataConfig, ExperimentConfig, FreezeConfig, OptimConfig, TrainConfig
from jaxcnn.convert import from_torch, to_torch
from jaxcnn.data import Dataset, Split, epoch_order
from jaxcnn.step import Batch, Metrics, TrainState, init_state, make_eval_step, make_train_step
from jaxcnn.train import EpochRecord, Paused, batches, evaluate, fit, make_train_epoch, stopped

MODEL = ModelConfig(
    input_size=8, hidden_dims=(4, 6, 9, 7), layers_per_block=(1, 2), apply_pooling=(1, 0), apply_bn=(1, 1),
    num_blocks=2, num_classes=4, dropout_rate=0.0,
)  # fmt: skip
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module", autouse=True)
def compiled_once() -> Iterator[None]:
    """`fit` compiles its steps at each call; here, calls alike share even the small ones."""
    name = "jax_persistent_cache_min_compile_time_secs"
    old = getattr(jax.config, name)
    jax.config.update(name, 0)
    yield
    jax.config.update(name, old)


def draw_split(n: int, seed: int, classes: int = MODEL.num_classes) -> Split:
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return Split(images, rng.integers(0, classes, n).astype(np.int32))


def draw_dataset(train: int = 37, validation: int | None = 21) -> Dataset:
    held_out = None if validation is None else draw_split(validation, 1)
    return Dataset("noise", draw_split(train, 0), held_out, draw_split(19, 2), tuple("abcd"), MEAN, STD)


def contradicting() -> Dataset:
    """Training says class 0, validation class 1: the better the fit, the higher the validation loss."""
    dataset = draw_dataset()
    assert dataset.validation is not None
    return replace(
        dataset,
        train=Split(dataset.train.images, np.zeros_like(dataset.train.labels)),
        validation=Split(dataset.validation.images, np.ones_like(dataset.validation.labels)),
    )


def experiment(model: ModelConfig = MODEL, augment: Any = "none", **fields: Any) -> ExperimentConfig:
    """Of three epochs with batches of 16, which nothing stops; fields are those of OptimConfig and TrainConfig."""
    train = {"epochs": 3, "batch_size": 16, "early_stopping_patience": None, "early_stopping_target": None}
    seed = fields.pop("seed", 0)
    train |= {name: fields.pop(name) for name in list(fields) if name in train}
    return ExperimentConfig(
        seed=seed, model=model, data=DataConfig(augment=augment), optim=OptimConfig(**fields),
        train=TrainConfig(**train),
    )  # fmt: skip


def draw_variables(model: ModelConfig) -> dict[str, Any]:
    torch.manual_seed(0)
    return from_torch(TorchCNN(model).state_dict(), model)


def begin(config: ExperimentConfig) -> TrainState:
    return init_state(draw_variables(config.model), config.model, config.optim, seed=config.seed)


def copy(state: TrainState) -> Any:
    """What a state holds, safe from the steps that reuse its buffers."""
    return jax.tree.map(lambda leaf: np.array(leaf), state)


def run(config: ExperimentConfig, dataset: Dataset, **kwargs: Any) -> tuple[list[Any], list[EpochRecord]]:
    state = kwargs.pop("state", None) or begin(config)
    pairs = [(copy(state), record) for state, record in fit(state, config, dataset, **kwargs)]
    return [state for state, _ in pairs], [record for _, record in pairs]


def assert_same_bits(one: Any, other: Any) -> None:
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        a, b = np.asarray(a), np.asarray(b)
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        assert a.tobytes() == b.tobytes()


def untimed(records: Sequence[EpochRecord]) -> list[EpochRecord]:
    return [record._replace(seconds=0, images_per_second=0) for record in records]


def variables_of(state: Any) -> dict[str, Any]:
    return {"params": state.params, "batch_stats": state.batch_stats}


def torch_inputs(split: Split) -> torch.Tensor:
    pixels = (split.images.astype(np.float64) / 255 - np.array(MEAN)) / np.array(STD)
    return torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy())


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
        ("adam", 0, None, 0.0),
        ("sgd", 1, 0.03, 0.1),
        ("adamw", 2, 0.03, 0.0),
        ("sgd", 3, None, 0.0),
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
        model=MODEL, optim=optim, schedule=lambda step: RATE, mean=MEAN, std=STD, augmentation="none",
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
    step = jax.jit(make_train_step(
        model=MODEL, optim=config.optim, schedule=lambda step: 0.01, mean=MEAN, std=STD, augmentation="none",
    ))  # fmt: skip
    split, other = draw_split(12, 0), draw_split(12, 1)
    mask = np.arange(12) < 7
    results = []
    for padding in (split, other):
        images = np.where(mask[:, None, None, None], split.images, padding.images)
        results.append(step(begin(config), Batch(images, np.where(mask, split.labels, padding.labels), mask), 1.0))
    for a, b in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-9)


def test_steps_in_one_call_are_steps_one_by_one() -> None:
    """Augmented and with dropout, so that the keys have to be the same, too."""
    config = experiment(model=replace(MODEL, dropout_rate=0.3), optimizer="sgd", learning_rate=0.05)
    step = make_train_step(
        model=config.model, optim=config.optim, schedule=lambda step: 0.05, mean=MEAN, std=STD, augmentation="flipcrop"
    )
    split, order = draw_split(37, 0), epoch_order(0, 0, 37)
    by_hand, losses, jitted = begin(config), [], jax.jit(step)
    for batch in batches(split, order, 16):
        by_hand, metrics = jitted(by_hand, batch, np.float32(0.5))
        losses.append(float(metrics.loss))
    calls: list[tuple[int, Metrics]] = []
    for steps_per_call in (1, 2, None):
        calls.clear()
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


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    dataset = draw_dataset()
    config = experiment(model=replace(MODEL, dropout_rate=0.3), augment="flipcrop", epochs=2)
    states, records = run(config, dataset)
    again, same_records = run(config, dataset)
    assert_same_bits(states, again)
    assert untimed(records) == untimed(same_records)

    # Another seed from the same weights: only order, augmentation and dropout are left to differ.
    variables = draw_variables(config.model)
    for key_seed, order_seed in ((1, 0), (0, 1)):
        state = init_state(variables, config.model, config.optim, seed=key_seed)
        _, different = run(replace(config, seed=order_seed), dataset, state=state)
        assert different[0].train_loss != records[0].train_loss


def test_a_run_that_goes_on_from_a_checkpoint_equals_one_that_was_not_interrupted(tmp_path: Path) -> None:
    """With plateaus and a warm-up, which depend on the history; checkpoints are written while training goes on."""
    dataset = contradicting()
    config = experiment(
        model=replace(MODEL, dropout_rate=0.3), augment="flipcrop", epochs=5, learning_rate=0.02, plateau_patience=0,
        plateau_factor=0.3, warmup_epochs=1.5,
    )  # fmt: skip
    records: list[EpochRecord] = []
    states = []
    with open_checkpoints(tmp_path / "whole") as whole, open_checkpoints(tmp_path / "cut") as cut:
        for state, record in fit(begin(config), config, dataset):
            records.append(record)
            states.append(copy(state))
            whole.save(state, records)
            if len(records) <= 2:
                cut.save(state, records)
    assert len({record.learning_rate for record in records}) > 2  # plateaus did cut

    with open_checkpoints(tmp_path / "whole") as checkpoints:
        last = checkpoints.restore(lambda epochs: begin(config))
    assert last is not None
    assert_same_bits(copy(last[0]), states[-1])
    assert last[1] == records

    with open_checkpoints(tmp_path / "cut") as checkpoints:
        restored = checkpoints.restore(lambda epochs: begin(config))
    assert restored is not None
    state, history, part = restored
    assert part is None
    assert_same_bits(copy(state), states[1])
    assert history == records[:2]
    resumed_states, resumed_records = run(config, dataset, state=state, history=history)
    assert_same_bits(resumed_states, states[2:])
    assert untimed(resumed_records) == untimed(records[2:])
    assert run(config, dataset, state=resumed_states[-1], history=records)[1] == []  # nothing is left to do


def diverge_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Has this step (counted from 0) throw the weights out of what float32 can hold."""
    monkeypatch.setattr(
        train_module, "make_schedule", lambda *args, **kwargs: lambda now: jnp.where(now == step, 1e38, 0.0)
    )


def test_a_loss_that_is_no_number_ends_the_run_and_names_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    diverge_at(6, monkeypatch)  # the first step of the third epoch
    records = []
    with pytest.raises(InputError, match=r"the loss is (nan|inf) at step 7 \(epoch 3\).*optim\.learning_rate"):
        records += [record for _, record in fit(begin(experiment()), experiment(), draw_dataset())]
    assert records == []
    epochs = fit(begin(experiment()), experiment(), draw_dataset())
    assert [next(epochs)[1].epoch, next(epochs)[1].epoch] == [1, 2]


def test_weights_lost_in_the_last_step_of_an_epoch_end_the_run_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training losses are all finite still; it is the validation loss that is not."""
    diverge_at(2, monkeypatch)
    for patience in (None, 2):
        config = experiment(early_stopping_patience=patience)
        with pytest.raises(InputError, match=r"loss is (nan|inf)"):
            list(fit(begin(config), config, draw_dataset()))


def test_records_are_exact_sums_over_all_images() -> None:
    """A learning rate that changes no float32 and no batch norm: every epoch sees the network it began with."""
    model = replace(MODEL, apply_bn=(0, 0))
    config = experiment(model=model, learning_rate=1e-30, epochs=2, schedule="constant", weight_decay=0.0)
    dataset = draw_dataset()
    state = begin(config)
    network = TorchCNN(model).double()
    network.load_state_dict({name: v.double() for name, v in to_torch(variables_of(state), model).items()})

    def expected(split: Split) -> tuple[float, float]:
        with torch.no_grad():
            logits = network(torch_inputs(split))
        labels = torch.from_numpy(split.labels).long()
        correct = (logits.argmax(1) == labels).sum().item()
        return torch.nn.functional.cross_entropy(logits, labels).item(), 100 * correct / len(labels)

    for i, (_, record) in enumerate(fit(state, config, dataset)):
        assert record.epoch == i + 1
        assert dataset.validation is not None
        for loss, accuracy, split in (
            (record.train_loss, record.train_accuracy, dataset.train),
            (record.val_loss, record.val_accuracy, dataset.validation),
        ):
            assert (loss, accuracy) == pytest.approx(expected(split), rel=1e-6)
        assert record.learning_rate == 1e-30
        assert record.seconds > 0
        assert record.images_per_second >= 37 / record.seconds


def test_an_epochs_loss_is_the_sum_over_images_and_not_a_mean_of_means(monkeypatch: pytest.MonkeyPatch) -> None:
    """37 images make batches of 16, 16 and 5; the mean of the batches' means would be another number."""
    seen: list[Metrics] = []
    make = train_module.make_train_epoch

    def spy(*args: Any, **kwargs: Any) -> Any:
        train_epoch = make(*args, **kwargs)

        def wrapped(*args: Any) -> Any:
            state, metrics = train_epoch(*args)
            seen.append(metrics)
            return state, metrics

        return wrapped

    monkeypatch.setattr(train_module, "make_train_epoch", spy)
    _, records = run(experiment(learning_rate=0.05), draw_dataset())
    for record, metrics in zip(records, seen, strict=True):
        assert metrics.count.tolist() == [16, 16, 5]
        assert record.train_loss == math.fsum(metrics.loss) / 37
        assert record.train_accuracy == 100 * int(metrics.correct.sum()) / 37
        assert abs(np.mean(metrics.loss / metrics.count) - record.train_loss) > 1e-6


@pytest.mark.parametrize("batch_size", [16, 37, 50])
def test_evaluation_sums_exactly_over_a_set_that_no_batch_divides(batch_size: int) -> None:
    split = draw_split(37, 3)
    torch.manual_seed(0)
    network = TorchCNN(MODEL).double().eval()
    with torch.no_grad():
        logits = network(torch_inputs(split)).numpy()
    log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    variables = from_torch(network.float().state_dict(), MODEL)
    loss, accuracy, predictions = evaluate(
        jax.jit(make_eval_step(model=MODEL, mean=MEAN, std=STD)), variables, split, batch_size
    )
    assert loss == pytest.approx(-log_probabilities[np.arange(37), split.labels].mean(), rel=1e-6)
    assert accuracy == 100 * np.sum(logits.argmax(1) == split.labels) / 37
    np.testing.assert_array_equal(predictions, logits.argmax(1))
    assert predictions.dtype == np.int32


def test_validation_is_evaluated_with_the_epochs_own_weights_and_unsmoothed() -> None:
    dataset = draw_dataset()
    assert dataset.validation is not None
    config = experiment(label_smoothing=0.3, learning_rate=0.02)
    states, records = run(config, dataset)
    inputs = standardise(jnp.asarray(dataset.validation.images), MEAN, STD)
    for state, record in zip(states, records, strict=True):
        logits = np.asarray(CNN(MODEL).apply(variables_of(state), inputs), np.float64)
        log_probabilities = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        labels = dataset.validation.labels
        assert record.val_loss == pytest.approx(-log_probabilities[np.arange(21), labels].mean(), rel=1e-6)
        assert record.val_accuracy == 100 * np.sum(logits.argmax(1) == labels) / 21


def test_plateaus_cut_the_rate_of_a_run_as_pytorch_would() -> None:
    config = experiment(epochs=7, learning_rate=0.03, plateau_patience=1)
    _, records = run(config, contradicting())
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.03)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
    for record in records:
        assert record.learning_rate == optimizer.param_groups[0]["lr"]
        scheduler.step(record.val_loss)
    assert records[-1].learning_rate < 0.03


def test_a_run_stops_early() -> None:
    dataset = contradicting()
    config = experiment(epochs=20, learning_rate=0.03, early_stopping_patience=2)
    _, records = run(config, dataset)
    best = min(range(len(records)), key=lambda i: records[i].val_loss)
    assert len(records) == best + 3 < 20
    assert stopped(records, config) == "no lower validation loss for 2 epochs"
    assert stopped(records[:-1], config) is None

    reached = experiment(epochs=20, learning_rate=1e-30, early_stopping_target=0.5)
    _, records = run(reached, draw_dataset())  # any image of 21 that is right will do
    assert len(records) == 1
    assert "target of 0.5 %" in (stopped(records, reached) or "")


def test_without_validation_all_epochs_are_trained_at_the_scheduled_rate() -> None:
    config = experiment(
        epochs=4, plateau_patience=0, early_stopping_patience=1, early_stopping_target=0.5, learning_rate=0.01
    )
    _, records = run(config, draw_dataset(validation=None))
    assert [(r.epoch, r.val_loss, r.val_accuracy) for r in records] == [(i, None, None) for i in (1, 2, 3, 4)]
    assert {r.learning_rate for r in records} == {0.01}
    assert stopped(records, config) is None


def test_the_learning_rate_on_record_is_that_of_the_epochs_last_step() -> None:
    config = experiment(epochs=4, schedule="cosine", learning_rate=0.1)
    _, records = run(config, draw_dataset())
    steps = np.array([2, 5, 8, 11])
    wanted = 0.05 * (1 + np.cos(np.pi * steps / 12))
    np.testing.assert_allclose([r.learning_rate for r in records], wanted, rtol=1e-5)


def test_a_run_compiles_each_step_once(caplog: pytest.LogCaptureFixture) -> None:
    """Neither the short last batch, nor a cut of the rate, nor a later epoch compiles anything again."""
    train_module._evaluation_step.cache_clear()  # other tests evaluate alike
    config = experiment(epochs=4, learning_rate=0.03, plateau_patience=0)
    state = begin(config)
    per_epoch: list[list[str]] = []
    rates: list[float] = []
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _, record in fit(state, config, contradicting()):
            rates.append(record.learning_rate)
            compiled = [re.match(r"Compiling (?:jit\()?([\w<>]+)", r.getMessage()) for r in caplog.records]
            per_epoch.append([match[1] for match in compiled if match])
            caplog.clear()
    assert rates[-1] < rates[0]
    assert per_epoch[0].count("run") == per_epoch[0].count("step") == 1  # one to train, one to evaluate
    assert per_epoch[1:] == [[], [], []]


@pytest.mark.parametrize("cut", [1, 2, 5, 7])
def test_an_epoch_that_is_cut_short_goes_on_to_the_same_bits(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs of three steps; augmentation, dropout and momentum make every step depend on all before."""
    monkeypatch.setattr(train_module, "backend_form", lambda: Form(steps_per_call=1, vectorized=False))
    model = replace(MODEL, dropout_rate=0.5)
    config, dataset = experiment(model, "flipcrop", optimizer="sgd", learning_rate=0.05), draw_dataset()
    states, records = run(config, dataset)
    dispatches, before = iter(range(1, 100)), []
    epochs = fit(begin(config), config, dataset, should_stop=lambda: next(dispatches) >= cut)
    with pytest.raises(Paused) as paused:
        before.extend(record for _, record in epochs)
    assert int(paused.value.state.step) == cut
    assert (len(before), len(paused.value.part.loss)) == divmod(cut, 3)
    more, rest = run(config, dataset, state=paused.value.state, history=before, part=paused.value.part)
    assert untimed([*before, *rest]) == untimed(records)
    assert_same_bits(more[-1], states[-1])


def test_an_epoch_that_is_over_is_not_cut_short() -> None:
    config, dataset = experiment(), draw_dataset()
    dispatches = iter(range(1, 100))
    epochs = fit(begin(config), config, dataset, should_stop=lambda: next(dispatches) == 3)
    assert [record.epoch for _, record in epochs] == [1, 2, 3]


def test_early_stopping_waits_until_the_mask_is_reached() -> None:
    """Three epochs of probing whose loss only rises would have exhausted a patience of one."""
    config = experiment(epochs=9, learning_rate=0.3, early_stopping_patience=1)
    probed = replace(config, freeze=FreezeConfig(mask="full", probe_epochs=3))
    assert len(run(config, contradicting())[1]) == 2
    assert len(run(probed, contradicting())[1]) == 5


def test_plateaus_wait_until_the_mask_is_reached() -> None:
    config = experiment(epochs=5, learning_rate=0.3, plateau_patience=0)
    probed = replace(config, freeze=FreezeConfig(mask="full", probe_epochs=3))
    rates = [[record.learning_rate for record in run(each, contradicting())[1]] for each in (config, probed)]
    assert rates[0][-1] < rates[0][0]
    assert rates[1][:4] == [rates[1][0]] * 4


def test_new_weights_know_no_rate_by_depth() -> None:
    config = replace(experiment(epochs=1), freeze=FreezeConfig(mask="scratch"))
    decayed = replace(config, freeze=FreezeConfig(mask="scratch", layer_decay=0.1))
    assert_same_bits(run(decayed, draw_dataset())[0][-1], run(config, draw_dataset())[0][-1])


def test_a_network_of_another_number_of_classes_is_refused() -> None:
    config = experiment(replace(MODEL, num_classes=3))
    with pytest.raises(InputError, match=r"num_classes=3 is not usable: noise has 4 classes"):
        next(fit(begin(config), config, draw_dataset()))


@pytest.mark.parametrize("mask", ["full", "frozen"])
def test_the_form_for_accelerators_trains_the_same(mask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run with AutoAugment, in float64: an epoch in one call, whole batches augmented, XLA's convolutions."""
    config = replace(experiment(augment="autoaugment", epochs=2), freeze=FreezeConfig(mask=mask))

    def trained() -> tuple[Any, list[EpochRecord]]:
        wide = jax.tree.map(
            lambda a: np.asarray(a, np.float64 if a.dtype.kind == "f" else a.dtype), draw_variables(MODEL)
        )
        frozen = 2 if mask == "frozen" else 0
        state = init_state(wide, MODEL, config.optim, seed=0, frozen_stages=frozen)
        states, records = run(config, draw_dataset(), state=state)
        return states[-1], records

    with jax.enable_x64(True):
        ours, told = trained()
        monkeypatch.setattr(train_module, "backend_form", lambda: Form(steps_per_call=None, vectorized=True))
        monkeypatch.setattr(jax.lax, "platform_dependent", lambda *args, default, **_: default(*args))
        theirs, told_too = trained()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), ours, theirs)
    np.testing.assert_allclose(np.array(untimed(told), float), np.array(untimed(told_too), float), rtol=1e-6, atol=1e-9)
