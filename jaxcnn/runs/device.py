"""Where JAX computes, and where it keeps what it compiled."""

import sys
import tempfile
from pathlib import Path

import jax

from jaxcnn.config.experiment import Device
from jaxcnn.errors import InputError, reason
from jaxcnn.files import cache_folder


def select_device(device: Device) -> None:
    """Has JAX compute on a kind of device, and keep compiled programs for the next start.

    Raises:
        InputError: when the machine has no such device, or JAX no support for it installed.
    """
    if device != "auto":
        _configure("jax_platforms", {"gpu": "cuda"}.get(device, device))
    if not getattr(jax.config, "jax_compilation_cache_dir", None):  # else the user's own, and with it how it is kept
        _keep_compiled(cache_folder() / "compiled")
    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # the latter where JAX has no support for the device installed
        why = reason(error) if isinstance(error, RuntimeError) else "JAX has no support for it installed"
        remedy = {
            "tpu": "run it on a machine with a TPU and jax[tpu]",
            "gpu": "for one of NVIDIA's install jaxcnn[cuda12]",
        }
        raise InputError(
            f"device={device!r} cannot be had: {why}; {remedy.get(device, 'install jax again')}, or give --device cpu"
        ) from error
    # On an accelerator JAX's own choice for float32 is less: TF32 on an NVIDIA GPU, bfloat16 on a TPU.
    _configure("jax_default_matmul_precision", None if found == "cpu" else "highest")
    if device not in ("auto", found):
        raise InputError(f"device={device!r} cannot be had: JAX already computes on {found} in this process")


def _keep_compiled(cache: Path) -> None:
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # programs are loaded from a private folder only
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:  # which JAX would say of every function that it compiles
        print(f"Compiled programs are not kept in {cache}: {reason(error)}", file=sys.stderr)
    else:
        _configure("jax_compilation_cache_dir", str(cache))
        _configure("jax_persistent_cache_min_compile_time_secs", 0.1)


def _configure(name: str, value: str | float | None) -> None:
    jax.config.update(name, value)
