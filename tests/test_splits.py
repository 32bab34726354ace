"""Splits, orders, statistics and images, against NumPy and Pillow."""

from fractions import Fraction
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from refusals import message
from test_data import noise

from jaxcnn.data.images import fit_image
from jaxcnn.data.sets import channel_statistics
from jaxcnn.data.splits import Split, aligned_empty, epoch_order, stratified_split, take


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 5), max_size=200).map(np.array),
    st.one_of(st.floats(0, 1, exclude_max=True), st.sampled_from([0.1, 0.2, 0.29, 0.5, 0.9])),
    st.integers(0, 2**32 - 1),
)
def test_stratified_split_is_a_fair_partition(labels: np.ndarray, share: float, seed: int) -> None:
    kept, held = stratified_split(labels, share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    assert list(kept) == sorted(kept)
    assert list(held) == sorted(held)
    classes, sizes = np.unique(labels, return_counts=True)
    counts = [int((labels[held] == label).sum()) for label in classes]
    assert all(count <= size - 1 for count, size in zip(counts, sizes, strict=True))
    wanted = int(share * len(labels) + 0.5)
    assert sum(counts) == min(wanted, len(labels) - len(classes))
    capped = any(count == size - 1 for count, size in zip(counts, sizes, strict=True))
    if not capped:
        assert all(abs(count - share * size) < 1 + 1e-9 for count, size in zip(counts, sizes, strict=True))
    again = stratified_split(labels, share, seed)
    np.testing.assert_array_equal(held, again[1])


def test_stratified_split_by_hand() -> None:
    labels = np.repeat([0, 1, 2], [10, 5, 4])
    # Quotas 2.5, 1.25 and 1: five in all, the one that rounding leaves goes to class 0.
    kept, held = stratified_split(labels, 0.25, 0)
    assert np.bincount(labels[held]).tolist() == [3, 1, 1]
    assert np.bincount(labels[kept]).tolist() == [7, 4, 3]
    # A class of one keeps it; the others give more instead.
    labels = np.array([0, 1, 2, 2, 2, 2])
    assert labels[stratified_split(labels, 0.5, 0)[1]].tolist() == [2, 2, 2]
    assert stratified_split(np.repeat(np.arange(10), 5000), 0.1, 3)[1].shape == (5000,)


def test_stratified_split_and_order_are_the_same_everywhere() -> None:
    assert stratified_split(np.arange(20) % 4, 0.3, (7, 1))[1].tolist() == [0, 3, 6, 9, 12, 17]
    assert epoch_order(7, 3, 10).tolist() == [3, 5, 4, 7, 8, 0, 9, 2, 1, 6]
    assert epoch_order(7, 3, 10).dtype == np.int32


def test_every_choice_is_as_likely() -> None:
    held = np.zeros(8)
    for seed in range(2000):
        held[stratified_split(np.array([0] * 4 + [1] * 4), 0.25, seed)[1]] += 1
    # Binomial(2000, 1/4): the standard deviation is 19.4.
    np.testing.assert_allclose(held, 500, atol=5 * 19.4)


@given(st.integers(0, 2**32 - 1), st.integers(0, 10**6), st.integers(0, 300))
def test_epoch_order_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    assert sorted(order) == list(range(n))
    if n > 20:
        assert order.tolist() != epoch_order(seed, epoch + 1, n).tolist()
        assert order.tolist() != epoch_order(seed + 1, epoch, n).tolist()


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (5, 8, 6, 3), (300, 4, 4, 1), (129, 7, 7, 3)])
def test_channel_statistics(shape: tuple[int, ...]) -> None:
    images = noise(*shape)
    mean, std = channel_statistics(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(std, (images / 255).std((0, 1, 2)), rtol=1e-13, atol=1e-15)
    total = sum(int(value) for value in images[..., 0].ravel())
    assert mean[0] == float(Fraction(total, images[..., 0].size * 255))


def test_channel_statistics_of_extremes_do_not_overflow() -> None:
    images = np.full((256, 512, 512, 1), 255, np.uint8)
    assert channel_statistics(images) == ((1.0,), (0.0,))
    images[:128] = 0
    assert channel_statistics(images) == ((0.5,), (0.5,))


@pytest.mark.parametrize("size", [5, 8, 16, 32])
def test_fit_image_is_pillows_bilinear(size: int) -> None:
    image = noise(10, 13, 3)
    wanted = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fit_image(image, size, 3), wanted)
    grey = image[..., :1]
    wanted = np.asarray(Image.fromarray(grey[..., 0]).resize((size, size), Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(fit_image(grey, size, 1), wanted[..., None])
    np.testing.assert_array_equal(fit_image(grey, size, 3), np.repeat(wanted[..., None], 3, axis=2))
    np.testing.assert_array_equal(fit_image(grey[..., 0], size, 1), wanted[..., None])


def test_fit_image_leaves_alone_what_fits() -> None:
    image = noise(8, 8, 3)
    np.testing.assert_array_equal(fit_image(image, 8, 3), image)


@pytest.mark.parametrize(
    ("image", "why"),
    [
        (noise(8, 8, 3), "the images are RGB, but model.in_channels=1; give 3"),
        (noise(8, 8, 4), r"shape (8, 8, 4); grey or RGB bytes are needed"),
        (noise(8, 8, 1).astype(np.uint16), "an image has uint16 values"),
        (noise(8), "shape (8,)"),
    ],
)
def test_fit_image_refuses(image: np.ndarray, why: str) -> None:
    assert why in message(lambda: fit_image(image, 8, 1))


@pytest.mark.parametrize("count", [0, 1, 7, 100])
def test_images_taken_from_a_split_are_used_by_jax_where_they_lie(count: int) -> None:
    random = np.random.default_rng(count)
    split = Split(random.integers(0, 256, (100, 5, 5, 3), np.uint8), np.arange(100, dtype=np.int32))
    indices = random.permutation(100)[:count]
    taken = take(split, indices)
    np.testing.assert_array_equal(taken.images, split.images[indices])
    np.testing.assert_array_equal(taken.labels, indices)
    assert not np.shares_memory(taken.images, split.images)
    if count:
        assert jax.device_put(taken.images).unsafe_buffer_pointer() == taken.images.ctypes.data


@pytest.mark.parametrize("dtype", [np.float32, jax.numpy.bfloat16, np.uint8])
def test_aligned_arrays_are_used_by_jax_where_they_lie(dtype: Any) -> None:
    for shape in ((3, 5, 7), (1,), (1000, 3)):
        array = aligned_empty(shape, dtype)
        array[...] = 1
        assert (array.shape, array.dtype, array.ctypes.data % 64) == (shape, dtype, 0)
        assert jax.device_put(array).unsafe_buffer_pointer() == array.ctypes.data
    assert aligned_empty((0, 4), dtype).shape == (0, 4)
