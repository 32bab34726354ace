"""What suits the backend that JAX computes on, and the settings of JAX that results rest on."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import jax


class Form(NamedTuple):
    """How to compute."""

    steps_per_call: int | None
    """Training steps in one compiled call; None is an epoch."""
    vectorized: bool
    """Whether augmentation takes a batch at once instead of image by image."""


def backend_form() -> Form:
    """The form that suits JAX's default backend.

    On a CPU four steps a call are a tenth faster than one, since the later ones find their buffers in place; more
    gain little, and a signal would wait longer. An accelerator gets an epoch in one call.
    """
    return Form(steps_per_call=4 if is_cpu() else None, vectorized=not is_cpu())


def laid_out_by_rows(x: jax.Array) -> jax.Array:
    """A matrix as it is, with its rows one after the other in memory, where JAX lets a program ask for that."""
    try:
        from jax.experimental.layout import Layout, with_layout_constraint

        laid_out: jax.Array = with_layout_constraint(x, Layout(major_to_minor=(0, 1)))
    except (ImportError, AttributeError, TypeError):  # experimental: it may change, and only makes programs faster
        return x
    return laid_out


_SETTINGS = {
    "threefry_partitionable": True,  # other random numbers from the same key
    "numpy_rank_promotion": "allow",
    "numpy_dtype_promotion": "standard",
    "transfer_guard": "allow",
    "debug_key_reuse": False,
}


@contextmanager
def fixed_settings() -> Iterator[None]:
    """JAX as this code expects it, whatever the process or its environment has set.

    One seed gives one result (`JAX_THREEFRY_PARTITIONABLE=0` would give another), and the strict modes, which are for
    finding faults in one's own code, do not stop this one. As a decorator, it covers one function.
    """
    with ExitStack() as stack:
        for name, value in _SETTINGS.items():
            if (setting := getattr(jax, name, None)) is not None:  # a release without it has one behaviour
                stack.enter_context(setting(value))
        yield


def is_cpu() -> bool:
    """Whether JAX's default backend is a CPU."""
    return jax.default_backend() == "cpu"
