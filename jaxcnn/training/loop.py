"""Epochs and runs: `fit` trains on a data set and yields after each epoch.

An image's way to the loss: `data.sets.load_dataset` reads it, `epoch.make_train_epoch` puts it into a batch, and the
step of `step.make_train_step` passes it through `data.augment.augment`, `data.augment.standardise`, `model.CNN` and
`step.cross_entropy`.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.data.splits import Dataset, Split, epoch_order
from jaxcnn.errors import DivergedError, InputError
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.executables import jit, kept_jit
from jaxcnn.kernels.precision import resolve_precision
from jaxcnn.masks import frozen_stages, settled_epoch
from jaxcnn.training.class_weights import balanced_weights
from jaxcnn.training.custom import BUILT_IN, Augmentation, Custom, Loss
from jaxcnn.training.decisions import plateau_scale, reason_to_stop
from jaxcnn.training.devices import DIVIDED, EVERYWHERE, divide, replicate
from jaxcnn.training.epoch import (
    OnStep,
    ShouldStop,
    TrainEpoch,
    default_steps_per_call,
    evaluate,
    make_train_epoch,
    never,
)
from jaxcnn.training.features import SharedFeatures, caches_features, compute_features
from jaxcnn.training.optim import Schedule, make_schedule
from jaxcnn.training.records import EpochRecord, EvalStep, Metrics, TrainState
from jaxcnn.training.soundness import require_effect, require_trainable
from jaxcnn.training.step import make_eval_step, make_train_step, unfreeze


class Paused(Exception):
    """`fit` was asked to stop within an epoch. Called again with this state and part, it gives the same bits."""

    def __init__(self, state: TrainState, part: Metrics) -> None:
        super().__init__(f"after {len(part.loss)} steps of the epoch")
        self.state = state
        self.part = part
        """The metrics of each step of the epoch so far."""


def evaluation_step(
    config: ExperimentConfig,
    dataset: Dataset,
    *,
    model: nn.Module | None = None,
    loss: Loss | None = None,
    mesh: Mesh | None = None,
) -> EvalStep:
    """The compiled step by which a run evaluates, for images or their features.

    Equal settings give the same step. So validation, the test and other runs share one compiled program. `model`,
    `loss` and `mesh` are the arguments of `fit`.
    """
    custom = Custom(model=model, loss=loss)
    # A user's own module may not be hashable, so it is not looked up in the cache.
    return (compiled_eval_step if custom == BUILT_IN else compiled_eval_step.__wrapped__)(
        model=config.model,
        standardisation=dataset.standardisation,
        augmentation=config.data.augment if config.protocol == "original" else "none",
        precision=resolve_precision(config.train.precision),
        custom=custom,
        mesh=mesh,
    )


@lru_cache(maxsize=8)
def compiled_eval_step(*, mesh: Mesh | None = None, **settings: Any) -> EvalStep:
    """`make_eval_step`, compiled for a mesh or for one device. Equal settings give the same step."""
    shards = None if settings.get("custom", BUILT_IN).needs_whole_batch else divide(0, mesh)
    step = make_eval_step(**settings, shards=shards)
    if mesh is not None and shards is not None:
        places = (EVERYWHERE, DIVIDED, EVERYWHERE)
        step = jax.shard_map(step, mesh=mesh, in_specs=places, out_specs=(EVERYWHERE, DIVIDED), check_vma=False)
    return kept_jit(step)


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
    mesh: Mesh | None = None,
    features: SharedFeatures | None = None,
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
        mesh: of `training.devices.make_mesh`: each batch is divided among its devices. Results are the same up to
            rounding. None trains on JAX's default device. With a `model` or an `augmentation`, the batch size must be a
            multiple of the number of devices.
        features: cached features of the last run, to use if they fit, and to replace.

    Raises:
        InputError: when the data set does not fit the network, when an argument leaves a setting without effect, or
            when an epoch's last batch is too small for batch normalisation (`training.soundness.require_trainable`).
        DivergedError: when the loss or a weight is no longer finite; the message names the step.
        Paused: when `should_stop` ended an epoch early.
    """
    custom = Custom(model, loss, augmentation, optimizer)
    require_effect(config, custom)
    require_trainable(config, dataset, custom)
    if mesh is not None and custom.needs_whole_batch and config.train.batch_size % mesh.size:
        raise InputError(
            f"train.batch_size={config.train.batch_size} is not usable: with a network or an augmentation of your own, "
            f"the {mesh.size} devices must divide it"
        )
    config = replace(config, train=replace(config.train, precision=resolve_precision(config.train.precision)))
    optim, batch_size = config.optim, config.train.batch_size
    n = len(dataset.train.labels)
    steps = -(-n // batch_size)
    records = list(history)
    settled = settled_epoch(config.freeze, config.model)
    frozen, phase = -1, None
    state = replicate(state, mesh)
    while len(records) < config.train.epochs and reason_to_stop(records, config) is None:
        began = time.perf_counter()
        epoch = len(records)
        if (now_frozen := frozen_stages(config.freeze, config.model, epoch)) != frozen:
            frozen = now_frozen
            state = replicate(unfreeze(state, config.model, optim, frozen, custom), mesh)
            phase = None  # frees its cached features before others are computed
            phase = _make_phase(state, config, dataset, frozen, custom, mesh, features)
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
                phase.eval_step, variables, phase.validation, batch_size, seed=(config.seed, epoch), mesh=mesh
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
    return float(schedule(jnp.asarray(np.asarray(state.step)) - 1))


class _Phase(NamedTuple):
    """What epochs with the same number of frozen stages have in common."""

    schedule: Schedule
    train_epoch: TrainEpoch
    eval_step: EvalStep
    validation: Split | None


@fixed_settings()
def _make_phase(
    state: TrainState,
    config: ExperimentConfig,
    dataset: Dataset,
    frozen: int,
    custom: Custom,
    mesh: Mesh | None,
    features: SharedFeatures | None,
) -> _Phase:
    model, optim, batch_size = config.model, config.optim, config.train.batch_size
    train, validation = dataset.train, dataset.validation
    cached = custom.augmentation is None and caches_features(config, dataset, frozen)
    if cached:
        compute = compute_features if features is None else features.compute
        train, *held_out = compute(
            {"params": state.params, "batch_stats": state.batch_stats},
            [train] if validation is None else [train, validation],
            model=model,
            standardisation=dataset.standardisation,
            end_stage=frozen,
            batch_size=batch_size,
            precision=config.train.precision,
            mesh=mesh,
        )
        validation = held_out[0] if held_out else None
    elif features is not None:
        features.drop()
    shards = None if custom.needs_whole_batch else divide(batch_size, mesh)
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
        shards=shards,
    )
    train_epoch = make_train_epoch(
        step,
        train,
        batch_size,
        steps_per_call=default_steps_per_call(),
        jit=kept_jit if cached else jit,  # `jit` slows Adam, which is a large part of a step on features
        mesh=mesh,
        shards=shards,
    )
    eval_step = evaluation_step(config, dataset, model=custom.model, loss=custom.loss, mesh=mesh)
    return _Phase(schedule, train_epoch, eval_step, validation)
