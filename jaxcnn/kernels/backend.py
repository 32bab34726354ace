"""Which backend JAX computes on, and the settings of JAX that results depend on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax


def is_cpu() -> bool:
    """Whether JAX's default backend is a CPU. Everything that depends on the backend asks here."""
    return jax.default_backend() == "cpu"


def cpu_or_plain(fast: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> Any:
    """`fast(*args)` on a CPU, else `plain(*args)`: two forms of one computation."""
    return fast(*args) if is_cpu() else plain(*args)


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
