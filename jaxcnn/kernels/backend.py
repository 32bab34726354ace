"""Which backend JAX computes on, and the settings of JAX that results depend on."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import jax
from jax import export


def is_cpu() -> bool:
    """Whether JAX's default backend is a CPU. Everything that depends on the backend asks here."""
    return jax.default_backend() == "cpu"


def is_gpu() -> bool:
    """Whether JAX's default backend is a GPU."""
    return jax.default_backend() == "gpu"


def cpu_or_plain(fast: Callable[..., Any], plain: Callable[..., Any], *args: Any) -> Any:
    """`fast(*args)` on a CPU, else `plain(*args)`: two forms of one computation."""
    return fast(*args) if is_cpu() else plain(*args)


def needs_plain(arrays: Any) -> bool:
    """Whether a tree of arrays can only be computed on by JAX's own operations: see `model.CNN`, `plain`.

    So it is where an array lies on a mesh with explicit axes, or has a symbolic dimension.
    """
    types = [jax.typeof(a) for a in jax.tree.leaves(arrays)]
    explicit = any(jax.sharding.AxisType.Explicit in t.sharding.mesh.axis_types for t in types)
    return explicit or any(export.is_symbolic_dim(n) for t in types for n in t.shape)


def laid_out_by_rows(x: jax.Array) -> jax.Array:
    """The same matrix, stored row after row, where this release of JAX can be asked for a layout."""
    try:
        from jax.experimental.layout import Layout, with_layout_constraint

        laid_out: jax.Array = with_layout_constraint(x, Layout(major_to_minor=(0, 1)))
    except (ImportError, AttributeError, TypeError):  # an experimental API, used only for speed
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
    """Runs a block or, as a decorator, a function under the JAX settings that this code expects.

    It overrides what the process or its environment has set. One seed then gives one result
    (`JAX_THREEFRY_PARTITIONABLE=0` would give another). JAX's strict modes, with which users find faults in their own
    code, do not stop this code.
    """
    with ExitStack() as stack:
        for name, value in _SETTINGS.items():
            if (setting := getattr(jax, name, None)) is not None:  # a release without the setting behaves like this
                stack.enter_context(setting(value))
        yield
