"""What suits the backend that JAX computes on, where the choice changes no result."""

from collections.abc import Callable
from typing import Any, NamedTuple

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
    return Form(steps_per_call=4 if _is_cpu() else None, vectorized=not _is_cpu())


Jit = Callable[..., Any]
"""`jax.jit`, or `jit` below."""


def jit(f: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = (), **options: int) -> Callable[..., Any]:
    """`jax.jit` with the compiler's `options` for the default backend; not for use while another function is traced.

    On a CPU XLA builds the passes of its newer emitters anew for every loop. Without them a training step compiles in
    two thirds of the time and memory, and is a little faster; but Adam alone takes three times as long.
    """
    on_cpu = {"xla_cpu_use_fusion_emitters": False} if _is_cpu() else {}
    return jax.jit(f, donate_argnums=donate_argnums, compiler_options={**on_cpu, **options})


def _is_cpu() -> bool:
    return jax.default_backend() == "cpu"
