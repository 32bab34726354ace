"""AutoAugment's CIFAR-10 policy (Cubuk et al. 2019), equal byte for byte to torchvision on PIL images.

torchvision lets Pillow do each operation, and each of Pillow's operations rounds in its own way. What depends only on
the policy and the image's size (which pixel a rotation copies, how strong a blend is) is computed while tracing, in
NumPy and with Pillow's arithmetic. What depends on the pixels is written so that it rounds like Pillow's C code.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxcnn.errors import InputError

Operation = Literal[
    "ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color",
    "Contrast", "Sharpness", "Posterize", "Solarize", "AutoContrast", "Equalize", "Invert",
]  # fmt: skip

POLICY: tuple[tuple[tuple[Operation, float, int], tuple[Operation, float, int]], ...] = (
    (("Invert", 0.1, 0), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 0), ("Equalize", 0.5, 0)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 0)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 0), ("Equalize", 0.6, 0)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 0)),
    (("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 0), ("Invert", 0.1, 0)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)),
)
"""The 25 sub-policies, each of two operations: (name, probability, level). Level 0 if it has no magnitude."""


class Draw(NamedTuple):
    """The random choices for one image."""

    policy: jax.Array
    """int32 (): the sub-policy, an index into POLICY."""
    applied: jax.Array
    """bool (2,): whether each of its two operations is applied."""
    negative: jax.Array
    """bool (2,): whether the magnitude of each is negated, if the operation has a sign."""


def draw(key: jax.Array) -> Draw:
    """Draws a sub-policy, and whether each of its operations is applied and negated, as torchvision's `get_params`.

    Everything comes from one draw of five words: three separate draws would take 0.7 s longer to compile.
    """
    words = jax.random.bits(key, (5,), jnp.uint32)
    policy = (words[0] % len(POLICY)).astype(jnp.int32)
    probability = np.array([[p for _, p, _ in pair] for pair in POLICY], np.float32)
    uniform = (words[1:3] >> 8).astype(jnp.float32) * 2.0**-24
    return Draw(policy, uniform <= jnp.asarray(probability)[policy], words[3:] >> 31 == 1)


def autoaugment(key: jax.Array, image: jax.Array) -> jax.Array:
    """Augments one image by AutoAugment's CIFAR-10 policy (Cubuk et al. 2019, arXiv:1805.09501).

    Equal to torchvision's `AutoAugment(AutoAugmentPolicy.CIFAR10)` on a PIL image with the same draws. Geometric
    operations take the nearest pixel, and black outside the image.

    Args:
        key: PRNG key; the same key and image give the same result.
        image: uint8 (H, W, C), C either 1 or 3.

    Returns:
        uint8 (H, W, C).

    Raises:
        InputError: when `image` has another type or shape.
    """
    return apply_policy(draw(key), image)


def apply_policy(drawn: Draw, image: jax.Array) -> jax.Array:
    """Applies what was drawn to one image: uint8 (H, W, C) -> uint8 (H, W, C)."""
    _require_image(image)
    height, width, _ = image.shape
    operations = [(name, level) for pair in POLICY for name, _, level in pair]
    signed = [(name, level, negative) for name, level in operations for negative in (False, True)]
    moves = sorted({one for one in signed if one[0] in _GEOMETRIC})
    sources = jnp.asarray(np.stack([_source(height, width, *move) for move in moves]))

    def move(image: jax.Array, row: jax.Array) -> jax.Array:
        return _move(image, sources[row.astype(jnp.int32)])

    def encode(name: Operation, level: int, negative: bool) -> tuple[int, float]:
        """The function's index, and its amount: for a geometric operation, the row of `sources`."""
        if name in _GEOMETRIC:
            return 1, moves.index((name, level, negative))
        return 2 + list(_FUNCTIONS).index(name), _amount(name, level, negative)

    functions = [_unchanged, move, *_FUNCTIONS.values()]
    table = np.array([encode(*one) for one in signed], np.float32).reshape(len(POLICY), 2, 2, 2)
    chosen = jnp.asarray(table)[drawn.policy, jnp.arange(2), drawn.negative.astype(jnp.int32)]
    index = jnp.where(drawn.applied, chosen[:, 0].astype(jnp.int32), 0)

    def step(i: jax.Array, image: jax.Array) -> Any:
        return lax.switch(index[i], functions, image, chosen[i, 1])

    result: jax.Array = lax.fori_loop(0, 2, step, image)  # as a loop, each operation is compiled only once
    return result


def apply_operation(name: Operation, image: jax.Array, level: ArrayLike = 0, negative: ArrayLike = False) -> jax.Array:
    """Applies one operation, as torchvision's `_apply_op` with a magnitude of its `_augmentation_space`.

    Args:
        name: one of torchvision's names.
        image: uint8 (H, W, C), C either 1 or 3.
        level: bin of the magnitude, 0 to 9; ignored by operations without a magnitude.
        negative: whether to negate the magnitude; ignored by operations without a sign.

    Returns:
        uint8 (H, W, C).

    Raises:
        InputError: for an unknown name, or an image of another type or shape.
    """
    _require_image(image)
    if name not in get_args(Operation):
        raise InputError(f"operation={name!r} is not known: choose one of {', '.join(get_args(Operation))}")
    height, width, _ = image.shape
    every = [(name, at, sign) for at in range(_LEVELS) for sign in (False, True)]
    chosen = 2 * jnp.asarray(level) + jnp.asarray(negative)
    if name in _GEOMETRIC:
        return _move(image, jnp.asarray(np.stack([_source(height, width, *one) for one in every]))[chosen])
    return _FUNCTIONS[name](image, jnp.array([_amount(*one) for one in every], jnp.float32)[chosen])


def _require_image(image: jax.Array) -> None:
    if image.dtype != jnp.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3):
        raise InputError(f"image={image.dtype}{image.shape} is not usable: give uint8 (H, W, 1 or 3)")


# Magnitudes, computed while tracing.

_LEVELS = 10
_GEOMETRIC = ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate")


def _linspace(first: float, last: float, level: int) -> float:
    """Entry `level` of torch.linspace(first, last, 10), which computes in float32 from the nearer end."""
    step = np.float32(last - first) / np.float32(_LEVELS - 1)
    if level < _LEVELS // 2:
        return float(np.float32(first) + step * np.float32(level))
    return float(np.float32(last) - step * np.float32(_LEVELS - 1 - level))


def _amount(name: Operation, level: int, negative: bool) -> float:
    """The amount that the operation's function takes: the factor of a blend, a bit mask or a threshold."""
    if name in ("Brightness", "Color", "Contrast", "Sharpness"):
        return 1.0 + (-1 if negative else 1) * _linspace(0.0, 0.9, level)
    if name == "Posterize":
        return 256.0 - 2.0 ** round(level / ((_LEVELS - 1) / 4))
    return _linspace(255.0, 0.0, level) if name == "Solarize" else 0.0


def _source(height: int, width: int, name: Operation, level: int, negative: bool) -> np.ndarray:
    """The pixel that each pixel copies: row-major indices, int32 (H * W,); H * W stands for a pixel outside.

    Pillow steps through the source in 16.16 fixed point. In float32, a tenth of all images would differ.
    """
    sign = -1 if negative else 1
    a, b, c, d, e, f = 1.0, 0.0, 0.0, 0.0, 1.0, 0.0  # reads from (ax + by + c, dx + ey + f)
    if name == "ShearX":
        b = sign * _linspace(0.0, 0.3, level)
    elif name == "ShearY":
        d = sign * _linspace(0.0, 0.3, level)
    elif name == "TranslateX":
        c = -sign * int(_linspace(0.0, 150.0 / 331.0 * width, level))
    elif name == "TranslateY":
        f = -sign * int(_linspace(0.0, 150.0 / 331.0 * height, level))
    else:
        angle = -math.radians(sign * _linspace(0.0, 30.0, level) % 360.0)
        a = e = round(math.cos(angle), 15)
        b, d = round(math.sin(angle), 15), round(-math.sin(angle), 15)
        c = a * -(width / 2) + b * -(height / 2) + width / 2
        f = d * -(width / 2) + e * -(height / 2) + height / 2

    def fixed(v: float) -> int:
        return math.floor(v * 65536 + 0.5)

    y, x = np.mgrid[:height, :width]
    column = (fixed(a) * x + fixed(b) * y + fixed(c + a * 0.5 + b * 0.5)) >> 16
    row = (fixed(d) * x + fixed(e) * y + fixed(f + d * 0.5 + e * 0.5)) >> 16
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    return np.where(inside, row * width + column, height * width).astype(np.int32).reshape(-1)


# Operations: uint8 (H, W, C) and an amount -> uint8 (H, W, C).


def _unchanged(image: jax.Array, _: jax.Array) -> jax.Array:
    return image


def _move(image: jax.Array, source: jax.Array) -> jax.Array:
    pixels = image.reshape(-1, image.shape[2])
    return pixels.at[source].get(mode="fill", fill_value=0).reshape(image.shape)


def _blend(start: jax.Array, image: jax.Array, factor: jax.Array) -> jax.Array:
    """Pillow's Image.blend, in float32: `start` at factor 0, `image` at factor 1, rounded down."""
    low = start.astype(jnp.float32)
    product = factor * (image.astype(jnp.float32) - low)
    # Pillow rounds the product before it adds. XLA would fuse both into one rounding, and one image in six would be
    # off by one. The clip never changes a value, and keeps XLA from fusing (an optimization_barrier does not).
    total = low + jnp.clip(product, -1e6, 1e6)
    return jnp.clip(total, 0, 255).astype(jnp.uint8)


def _grey(image: jax.Array) -> jax.Array:
    """Pillow's conversion to grey: int32 (H, W, 1)."""
    if image.shape[2] == 1:
        return image.astype(jnp.int32)
    weighted = image.astype(jnp.int32) * jnp.array([19595, 38470, 7471], jnp.int32)
    return (weighted.sum(axis=2, keepdims=True) + 0x8000) >> 16


def _brightness(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(jnp.zeros((), jnp.uint8), image, factor)


def _color(image: jax.Array, factor: jax.Array) -> jax.Array:
    return _blend(_grey(image), image, factor)


def _contrast(image: jax.Array, factor: jax.Array) -> jax.Array:
    pixels = image.shape[0] * image.shape[1]
    return _blend((_grey(image).sum() + pixels // 2) // pixels, image, factor)


def _sharpness(image: jax.Array, factor: jax.Array) -> jax.Array:
    x = image.astype(jnp.int32)
    padded = jnp.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows = padded[:-2] + padded[1:-1] + padded[2:]
    weighted = rows[:, :-2] + rows[:, 1:-1] + rows[:, 2:] + 4 * x
    smooth = lax.div(weighted + 6, jnp.int32(13))  # rounds to the nearest whole number; thirteenths have no ties
    inner = np.zeros((*image.shape[:2], 1), bool)
    inner[1:-1, 1:-1] = True  # Pillow's filter keeps the border
    return _blend(jnp.where(inner, smooth, x), image, factor)


def _posterize(image: jax.Array, mask: jax.Array) -> jax.Array:
    return image & mask.astype(jnp.uint8)


def _solarize(image: jax.Array, threshold: jax.Array) -> jax.Array:
    return jnp.where(image.astype(jnp.float32) < threshold, image, 255 - image)


def _invert(image: jax.Array, _: jax.Array) -> jax.Array:
    return 255 - image


def _autocontrast_shortfalls() -> np.ndarray:
    """Where rounding makes Pillow's autocontrast one grey level too dark.

    Pillow maps a pixel x to int(x * scale - low * scale) with scale = 255 / (high - low), in double precision. Where
    the exact result is a whole number, the computed one may be slightly smaller, and int() then gives one less.

    The exact result is whole at multiples of 255 / gcd(high - low, 255): of 15, 17, 51, 85 or 255, where v // 15
    differs between any two, or of 1, 3 or 5, where none comes out too small.

    Returns:
        uint32 (256, 256), indexed by low and high, a channel's lowest and highest value: bit v // 15 is set if the
        exact result v comes out too small. Rows with high <= low are 0.
    """
    bits = np.zeros((256, 256), np.uint32)
    for span in range(1, 256):
        rise = np.arange(0, span + 1, span // math.gcd(span, 255))
        whole = 255 * rise // span
        low = np.arange(256 - span)
        scale = 255.0 / span
        short = ((low[:, None] + rise) * scale + -low[:, None] * scale).astype(int) < whole
        bits[low, low + span] = (short * 2 ** (whole // 15)).sum(axis=1)
    return bits


def _autocontrast(image: jax.Array, _: jax.Array) -> jax.Array:
    x = image.astype(jnp.int32)
    low, high = x.min(axis=(0, 1)), x.max(axis=(0, 1))
    span = high - low
    scaled = 255 * (x - low)
    # Half a step above the exact quotient, so that rounding down in float32 gives the exact floor.
    level = ((scaled.astype(jnp.float32) + 0.5) / jnp.maximum(span, 1).astype(jnp.float32)).astype(jnp.int32)
    short = (jnp.asarray(_autocontrast_shortfalls())[low, high] >> lax.div(level, jnp.int32(15)).astype(jnp.uint32)) & 1
    level -= jnp.where(level * span == scaled, short.astype(jnp.int32), 0)
    return jnp.where(span > 0, level, x).astype(jnp.uint8)


def _equalize(image: jax.Array, _: jax.Array) -> jax.Array:
    pixels, channels = image.shape[0] * image.shape[1], image.shape[2]
    first = 256 * jnp.arange(channels, dtype=jnp.uint32)  # of each channel's entries; unsigned: never wrapped
    place = (image.astype(jnp.uint32) + first).reshape(-1)
    counts = jnp.zeros(256 * channels, jnp.int32).at[place].add(1, mode="promise_in_bounds")
    brightest = counts.at[image.max(axis=(0, 1)) + first].get(mode="promise_in_bounds")
    step = lax.div(pixels - brightest, jnp.int32(255))[:, None]
    counts = counts.reshape(channels, 256)
    below = jnp.cumsum(counts, axis=1) - counts
    # Half a step above the exact quotient, as in _autocontrast (exact up to 2**22 pixels); Pillow clips its table.
    level = ((below + step // 2).astype(jnp.float32) + 0.5) / jnp.maximum(step, 1).astype(jnp.float32)
    level = jnp.where(step > 0, jnp.minimum(level, 255), jnp.arange(256)).astype(jnp.uint8)
    # The scatter makes XLA write the table. It would otherwise compute an entry again for every pixel that looks it up.
    entries = jnp.arange(256 * channels, dtype=jnp.uint32)
    table = (
        jnp.zeros(256 * channels, jnp.uint8)
        .at[entries]
        .set(level.reshape(-1), mode="promise_in_bounds", unique_indices=True, indices_are_sorted=True)
    )
    return table.at[place].get(mode="promise_in_bounds").reshape(image.shape)


_FUNCTIONS: dict[str, Callable[[jax.Array, jax.Array], jax.Array]] = {
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _autocontrast,
    "Equalize": _equalize,
    "Invert": _invert,
}
