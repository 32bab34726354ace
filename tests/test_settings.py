"""JAX's settings, XLA's options and the user's environment change no result and stop nothing."""

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from refusals import message
from small_training import (
    MODEL,
    STANDARDISATION,
    assert_same_bits,
    draw_dataset,
    draw_variables,
    experiment,
    run,
    untimed,
)

from jaxcnn import CNN, init_variables
from jaxcnn.data.augment import augment, standardise
from jaxcnn.kernels.backend import fixed_settings, laid_out_by_rows
from jaxcnn.kernels.dropout import dropout
from jaxcnn.kernels.executables import _is_known, jit
from jaxcnn.model import key_of
from jaxcnn.runs.device import select_device
from jaxcnn.training.step import cross_entropy

pytestmark = pytest.mark.usefixtures("compiled_once")
STRICT: dict[str, Any] = {
    "threefry_partitionable": False,
    "numpy_rank_promotion": "raise",
    "numpy_dtype_promotion": "strict",
    "transfer_guard": "disallow",
    "debug_key_reuse": True,
}


@contextmanager
def strict() -> Iterator[None]:
    with ExitStack() as stack:
        for name, value in STRICT.items():
            stack.enter_context(getattr(jax, name)(value))
        yield


@pytest.mark.slow
def test_a_run_under_strict_settings_is_the_same_run() -> None:
    config = experiment(epochs=1)
    wanted_states, wanted_records = run(config, draw_dataset())
    with strict():
        states, records = run(config, draw_dataset())
    assert_same_bits(states[-1], wanted_states[-1])
    assert untimed(records) == untimed(wanted_records)


def test_the_settings_that_are_tested_are_those_that_are_fixed() -> None:
    with strict(), fixed_settings():
        now = {name: getattr(jax.config, f"jax_{name}") for name in STRICT}
    assert now == {
        "threefry_partitionable": True,
        "numpy_rank_promotion": "allow",
        "numpy_dtype_promotion": "standard",
        "transfer_guard": "allow",
        "debug_key_reuse": False,
    }


def test_an_own_loss_under_strict_settings_is_the_same_program() -> None:
    """Backward passes are traced where the user's code is, not where the network was applied."""
    variables, images = draw_variables(MODEL), draw_dataset().train.images[:8]
    model = CNN(replace(MODEL, dropout_rate=0.5))

    def loss(params: Any) -> Any:
        logits, _ = model.apply(
            {**variables, "params": params},
            standardise(images, STANDARDISATION),
            True,
            rngs={"dropout": key_of(3)},
            mutable=["batch_stats"],
        )
        return cross_entropy(logits, jnp.zeros(8, jnp.int32)).mean()

    wanted = jax.jit(jax.grad(loss)).lower(variables["params"]).as_text()
    with strict():
        assert jax.jit(jax.grad(loss)).lower(variables["params"]).as_text() == wanted


DRAWS: dict[str, Callable[[], Any]] = {
    "weights": lambda: init_variables(MODEL, key_of(5)),
    "augmentation": lambda: augment(key_of(5), draw_dataset().train.images, "flipcrop"),
    "dropout": lambda: dropout(key_of(5), jnp.ones((16, 64)), 0.5),
}


@pytest.mark.parametrize("name", DRAWS)
def test_the_generators_settings_change_no_draw(name: str) -> None:
    wanted = jax.device_get(DRAWS[name]())
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        assert_same_bits(jax.device_get(DRAWS[name]()), wanted)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1])
def test_a_seeds_key_is_that_of_jax_whatever_its_offset(seed: int) -> None:
    wanted = np.asarray(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))
    jax.config.update("jax_random_seed_offset", 7)
    try:
        shifted = np.asarray(jax.random.key_data(jax.random.key(seed, impl="threefry2x32")))
        found = np.asarray(jax.random.key_data(key_of(seed)))
    finally:
        jax.config.update("jax_random_seed_offset", 0)
    np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(shifted, wanted)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_a_seed_beyond_32_bits_is_refused(seed: int) -> None:
    assert message(lambda: key_of(seed)) == (
        f"seed={seed} is not usable: give a whole number of at least 0 and at most 4294967295"
    )


def test_an_option_that_xla_does_not_know_is_left_out_and_tried_once(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = jax.jit

    def counting(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("compiler_options"))
        return original(*args, **kwargs)

    monkeypatch.setattr(jax, "jit", counting)
    for _ in range(2):
        assert float(jit(lambda x: 2 * x, xla_of_another_release=True)(3.0)) == 6
    assert asked.count({"xla_of_another_release": True}) == 1
    assert not any("xla_of_another_release" in options for options in asked[-1:])


@pytest.mark.parametrize(
    ("name", "value", "known"),
    [("xla_backend_optimization_level", 1, True), ("xla_cpu_no_such_switch", 1, False), ("not_even_xlas", 0, False)],
)
def test_an_attempt_tells_whether_an_option_is_known(name: str, value: int, known: bool) -> None:
    assert _is_known(name, value) == known


def test_a_jax_without_layouts_computes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(laid_out_by_rows(x), x)
    for other in (None, SimpleNamespace(), SimpleNamespace(Layout=dict, with_layout_constraint=lambda x: x)):
        monkeypatch.setitem(sys.modules, "jax.experimental.layout", other)
        np.testing.assert_array_equal(laid_out_by_rows(x), x)


@pytest.mark.usefixtures("isolated")
def test_a_precision_of_products_in_the_environment_is_overruled() -> None:
    before = jax.config.jax_default_matmul_precision
    try:
        jax.config.update("jax_default_matmul_precision", "F16_F16_F16")
        select_device("cpu")
        assert jax.config.jax_default_matmul_precision is None
    finally:
        jax.config.update("jax_default_matmul_precision", before)


@pytest.mark.usefixtures("isolated")
def test_a_users_own_cache_of_compiled_programs_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "ours"))
    seconds = jax.config.values["jax_persistent_cache_min_compile_time_secs"]
    try:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 3.0)
        jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
        select_device("auto")
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
        assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 3
        assert not (tmp_path / "ours").exists()
        jax.config.update("jax_compilation_cache_dir", None)
        select_device("auto")
        assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "ours/jaxcnn/compiled")
        assert jax.config.values["jax_persistent_cache_min_compile_time_secs"] == 0.1
    finally:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", seconds)
