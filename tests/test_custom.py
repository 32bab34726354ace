"""A user's own network, loss, augmentation and optimiser in `fit`: where they are the built-in ones, to the bit."""

import math
from dataclasses import replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small_training import assert_same_bits, begin, contradicting, draw_dataset, experiment, run, untimed, variables_of

from jaxcnn import (
    CNN,
    ExperimentConfig,
    FreezeConfig,
    InputError,
    ModelConfig,
    TrainConfig,
    cross_entropy,
    fit,
    init_state,
    standardise,
)
from jaxcnn.data.augment import augment
from jaxcnn.data.splits import Dataset, Split
from jaxcnn.training.custom import restart
from jaxcnn.training.decisions import plateau_scale
from jaxcnn.training.loop import evaluate, evaluation_step
from jaxcnn.training.optim import scale_by_adam
from jaxcnn.training.records import EpochRecord

pytestmark = pytest.mark.usefixtures("compiled_once")


SMALL = ModelConfig(
    input_size=8, hidden_dims=(4, 6, 5), layers_per_block=(1,), apply_pooling=(1,), apply_bn=(1,), num_blocks=1,
    num_classes=4, dropout_rate=0.3,
)  # fmt: skip


def flipcrop(key: jax.Array, images: jax.Array) -> jax.Array:
    return augment(key, images, "flipcrop", vectorized=False)


def test_what_is_the_built_in_trains_to_its_bits() -> None:
    """With plateaus that cut nothing: an optimiser of one's own has its own rate."""
    built_in = experiment(
        SMALL, "flipcrop", optimizer="sgd", learning_rate=0.5, weight_decay=0.0, schedule="constant"
    )  # fmt: skip
    config = experiment(SMALL, "none", plateau_patience=0)
    mine = {
        "model": CNN(SMALL),
        "loss": cross_entropy,
        "augmentation": flipcrop,
        "optimizer": optax.sgd(0.5, momentum=0.9),
    }
    states, records = run(config, contradicting(), state=begin(config), **mine)
    expected_states, expected = run(built_in, contradicting())
    assert_same_bits(
        [s._replace(opt_state=None) for s in states], [s._replace(opt_state=None) for s in expected_states]
    )
    assert all(math.isnan(record.learning_rate) for record in records)
    assert [r._replace(learning_rate=0.5) for r in untimed(records)] == untimed(expected)
    assert plateau_scale([record.val_loss for record in records], config.optim) < 1


def test_an_optimiser_of_ones_own_sees_what_trains_as_a_whole_and_begins_again_when_stages_thaw() -> None:
    config = replace(experiment(SMALL, epochs=2), freeze=FreezeConfig(probe_epochs=1))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), scale_by_adam(), optax.scale(-0.01))
    (probed, tuned), _ = run(config, draw_dataset(validation=None), optimizer=optimizer)
    first = begin(config)
    for name in ("block_0", "fc1", "fc2"):
        assert_same_bits(probed.params[name], jax.tree.map(np.asarray, first.params[name]))
    assert set(probed.opt_state[1].mu) == {"fc3"}
    assert set(tuned.opt_state[1].mu) == set(first.params)
    assert (probed.opt_state[1].count, tuned.opt_state[1].count) == (3, 3)


def test_an_optimisers_state_goes_on_where_it_fits() -> None:
    params = {"a": np.ones(3, np.float32), "b": np.ones((2, 2), np.float32)}
    optimizer = optax.adam(0.1)
    kept = optimizer.init(params)
    assert restart(optimizer, kept, params) is kept
    for other in ({"a": params["a"]}, {**params, "b": np.ones(5, np.float32)}):
        assert_same_bits(restart(optimizer, kept, other), optimizer.init(other))


class Bare(nn.Module):
    """A network that knows neither training nor padding, with images of another shape than any of the built-in's."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(4)(nn.relu(nn.Dense(8)(x.reshape(len(x), -1))))


class Normalised(nn.Module):
    """A network with batch statistics, dropout and knowledge of padding."""

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool = False, mask: jax.Array | None = None) -> jax.Array:
        where = None if mask is None else mask[:, None]
        x = nn.Dense(4)(x.mean((1, 2)))
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(x, mask=where))
        return nn.Dense(4)(nn.Dropout(0.1, deterministic=not train)(x))


def oblong(split: Split) -> Split:
    """Images that are not square, whose brightness is the class."""
    images = np.random.default_rng(0).integers(0, 40, (len(split.labels), 6, 8, 3), dtype=np.uint8)
    return Split(images + 60 * split.labels.astype(np.uint8)[:, None, None, None], split.labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    noise = draw_dataset()
    assert noise.validation is not None
    train, validation, test = map(oblong, (noise.train, noise.validation, noise.test))
    return replace(noise, train=train, validation=validation, test=test)


def train(model: nn.Module, data: Dataset, epochs: int, **fields: Any) -> tuple[dict[str, Any], list[EpochRecord]]:
    config = experiment(epochs=epochs, learning_rate=0.03)
    variables = jax.jit(model.init)(jax.random.key(0), standardise(data.test.images, data.mean, data.std))
    state = init_state(variables, config.model, config.optim, seed=0)
    states, records = run(config, data, state=state, model=model, **fields)
    return variables_of(states[-1]), records


def test_a_module_of_ones_own_trains_on_its_own_shape_of_images(data: Dataset) -> None:
    model = Normalised()
    trained, records = train(model, data, 10)
    result = evaluate(evaluation_step(experiment(), data, model=model), trained, data.test, 16)
    logits = model.apply(trained, standardise(data.test.images, data.mean, data.std))
    np.testing.assert_array_equal(result.predictions, jnp.argmax(logits, -1))
    assert records[-1].train_loss < 0.8 * records[0].train_loss
    assert not np.array_equal(trained["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(4))


def test_a_loss_of_ones_own_decides_validation_too(data: Dataset) -> None:
    """On a module that knows neither training nor padding, and with an optimiser that changes nothing."""

    def doubled(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return 2 * cross_entropy(logits, labels)

    variables, (record,) = train(Bare(), data, 1, optimizer=optax.set_to_zero(), loss=doubled)
    assert data.validation is not None
    for split, loss in ((data.train, record.train_loss), (data.validation, record.val_loss)):
        logits: Any = Bare().apply(variables, standardise(split.images, data.mean, data.std))
        assert loss == pytest.approx(2 * float(cross_entropy(logits, split.labels).mean()), rel=1e-5)


def test_a_mean_is_no_loss() -> None:
    with pytest.raises(InputError, match=r"the loss has shape \(\); return one value an image, \(16,\)"):
        run(experiment(SMALL), draw_dataset(), loss=lambda logits, labels: cross_entropy(logits, labels).mean())


def test_an_augmentation_gives_bytes() -> None:
    with pytest.raises(InputError, match=r"images=float32\(16, 8, 8, 3\) is not usable: give uint8"):
        run(experiment(SMALL), draw_dataset(), augmentation=lambda key, images: images / 2)


OPTIMIZER = {"optimizer": optax.sgd(0.1)}
FROZEN = replace(experiment(), freeze=FreezeConfig(mask="frozen"))


@pytest.mark.parametrize(
    ("config", "given", "message"),
    [
        (FROZEN, {"model": Bare()}, "freeze has no effect with your own model: freeze with an optimizer"),
        (
            replace(experiment(), train=TrainConfig(precision="bfloat16")),
            {"model": Bare()},
            "train.precision has no effect with your own model",
        ),
        (replace(experiment(), protocol="original"), {"model": Bare()}, "protocol has no effect with your own model"),
        (
            experiment(label_smoothing=0.1),
            {"loss": cross_entropy},
            "optim.label_smoothing has no effect with your own loss",
        ),
        (experiment(clip_norm=1.0), OPTIMIZER, "optim.clip_norm has no effect with your own optimizer: chain"),
        (
            replace(FROZEN, freeze=FreezeConfig(layer_decay=0.5)),
            OPTIMIZER,
            "freeze.layer_decay has no effect with your own optimizer",
        ),
    ],
    ids=lambda value: value.partition(" ")[0] if isinstance(value, str) else "",
)
def test_a_setting_without_effect_is_refused(config: ExperimentConfig, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        next(fit(begin(experiment()), config, draw_dataset(), **given))
