"""The programs of this project to time. They call the same functions as a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.measure import Program
from experiments.bench.setting import OPTIM, Setting, as_dataset, freeze, load_images
from jaxcnn.config import Augment, DataConfig, ExperimentConfig, Mask, Precision, TrainConfig
from jaxcnn.data.augment import augment, standardise
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.kernels.executables import jit
from jaxcnn.masks import frozen_stages
from jaxcnn.model import init_variables, key_of
from jaxcnn.training.epoch import OnStep, default_steps_per_call, evaluate, make_train_epoch
from jaxcnn.training.loop import fit
from jaxcnn.training.optim import make_schedule
from jaxcnn.training.step import init_state, make_eval_step, make_train_step
from jaxcnn.weights.convert import from_torch
from jaxcnn.weights.files import read_state_dict, write_state_dict


def train_steps(setting: Setting, mask: Mask, **options: Any) -> Program:
    """A program of `setting.steps` training steps without augmentation.

    `options` are passed to `make_train_step`.
    """
    model, count = setting.model, setting.steps * setting.batch_size
    frozen = frozen_stages(freeze(mask), model, 0)
    arguments = {
        "frozen_stages": frozen,
        "augmentation": "none",
        "standardisation": CIFAR10_STANDARDISATION,
        **options,
    }
    schedule = make_schedule(OPTIM, steps_per_epoch=setting.steps, epochs=1)
    step = make_train_step(model=model, optim=OPTIM, schedule=schedule, **arguments)
    split = load_images(setting, count)
    train_epoch = make_train_epoch(step, split, setting.batch_size, steps_per_call=default_steps_per_call())
    states = [init_state(init_variables(model, key_of(0)), model, OPTIM, seed=0, frozen_stages=frozen)]

    def run() -> None:
        state, _ = train_epoch(states.pop(), np.arange(count, dtype=np.int32), 1.0, lambda seen, metrics: None)
        states.append(jax.block_until_ready(state))

    return run


def evaluation(setting: Setting, precision: Precision = "float32") -> Program:
    """A program that evaluates `setting.steps` batches."""
    split = load_images(setting, setting.steps * setting.batch_size)
    variables = init_variables(setting.model, key_of(0))
    step = jax.jit(make_eval_step(model=setting.model, standardisation=CIFAR10_STANDARDISATION, precision=precision))
    return lambda: evaluate(step, variables, split, setting.batch_size)


def augmentation(setting: Setting, count: int) -> Program:
    """A program that augments and standardises `count` images, batch by batch."""
    images = load_images(setting, count).images
    transform = _transform("autoaugment")

    def run() -> None:
        for start in range(0, count, setting.batch_size):
            part = jnp.asarray(images[start : start + setting.batch_size])
            jax.block_until_ready(transform(jax.random.key(start), part))

    return run


def stored_augmentation(setting: Setting, kind: Augment) -> Program:
    """A program that augments and standardises images that are on the device. It waits once, for all batches."""
    images = jax.device_put(load_images(setting, setting.images).images)
    starts = range(0, setting.images, setting.batch_size)
    parts = [(jax.random.key(start), images[start : start + setting.batch_size]) for start in starts]
    transform = _transform(kind)

    def run() -> None:
        for part in parts:
            last = transform(*part)
        jax.block_until_ready(last)  # a device does its work in order

    return run


def _transform(kind: Augment) -> Callable[[jax.Array, jax.Array], jax.Array]:
    @jit
    def transform(key: jax.Array, images: jax.Array) -> jax.Array:
        return standardise(augment(key, images, kind), CIFAR10_STANDARDISATION)

    transformed: Callable[[jax.Array, jax.Array], jax.Array] = transform
    return transformed


def with_tf32(program: Program) -> Program:
    """The same program with products and convolutions of float32 in TF32, if it is run on a GPU that has it."""

    def run() -> object:
        with jax.default_matmul_precision("tensorfloat32"):
            return program()

    return run


def epochs(
    setting: Setting, mask: Mask, kind: Augment, on_step: OnStep = lambda seen, metrics: None, **train: Any
) -> Program:
    """A program that trains the next epoch of a run each time it is called. `train` is passed to `TrainConfig`."""
    config = ExperimentConfig(
        data=DataConfig(augment=kind, validation=0),
        model=setting.model,
        optim=OPTIM,
        train=TrainConfig(epochs=1_000_000, batch_size=setting.batch_size, **train),
        freeze=freeze(mask),
    )
    frozen = frozen_stages(config.freeze, config.model, 0)
    variables = init_variables(setting.model, key_of(0))
    state = init_state(variables, setting.model, OPTIM, seed=0, frozen_stages=frozen)
    dataset = as_dataset(load_images(setting, setting.images), setting.model.num_classes)
    run = fit(state, config, dataset, on_step=on_step)
    return lambda: jax.block_until_ready(next(run)[0])


def conversion(setting: Setting, folder: Path) -> Program:
    """A program that reads a model.pth as variables and writes them as a model.pth."""
    source, copy = folder / "model.pth", folder / "copy.pth"
    write_state_dict(source, init_variables(setting.model, key_of(0)), setting.model)

    def run() -> None:
        variables = from_torch(read_state_dict(source), setting.model)
        write_state_dict(copy, variables, setting.model)

    return run


def matmul(size: int, times: int) -> Program:
    """A program of `times` float32 products of square matrices."""
    a = jax.random.normal(jax.random.key(0), (size, size))
    product: Callable[[jax.Array], jax.Array] = jax.jit(lambda a: a @ a)
    return lambda: [jax.block_until_ready(product(a)) for _ in range(times)]
