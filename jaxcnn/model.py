"""The configurable CNN as a flax.linen module.

Variables are named `block_{i}/conv_{j}`, `block_{i}/bn_{j}`, `fc1`, `fc2`, `fc3`; masks, checkpoints and the
converter share these names. A *stage* is a block, or fc1 or fc2 with the dropout before it: the unit of freezing,
counted from the input upwards. fc3, the head, comes after the last stage.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from operator import index
from typing import Any, final

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, VariableDict

from jaxcnn.config.network import ModelConfig
from jaxcnn.config.training import Precision
from jaxcnn.errors import InputError, require_int
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.kernels.conv import conv3x3
from jaxcnn.kernels.dense import dense
from jaxcnn.kernels.dropout import dropout
from jaxcnn.kernels.executables import jit
from jaxcnn.kernels.norm import batch_norm
from jaxcnn.kernels.pool import max_pool2x2

PRNG = "threefry2x32"
"""The generator, whatever JAX's default is set to: one seed means one run (with `kernels.backend.fixed_settings`)."""

BN_EPSILON = 1e-5
BN_MOMENTUM = 0.1  # PyTorch's convention: the share of the new batch in the running average

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "relu": jax.nn.relu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "tanh": jnp.tanh,
    "leaky_relu": lambda x: jnp.where(x > 0, x, 0.01 * x),
    "elu": jax.nn.elu,
}

# PyTorch's default is kaiming_uniform(a=sqrt(5)), which is U(+-1/sqrt(fan_in)): a variance of 1/(3 fan_in).
KERNEL_INITS: dict[str, nn.initializers.Initializer] = {
    "default": nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform"),
    "xavier": nn.initializers.xavier_uniform(),
    "kaiming": nn.initializers.he_uniform(),
    "normal": nn.initializers.normal(0.01),
}


def bias_init(weight_init: str, fan_in: int) -> nn.initializers.Initializer:
    """PyTorch's default bias, U(+-1/sqrt(fan_in)); zeros with any initialiser asked for by name."""
    if weight_init != "default":
        return nn.initializers.zeros
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = float) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


@partial(jax.tree_util.register_dataclass, data_fields=("values", "columns"), meta_fields=("stage",))
@final
@dataclass(frozen=True)
class Features:
    """What a stage reads, for each image: frozen stages compute it once, and the network goes on from there.

    Of the inputs of a dense stage, columns that are zero for every image may be left out:

        all inputs of fc1         values        columns
        [[0.5, 0, 0, 2.0],        [[0.5, 2.0],  [0, 3]
         [0.1, 0, 0, 0.0]]         [0.1, 0.0]]
    """

    values: Any
    """Floating (N, H, W, C), or (N, C) where the stage is dense."""
    stage: int
    """Index of the stage that reads them; `num_stages` is the head."""
    columns: Any = None
    """int32 (C,), ascending: which of a dense stage's inputs `values` holds. The others are zero; None holds all."""


def map_values(f: Callable[[Any], Any], x: Any) -> Any:
    """f(x) of images; of features, the same features with f applied to their values."""
    return replace(x, values=f(x.values)) if isinstance(x, Features) else f(x)


class Conv(nn.Module):
    """3x3 convolution with padding 1: (B, H, W, C) -> (B, H, W, features), and the bias that is to be added."""

    features: int
    weight_init: str

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Convolves; kernel (3, 3, C, features), bias (features,)."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", KERNEL_INITS[self.weight_init], shape)
        bias = self.param("bias", bias_init(self.weight_init, 9 * x.shape[-1]), shape[-1:])
        if self.is_initializing():  # the shape is all that matters, and compiling the convolution takes seconds
            return jnp.zeros((*x.shape[:-1], self.features), x.dtype), bias
        return conv3x3(x, kernel.astype(x.dtype)), bias


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running averages.

    Unlike `flax.linen.BatchNorm`, the running variance takes the unbiased batch variance, the number of batches
    seen is counted (`num_batches_tracked`), and images outside the mask count for nothing.
    """

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        """Normalises x + offset by its own statistics if `train`, else by the running ones.

        x is (B, H, W, C), offset (C,), mask (B,). A batch's own statistics cancel the offset, so nothing but the
        running mean ever sees it: a pass over x less, and a gradient of exactly zero where PyTorch has rounding noise.
        """
        channels = x.shape[-1:]
        scale = self.param("scale", nn.initializers.ones, channels)
        bias = self.param("bias", nn.initializers.zeros, channels)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, channels)
        running_var = self.variable("batch_stats", "var", jnp.ones, channels)
        count = self.variable("batch_stats", "count", jnp.zeros, (), jnp.int32)
        if not train:
            gain = scale * jax.lax.rsqrt(running_var.value + BN_EPSILON)
            return x * gain.astype(x.dtype) + (bias + (offset - running_mean.value) * gain).astype(x.dtype)
        if math.prod(x.shape[:-1]) == 1:
            raise InputError(f"a batch of one image with maps of 1x1 has no variance to normalise by; x is {x.shape}")
        y, mean, var, n = batch_norm(x, scale, bias, mask, epsilon=BN_EPSILON)
        if not self.is_initializing():
            unbiased = var * (n / jnp.maximum(n - 1, 1))
            mean = mean + jax.lax.stop_gradient(offset)
            running_mean.value = (1 - BN_MOMENTUM) * running_mean.value + BN_MOMENTUM * mean
            running_var.value = (1 - BN_MOMENTUM) * running_var.value + BN_MOMENTUM * unbiased
            count.value = count.value + 1
        return y


class Block(nn.Module):
    """Convolutions, each with its activation and perhaps batch normalisation, then perhaps a max pool."""

    config: ModelConfig
    index: int

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', hidden_dims[index]); H' is H or H // 2."""
        config, i = self.config, self.index
        for j in range(config.layers_per_block[i]):
            x, bias = Conv(config.channels[i], config.weight_init, name=f"conv_{j}")(x)
            if config.apply_bn[i]:
                x = BatchNorm(name=f"bn_{j}")(x, bias, train=train, mask=mask)
            else:
                x = x + bias.astype(x.dtype)
            x = ACTIVATIONS[config.activation_function](x)
        return max_pool2x2(x) if config.apply_pooling[i] else x


class Dense(nn.Module):
    """Fully connected layer: (B, width) -> (B, features)."""

    features: int
    width: int
    weight_init: str
    dtype: Dtype | None

    @nn.compact
    def __call__(self, x: jax.Array, columns: jax.Array | None = None) -> jax.Array:
        """Takes x (B, width), or of it these columns, as `kernels.dense.dense` does; kernel (width, features), bias."""
        kernel = self.param("kernel", KERNEL_INITS[self.weight_init], (self.width, self.features))
        bias = self.param("bias", bias_init(self.weight_init, self.width), (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y: jax.Array = dense(x, kernel, columns) + bias
        return y


class CNN(nn.Module):
    """The network that `config` describes; `dtype` is what it computes in (the parameters' own if None)."""

    config: ModelConfig
    dtype: Dtype | None = None

    @nn.compact
    @fixed_settings()
    def __call__(
        self,
        x: jax.Array | Features,
        train: bool = False,
        *,
        mask: jax.Array | None = None,
        eval_stages: int = 0,
        end_stage: int | None = None,
    ) -> jax.Array:
        """Logits (B, num_classes) of standardised images (B, H, W, C).

        Args:
            x: float images in NHWC order, or features, from which the network's tail is computed.
            train: use batch statistics (and update the running ones) and dropout; needs `rngs={"dropout": key}`
                and `mutable=["batch_stats"]`.
            mask: bool (B,); images that are padding, and so count for nothing in batch statistics, are False.
            eval_stages: this many stages from the input up run as in evaluation even when `train`.
            end_stage: return what this stage would read, instead of logits.

        Raises:
            InputError: when the images are integers.
        """
        x, first_stage, columns = (x.values, x.stage, x.columns) if isinstance(x, Features) else (x, 0, None)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"the images are {x.dtype}, not floating-point; see jaxcnn.data.augment.standardise")
        config = self.config
        act = ACTIVATIONS[config.activation_function]
        dtype = self.dtype or x.dtype
        x = x.astype(dtype)
        stop = config.num_stages if end_stage is None else end_stage
        for stage in range(first_stage, stop):
            training = train and stage >= eval_stages
            if stage < config.num_blocks:
                x = Block(config, stage, name=f"block_{stage}")(x, train=training, mask=mask)
            else:
                x = x.reshape(len(x), -1)
                i = stage - config.num_blocks
                if training and config.dropout_rate > 0:
                    places = None if columns is None else _places(columns, len(x), config.dense_widths[i])
                    x = dropout(self.make_rng("dropout"), x, config.dropout_rate, places=places)
                x = act(self._dense(i, config.hidden_dims[stage])(x, columns))
                columns = None
        return x if end_stage is not None else self._dense(2, config.num_classes)(x, columns)

    def _dense(self, i: int, features: int) -> Dense:
        config = self.config
        return Dense(features, config.dense_widths[i], config.weight_init, self.dtype, name=f"fc{i + 1}")


def _places(columns: jax.Array, rows: int, width: int) -> jax.Array:
    """Row-major indices, uint32 (rows, C), of these columns in an array (rows, width)."""
    places: jax.Array = jnp.arange(rows, dtype=jnp.uint32)[:, None] * jnp.uint32(width) + columns.astype(jnp.uint32)
    return places


@fixed_settings()
def key_of(seed: int) -> jax.Array:
    """The key of a run's random numbers: that of `jax.random.key`, which JAX_RANDOM_SEED_OFFSET cannot change.

    Raises:
        InputError: when the seed is not in 0 to 2**32 - 1.
    """
    require_int("seed", seed := index(seed), least=0, most=2**32 - 1)
    key: jax.Array = jax.random.wrap_key_data(jnp.asarray(np.array([0, seed], np.uint32)), impl=PRNG)
    return key


@fixed_settings()
def init_variables(config: ModelConfig, key: jax.Array) -> VariableDict:
    """Fresh `{"params": ..., "batch_stats": ...}` in float32 (float64 under x64); no batch_stats without batch norm."""
    image = jnp.zeros((1, config.input_size, config.input_size, config.in_channels))
    # JAX takes no options within another function's trace.
    traced = any(isinstance(value, jax.core.Tracer) for value in (image, key))
    # It runs once, so that what costs the compiler a second is not worth it.
    init = CNN(config).init if traced else jit(CNN(config).init, xla_backend_optimization_level=1)
    variables: VariableDict = {"batch_stats": {}, **init(key, image)}
    return variables


def make_network(model: ModelConfig, precision: Precision) -> CNN:
    """The network, computing in this precision; float32 stands for the parameters' own type."""
    return CNN(model, dtype=jnp.bfloat16 if precision == "bfloat16" else None)
