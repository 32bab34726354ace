"""The CPU's forms of the operations against XLA's own, and against PyTorch's."""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jax import Array, lax

from jaxcnn.kernels.batch import image_by_image, take_images
from jaxcnn.kernels.conv import conv3x3
from jaxcnn.kernels.dense import dense
from jaxcnn.kernels.norm import batch_norm
from jaxcnn.kernels.pool import max_pool2x2

SHAPES = [
    # batch, height, width, channels, features
    (2, 1, 1, 16, 12),
    (1, 2, 2, 3, 4),
    (2, 3, 3, 16, 10),
    (2, 5, 7, 1, 9),
    (3, 6, 1, 9, 9),
    (2, 4, 8, 12, 3),  # wide input, thin output
    (2, 32, 32, 3, 32),
    (21, 16, 16, 32, 128),  # chunks of 16, the last overlapping
]


def arrays(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Image, kernel and the gradient of the output."""
    b, h, w, c, o = shape
    rng = np.random.default_rng(seed)
    kernel = rng.normal(size=(3, 3, c, o)) / (3 * c**0.5)
    return rng.normal(size=(b, h, w, c)), kernel, rng.normal(size=(b, h, w, o))


def plain_conv(x: Array, kernel: Array) -> Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def plain_pool(x: Array) -> Array:
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def with_gradients(f: Callable[..., Any], g: Any, *args: Any) -> list[np.ndarray]:
    def run(g: Array, *args: Array) -> tuple[Array, ...]:
        y, back = jax.vjp(f, *args)
        return y, *back(g)

    return [np.asarray(a) for a in jax.jit(run)(*map(jnp.asarray, (g, *args)))]


def torch_with_gradients(f: Callable[..., Any], g: np.ndarray, *args: np.ndarray) -> list[np.ndarray]:
    """As above; four-dimensional arrays are images (NHWC here, NCHW there), in and out."""
    leaves = [torch.tensor(a, requires_grad=True) for a in args]
    y = f(*[a.permute(0, 3, 1, 2) if a.ndim == 4 else a for a in leaves]).permute(0, 2, 3, 1)
    y.backward(torch.tensor(g))
    return [y.detach().numpy(), *[a.grad.numpy() for a in leaves if a.grad is not None]]


def distance(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """Largest difference, against the largest value of each array."""
    assert [x.shape for x in a] == [x.shape for x in b]
    return max(float(np.abs(x - y).max() / (np.abs(y).max() + 1e-30)) for x, y in zip(a, b, strict=True) if x.size)


@pytest.fixture
def by_tiles(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sends small convolutions the way of large ones."""
    monkeypatch.setattr("jaxcnn.kernels.conv._SMALL", 0)
    jax.clear_caches()  # JAX remembers how it traced these functions
    yield
    jax.clear_caches()


@pytest.mark.usefixtures("by_tiles")
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_convolution_by_tiles_is_the_plain_one_and_pytorchs(shape: tuple[int, ...]) -> None:
    test_convolution_is_the_plain_one_and_pytorchs(shape)


@pytest.mark.parametrize(
    "shape", [*SHAPES[2:5], *(pytest.param(s, marks=pytest.mark.slow) for s in SHAPES[:2] + SHAPES[5:])], ids=str
)
def test_convolution_is_the_plain_one_and_pytorchs(shape: tuple[int, ...]) -> None:
    x, kernel, g = arrays(shape)
    with jax.enable_x64(True):
        ours = with_gradients(conv3x3, g, x, kernel)
        assert ours[0].dtype == np.float64
        assert distance(ours, with_gradients(plain_conv, g, x, kernel)) < 1e-13
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, kernel)]
    image, weight = leaves[0].permute(0, 3, 1, 2), leaves[1].permute(3, 2, 0, 1)
    y = F.conv2d(image, weight, padding=1).permute(0, 2, 3, 1)
    y.backward(torch.tensor(g))
    assert distance(ours, [a.detach().numpy() for a in (y, *[leaf.grad for leaf in leaves])]) < 1e-13


@pytest.mark.usefixtures("optimised", "by_tiles")
@pytest.mark.parametrize("shape", [(7, 9, 6, 3, 32), (32, 8, 8, 128, 256)], ids=str)
def test_rounding_is_that_of_the_direct_sum(shape: tuple[int, ...]) -> None:
    x, kernel, g = arrays(shape)
    x = np.maximum(x, 0)
    with jax.enable_x64(True):
        exact = with_gradients(plain_conv, g, x, kernel)
    single = [a.astype(np.float32) for a in (g, x, kernel)]
    for ours, plain, truth in zip(
        with_gradients(conv3x3, *single), with_gradients(plain_conv, *single), exact, strict=True
    ):
        assert ours.dtype == np.float32
        assert np.std(ours - truth) < max(2 * np.std(plain - truth), 5e-7 * np.std(truth))


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("shape", [(4, 8, 8, 16, 16), (2, 6, 5, 3, 8), (32, 8, 8, 32, 64)], ids=str)
def test_convolution_in_bfloat16_is_the_exact_one_rounded_once(shape: tuple[int, ...]) -> None:
    half = [np.asarray(a).astype(jnp.bfloat16) for a in arrays(shape)]
    x, kernel, g = half
    ours = with_gradients(conv3x3, g, x, kernel)
    with jax.enable_x64(True):
        x, kernel, g = (a.astype(np.float64) for a in half)
        exact = with_gradients(plain_conv, g, x, kernel)
    for rounded, truth in zip(ours, exact, strict=True):
        assert rounded.dtype == jnp.bfloat16
        np.testing.assert_allclose(rounded.astype(np.float64), truth, rtol=2**-8, atol=1e-5 * np.std(truth))


@pytest.mark.usefixtures("optimised")
def test_convolution_in_a_scan() -> None:
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays((4, 8, 8, 16, 16)))
    _, many = jax.jit(lambda xs: lax.scan(lambda c, x: (c, conv3x3(x, kernel)), 0, xs))(x[:, None])
    np.testing.assert_allclose(many[:, 0], plain_conv(x, kernel), atol=1e-5)


def test_images_are_taken_by_their_number() -> None:
    x = np.random.default_rng(0).integers(0, 256, (50, 3, 2, 4), dtype=np.uint8)
    indices = np.random.default_rng(1).permutation(50)[:17].astype(np.int32)
    np.testing.assert_array_equal(jax.jit(take_images)(x, indices), x[indices])


def test_image_by_image_is_all_at_once() -> None:
    x = jnp.arange(130.0 * 3).reshape(130, 3)
    for n in (1, 64, 130):
        np.testing.assert_array_equal(image_by_image(lambda x: x.sum(1) + 1, x[:n]), x[:n].sum(1) + 1)


@pytest.mark.usefixtures("by_tiles")
def test_an_accelerator_gets_the_plain_convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays((40, 8, 8, 16, 16)))
    for platform, convolutions, loops in (("cuda", 2, 0), ("cpu", 0, 1)):
        monkeypatch.setattr(jax, "default_backend", lambda platform=platform: platform)
        jax.clear_caches()
        step = jax.jit(jax.grad(lambda x, kernel: conv3x3(x, kernel).sum(), (0, 1)))
        text = step.lower(x, kernel).as_text()
        assert text.count("stablehlo.convolution") == convolutions
        assert text.count("stablehlo.while") == loops


def dots(f: Callable[..., Any], *args: Array) -> int:
    text = jax.jit(f).lower(*args).compile().as_text()
    return sum(" dot(" in line or " convolution(" in line for line in text.splitlines())


@pytest.mark.slow
@pytest.mark.usefixtures("optimised", "by_tiles")
@pytest.mark.parametrize(("channels", "forward", "backward"), [(3, 1, 1), (16, 16, 16)])
def test_gradient_of_the_kernel_alone_computes_no_gradient_of_the_input(
    channels: int, forward: int, backward: int
) -> None:
    x, kernel, _ = (jnp.asarray(a, jnp.float32) for a in arrays((2, 8, 8, channels, 16)))

    def loss(x: Array, kernel: Array) -> Array:
        return jnp.square(conv3x3(x, kernel)).sum()

    assert dots(loss, x, kernel) == forward
    assert dots(jax.value_and_grad(loss, 1), x, kernel) == forward + backward
    assert dots(jax.value_and_grad(loss, (0, 1)), x, kernel) > forward + backward


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (3, 2), (5, 7), (8, 8), (1, 4)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pool_is_the_plain_one_and_pytorchs_on_ties_too(height: int, width: int, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(-1, 2, (3, height, width, 5)).astype(dtype)  # three values: most windows have ties
    g = rng.normal(size=(3, height // 2, width // 2, 5)).astype(dtype)
    with jax.enable_x64(dtype == np.float64):
        ours = with_gradients(max_pool2x2, g, x)
        assert [a.dtype for a in ours] == [dtype] * 2
        np.testing.assert_array_equal(max_pool2x2(x), ours[0])
        if g.size:
            assert distance(ours, with_gradients(plain_pool, g, x)) == 0
            assert distance(ours, torch_with_gradients(lambda x: F.max_pool2d(x, 2), g, x)) == 0
        else:
            assert not ours[1].any()


def test_first_of_equal_maxima_takes_the_gradient_whatever_the_pattern() -> None:
    windows = np.array(list(product((0.0, 1.0, 2.0), repeat=4)), np.float32).reshape(-1, 2, 2, 1)
    (back,) = jax.vjp(max_pool2x2, windows)[1](jnp.ones((len(windows), 1, 1, 1)))
    np.testing.assert_array_equal(np.argmax(back.reshape(-1, 4), 1), np.argmax(windows.reshape(-1, 4), 1))
    np.testing.assert_array_equal(back.sum((1, 2, 3)), 1)


@pytest.mark.parametrize("channels", [3, 12])
@pytest.mark.parametrize("act", [jnp.tanh, jax.nn.sigmoid, jax.nn.relu])
def test_conv_activation_pool_is_right_when_fused(act: Callable[[Array], Array], channels: int) -> None:
    """XLA lets tanh's gradient overwrite the pool's input too early if the pool reads it through a reshape."""
    x, kernel, _ = arrays((2, 4, 6, channels, 16))
    g = arrays((2, 2, 3, 16, 1))[0]
    with jax.enable_x64(True):
        plain = with_gradients(lambda *a: plain_pool(act(plain_conv(*a))), g, x, kernel)
        for conv in (conv3x3, plain_conv):
            ours = with_gradients(lambda *a, conv=conv: max_pool2x2(act(conv(*a))), g, x, kernel)
            assert distance(ours, plain) < 1e-12


def plain_norm(x: Array, scale: Array, shift: Array) -> Array:
    mean, var = x.mean((0, 1, 2)), x.var((0, 1, 2))
    return (x - mean) / jnp.sqrt(var + 1e-5) * scale + shift


@pytest.mark.parametrize(("inputs", "outputs"), [(8, 3), (1030, 1024), (2048, 16), (2048, 512)])
def test_dense_layer_is_the_plain_product_and_pytorchs(inputs: int, outputs: int) -> None:
    """Small and large kernels, of inputs that are summed in parts and of others."""
    rng = np.random.default_rng(0)
    x, kernel, g = rng.normal(size=(5, inputs)), rng.normal(size=(inputs, outputs)), rng.normal(size=(5, outputs))
    with jax.enable_x64(True):
        ours = with_gradients(dense, g, x, kernel)
        plain = with_gradients(jnp.matmul, g, x, kernel)
    tensors = [torch.from_numpy(a).requires_grad_() for a in (x, kernel)]
    y = torch.matmul(*tensors)
    theirs = [y, *torch.autograd.grad(y, tensors, torch.from_numpy(g))]
    assert distance(ours, plain) < 1e-13
    assert distance(ours, [a.detach().numpy() for a in theirs]) < 1e-13


@pytest.mark.usefixtures("optimised")
@pytest.mark.parametrize("outputs", [16, 512])
def test_dense_layer_needs_no_columns_that_are_zero(outputs: int) -> None:
    rng = np.random.default_rng(0)
    columns = np.sort(np.concatenate([rng.permutation(1024)[:96], 1024 + rng.permutation(1024)[:96]])).astype(np.int32)
    some, kernel, g = (
        rng.normal(size=shape).astype(np.float32) for shape in ((64, 192), (2048, outputs), (64, outputs))
    )
    x = np.zeros((64, 2048), np.float32)
    x[:, columns] = some
    y, to_x, to_kernel = with_gradients(dense, g, x, kernel)
    parts = [jnp.matmul(some[:, i : i + 96], kernel[columns[i : i + 96]]) for i in (0, 96)]
    np.testing.assert_array_equal(dense(some, kernel, columns), parts[0] + parts[1])
    for ours, whole in zip(
        with_gradients(lambda *a: dense(*a, columns), g, some, kernel),
        (y, to_x[:, columns], to_kernel),
        strict=True,
    ):
        np.testing.assert_allclose(ours, whole, rtol=0, atol=4e-6 * np.abs(whole).max())


def torch_norm(keep: np.ndarray) -> Callable[..., Any]:
    """Batch norm by the kept images' statistics, of the kept images."""
    return lambda x, scale, shift: F.batch_norm(x[keep], None, None, scale, shift, training=True, eps=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_batch_norm_is_pytorchs_over_the_mask(masked: bool) -> None:
    rng = np.random.default_rng(0)
    x, scale, shift = rng.normal(2, 3, (6, 5, 4, 7)), rng.normal(size=7), rng.normal(size=7)
    keep = np.arange(6) < 4 if masked else np.ones(6, bool)
    g = rng.normal(size=x.shape) * keep[:, None, None, None]
    theirs = torch_with_gradients(torch_norm(np.flatnonzero(keep)), g[keep], x, scale, shift)
    mask = jnp.asarray(keep) if masked else None
    with jax.enable_x64(True):
        y, *back = with_gradients(lambda *a: batch_norm(*a, mask)[0], g, x, scale, shift)
        _, mean, var, n = batch_norm(jnp.asarray(x), scale, shift, mask)
    assert distance([y[keep], *back], theirs) < 1e-13
    if not masked:
        with jax.enable_x64(True):
            assert distance([y, *back], with_gradients(plain_norm, g, x, scale, shift)) < 1e-13
    assert int(n) == x[keep].size // 7
    np.testing.assert_allclose(mean, x[keep].mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(var, x[keep].var((0, 1, 2)), rtol=1e-13)


@pytest.mark.usefixtures("optimised")
def test_batch_norm_keeps_its_digits_far_from_zero_and_its_type() -> None:
    rng = np.random.default_rng(0)
    x, scale, shift = rng.normal(30, 1, (16, 8, 8, 6)), rng.normal(size=6), rng.normal(size=6)
    g = rng.normal(size=x.shape)
    with jax.enable_x64(True):
        exact = with_gradients(lambda *a: batch_norm(*a)[0], g, x, scale, shift)
    single = [a.astype(np.float32) for a in (g, x, scale, shift)]
    assert distance(with_gradients(lambda *a: batch_norm(*a)[0], *single), exact) < 1e-5
    half = jnp.asarray(x, jnp.bfloat16)
    y, mean, *_ = batch_norm(half, *map(jnp.float32, (scale, shift)))
    assert (y.dtype, mean.dtype) == (jnp.bfloat16, jnp.float32)
    to_x = jax.grad(lambda x: batch_norm(x, jnp.ones(6), jnp.zeros(6))[0].sum(dtype=jnp.float32))(half)
    assert to_x.dtype == jnp.bfloat16
