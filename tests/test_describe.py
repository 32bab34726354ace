"""Describing a function so that different functions have different descriptions."""

from dataclasses import replace
from functools import partial
from itertools import combinations
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from small_training import MODEL, STANDARDISATION

from jaxcnn.config import OptimConfig
from jaxcnn.kernels.describe import Undescribed, describe
from jaxcnn.model import CNN
from jaxcnn.training.optim import make_schedule
from jaxcnn.training.step import make_eval_step, make_train_step


def text(value: Any) -> str:
    return "\0".join(describe(value))


def train_step(**changes: Any) -> Any:
    optim = changes.pop("optim", OptimConfig())
    schedule = make_schedule(optim, steps_per_epoch=changes.pop("steps_per_epoch", 3), epochs=2)
    given = {"model": MODEL, "standardisation": STANDARDISATION, "augmentation": "none", **changes}
    return make_train_step(optim=optim, schedule=schedule, **given)


CHANGES: list[dict[str, Any]] = [
    {},
    {"model": replace(MODEL, dropout_rate=0.5)},
    {"model": replace(MODEL, activation_function="gelu")},
    {"standardisation": STANDARDISATION._replace(mean=(0.4, 0.5, 0.7))},
    {"standardisation": STANDARDISATION._replace(std=(0.2, 0.25, 0.31))},
    {"augmentation": "flipcrop"},
    {"frozen_stages": 1},
    {"layer_decay": 0.5},
    {"drifting_stats": True, "frozen_stages": 1},
    {"precision": "bfloat16"},
    {"optim": OptimConfig(learning_rate=0.01)},
    {"optim": OptimConfig(weight_decay=0.01)},
    {"optim": OptimConfig(optimizer="adamw")},
    {"optim": OptimConfig(optimizer="sgd")},
    {"optim": OptimConfig(clip_norm=1)},
    {"optim": OptimConfig(label_smoothing=0.1)},
    {"optim": OptimConfig(warmup_epochs=1)},
    {"optim": OptimConfig(schedule="cosine")},
    {"optim": OptimConfig(schedule="cosine"), "steps_per_epoch": 4},
]


def test_steps_are_described_alike_where_all_their_settings_are_equal() -> None:
    described = [text(train_step(**change)) for change in CHANGES]
    assert described == [text(train_step(**change)) for change in CHANGES]
    for one, other in combinations(range(len(CHANGES)), 2):
        assert described[one] != described[other], (CHANGES[one], CHANGES[other])


def test_modules_and_their_methods_are_described_by_their_settings() -> None:
    networks = [CNN(MODEL), CNN(replace(MODEL, num_classes=9)), CNN(MODEL, dtype=jnp.bfloat16)]
    values = [method for network in networks for method in (network.init, network.apply)]
    values.append(make_eval_step(model=MODEL, standardisation=STANDARDISATION))
    assert len({text(value) for value in values}) == len(values)
    assert text(CNN(MODEL).init) == text(CNN(MODEL).init)


def test_values_of_other_types_and_arrays_are_told_apart() -> None:
    a = np.arange(6)
    values = [1, 1.0, True, "1", None, (1,), [1], ((1,), 2), (1, (2,)), {"a": 1}, {"a": 2}, a, a[::-1], a.reshape(2, 3)]
    values += [a.astype(np.float32), np.float32(1), jnp.ones(2), partial(int, base=2), partial(int, base=3), len]
    assert len({text(value) for value in values}) == len(values)


@pytest.mark.parametrize("value", [object(), lambda: 0, (1, object()), partial(int, base=object()), {1}])
def test_what_cannot_be_described_is_refused(value: Any) -> None:
    with pytest.raises(Undescribed):
        text(value)
