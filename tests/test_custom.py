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
    OptimConfig,
    TrainConfig,
    cross_entropy,
    fit,
    init_state,
    standardise,
)
from jaxcnn.data.augment import augment
from jaxcnn.data.splits import Dataset, Split
from jaxcnn.training.custom import Custom, CustomModule, restart
from jaxcnn.training.decisions import plateau_scale
from jaxcnn.training.epoch import evaluate
from jaxcnn.training.loop import evaluation_step
from jaxcnn.training.step import unfreeze

pytestmark = pytest.mark.usefixtures("compiled_once")


SMALL = ModelConfig(
    input_size=8, hidden_dims=(4, 6, 5), layers_per_block=(1,), apply_pooling=(1,), apply_bn=(1,), num_blocks=1,
    num_classes=4, dropout_rate=0.3,
)  # fmt: skip


def flipcrop(key: jax.Array, images: jax.Array) -> jax.Array:
    return augment(key, images, "flipcrop")


def doubled(logits: jax.Array, labels: jax.Array) -> jax.Array:
    return 2 * cross_entropy(logits, labels)


@pytest.mark.slow
def test_what_is_the_built_in_trains_to_its_bits() -> None:
    """Twice the loss at half the rate, which is exact. Plateaus cut nothing: the optimiser has its own rate."""
    built_in = experiment(
        SMALL, "flipcrop", optimizer="sgd", learning_rate=0.5, weight_decay=0.0, clip_norm=1.0, schedule="constant"
    )  # fmt: skip
    config = experiment(SMALL, "none", plateau_patience=0)
    mine = {
        "model": CNN(SMALL),
        "loss": doubled,
        "augmentation": flipcrop,
        "optimizer": optax.chain(optax.clip_by_global_norm(2.0), optax.sgd(0.25, momentum=0.9)),
    }
    states, records = run(config, contradicting(), state=begin(config), **mine)
    expected_states, expected = run(built_in, contradicting())
    assert_same_bits(
        [s._replace(opt_state=None) for s in states], [s._replace(opt_state=None) for s in expected_states]
    )
    assert all(math.isnan(record.learning_rate) for record in records)
    halved = [
        r._replace(learning_rate=0.5, train_loss=r.train_loss / 2, val_loss=r.val_loss / 2) for r in untimed(records)
    ]
    assert halved == untimed(expected)
    assert plateau_scale([record.val_loss for record in records], config.optim) < 1


def test_an_optimiser_of_ones_own_has_one_state_which_begins_again_when_stages_thaw() -> None:
    optim, custom = OptimConfig(), Custom(optimizer=optax.adam(0.1))
    state = unfreeze(begin(experiment(SMALL)), SMALL, optim, 3, custom)
    assert set(state.opt_state[0].mu) == {"fc3"}
    assert unfreeze(state, SMALL, optim, 3, custom).opt_state is state.opt_state
    assert set(unfreeze(state, SMALL, optim, 0, custom).opt_state[0].mu) == {"block_0", "fc1", "fc2", "fc3"}


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
    """Images that are not square. Their brightness is their class."""
    images = np.random.default_rng(0).integers(0, 40, (len(split.labels), 6, 8, 3), dtype=np.uint8)
    return Split(images + 60 * split.labels.astype(np.uint8)[:, None, None, None], split.labels)


@pytest.fixture(scope="module")
def data() -> Dataset:
    noise = draw_dataset()
    assert noise.validation is not None
    train, validation, test = map(oblong, (noise.train, noise.validation, noise.test))
    return replace(noise, train=train, validation=validation, test=test)


def test_a_module_of_ones_own_trains_on_its_own_shape_of_images(data: Dataset) -> None:
    model, config = Normalised(), experiment(epochs=10, learning_rate=0.03)
    variables = jax.jit(model.init)(jax.random.key(0), standardise(data.test.images, data.standardisation))
    state = init_state(variables, config.model, config.optim, seed=0)
    states, records = run(config, data, state=state, model=model)
    trained = variables_of(states[-1])
    result = evaluate(evaluation_step(config, data, model=model), trained, data.test, 16)
    logits = model.apply(trained, standardise(data.test.images, data.standardisation))
    np.testing.assert_array_equal(result.logits.argmax(-1), jnp.argmax(logits, -1))
    assert records[-1].train_loss < 0.8 * records[0].train_loss
    assert not np.array_equal(trained["batch_stats"]["BatchNorm_0"]["mean"], np.zeros(4))


def test_a_module_is_called_with_what_it_takes() -> None:
    x, mask = np.ones((2, 6, 8, 3), np.float32), np.array([True, False])
    for module, taken in ((Bare(), {}), (Normalised(), {"train": False, "mask": mask})):
        shapes = jax.eval_shape(module.init, jax.random.key(0), x)
        variables = jax.tree.map(lambda shape: np.linspace(-1, 1, shape.size).reshape(shape.shape), shapes)
        given = CustomModule(module).apply(variables, x, False, mask=mask, eval_stages=1)
        np.testing.assert_array_equal(given, module.apply(variables, x, **taken))


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
