"""The same bits at each run on a GPU: which options XLA is given there. A CPU plays the GPU."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxcnn.kernels import describe
from jaxcnn.kernels.executables import jit, kept_jit

OPTION = "xla_gpu_deterministic_ops"
OPTIONS = {OPTION: True, "xla_gpu_per_fusion_autotune_cache_dir": "", "xla_gpu_shard_autotuning": False}
X = np.arange(4, dtype=np.float32)
REFUSED = (
    "UNIMPLEMENTED: HLO instruction %select-and-scatter.1 does not have a deterministic implementation, but run-to-run "
    f"determinism is required by --{OPTION}."
)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options of each compilation on what seems to be a GPU."""
    options: list[dict[str, Any]] = []
    original = jax.jit

    def noting(f: Any, **rest: Any) -> Any:
        if f.__name__ != "<lambda>":  # which only tries whether the compiler knows an option
            options.append(rest["compiler_options"])
        return original(f, **rest)

    monkeypatch.setattr(jax, "jit", noting)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    return options


def double(x: Any) -> Any:
    return 2 * x


def test_a_gpu_is_asked_for_the_same_bits_and_a_cpu_for_its_emitters(
    given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    np.testing.assert_array_equal(kept_jit(double)(X), 2 * X)
    np.testing.assert_array_equal(jit(double)(X), 2 * X)
    assert given == [OPTIONS, OPTIONS]
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    np.testing.assert_array_equal(kept_jit(double)(X), 2 * X)
    assert given[2:] == [{}]


@pytest.mark.parametrize("chosen", ["true", "false"])
def test_what_the_user_chose_stays(given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, chosen: str) -> None:
    monkeypatch.setenv("XLA_FLAGS", f"--{OPTION}={chosen}")
    np.testing.assert_array_equal(kept_jit(double)(X), 2 * X)
    assert given == [{}]


@pytest.mark.parametrize("on_disk", [False, True])
def test_an_operation_without_a_deterministic_form_is_compiled_all_the_same(
    given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, on_disk: bool
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(describe, "_KNOWN_CODE", describe._KNOWN_CODE | {__name__.partition(".")[0]})
    noting = jax.jit

    class Refusing:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __call__(self, *args: Any) -> Any:
            raise jax.errors.JaxRuntimeError(REFUSED)

        lower = __call__

    def refusing(f: Any, **rest: Any) -> Any:
        compiled = noting(f, **rest)
        return Refusing() if given and given[-1].get(OPTION) and f.__name__ != "<lambda>" else compiled

    monkeypatch.setattr(jax, "jit", refusing)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path) if on_disk else None)
    try:
        program = kept_jit(double)
        with pytest.warns(UserWarning, match="double has an operation without a deterministic form on a GPU"):
            np.testing.assert_array_equal(program(X), 2 * X)
        np.testing.assert_array_equal(program(X), 2 * X)  # and warns once
        np.testing.assert_array_equal(program(X[:2]), 2 * X[:2])
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert given == [OPTIONS, {}]
    assert (tmp_path / "executables").exists() == on_disk


def test_other_failures_are_told(given: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(x: Any) -> Any:
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")

    with pytest.raises(jax.errors.JaxRuntimeError, match="out of memory"):
        kept_jit(fail)(X)
    assert given == [OPTIONS]
