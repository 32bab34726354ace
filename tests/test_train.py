"""`fit`: records, stopping, going on to the same bits."""

import logging
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from small_training import (
    MODEL,
    STANDARDISATION,
    assert_same_bits,
    begin,
    contradicting,
    copy,
    draw_dataset,
    draw_variables,
    experiment,
    run,
    torch_inputs,
    untimed,
    variables_of,
)

from jaxcnn import CNN, InputError
from jaxcnn.config import FreezeConfig
from jaxcnn.data.augment import standardise
from jaxcnn.data.splits import Split
from jaxcnn.errors import DivergedError
from jaxcnn.training import loop as train_module
from jaxcnn.training.decisions import reason_to_stop
from jaxcnn.training.loop import Paused, fit
from jaxcnn.training.records import EpochRecord, Metrics
from jaxcnn.training.step import init_state
from jaxcnn.weights.checkpoint import open_checkpoints
from jaxcnn.weights.convert import to_torch
from jaxcnn.weights.pytorch_network import TorchCNN

pytestmark = pytest.mark.usefixtures("compiled_once")


@pytest.mark.slow
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
        _, different = run(
            replace(config, seed=order_seed, train=replace(config.train, epochs=1)), dataset, state=state
        )
        assert different[0].train_loss != records[0].train_loss


@pytest.mark.slow
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
    with pytest.raises(DivergedError, match=r"the loss is (nan|inf) at step 7 \(epoch 3\).*optim\.learning_rate"):
        records += [record for _, record in fit(begin(experiment()), experiment(), draw_dataset())]
    assert records == []
    epochs = fit(begin(experiment()), experiment(), draw_dataset())
    assert [next(epochs)[1].epoch, next(epochs)[1].epoch] == [1, 2]


@pytest.mark.slow
def test_weights_lost_in_the_last_step_of_an_epoch_end_the_run_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    """The training losses are all finite still; it is the validation loss that is not."""
    diverge_at(2, monkeypatch)
    for patience in (None, 2):
        config = experiment(early_stopping_patience=patience)
        with pytest.raises(DivergedError, match=r"loss is (nan|inf)"):
            list(fit(begin(config), config, draw_dataset()))


def test_records_are_exact_sums_over_all_images() -> None:
    """A learning rate too small to change a float32, and no batch norm: the network is the same in every epoch."""
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
    _, records = run(experiment(learning_rate=0.03), draw_dataset())
    for record, metrics in zip(records, seen, strict=True):
        assert metrics.count.tolist() == [16, 16, 5]
        assert record.train_loss == math.fsum(metrics.loss) / 37
        assert record.train_accuracy == 100 * int(metrics.correct.sum()) / 37
        assert abs(np.mean(metrics.loss / metrics.count) - record.train_loss) > 1e-6


def test_validation_is_evaluated_with_the_epochs_own_weights_and_unsmoothed() -> None:
    dataset = draw_dataset()
    assert dataset.validation is not None
    config = experiment(label_smoothing=0.3, learning_rate=0.02)
    states, records = run(config, dataset)
    inputs = standardise(jnp.asarray(dataset.validation.images), STANDARDISATION)
    apply = jax.jit(CNN(MODEL).apply)
    for state, record in zip(states, records, strict=True):
        logits = np.asarray(apply(variables_of(state), inputs), np.float64)
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
    assert reason_to_stop(records, config) == "no lower validation loss for 2 epochs"
    assert reason_to_stop(records[:-1], config) is None

    reached = experiment(epochs=20, learning_rate=0.03, early_stopping_target=0.5)
    _, records = run(reached, draw_dataset())  # any image of 21 that is right will do
    assert len(records) == 1
    assert "target of 0.5 %" in (reason_to_stop(records, reached) or "")


def test_without_validation_all_epochs_are_trained_at_the_scheduled_rate() -> None:
    config = experiment(
        epochs=4, plateau_patience=0, early_stopping_patience=1, early_stopping_target=0.5, learning_rate=0.03
    )
    _, records = run(config, draw_dataset(validation=None))
    assert [(r.epoch, r.val_loss, r.val_accuracy) for r in records] == [(i, None, None) for i in (1, 2, 3, 4)]
    assert {r.learning_rate for r in records} == {0.03}
    assert reason_to_stop(records, config) is None


def test_the_learning_rate_on_record_is_that_of_the_epochs_last_step() -> None:
    config = experiment(epochs=4, schedule="cosine", learning_rate=0.1)
    _, records = run(config, draw_dataset())
    steps = np.array([2, 5, 8, 11])
    wanted = 0.05 * (1 + np.cos(np.pi * steps / 12))
    np.testing.assert_allclose([r.learning_rate for r in records], wanted, rtol=1e-5)


def test_a_run_compiles_each_step_once(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    """Neither the short last batch, nor a cut of the rate, nor a later epoch compiles anything again."""
    train_module.compiled_eval_step.cache_clear()  # other tests evaluate alike
    config = experiment(epochs=4, learning_rate=0.03, plateau_patience=0)
    state = begin(config)
    per_epoch: list[list[str]] = []
    rates: list[float] = []
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))  # with nothing in it
    with jax.log_compiles(), caplog.at_level(logging.WARNING):
        for _, record in fit(state, config, contradicting()):
            rates.append(record.learning_rate)
            compiled = [re.match(r"Compiling (?:jit\()?([\w<>]+)", r.getMessage()) for r in caplog.records]
            per_epoch.append([match[1] for match in compiled if match])
            caplog.clear()
    jax.config.update("jax_compilation_cache_dir", kept)
    assert rates[-1] < rates[0]
    assert per_epoch[0].count("kept_run") == per_epoch[0].count("kept_step") == 1  # one to train, one to evaluate
    assert per_epoch[1:] == [[], [], []]


@pytest.mark.slow
@pytest.mark.parametrize("cut", [5, *(pytest.param(cut, marks=pytest.mark.slow) for cut in (1, 2, 7))])
def test_an_epoch_that_is_cut_short_goes_on_to_the_same_bits(cut: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three epochs of three steps; augmentation, dropout and momentum make every step depend on all before."""
    monkeypatch.setattr(train_module, "default_steps_per_call", lambda: 1)
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


@pytest.mark.slow
def test_an_epoch_that_is_over_is_not_cut_short() -> None:
    config, dataset = experiment(), draw_dataset()
    dispatches = iter(range(1, 100))
    epochs = fit(begin(config), config, dataset, should_stop=lambda: next(dispatches) == 3)
    assert [record.epoch for _, record in epochs] == [1, 2, 3]


@pytest.mark.slow
def test_early_stopping_waits_until_the_mask_is_reached() -> None:
    """Three epochs of probing whose loss only rises would have exhausted a patience of one."""
    config = experiment(epochs=9, learning_rate=0.3, early_stopping_patience=1)
    probed = replace(config, freeze=FreezeConfig(mask="full", probe_epochs=3))
    assert len(run(config, contradicting())[1]) == 2
    assert len(run(probed, contradicting())[1]) == 5


@pytest.mark.slow
def test_plateaus_wait_until_the_mask_is_reached() -> None:
    config = experiment(epochs=5, learning_rate=0.3, plateau_patience=0)
    probed = replace(config, freeze=FreezeConfig(mask="full", probe_epochs=3))
    rates = [[record.learning_rate for record in run(each, contradicting())[1]] for each in (config, probed)]
    assert rates[0][-1] < rates[0][0]
    assert rates[1][:4] == [rates[1][0]] * 4


def test_new_weights_know_no_rate_by_depth() -> None:
    config = replace(experiment(epochs=1, learning_rate=0.03), freeze=FreezeConfig(mask="scratch"))
    decayed = replace(config, freeze=FreezeConfig(mask="scratch", layer_decay=0.1))
    assert_same_bits(run(decayed, draw_dataset())[0][-1], run(config, draw_dataset())[0][-1])


def test_a_network_of_another_number_of_classes_is_refused() -> None:
    config = experiment(replace(MODEL, num_classes=3))
    with pytest.raises(InputError, match=r"num_classes=3 is not usable: noise has 4 classes"):
        next(fit(begin(config), config, draw_dataset()))
