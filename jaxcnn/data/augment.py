"""Augmentation and standardisation of a batch of images."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from jaxcnn.config.standardisation import Standardisation
from jaxcnn.config.training import Augment
from jaxcnn.data.autoaugment import apply_policy, autoaugment, draw
from jaxcnn.errors import InputError
from jaxcnn.kernels.backend import cpu_or_plain, fixed_settings
from jaxcnn.kernels.shards import Shards, places

_PADDING = 4


@fixed_settings()
def augment(key: jax.Array, images: jax.Array, kind: Augment, shards: Shards | None = None) -> jax.Array:
    """Augments a batch. Each image has its own key, derived from `key` and its place in the batch.

    On a CPU, AutoAugment takes the images one by one; an accelerator takes the whole batch. The result is the same.

    Args:
        key: PRNG key.
        images: uint8 (B, H, W, C), C either 1 or 3.
        kind: "autoaugment" or "flipcrop" (see the functions of these names), or "none".
        shards: how the batch is divided among devices, inside `jax.shard_map`.

    Returns:
        uint8 (B, H, W, C).

    Raises:
        InputError: when `images` has another type or shape, or `kind` is unknown.
    """
    if images.dtype != jnp.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise InputError(f"images={images.dtype}{images.shape} is not usable: give uint8 (B, H, W, 1 or 3)")
    if kind == "none":
        return images
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, places(len(images), shards))
    if kind == "flipcrop":
        return jax.vmap(flipcrop)(keys, images)  # faster than one by one on a CPU, too
    if kind != "autoaugment":
        raise InputError(f"augment={kind!r} is not usable: choose one of autoaugment, flipcrop, none")
    augmented: jax.Array = cpu_or_plain(autoaugment_one_by_one, jax.vmap(autoaugment), keys, images)
    return augmented


def autoaugment_one_by_one(keys: jax.Array, images: jax.Array) -> jax.Array:
    """`jax.vmap(autoaugment)` as a loop, which runs only the operations that were drawn for each image.

    Under `vmap`, every operation runs on every image: fast on an accelerator, 10 to 100 times slower on a CPU.
    """
    augmented: jax.Array = lax.map(lambda one: apply_policy(*one), (jax.vmap(draw)(keys), images))
    return augmented


@fixed_settings()
def flipcrop(key: jax.Array, image: jax.Array) -> jax.Array:
    """Pads one image by 4 black pixels on each side, crops it at random, and mirrors it with probability 1/2.

    This is torchvision's `RandomCrop(size, padding=4)` followed by `RandomHorizontalFlip()`.

    Args:
        key: PRNG key; the same key and image give the same result.
        image: uint8 (H, W, C).

    Returns:
        uint8 (H, W, C).
    """
    offset_key, mirror_key = jax.random.split(key)
    row, column = jax.random.randint(offset_key, (2,), 0, 2 * _PADDING + 1)
    padded = jnp.pad(image, ((_PADDING, _PADDING), (_PADDING, _PADDING), (0, 0)))
    crop = lax.dynamic_slice(padded, (row, column, 0), image.shape)
    return jnp.where(jax.random.bernoulli(mirror_key), crop[:, ::-1], crop)


@fixed_settings()
def standardise(images: jax.Array, standardisation: Standardisation, dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Scales pixels to [0, 1], then shifts and scales each channel: (images / 255 - mean) / std.

    Args:
        images: uint8 (..., C).
        standardisation: C means and C standard deviations.
        dtype: of the result. The arithmetic is in float32 or wider.

    Returns:
        `dtype` (..., C).

    Raises:
        InputError: when `images` is not uint8, or the mean or the std does not hold one number for each channel.
    """
    if images.dtype != jnp.uint8:
        raise InputError(f"images={images.dtype}{images.shape} is not usable: give uint8")
    channels = images.shape[-1]
    for name, values in (("mean", standardisation.mean), ("std", standardisation.std)):
        if len(values) != channels:
            raise InputError(f"{name}={values!r} is not usable: give {channels} numbers, one a channel")
    wide = jnp.promote_types(dtype, jnp.float32)
    scaled = images.astype(wide) / 255
    return ((scaled - jnp.array(standardisation.mean, wide)) / jnp.array(standardisation.std, wide)).astype(dtype)
