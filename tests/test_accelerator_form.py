"""The form of training for accelerators, run on a CPU: equal to the CPU's own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from small_training import MODEL, draw_dataset, draw_variables, experiment, run, untimed

from jaxcnn.config import FreezeConfig
from jaxcnn.training import loop
from jaxcnn.training.records import EpochRecord
from jaxcnn.training.step import init_state

pytestmark = pytest.mark.usefixtures("compiled_once")


@contextmanager
def forgotten_programs() -> Iterator[None]:
    """JAX without what it traced and compiled, and without what is kept on disk: all of it is the CPU's."""

    def forget() -> None:
        jax.clear_caches()
        loop.compiled_eval_step.cache_clear()

    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    forget()
    yield
    forget()
    jax.config.update("jax_compilation_cache_dir", kept)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["frozen", "full"])
def test_the_form_for_accelerators_trains_the_same(mask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A whole run with AutoAugment, in float64: an epoch in one call, whole batches augmented, XLA's convolutions."""
    config = replace(experiment(augment="autoaugment", epochs=2), freeze=FreezeConfig(mask=mask))

    def trained() -> tuple[Any, list[EpochRecord]]:
        wide = jax.tree.map(
            lambda a: np.asarray(a, np.float64 if a.dtype.kind == "f" else a.dtype), draw_variables(MODEL)
        )
        frozen = 2 if mask == "frozen" else 0
        state = init_state(wide, MODEL, config.optim, seed=0, frozen_stages=frozen)
        states, records = run(config, draw_dataset(), state=state)
        return states[-1], records

    with jax.enable_x64(True):
        ours, told = trained()
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
        with forgotten_programs():
            theirs, told_too = trained()
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-9), ours, theirs)
    np.testing.assert_allclose(np.array(untimed(told), float), np.array(untimed(told_too), float), rtol=1e-6, atol=1e-9)
