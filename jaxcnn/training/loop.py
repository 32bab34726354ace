"""Epochs and runs: `fit` trains on a data set and yields after each epoch.

An image's way to the loss: `data.sets.load_dataset` reads it, `make_train_epoch` puts it into a batch, and the step of
`step.make_train_step` passes it through `data.augment.augment`, `data.augment.standardise`, `model.CNN` and
`step.cross_entropy`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from operator import itemgetter
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.data.splits import Dataset, Split, epoch_order
from jaxcnn.errors import DivergedError
from jaxcnn.kernels.backend import fixed_settings, is_cpu
from jaxcnn.kernels.batch import take_images
from jaxcnn.kernels.executables import Jit, jit, kept_jit
from jaxcnn.kernels.precision import resolve_precision
from jaxcnn.masks import frozen_stages, settled_epoch
from jaxcnn.model import map_values
from jaxcnn.training.class_weights import balanced_weights
from jaxcnn.training.custom import BUILT_IN, Augmentation, Custom, Loss
from jaxcnn.training.decisions import plateau_scale, reason_to_stop
from jaxcnn.training.features import caches_features, compute_features
from jaxcnn.training.optim import Schedule, make_schedule
from jaxcnn.training.records import Batch, EpochRecord, Evaluation, Metrics, TrainState
from jaxcnn.training.soundness import require_effect, require_trainable
from jaxcnn.training.step import EvalStep, TrainStep, make_eval_step, make_train_step, unfreeze

TrainEpoch = Callable[..., tuple[TrainState, Metrics]]
OnStep = Callable[[int, Metrics], None]
"""Called with the number of images since the epoch began or was resumed, and the metrics summed over them."""
ShouldStop = Callable[[], bool]


def never() -> bool:
    """A `ShouldStop` that never stops an epoch."""
    return False


class Paused(Exception):
    """`fit` was asked to stop within an epoch. Called again with this state and part, it gives the same bits."""

    def __init__(self, state: TrainState, part: Metrics) -> None:
        super().__init__(f"after {len(part.loss)} steps of the epoch")
        self.state = state
        self.part = part
        """The metrics of each step of the epoch so far."""


def default_steps_per_call() -> int | None:
    """How many training steps run as one compiled call: 4 on a CPU, all of an epoch (None) on an accelerator.

    On a CPU four steps a call are a tenth faster than one, since the later ones find their buffers in place. More gain
    little, and a signal would wait longer.
    """
    return 4 if is_cpu() else None


def padded_order(order: np.ndarray[Any, Any], batch_size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices int32 and mask bool, both (steps, batch_size); the last row is padded with index 0, mask False."""
    steps = -(-len(order) // batch_size)
    indices = np.zeros(steps * batch_size, np.int32)
    indices[: len(order)] = order
    mask = np.arange(steps * batch_size) < len(order)
    return indices.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def batches(split: Split, order: np.ndarray[Any, Any], batch_size: int) -> Iterator[Batch]:
    """The images of `split` in `order`, in batches of one shape; the last one is padded."""
    for indices, mask in zip(*padded_order(order, batch_size), strict=True):
        images = map_values(itemgetter(indices), split.images)
        yield Batch(images, split.labels[indices], mask)


def make_train_epoch(
    step: TrainStep, split: Split, batch_size: int, *, steps_per_call: int | None, jit: Jit = jit
) -> TrainEpoch:
    """Makes the function that trains one epoch: `(state, order, scale, on_step, should_stop) -> (state, metrics)`.

    `order` has the indices of the images, and `scale` multiplies the learning rate. The metrics are those of each step.
    A short last batch is trained on too. The images are stored on the device (on a CPU they stay where they are).

    A compiled loop runs `steps_per_call` steps, or the whole epoch if that is None. After each loop `on_step` is
    called, then `should_stop`, which ends the epoch there if it returns true. The number of steps in a loop changes no
    metric and no weight. A state that was passed in must not be used again: its buffers are reused.
    """
    stored = jax.device_put(split)
    most = steps_per_call or -(-len(split.labels) // batch_size)

    @partial(jit, donate_argnums=0)
    @fixed_settings()
    def run(
        state: TrainState, stored: Any, indices: Any, mask: Any, steps: Any, scale: Any
    ) -> tuple[TrainState, Metrics]:
        def one(i: jax.Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, seen = carry
            images = map_values(lambda images: take_images(images, indices[i]), stored.images)
            state, metrics = step(state, Batch(images, stored.labels[indices[i]], mask[i]), scale)
            return state, jax.tree.map(lambda history, value: history.at[i].set(value), seen, metrics)

        done: tuple[TrainState, Metrics] = jax.lax.fori_loop(0, steps, one, (state, Metrics(*jnp.zeros((3, most)))))
        return done

    @fixed_settings()
    def train(
        state: TrainState, order: Any, scale: float, on_step: OnStep, should_stop: ShouldStop = never
    ) -> tuple[TrainState, Metrics]:
        indices, mask = padded_order(order, batch_size)
        seen = Metrics(*np.zeros((3, 0)))
        for start in range(0, len(indices), most):
            some = np.arange(start, start + most) % len(indices)  # rows after `steps` only pad to one compiled shape
            steps = min(most, len(indices) - start)
            state, metrics = run(state, stored, indices[some], mask[some], steps, np.float32(scale))
            seen = jax.tree.map(lambda a, b, n=steps: np.concatenate([a, np.asarray(b)[:n]]), seen, metrics)
            on_step(min((start + steps) * batch_size, len(order)), jax.tree.map(np.sum, seen))
            if should_stop():
                break
        return state, seen

    return train


def _total(metrics: Sequence[Metrics]) -> Metrics:
    return Metrics(*(sum(np.float64(m[i]) for m in metrics) for i in range(3)))


@fixed_settings()
def evaluate(
    step: EvalStep, variables: Any, split: Split, batch_size: int, *, seed: int | Sequence[int] = 0
) -> Evaluation:
    """Loss, accuracy and logits on all of `split`.

    Args:
        step: of `evaluation_step`.
        variables: of the network.
        split: images, or `Features`, and labels.
        batch_size: images at a time; it does not change the result beyond rounding.
        seed: of the augmentation, for a step that has one.
    """
    keys = np.random.default_rng(seed).integers(2**32, size=(-(-len(split.labels) // batch_size), 2), dtype=np.uint32)
    parts = zip(batches(split, np.arange(len(split.labels)), batch_size), keys, strict=True)
    results = [step(variables, batch, jnp.asarray(key)) for batch, key in parts]
    total = _total([jax.tree.map(np.asarray, metrics) for metrics, _ in results])
    logits = np.concatenate([np.asarray(each) for _, each in results])[: len(split.labels)]
    return Evaluation(float(total.loss / total.count), float(100 * total.correct / total.count), logits)


def evaluation_step(
    config: ExperimentConfig,
    dataset: Dataset,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
) -> EvalStep:
    """The compiled step by which a run evaluates, for images or their features.

    Equal settings give the same step. So validation, the test and other runs share one compiled program. `model` and
    `loss` are the arguments of `fit`.
    """
    custom = Custom(model=model, loss=loss)
    # A user's own module may not be hashable, so it is not looked up in the cache.
    return (compiled_eval_step if custom == BUILT_IN else compiled_eval_step.__wrapped__)(
        model=config.model,
        standardisation=dataset.standardisation,
        augmentation=config.data.augment if config.protocol == "original" else "none",
        precision=resolve_precision(config.train.precision),
        custom=custom,
    )


@lru_cache(maxsize=8)
def compiled_eval_step(**settings: Any) -> EvalStep:
    """`make_eval_step`, compiled. Equal settings give the same step."""
    return kept_jit(make_eval_step(**settings))


def fit(
    state: TrainState,
    config: ExperimentConfig,
    dataset: Dataset,
    *,
    history: Sequence[EpochRecord] = (),
    part: Metrics | None = None,
    on_step: OnStep = lambda seen, metrics: None,
    should_stop: ShouldStop = never,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    augmentation: Augmentation | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Iterator[tuple[TrainState, EpochRecord]]:
    """Trains epoch by epoch until `config` or validation ends the run. Yields the state and the record of each epoch.

    Args:
        state: where to begin. Its buffers are reused. So are those of a yielded state, once the next one is asked for.
        config: of the run; `config.model` must fit the data set.
        dataset: the images. Without a validation split, there are no plateaus and no early stopping.
        history: records of the epochs that led to `state`.
        part: if `state` comes from the middle of an epoch: the metrics of that epoch's steps so far, from `Paused`.
        on_step: called after each dispatch (a few steps on a CPU, an epoch on an accelerator).
        should_stop: asked after each dispatch. Once it returns true, the epoch stops there, unless it is complete.
        model: a module in place of `config.model`. It maps standardised images (B, H, W, C) to logits (B, classes). If
            its `__call__` has the parameters `train: bool` or `mask: bool (B,)` (False for padding), it gets them. It
            may have the variable collections "params" and "batch_stats".
        loss: `(logits (B, classes), labels (B,)) -> (B,)`, in place of cross-entropy in training and validation.
        augmentation: `(key, images) -> images`, both uint8 (B, H, W, C), in place of `config.data.augment`. It is
            compiled with the step.
        optimizer: in place of `config.optim`. It has its own learning rate, which no schedule and no plateau scales. It
            has a single state for everything that trains, which is initialised again when stages are unfrozen.

    Raises:
        InputError: when the data set does not fit the network, when an argument leaves a setting without effect, or
            when an epoch's last batch is too small for batch normalisation (`training.soundness.require_trainable`).
        DivergedError: when the loss or a weight is no longer finite; the message names the step.
        Paused: when `should_stop` ended an epoch early.
    """
    custom = Custom(model, loss, augmentation, optimizer)
    require_effect(config, custom)
    require_trainable(config, dataset, custom)
    config = replace(config, train=replace(config.train, precision=resolve_precision(config.train.precision)))
    optim, batch_size = config.optim, config.train.batch_size
    n = len(dataset.train.labels)
    steps = -(-n // batch_size)
    records = list(history)
    settled = settled_epoch(config.freeze, config.model)
    frozen, phase = -1, None
    while len(records) < config.train.epochs and reason_to_stop(records, config) is None:
        began = time.perf_counter()
        epoch = len(records)
        if (now_frozen := frozen_stages(config.freeze, config.model, epoch)) != frozen:
            frozen = now_frozen
            state = unfreeze(state, config.model, optim, frozen, custom)
            phase = None  # frees its cached features before others are computed
            phase = _make_phase(state, config, dataset, frozen, custom)
        assert phase is not None
        ready = time.perf_counter()
        scale = plateau_scale([r.val_loss for r in records[settled:] if r.val_loss is not None], optim)
        done = 0 if part is None else batch_size * len(part.loss)
        order = epoch_order(config.seed, epoch, n)[done:]
        state, metrics = phase.train_epoch(state, order, scale, on_step, should_stop)
        trained = time.perf_counter()
        if part is not None:
            metrics, part = jax.tree.map(lambda *parts: np.concatenate(parts), part, metrics), None
        if not np.all(np.isfinite(metrics.loss)):
            bad = int(np.argmin(np.isfinite(metrics.loss)))
            raise _diverged(f"the loss is {metrics.loss[bad]} at step {epoch * steps + bad}", epoch)
        if len(metrics.loss) < steps:
            raise Paused(state, metrics)
        val_loss = val_accuracy = None
        if phase.validation is not None:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            val_loss, val_accuracy, _ = evaluate(
                phase.eval_step, variables, phase.validation, batch_size, seed=(config.seed, epoch)
            )
            if not math.isfinite(val_loss):
                raise _diverged(f"the validation loss is {val_loss} after step {(epoch + 1) * steps - 1}", epoch)
        elif not _all_finite(state.params):
            raise _diverged(f"a weight is no longer finite after step {(epoch + 1) * steps - 1}", epoch)
        record = EpochRecord(
            epoch=epoch + 1,
            train_loss=math.fsum(metrics.loss) / n,
            train_accuracy=100 * float(np.sum(metrics.correct)) / n,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=_rate(phase.schedule, state) * scale if optimizer is None else math.nan,
            seconds=time.perf_counter() - began,
            images_per_second=(n - done) / (trained - ready),
        )
        records.append(record)
        yield state, record


def _diverged(what: str, epoch: int) -> DivergedError:
    remedy = "lower optim.learning_rate or set optim.clip_norm"
    return DivergedError(f"{what} (epoch {epoch + 1}): training diverged; {remedy}")


@fixed_settings()
def _all_finite(params: Any) -> bool:
    return all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))  # in NumPy, as compiling would take longer


@fixed_settings()
def _rate(schedule: Schedule, state: TrainState) -> float:
    """The scheduled learning rate of the step that led to this state."""
    return float(schedule(state.step - 1))


class _Phase(NamedTuple):
    """What epochs with the same number of frozen stages have in common."""

    schedule: Schedule
    train_epoch: TrainEpoch
    eval_step: EvalStep
    validation: Split | None


@fixed_settings()
def _make_phase(state: TrainState, config: ExperimentConfig, dataset: Dataset, frozen: int, custom: Custom) -> _Phase:
    model, optim, batch_size = config.model, config.optim, config.train.batch_size
    train, validation = dataset.train, dataset.validation
    cached = custom.augmentation is None and caches_features(config, dataset, frozen)
    if cached:
        train, *held_out = compute_features(
            {"params": state.params, "batch_stats": state.batch_stats},
            [train] if validation is None else [train, validation],
            model=model,
            standardisation=dataset.standardisation,
            end_stage=frozen,
            batch_size=batch_size,
            precision=config.train.precision,
        )
        validation = held_out[0] if held_out else None
    steps_per_epoch = -(-len(train.labels) // batch_size)
    schedule = make_schedule(optim, steps_per_epoch=steps_per_epoch, epochs=config.train.epochs)
    step = make_train_step(
        model=model,
        optim=optim,
        schedule=schedule,
        standardisation=dataset.standardisation,
        augmentation=config.data.augment,
        frozen_stages=frozen,
        layer_decay=1.0 if config.freeze.mask == "scratch" else config.freeze.layer_decay,
        drifting_stats=config.protocol == "original",
        precision=config.train.precision,
        custom=custom,
        class_weights=balanced_weights(train.labels, dataset.num_classes)
        if config.train.class_weights == "balanced"
        else None,
    )
    train_epoch = make_train_epoch(
        step,
        train,
        batch_size,
        steps_per_call=default_steps_per_call(),
        jit=kept_jit if cached else jit,  # `jit` slows Adam, which is a large part of a step on features
    )
    eval_step = evaluation_step(config, dataset, model=custom.model, loss=custom.loss)
    return _Phase(schedule, train_epoch, eval_step, validation)
