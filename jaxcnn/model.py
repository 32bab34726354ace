"""The configurable CNN as a flax.linen module.

Variables are named `block_{i}/conv_{j}`, `block_{i}/bn_{j}`, `fc1`, `fc2`, `fc3`. Masks, checkpoints and the converter
use the same names.

A *stage* is the unit of freezing: a block, or fc1 or fc2 with the dropout before it. Stages are counted from the input
upwards. fc3, the head, comes after the last stage.
"""

import math
from collections.abc import Callable
from operator import index

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.linen.dtypes import promote_dtype
from flax.typing import Dtype, VariableDict

from jaxcnn.config.network import ModelConfig
from jaxcnn.config.training import Precision
from jaxcnn.errors import InputError, require_int
from jaxcnn.kernels.backend import fixed_settings, needs_plain
from jaxcnn.kernels.conv import conv3x3
from jaxcnn.kernels.dense import dense
from jaxcnn.kernels.dropout import dropout
from jaxcnn.kernels.executables import jit
from jaxcnn.kernels.features import Features
from jaxcnn.kernels.norm import batch_norm
from jaxcnn.kernels.pool import max_pool2x2
from jaxcnn.kernels.shards import Shards, places, whole_batch

PRNG = "threefry2x32"
"""The random number generator, whatever JAX's default is set to, so that one seed always gives one run."""

BN_EPSILON = 1e-5
BN_MOMENTUM = 0.1  # PyTorch's convention: the weight of the new batch in the running average

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
    """PyTorch's default initialiser of biases, U(+-1/sqrt(fan_in)); zeros for every other `weight_init`."""
    if weight_init != "default":
        return nn.initializers.zeros
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple[int, ...], dtype: Dtype = float) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


class Conv(nn.Module):
    """3x3 convolution with padding 1: (B, H, W, C) -> (B, H, W, features).

    It returns the result without the bias, and the bias, which the caller adds: a batch normalisation that follows can
    include it in its mean.
    """

    features: int
    weight_init: str
    plain: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Convolves; kernel (3, 3, C, features), bias (features,)."""
        shape = (3, 3, x.shape[-1], self.features)
        kernel = self.param("kernel", KERNEL_INITS[self.weight_init], shape)
        bias = self.param("bias", bias_init(self.weight_init, 9 * x.shape[-1]), shape[-1:])
        if self.is_initializing():  # only the shape matters here, and compiling the convolution takes seconds
            return jnp.zeros((*x.shape[:-1], self.features), x.dtype), bias
        return conv3x3(x, kernel.astype(x.dtype), plain=self.plain), bias


class BatchNorm(nn.Module):
    """Batch normalisation over all axes but the last, with PyTorch's running averages.

    It differs from `flax.linen.BatchNorm` in three ways. The running variance averages the unbiased batch variance. The
    number of batches is counted (`num_batches_tracked` in PyTorch). Images outside the mask do not count.
    """

    plain: bool
    shards: Shards | None = None

    @nn.compact
    def __call__(self, x: jax.Array, offset: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        """Normalises x + offset by the batch's statistics if `train`, else by the running averages.

        The mean of a batch contains the offset, which therefore cancels in training. Only the running mean needs it.
        This saves a pass over x, and gives the offset a gradient of exactly zero, where PyTorch has rounding noise.

        Args:
            x: (B, H, W, C).
            offset: (C,), the bias of the convolution before.
            train: use and average the batch's statistics.
            mask: bool (B,), False for padding; or None.
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
        if whole_batch(x.shape[0], self.shards) * math.prod(x.shape[1:-1]) == 1:
            raise InputError(f"a batch of one image with maps of 1x1 has no variance to normalise by; x is {x.shape}")
        y, mean, var, n = batch_norm(x, scale, bias, mask, epsilon=BN_EPSILON, shards=self.shards, plain=self.plain)
        if not self.is_initializing():
            unbiased = var * (n / jnp.maximum(n - 1, 1))
            mean = mean + jax.lax.stop_gradient(offset)
            running_mean.value = (1 - BN_MOMENTUM) * running_mean.value + BN_MOMENTUM * mean
            running_var.value = (1 - BN_MOMENTUM) * running_var.value + BN_MOMENTUM * unbiased
            count.value = count.value + 1
        return y


class Block(nn.Module):
    """Convolutions, each followed by an optional batch normalisation and the activation; then an optional max pool."""

    config: ModelConfig
    index: int
    plain: bool
    shards: Shards | None = None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, mask: jax.Array | None) -> jax.Array:
        """(B, H, W, C) -> (B, H', W', hidden_dims[index]); H' is H or H // 2."""
        config, i = self.config, self.index
        for j in range(config.layers_per_block[i]):
            x, bias = Conv(config.channels[i], config.weight_init, self.plain, name=f"conv_{j}")(x)
            if config.apply_bn[i]:
                x = BatchNorm(self.plain, self.shards, name=f"bn_{j}")(x, bias, train=train, mask=mask)
            else:
                x = x + bias.astype(x.dtype)
            x = ACTIVATIONS[config.activation_function](x)
        return max_pool2x2(x, plain=self.plain) if config.apply_pooling[i] else x


class Dense(nn.Module):
    """Fully connected layer: (B, width) -> (B, features)."""

    features: int
    width: int
    weight_init: str
    dtype: Dtype | None
    plain: bool

    @nn.compact
    def __call__(self, x: jax.Array, columns: jax.Array | None = None) -> jax.Array:
        """Multiplies x (B, width), or only the given columns of it (see `kernels.dense.dense`); then adds the bias."""
        kernel = self.param("kernel", KERNEL_INITS[self.weight_init], (self.width, self.features))
        bias = self.param("bias", bias_init(self.weight_init, self.width), (self.features,))
        x, kernel, bias = promote_dtype(x, kernel, bias, dtype=self.dtype)
        y: jax.Array = dense(x, kernel, columns, plain=self.plain) + bias
        return y


class CNN(nn.Module):
    """The network that `config` describes.

    Attributes:
        config: its layers.
        dtype: the type that it computes in; None for the parameters' own.
        plain: compute with JAX's own operations and gradients. They are slower on a CPU, and give the same values up to
            rounding. Dropout drops the same elements, and of equal maxima in a pool the first one gets the gradient, as
            otherwise. Forward-mode differentiation (`jax.jvp`, `jax.jacfwd`, `jax.linearize`, `jax.hessian`) needs it.
            It is not needed where an array lies on a mesh with explicit axes or has a symbolic dimension: there the
            network always computes so.
        shards: for use inside `jax.shard_map`: how the batch is divided among devices.
    """

    config: ModelConfig
    dtype: Dtype | None = None
    plain: bool = False
    shards: Shards | None = None

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
            x: floating-point images in NHWC order; or features, from which the rest of the network is computed.
            train: use batch statistics (and update the running ones) and dropout; needs `rngs={"dropout": key}`
                and `mutable=["batch_stats"]`.
            mask: bool (B,), False for images that are padding and must not count in batch statistics.
            eval_stages: how many stages, from the input up, run as in evaluation even when `train` is true.
            end_stage: return the inputs of this stage instead of logits.

        Raises:
            InputError: when the images are integers.
        """
        x, first_stage, columns = (x.values, x.stage, x.columns) if isinstance(x, Features) else (x, 0, None)
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise InputError(f"the images are {x.dtype}, not floating-point; see jaxcnn.data.augment.standardise")
        config = self.config
        act = ACTIVATIONS[config.activation_function]
        dtype = self.dtype or x.dtype
        plain = self.plain or needs_plain((x, mask, self.variables))
        x = x.astype(dtype)
        stop = config.num_stages if end_stage is None else end_stage
        for stage in range(first_stage, stop):
            training = train and stage >= eval_stages
            if stage < config.num_blocks:
                x = Block(config, stage, plain, self.shards, name=f"block_{stage}")(x, train=training, mask=mask)
            else:
                x = x.reshape(x.shape[0], -1)
                i = stage - config.num_blocks
                if training and config.dropout_rate > 0:
                    x = self._dropout(x, columns, config.dense_widths[i], plain)
                x = act(self._dense(i, config.hidden_dims[stage], plain)(x, columns))
                columns = None
        return x if end_stage is not None else self._dense(2, config.num_classes, plain)(x, columns)

    def _dropout(self, x: jax.Array, columns: jax.Array | None, width: int, plain: bool) -> jax.Array:
        """Drops what would be dropped of the whole batch with all columns, whatever part of it x is."""
        rows = None if self.shards is None else places(x.shape[0], self.shards)
        shape = whole_batch(x.shape[0], self.shards), width
        key, rate = self.make_rng("dropout"), self.config.dropout_rate
        return dropout(key, x, rate, rows=rows, columns=columns, shape=shape, plain=plain)

    def _dense(self, i: int, features: int, plain: bool) -> Dense:
        config = self.config
        return Dense(features, config.dense_widths[i], config.weight_init, self.dtype, plain, name=f"fc{i + 1}")


@fixed_settings()
def key_of(seed: int) -> jax.Array:
    """The key of a run's random numbers: as `jax.random.key(seed)`, without the effect of JAX_RANDOM_SEED_OFFSET.

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
    # Compiler options are not allowed while another function is traced.
    traced = any(isinstance(value, jax.core.Tracer) for value in (image, key))
    # It runs only once: a low optimisation level saves a second of compilation.
    init = CNN(config).init if traced else jit(CNN(config).init, xla_backend_optimization_level=1)
    variables: VariableDict = {"batch_stats": {}, **init(key, image)}
    return variables


def make_network(model: ModelConfig, precision: Precision, shards: Shards | None = None) -> CNN:
    """The network, computing in bfloat16, or (for float32) in the parameters' own type."""
    return CNN(model, dtype=jnp.bfloat16 if precision == "bfloat16" else None, shards=shards)
