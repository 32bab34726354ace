"""The training state, and the pure functions that are compiled: a training step and an evaluation step."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxcnn.config.network import ModelConfig, stage_of
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.config.training import Augment, OptimConfig, Precision
from jaxcnn.data.augment import augment, standardise
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.batch import image_by_image
from jaxcnn.kernels.executables import kept_jit
from jaxcnn.kernels.features import Features
from jaxcnn.kernels.shards import Shards, total
from jaxcnn.masks import partition
from jaxcnn.model import PRNG, key_of, make_network
from jaxcnn.training.custom import BUILT_IN, Custom, CustomModule, one_an_image, restart
from jaxcnn.training.optim import Schedule, make_optimizer
from jaxcnn.training.records import Batch, EvalStep, Metrics, TrainState, TrainStep


@fixed_settings()
def cross_entropy(logits: jax.Array, labels: jax.Array, label_smoothing: float = 0.0) -> jax.Array:
    """Cross-entropy in nats, one value an image: logits (B, K), labels (B,) -> (B,)."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if label_smoothing == 0:
        return jnp.asarray(optax.softmax_cross_entropy_with_integer_labels(logits, labels))
    targets = optax.smooth_labels(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype), label_smoothing)
    return jnp.asarray(optax.softmax_cross_entropy(logits, targets))


@fixed_settings()
def init_state(
    variables: Any, model: ModelConfig, optim: OptimConfig, *, seed: int, frozen_stages: int = 0
) -> TrainState:
    """The state before the first step. Only modules that train have an optimiser state.

    Args:
        variables: parameters, and batch statistics if there are any, of the network or of your own module.
        model: the network; not used with your own module.
        optim: the optimiser. If you give `fit` an optimiser of your own, `fit` makes that one's state.
        seed: of the random numbers for augmentation and dropout.
        frozen_stages: how many stages are frozen, from the input up.
    """
    optimizer = make_optimizer(optim)

    def begin(variables: Any) -> TrainState:
        variables = jax.tree.map(jnp.array, variables)  # copies, since training steps reuse the buffers
        _, trained = partition(variables["params"], model, frozen_stages)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=variables["params"],
            batch_stats=variables.get("batch_stats", {}),
            opt_state={name: optimizer.init(params) for name, params in trained.items()},
            key=jax.random.key_data(key_of(seed)),
        )

    state: TrainState = kept_jit(begin)(variables)
    return state


@fixed_settings()
def unfreeze(
    state: TrainState, model: ModelConfig, optim: OptimConfig, frozen_stages: int, custom: Custom = BUILT_IN
) -> TrainState:
    """The state with this many stages frozen. A module that begins to train gets a new optimiser state, with its count.

    A user's own optimiser has a single state, which is initialised again.
    """
    _, trained = partition(state.params, model, frozen_stages)
    if custom.optimizer is not None:
        return state._replace(opt_state=restart(custom.optimizer, state.opt_state, trained))
    optimizer = make_optimizer(optim)
    opt_state = {n: state.opt_state[n] if n in state.opt_state else optimizer.init(p) for n, p in trained.items()}
    return state._replace(opt_state=opt_state)


def make_train_step(
    *,
    model: ModelConfig,
    optim: OptimConfig,
    schedule: Schedule,
    standardisation: Standardisation,
    augmentation: Augment,
    frozen_stages: int = 0,
    layer_decay: float = 1.0,
    drifting_stats: bool = False,
    precision: Precision = "float32",
    custom: Custom = BUILT_IN,
    class_weights: Sequence[float] | None = None,
    shards: Shards | None = None,
) -> TrainStep:
    """A pure step `(state, batch, scale) -> (state, metrics)`; `scale` multiplies the scheduled learning rate.

    The loss is differentiated with respect to the trained parameters only, so the backward pass of frozen stages does
    not exist. Frozen stages run as in evaluation and keep their running statistics.

    Args:
        model: the network.
        optim: the optimiser.
        schedule: learning rate by step.
        standardisation: of the images.
        augmentation: of the images.
        frozen_stages: how many stages are frozen, from the input up.
        layer_decay: ratio of each stage's learning rate to that of the next stage up. The head has the full rate.
        drifting_stats: run frozen stages as in training, so that their statistics change, as in the original PyTorch
            program.
        precision: bfloat16, or float32 for the parameters' own type.
        custom: the user's own network, loss, augmentation and optimiser.
        class_weights: a factor for the loss of each class. The batch's sum is still divided by its number of images.
        shards: how the batch is divided among devices, for a step inside `jax.shard_map`. `custom` must then have no
            network and no augmentation.
    """
    eval_stages = 0 if drifting_stats else frozen_stages
    network = make_network(model, precision, shards) if custom.model is None else CustomModule(custom.model)
    losses_of = partial(cross_entropy, label_smoothing=optim.label_smoothing) if custom.loss is None else custom.loss
    optimizer = make_optimizer(optim)
    clip = optax.clip_by_global_norm(optim.clip_norm) if optim.clip_norm else optax.identity()

    @fixed_settings()
    def step(state: TrainState, batch: Batch, scale: jax.Array) -> tuple[TrainState, Metrics]:
        key = jax.random.fold_in(jax.random.wrap_key_data(state.key, impl=PRNG), state.step)
        augment_key, dropout_key = jax.random.split(key)
        inputs = batch.images
        if not isinstance(inputs, Features):
            if custom.augmentation is None:
                inputs = augment(augment_key, inputs, augmentation, shards)
            else:
                inputs = custom.augmentation(augment_key, inputs)
            inputs = standardise(inputs, standardisation, dtype=jax.tree.leaves(state.params)[0].dtype)
        count = jnp.sum(batch.mask)
        whole_count = total(count, shards)
        frozen, trained = partition(state.params, model, frozen_stages)

        def objective(trained: Any) -> tuple[jax.Array, tuple[Metrics, Any]]:
            logits, updated = network.apply(
                {"params": frozen | trained, "batch_stats": state.batch_stats},
                inputs,
                True,
                mask=batch.mask,
                eval_stages=eval_stages,
                rngs={"dropout": dropout_key},
                mutable=["batch_stats"],
            )
            losses = one_an_image(losses_of(logits, batch.labels), batch.labels)
            if class_weights is not None:
                losses = losses * jnp.asarray(class_weights, losses.dtype)[batch.labels]
            loss = jnp.sum(jnp.where(batch.mask, losses, 0))
            correct = jnp.sum((jnp.argmax(logits, -1) == batch.labels) & batch.mask)
            return loss / whole_count, (Metrics(loss, correct, count), updated.get("batch_stats", {}))

        gradient, (metrics, batch_stats) = jax.grad(objective, has_aux=True)(trained)
        gradient, metrics = total((gradient, metrics), shards)
        gradient, _ = clip.update(gradient, clip.init(trained))
        if custom.optimizer is not None:
            updates, opt_state = custom.optimizer.update(gradient, state.opt_state, trained)
            params = frozen | optax.apply_updates(trained, updates)
            return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), metrics
        rate = schedule(state.step) * scale
        params, opt_state = dict(frozen), {}
        for name, module in trained.items():
            direction, opt_state[name] = optimizer.update(gradient[name], state.opt_state[name], module)
            decay = 1.0 if layer_decay == 1 else layer_decay ** (model.num_stages - stage_of(name, model))
            params[name] = _descend(module, direction, rate * decay)
        return TrainState(state.step + 1, params, batch_stats, opt_state, state.key), metrics

    return step


def _descend(params: Any, direction: Any, rate: Any) -> Any:
    return jax.tree.map(lambda p, d: p - (rate * d).astype(p.dtype), params, direction)


def make_eval_step(
    *,
    model: ModelConfig,
    standardisation: Standardisation,
    augmentation: Augment = "none",
    precision: Precision = "float32",
    custom: Custom = BUILT_IN,
    shards: Shards | None = None,
) -> EvalStep:
    """A pure step `(variables, batch, key) -> (metrics, logits (B, K))` in evaluation mode; logits in float32 or wider.

    The arguments are those of `make_train_step`. Only the original's protocol augments images in evaluation.
    """
    network = make_network(model, precision) if custom.model is None else CustomModule(custom.model)
    losses_of = cross_entropy if custom.loss is None else custom.loss

    @fixed_settings()
    def step(variables: Any, batch: Batch, key: jax.Array) -> tuple[Metrics, jax.Array]:
        inputs = batch.images
        if not isinstance(inputs, Features):
            inputs = augment(jax.random.wrap_key_data(key, impl=PRNG), inputs, augmentation, shards)
            inputs = standardise(inputs, standardisation, dtype=jax.tree.leaves(variables["params"])[0].dtype)

        def forward(x: Any) -> jax.Array:
            logits: Any = network.apply(variables, x)
            return jnp.asarray(logits)

        # Dense stages have small activations and large weights, so the whole batch goes through at once.
        head_only = isinstance(inputs, Features) and inputs.stage >= model.num_blocks
        logits = forward(inputs) if head_only else image_by_image(forward, inputs)
        logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
        losses = jnp.where(batch.mask, one_an_image(losses_of(logits, batch.labels), batch.labels), 0)
        correct = jnp.sum((jnp.argmax(logits, -1) == batch.labels) & batch.mask)
        return total(Metrics(jnp.sum(losses), correct, jnp.sum(batch.mask)), shards), logits

    return step
