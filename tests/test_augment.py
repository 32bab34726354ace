"""Augmentation against Pillow, as torchvision calls it, byte for byte."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from experiments.bench.pillow import POLICY, apply_steps, magnitude
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.data.augment import augment, autoaugment_one_by_one, flipcrop, standardise
from jaxcnn.data.autoaugment import Draw, _blend, apply_operation, apply_policy, autoaugment, draw
from jaxcnn.errors import InputError

pytestmark = pytest.mark.usefixtures("optimised")  # fused arithmetic rounds otherwise

OPERATIONS = """
    ShearX ShearY TranslateX TranslateY Rotate Brightness Color
    Contrast Sharpness Posterize Solarize AutoContrast Equalize Invert
"""
NAMES = OPERATIONS.split()

batched = jax.jit(augment, static_argnames="kind")


def pictures(count: int, height=32, width=32, channels=3, seed=0) -> np.ndarray:
    """Noise, gradients, waves, low contrast, few levels, constants, blocks on black: uint8, all different."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width][..., None] / max(height, width)

    def draw_one(i: int) -> np.ndarray:
        u, v, w = rng.uniform(-1, 1, (3, channels))
        noise = rng.uniform(0, 1, (height, width, channels))
        low, span = rng.integers(0, 255, channels), rng.integers(1, 90, channels)
        match i % 7:
            case 0:
                return 256 * noise
            case 1:
                return 128 + 127 * (u * x + v * y) + 4 * w * noise
            case 2:
                return 128 + 127 * np.sin(12 * u * x + 9 * v * y + 6 * w) * (0.9 + 0.1 * noise)
            case 3:
                return low + span * noise
            case 4:
                return low + span // 8 * np.floor(3 * noise) * (x > 0.5)
            case 5:
                return low + (i % 2) * (noise > 0.995)
        return np.where((np.abs(x - 0.5 - u / 3) < 0.3) & (np.abs(y - 0.5 + v / 3) < 0.2), 60 + 190 * noise, 0)

    return np.stack([np.clip(draw_one(i), 0, 255).astype(np.uint8) for i in range(count)])


def assert_same(got, want, what=""):
    wrong = np.nonzero((np.asarray(got) != want).reshape(len(want), -1).any(axis=1))[0]
    assert wrong.size == 0, f"{what}: {wrong.size} of {len(want)} images differ, first {wrong[:5]}"


@pytest.mark.parametrize("name", NAMES)
def test_each_operation_at_every_magnitude_equals_pillow(name):
    images = pictures(28)
    levels = np.array([(level, sign) for level in range(10) for sign in (False, True)])

    @jax.jit
    def every(images):
        over_images = jax.vmap(partial(apply_operation, name), (0, None, None))
        return jax.lax.map(lambda one: over_images(images, one[0], one[1]), jnp.asarray(levels))

    for (level, negative), got in zip(levels, every(images), strict=True):
        want = np.stack([apply_steps(image, [(name, int(level), bool(negative))]) for image in images])
        assert_same(got, want, f"{name} {level} {negative}")


@pytest.mark.parametrize(
    ("height", "width", "channels"),
    [
        (28, 28, 1),
        *(pytest.param(*shape, marks=pytest.mark.slow) for shape in ((64, 48, 3), (9, 331, 1), (2, 5, 3), (1, 1, 1))),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_operations_on_other_shapes_equal_pillow(name, height, width, channels):
    images = pictures(7, height, width, channels)
    cases = [(level, bool(level % 2)) for level in (0, 3, 6, 9)]
    over_images = jax.vmap(partial(apply_operation, name), (0, None, None))
    got = jax.jit(lambda images, cases: jax.lax.map(lambda one: over_images(images, *one), cases))(
        images, (jnp.array([c[0] for c in cases]), jnp.array([c[1] for c in cases]))
    )
    for one, got_one in zip(cases, got, strict=True):
        assert_same(got_one, np.stack([apply_steps(i, [(name, *one)]) for i in images]), f"{name} {one}")


def test_blend_equals_pillow_for_every_pair_of_bytes():
    start, image = np.mgrid[:256, :256].astype(np.uint8)
    factors = [1.0 + magnitude("Color", level, sign, 1, 1) for level in range(10) for sign in (False, True)]
    got = jax.jit(jax.vmap(_blend, (None, None, 0)))(start, image, jnp.array(factors, jnp.float32))
    assert_same(got, np.stack([Image.blend(*map(Image.fromarray, (start, image)), f) for f in factors]))


def test_autocontrast_equals_pillow_for_every_lowest_and_highest_value():
    low, high = np.triu_indices(256)
    images = np.clip(np.arange(256), low[:, None], high[:, None]).astype(np.uint8).reshape(-1, 16, 16, 1)
    got = jax.jit(jax.vmap(partial(apply_operation, "AutoContrast")))(images)
    values = images.reshape(-1, 256).astype(np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = 255.0 / (high - low)[:, None]
        stretched = np.clip(np.trunc(values * scale + -low[:, None] * scale), 0, 255)
    want = np.where((high > low)[:, None], stretched, values).reshape(images.shape)
    assert_same(got, want)
    some = np.random.default_rng(0).integers(0, len(images), 200)
    assert_same(want[some], np.stack([apply_steps(image, [("AutoContrast", 0, False)]) for image in images[some]]))


def steps_of(drawn, i: int):
    """The operations that `drawn` asks for on image i, by Pillow's side's table."""
    for slot, (name, _, level) in enumerate(POLICY[int(drawn.policy[i])]):
        if drawn.applied[i, slot]:
            yield name, level, bool(drawn.negative[i, slot])


def keys_of(key: jax.Array, count: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(count))


@pytest.mark.parametrize(
    ("count", "height", "width", "channels"),
    [
        (400, 28, 28, 1),
        pytest.param(2500, 32, 32, 3, marks=pytest.mark.slow),
        pytest.param(400, 64, 48, 3, marks=pytest.mark.slow),
    ],
)
def test_the_policy_equals_pillow_in_both_forms(count, height, width, channels):
    images, key = pictures(count, height, width, channels, seed=1), jax.random.key(count)
    drawn = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys_of(key, count)))
    want = np.stack([apply_steps(image, steps_of(drawn, i)) for i, image in enumerate(images)])
    for form in (autoaugment_one_by_one, jax.vmap(autoaugment)):
        got = jax.jit(form)(keys_of(key, count), images)
        assert got.dtype == jnp.uint8
        assert_same(got, want, str(form))
    assert len({image.tobytes() for image in images}) > 0.99 * count
    assert 0.5 < np.mean((want != images).any(axis=(1, 2, 3))) < 0.95


def test_every_sub_policy_equals_pillow_with_both_operations_applied():
    policy, negative = np.divmod(np.arange(100), 4)
    drawn = Draw(policy, np.ones((100, 2), bool), (negative[:, None] >> np.arange(2)) & 1 == 1)
    images = pictures(100, seed=2)
    want = np.stack([apply_steps(image, steps_of(drawn, i)) for i, image in enumerate(images)])
    got = jax.jit(lambda drawn, images: jax.lax.map(lambda one: apply_policy(*one), (drawn, images)))(
        jax.tree.map(jnp.asarray, drawn), images
    )
    assert_same(got, want)


@pytest.mark.parametrize(
    ("kind", "single"), [("flipcrop", flipcrop), pytest.param("autoaugment", autoaugment, marks=pytest.mark.slow)]
)
def test_one_image_alone_equals_the_same_image_in_a_batch(kind, single):
    images, key = pictures(14), jax.random.key(3)
    whole = batched(key, images, kind)
    single = jax.jit(single)
    for i in range(14):
        np.testing.assert_array_equal(single(jax.random.fold_in(key, i), images[i]), whole[i])
    short = batched(key, images[:6], kind)
    np.testing.assert_array_equal(short, whole[:6])


def assert_frequency(hits, trials, probability):
    error = math.sqrt(probability * (1 - probability) / trials)
    assert abs(hits / trials - probability) <= 4 * error + 1e-6, (hits, trials, probability)


def test_frequencies_are_those_of_the_definition():
    count = 100_000
    drawn = jax.tree.map(np.asarray, jax.jit(jax.vmap(draw))(keys_of(jax.random.key(0), count)))
    assert len(POLICY) == 25
    for policy, pair in enumerate(POLICY):
        chosen = drawn.policy == policy
        assert_frequency(chosen.sum(), count, 1 / 25)
        for slot, (_, probability, _) in enumerate(pair):
            assert_frequency(drawn.applied[chosen, slot].sum(), chosen.sum(), probability)
            assert_frequency(drawn.negative[chosen, slot].sum(), chosen.sum(), 1 / 2)
    # Independent of each other: the two signs differ half of the time.
    assert_frequency((drawn.negative[:, 0] != drawn.negative[:, 1]).sum(), count, 1 / 2)
    both = drawn.applied.all(axis=1).sum()
    assert_frequency(both, count, np.mean([a.probability * b.probability for a, b in POLICY]))


@pytest.mark.parametrize(("height", "width", "channels"), [(6, 9, 1), pytest.param(32, 32, 3, marks=pytest.mark.slow)])
def test_flipcrop_gives_each_window_and_its_mirror_equally_often(height, width, channels):
    image = np.random.default_rng(0).integers(1, 256, (height, width, channels), dtype=np.uint8)
    padded = np.pad(image, ((4, 4), (4, 4), (0, 0)))
    windows = [padded[y : y + height, x : x + width] for y in range(9) for x in range(9)]
    known = {window[:, ::step].tobytes(): i for i, window in enumerate(windows) for step in (1, -1)}
    sides = {window[:, ::-1].tobytes() for window in windows}
    count = 20_000
    images = np.broadcast_to(image, (count, *image.shape))
    got = np.asarray(batched(jax.random.key(0), images, "flipcrop"))
    seen = np.array([known[one.tobytes()] for one in got])
    for i in range(81):
        assert_frequency((seen == i).sum(), count, 1 / 81)
    assert_frequency(sum(one.tobytes() in sides for one in got), count, 1 / 2)


def test_none_changes_nothing_and_another_key_gives_another_result():
    images = jnp.asarray(pictures(14))
    assert augment(jax.random.key(0), images, "none") is images
    for kind in ("autoaugment", "flipcrop"):
        first, second = (batched(jax.random.key(k), images, kind) for k in (0, 1))
        assert (first != second).any()


@pytest.mark.parametrize(("mean", "std"), [((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)), ((0.1307,), (0.3081,))])
def test_standardise_equals_numpy(mean, std):
    images = pictures(20, channels=len(mean))
    want = (images / 255 - np.array(mean)) / np.array(std)
    got = jax.jit(partial(standardise, standardisation=Standardisation(mean, std)))(images)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)
    half = standardise(jnp.asarray(images), Standardisation(mean, std), jnp.bfloat16)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_array_equal(half, got.astype(jnp.bfloat16))


def test_what_cannot_be_used_is_refused_by_name():
    key, good = jax.random.key(0), jnp.zeros((2, 8, 8, 3), jnp.uint8)
    for bad in (good.astype(jnp.float32), good[0], jnp.zeros((2, 8, 8, 4), jnp.uint8)):
        with pytest.raises(InputError, match="images="):
            augment(key, bad, "autoaugment")
    with pytest.raises(InputError, match="augment='rotate' is not usable: choose one of"):
        augment(key, good, "rotate")
    with pytest.raises(InputError, match="image="):
        autoaugment(key, good)
    with pytest.raises(InputError, match="operation='Blur'"):
        apply_operation("Blur", good[0])
    with pytest.raises(InputError, match="mean="):
        standardise(good, Standardisation((0.5,), (0.5, 0.5, 0.5)))
    with pytest.raises(InputError, match="std="):
        standardise(good, Standardisation((0.5, 0.5, 0.5), (0.5, 0.5)))
    with pytest.raises(InputError, match="images="):
        standardise(good.astype(jnp.float32), Standardisation((0.5,) * 3, (0.5,) * 3))
