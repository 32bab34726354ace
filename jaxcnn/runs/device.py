"""Selecting JAX's device and its cache of compiled programs."""

import sys
import tempfile
from pathlib import Path

import jax

from jaxcnn.config.experiment import Device
from jaxcnn.errors import InputError, reason
from jaxcnn.files import cache_folder


def select_device(device: Device) -> None:
    """Makes JAX compute on a kind of device, and turns on its persistent compilation cache.

    Raises:
        InputError: when the machine has no such device, JAX is installed without support for it, or JAX already uses
            another one in this process.
    """
    if device != "auto":
        _configure("jax_platforms", {"gpu": "cuda"}.get(device, device))
    if not getattr(jax.config, "jax_compilation_cache_dir", None):  # the user's own cache settings are kept
        _keep_compiled(cache_folder() / "compiled")
    try:
        found = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # AssertionError: JAX is installed without support for the device
        why = reason(error) if isinstance(error, RuntimeError) else "JAX is installed without support for it"
        remedy = {
            "tpu": "run it on a machine with a TPU and jax[tpu]",
            "gpu": "for an NVIDIA GPU install jaxcnn[cuda13], or jaxcnn[cuda12] if its driver is older than 580",
        }
        raise InputError(
            f"device={device!r} is not available: {why}; {remedy.get(device, 'install jax again')}, "
            "or give --device cpu"
        ) from error
    # On accelerators JAX multiplies float32 matrices with less precision by default: TF32 on an NVIDIA GPU, bfloat16
    # on a TPU.
    _configure("jax_default_matmul_precision", None if found == "cpu" else "highest")
    if device not in ("auto", found):
        raise InputError(f"device={device!r} is not available: JAX already computes on {found} in this process")


def _keep_compiled(cache: Path) -> None:
    try:
        cache.mkdir(mode=0o700, parents=True, exist_ok=True)  # private: machine code is loaded from there
        tempfile.TemporaryFile(dir=cache).close()
    except OSError as error:  # checked here, because JAX would warn at every function that it compiles
        print(f"Compiled programs are not kept in {cache}: {reason(error)}", file=sys.stderr)
    else:
        _configure("jax_compilation_cache_dir", str(cache))
        _configure("jax_persistent_cache_min_compile_time_secs", 0.1)


def _configure(name: str, value: str | float | None) -> None:
    jax.config.update(name, value)
