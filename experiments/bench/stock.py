"""The network from flax's own Conv, BatchNorm and max_pool, to measure what this project's layers gain.

Only for the benchmark, and only for ReLU networks. Module names are those of `jaxcnn.model.CNN`, so the same weights
fit.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from experiments.bench.measure import Program
from experiments.bench.setting import OPTIM, Setting, load_images
from jaxcnn.config import ModelConfig
from jaxcnn.data.augment import standardise
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.model import init_variables, key_of


class StockBlock(nn.Module):
    """One block of `StockCNN`."""

    config: ModelConfig
    index: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', hidden_dims[index])."""
        config, i = self.config, self.index
        for j in range(config.layers_per_block[i]):
            x = nn.Conv(config.channels[i], (3, 3), name=f"conv_{j}")(x)
            if config.apply_bn[i]:
                x = nn.BatchNorm(not train, momentum=0.9, name=f"bn_{j}")(x)
            x = nn.relu(x)
        if config.apply_pooling[i]:
            x = nn.max_pool(x, (2, 2), (2, 2))
        return x


class StockCNN(nn.Module):
    """The CNN that `config` describes, as an ordinary flax program has it."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        """Logits (B, num_classes) of standardised images (B, H, W, C)."""
        config = self.config
        for i in range(config.num_blocks):
            x = StockBlock(config, i, name=f"block_{i}")(x, train)
        x = x.reshape(len(x), -1)
        for i, width in enumerate(config.hidden_dims[-2:], 1):
            x = nn.Dropout(config.dropout_rate, deterministic=not train)(x)
            x = nn.relu(nn.Dense(width, name=f"fc{i}")(x))
        return nn.Dense(config.num_classes, name="fc3")(x)


def stock_variables(variables: Any) -> dict[str, Any]:
    """Variables of `jaxcnn.model.CNN` for `StockCNN`: without the count of batches, which flax does not have."""
    stats = {
        block: {norm: {"mean": leaf["mean"], "var": leaf["var"]} for norm, leaf in norms.items()}
        for block, norms in variables["batch_stats"].items()
    }
    return {"params": variables["params"], "batch_stats": stats}


def train_steps(setting: Setting) -> Program:
    """A program of `setting.steps` training steps without augmentation."""
    network, batch_size = StockCNN(setting.model), setting.batch_size
    optimizer = optax.chain(optax.add_decayed_weights(OPTIM.weight_decay), optax.adam(OPTIM.learning_rate))

    def step(state: Any, images: jax.Array, labels: jax.Array, key: jax.Array) -> tuple[Any, jax.Array]:
        params, stats, moments = state

        def objective(params: Any) -> tuple[jax.Array, Any]:
            inputs = standardise(images, CIFAR10_STANDARDISATION)
            logits, updated = network.apply(
                {"params": params, "batch_stats": stats}, inputs, True, rngs={"dropout": key}, mutable=["batch_stats"]
            )
            losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return jnp.mean(losses), updated["batch_stats"]

        (loss, new_stats), gradient = jax.value_and_grad(objective, has_aux=True)(params)
        updates, moments = optimizer.update(gradient, moments, params)
        return (optax.apply_updates(params, updates), new_stats, moments), loss

    jitted = jax.jit(step, donate_argnums=0)
    split = load_images(setting, setting.steps * batch_size)
    variables = stock_variables(init_variables(setting.model, key_of(0)))
    states = [(variables["params"], variables["batch_stats"], optimizer.init(variables["params"]))]

    def run() -> None:
        state = states.pop()
        for i in range(setting.steps):
            part = slice(i * batch_size, (i + 1) * batch_size)
            state, _ = jitted(state, split.images[part], split.labels[part], jax.random.key(i))
        states.append(jax.block_until_ready(state))

    return run
