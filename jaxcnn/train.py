"""The train state, the compiled steps, and `fit`, which turns them into a stream of epochs.

An image's way from the file to the loss: `data.load_dataset` -> `batches` -> `augment.augment` ->
`augment.standardise` -> `model.CNN` -> `cross_entropy`.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcnn.augment import augment, standardise
from jaxcnn.config import Augment, ExperimentConfig, ModelConfig, OptimConfig
from jaxcnn.data import Dataset, Split, epoch_order
from jaxcnn.errors import InputError
from jaxcnn.masks import partition
from jaxcnn.model import CNN
from jaxcnn.optim import Schedule, make_optimizer, make_schedule, plateau_scale, stop_reason


class TrainState(NamedTuple):
    """Everything that a training step changes, as one pytree."""

    step: jax.Array
    """int32, steps taken; folded into the key, so no random state needs to be carried."""
    params: dict[str, Any]
    batch_stats: dict[str, Any]
    opt_state: dict[str, Any]
    """The optimiser's state of each trained top-level module, and of nothing else."""
    key: jax.Array


class Batch(NamedTuple):
    """A batch of fixed size; images outside the mask are padding. NumPy arrays do outside of jit."""

    images: jax.Array
    """uint8 (B, H, W, C)."""
    labels: jax.Array
    """int32 (B,)."""
    mask: jax.Array
    """bool (B,)."""


class Metrics(NamedTuple):
    """Sums over the real images of a batch, so that totals divided once are exact."""

    loss: Any
    """Sum of the cross-entropy, in nats."""
    correct: Any
    count: Any


class EpochRecord(NamedTuple):
    """What one epoch did. Losses are means in nats, accuracies percent; validation is None without a split."""

    epoch: int
    """Counted from 1."""
    train_loss: float
    train_accuracy: float
    val_loss: float | None
    val_accuracy: float | None
    learning_rate: float
    """At the epoch's last step."""
    seconds: float
    """Training and validation, without compilation where that was separate."""
    images_per_second: float
    """Training images, over the time spent training."""


TrainStep = Callable[[TrainState, Batch, Any], tuple[TrainState, Metrics]]
TrainEpoch = Callable[..., tuple[TrainState, Metrics]]
EvalStep = Callable[[Any, Batch], tuple[Metrics, jax.Array]]
OnStep = Callable[[int, Metrics], None]
"""Called with the images seen this epoch and the metrics summed over them."""


def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy in nats, one value an image: logits (B, K), labels (B,) -> (B,)."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if label_smoothing == 0:
        return jnp.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return jnp.asarray(optax.softmax_cross_entropy(logits, targets))


def init_state(
    variables: Any, model: ModelConfig, optim: OptimConfig, *, seed: int, frozen_stages: int = 0
) -> TrainState:
    """The state before the first step; optimiser state exists for trained modules only."""
    optimizer = make_optimizer(optim)
    variables = jax.tree.map(jnp.array, variables)  # copies: steps may reuse the buffers
    _, trained = partition(variables["params"], model, frozen_stages)
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state={name: optimizer.init(params) for name, params in trained.items()},
        key=jax.random.key_data(jax.random.key(seed)),
    )


def make_train_step(
    *,
    model: ModelConfig,
    optim: OptimConfig,
    schedule: Schedule,
    mean: Sequence[float],
    std: Sequence[float],
    augmentation: Augment,
    frozen_stages: int = 0,
    vectorized: bool = False,
) -> TrainStep:
    """A pure step `(state, batch, scale) -> (state, metrics)`; `scale` multiplies the scheduled learning rate.

    Only the trained part is differentiated, so the backward pass of frozen stages is never built. Frozen stages run
    as in evaluation and keep their running statistics.
    """
    network = CNN(model)
    optimizer = make_optimizer(optim)
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()

    def step(state: TrainState, batch: Batch, scale: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)
        augment_key, dropout_key = jax.random.split(key)
        images = standardise(augment(augment_key, batch.images, augmentation, vectorized=vectorized), mean, std)
        count = jnp.sum(batch.mask)
        frozen, trained = partition(state.params, model, frozen_stages)

        def objective(trained: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            logits, updated = network.apply(
                {"params": frozen | trained, "batch_stats": state.batch_stats},
                images,
                True,
                mask=batch.mask,
                eval_stages=frozen_stages,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            losses = cross_entropy(logits, batch.labels, optim.label_smoothing)
            loss = jnp.sum(jnp.where(batch.mask, losses, 0))
            correct = jnp.sum((jnp.argmax(logits, -1) == batch.labels) & batch.mask)
            return loss / count, (Metrics(loss, correct, count), updated.get("batch_stats", {}))

        gradient, (metrics, batch_stats) = jax.grad(objective, has_aux=True)(trained)
        gradient, _ = clip.update(gradient, clip.init(trained))
        rate = schedule(state.step) * scale
        params, opt_state = dict(frozen), {}
        for name, module in trained.items():
            direction, opt_state[name] = optimizer.update(gradient[name], state.opt_state[name], module)
            params[name] = jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), module, direction)
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), metrics

    return step


def make_eval_step(*, model: ModelConfig, mean: Sequence[float], std: Sequence[float]) -> EvalStep:
    """A pure `(variables, batch) -> (metrics, predictions int32 (B,))` in evaluation mode."""
    network = CNN(model)

    def step(variables: Any, batch: Batch) -> tuple[Metrics, jax.Array]:
        logits: Any = network.apply(variables, standardise(batch.images, mean, std))
        losses = jnp.where(batch.mask, cross_entropy(logits, batch.labels), 0)
        predictions = jnp.argmax(logits, -1).astype(jnp.int32)
        correct = jnp.sum((predictions == batch.labels) & batch.mask)
        return Metrics(jnp.sum(losses), correct, jnp.sum(batch.mask)), predictions

    return step


def padded_order(order: np.ndarray[Any, Any], batch_size: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Indices and mask, both (steps, batch_size): one shape for every step, the last one padded."""
    steps = -(-len(order) // batch_size)
    indices = np.zeros(steps * batch_size, np.int32)
    indices[: len(order)] = order
    mask = np.arange(steps * batch_size) < len(order)
    return indices.reshape(steps, batch_size), mask.reshape(steps, batch_size)


def batches(split: Split, order: np.ndarray[Any, Any], batch_size: int) -> Iterator[Batch]:
    """The images of `split` in `order`, in batches of one shape."""
    for indices, mask in zip(*padded_order(order, batch_size), strict=True):
        yield Batch(split.images[indices], split.labels[indices], mask)


def make_train_epoch(step: TrainStep, split: Split, batch_size: int, *, resident: bool) -> TrainEpoch:
    """`(state, order, scale, on_step) -> (state, metrics of each step)`: one pass over `split`.

    `resident` keeps the images on the device and runs the epoch as one compiled scan, which is what accelerators
    want. Without it a Python loop feeds compiled steps: inside a scan XLA's CPU convolutions lose their threads.
    Both give the same results. States passed in must not be used again: their buffers are.
    """
    if resident:
        images, labels = jnp.asarray(split.images), jnp.asarray(split.labels)

        @jax.jit
        def scan(state: TrainState, images: jax.Array, labels: jax.Array, order: Any, scale: Any) -> Any:
            def body(state: TrainState, part: Any) -> Any:
                indices, mask = part
                return step(state, Batch(images[indices], labels[indices], mask), scale)

            return jax.lax.scan(body, state, order)

        def train_resident(state: TrainState, order: Any, scale: float, on_step: OnStep) -> Any:
            state, metrics = scan(state, images, labels, padded_order(order, batch_size), jnp.float32(scale))
            return state, jax.tree.map(np.asarray, metrics)

        return train_resident

    jitted = jax.jit(step, donate_argnums=0)

    def train_fed(state: TrainState, order: Any, scale: float, on_step: OnStep) -> Any:
        seen: list[Metrics] = []
        pending: Metrics | None = None
        for batch in batches(split, order, batch_size):
            state, metrics = jitted(state, batch, jnp.float32(scale))
            if pending is not None:  # read one step late, so that the device is never waited for
                seen.append(jax.tree.map(np.asarray, pending))
                on_step(len(seen) * batch_size, _total(seen))
            pending = metrics
        seen.append(jax.tree.map(np.asarray, pending))
        return state, jax.tree.map(lambda *leaves: np.stack(leaves), *seen)

    return train_fed


def _total(metrics: Sequence[Metrics]) -> Metrics:
    return Metrics(*(sum(np.float64(m[i]) for m in metrics) for i in range(3)))


def evaluate(
    step: EvalStep, variables: Any, split: Split, batch_size: int
) -> tuple[float, float, np.ndarray[Any, Any]]:
    """Mean loss (nats), accuracy (percent) and predictions (N,) over all of `split`, in its order; `step` jitted."""
    results = [step(variables, batch) for batch in batches(split, np.arange(len(split.labels)), batch_size)]
    total = _total([jax.tree.map(np.asarray, metrics) for metrics, _ in results])
    predictions = np.concatenate([np.asarray(p) for _, p in results])[: len(split.labels)]
    return total.loss / total.count, 100 * total.correct / total.count, predictions


def fit(
    state: TrainState,
    config: ExperimentConfig,
    dataset: Dataset,
    *,
    history: Sequence[EpochRecord] = (),
    on_step: OnStep = lambda seen, metrics: None,
) -> Iterator[tuple[TrainState, EpochRecord]]:
    """Trains epoch by epoch, yielding the state and the record of each, until `config` or validation says stop.

    Args:
        state: where to begin. Its buffers are reused, as are those of a yielded state once the next is asked for.
        config: with `config.model` fitting the data set.
        dataset: the images; without a validation split nothing cuts the rate or stops early.
        history: records of the epochs that `state` has behind it.
        on_step: told of progress within an epoch.

    Raises:
        InputError: when the loss stops being finite, naming the step.
    """
    optim, train, model = config.optim, config.train, config.model
    resident = jax.default_backend() != "cpu"
    n = len(dataset.train.labels)
    steps = -(-n // train.batch_size)
    schedule = make_schedule(optim, steps_per_epoch=steps, epochs=train.epochs)
    step = make_train_step(
        model=model,
        optim=optim,
        schedule=schedule,
        mean=dataset.mean,
        std=dataset.std,
        augmentation=config.data.augment,
        vectorized=resident,
    )
    train_epoch = make_train_epoch(step, dataset.train, train.batch_size, resident=resident)
    eval_step = jax.jit(make_eval_step(model=model, mean=dataset.mean, std=dataset.std))
    records = list(history)
    while len(records) < train.epochs and stopped(records, config) is None:
        began = time.perf_counter()
        scale = plateau_scale([r.val_loss for r in records if r.val_loss is not None], optim)
        order = epoch_order(config.seed, len(records), n)
        state, metrics = train_epoch(state, order, scale, on_step)
        trained = time.perf_counter()
        if not np.all(np.isfinite(metrics.loss)):
            bad = len(records) * steps + int(np.argmin(np.isfinite(metrics.loss)))
            raise InputError(
                f"the loss is {metrics.loss.ravel()[bad % steps]} at step {bad} (epoch {len(records) + 1}): "
                "training diverged; lower optim.learning_rate or set optim.clip_norm"
            )
        val_loss = val_accuracy = None
        if dataset.validation is not None:
            variables = {"params": state.params, "batch_stats": state.batch_stats}
            val_loss, val_accuracy, _ = evaluate(eval_step, variables, dataset.validation, train.batch_size)
        record = EpochRecord(
            epoch=len(records) + 1,
            train_loss=math.fsum(metrics.loss) / n,
            train_accuracy=100 * float(np.sum(metrics.correct)) / n,
            val_loss=val_loss,
            val_accuracy=val_accuracy,
            learning_rate=float(schedule(state.step - 1)) * scale,
            seconds=time.perf_counter() - began,
            images_per_second=n / (trained - began),
        )
        records.append(record)
        yield state, record


def stopped(records: Sequence[EpochRecord], config: ExperimentConfig) -> str | None:
    """Why a run with these records is over before its last epoch, or None."""
    losses = [r.val_loss for r in records if r.val_loss is not None]
    accuracies = [r.val_accuracy for r in records if r.val_accuracy is not None]
    return stop_reason(losses, accuracies, config.train)
