"""Compiled programs on disk: loaded where nothing has changed and nobody else could have written them."""

import hashlib
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcnn.kernels import describe, executables
from jaxcnn.kernels.executables import kept_jit

traced: list[str] = []


class State(NamedTuple):
    step: Any
    weights: dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where programs of this module's functions are kept."""
    root = tmp_path / "compiled"
    root.mkdir(mode=0o700)
    own = frozenset({__name__.partition(".")[0]})
    monkeypatch.setattr(describe, "_KNOWN_CODE", describe._KNOWN_CODE | own)
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(root))
    executables.environment.cache_clear()
    traced.clear()
    yield root / "executables"
    jax.config.update("jax_compilation_cache_dir", before)
    executables.environment.cache_clear()


def scale(factor: float = 3, **options: Any) -> Callable[..., Any]:
    """As a new process would have it: nothing compiled is in memory."""

    def f(x: Any) -> Any:
        traced.append("f")
        return x * factor

    return kept_jit(f, **options)


X = np.arange(4, dtype=np.float32)


def kept() -> int:
    """How many programs were traced, and so not loaded, by one more start."""
    traced.clear()
    np.testing.assert_array_equal(scale()(X), 3 * X)
    return len(traced)


def only(folder: Path) -> Path:
    [path] = folder.iterdir()
    return path


def test_a_later_start_traces_nothing_and_computes_the_same(folder: Path) -> None:
    def start() -> Callable[..., Any]:
        def f(state: State, batch: Any, rate: Any) -> tuple[State, Any]:
            traced.append("f")
            weights = {name: w - rate * jnp.sin(batch @ w) for name, w in state.weights.items()}
            return State(state.step + 1, weights), None

        return kept_jit(f, donate_argnums=0)

    def run(step: Callable[..., Any]) -> tuple[Any, bool]:
        given = State(jnp.int32(0), {"a": jnp.linspace(0, 1, 9).reshape(3, 3)})
        state, _ = step(given, np.eye(3, dtype=np.float32), 0.1)
        state, nothing = step(state, np.eye(3, dtype=np.float32), 0.1)
        assert nothing is None
        return jax.tree.map(np.asarray, state), given.weights["a"].is_deleted()

    first, deleted = run(start())
    assert traced == ["f"]
    assert deleted
    second, deleted = run(start())
    assert traced == ["f"]
    assert deleted  # donated buffers are reused by a loaded program too
    assert isinstance(second, State)
    assert second.step == first.step == 2
    assert second.weights["a"].tobytes() == first.weights["a"].tobytes()
    assert {path.stat().st_mode & 0o777 for path in (folder, only(folder))} == {0o700, 0o600}


@pytest.mark.parametrize(
    "args",
    [
        (X[:3],),
        (X.astype(np.int32),),
        (2.0,),
        (jnp.float32(2),),
        (X[None],),
    ],
)
def test_other_arguments_have_a_program_of_their_own(folder: Path, args: Any) -> None:
    f = scale()
    f(X)
    np.testing.assert_array_equal(f(*args), 3 * np.asarray(args[0]))
    assert len(traced) == 2
    assert len(list(folder.iterdir())) == 2


def change_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executables, "version", lambda name: "0.0" if name == "jaxlib" else "1")


def change_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executables, "_processor", lambda: ["flags : fpu avx"])


def change_flags(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")


def change_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executables, "__file__", str(Path(__file__).parent / "room" / "x.py"))


@pytest.mark.parametrize("change", [change_version, change_processor, change_flags, change_source])
def test_a_program_of_another_release_source_or_machine_is_not_used(
    folder: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[pytest.MonkeyPatch], None]
) -> None:
    assert [kept(), kept()] == [1, 0]
    change(monkeypatch)
    executables.environment.cache_clear()
    assert [kept(), kept()] == [1, 0]
    assert len(list(folder.iterdir())) == 2


@pytest.mark.parametrize(
    "other", [{"factor": 3.5}, {"donate_argnums": 0}, {"options": {"xla_cpu_enable_fast_math": 1}}]
)
def test_a_program_of_another_configuration_is_not_used(folder: Path, other: dict[str, Any]) -> None:
    scale()(X)
    scale(**other)(X)
    assert len(traced) == 2
    scale(**other)(X)
    assert len(traced) == 2


def test_a_program_for_other_settings_of_jax_is_not_used(folder: Path) -> None:
    f = scale()
    f(X)
    with jax.default_matmul_precision("highest"):
        f(X)
        assert len(traced) == 2
    with jax.numpy_dtype_promotion("strict"):
        scale()(X)
    assert len(traced) == 3
    f(X)
    assert len(traced) == 3


def let_group_write_the_file(path: Path) -> None:
    path.chmod(0o620)


def let_others_write_the_file(path: Path) -> None:
    path.chmod(0o602)


def let_group_write_its_folder(path: Path) -> None:
    path.parent.chmod(0o770)


def let_others_write_the_cache(path: Path) -> None:
    path.parent.parent.chmod(0o707)


def link_the_file(path: Path) -> None:
    moved = path.rename(path.parents[2] / "elsewhere")
    path.symlink_to(moved)


def link_its_folder(path: Path) -> None:
    moved = path.parent.rename(path.parents[2] / "elsewhere")
    path.parent.symlink_to(moved)


def cut_the_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def empty_the_file(path: Path) -> None:
    path.write_bytes(b"")


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def pickle_something_else(path: Path) -> None:
    content = pickle.dumps(("no executable", None))
    path.write_bytes(hashlib.sha256(content).digest() + content)


@pytest.mark.parametrize(
    "change",
    [
        let_group_write_the_file,
        let_others_write_the_file,
        let_group_write_its_folder,
        let_others_write_the_cache,
        link_the_file,
        link_its_folder,
        cut_the_file,
        empty_the_file,
        flip_a_bit,
        pickle_something_else,
    ],
)
def test_what_others_may_have_written_or_is_damaged_is_compiled_again(
    folder: Path, change: Callable[[Path], None]
) -> None:
    assert kept() == 1
    path = only(folder)
    path.chmod(0o600)
    change(path)
    assert kept() == 1


def test_jaxs_own_cache_serves_where_others_may_write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not left without the programs that are not kept."""
    compiled_apart: list[str] = []
    monkeypatch.setattr(executables, "_not_in_jaxs_cache", lambda: nullcontext(compiled_apart.append("")))
    folder.parent.chmod(0o775)
    assert kept() == 1
    assert not compiled_apart
    assert not folder.exists()
    folder.parent.chmod(0o700)
    assert [kept(), kept()] == [1, 0]
    assert compiled_apart


def test_jaxs_setting_is_as_it_was_after_a_compilation(folder: Path) -> None:
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    with executables._not_in_jaxs_cache(), executables._not_in_jaxs_cache():
        assert getattr(jax.config, name) == float("inf")
    assert getattr(jax.config, name) == before
    kept()
    assert getattr(jax.config, name) == before


def test_another_users_file_is_not_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("it was loaded")

    assert kept() == 1
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    monkeypatch.setattr(pickle, "loads", refuse)
    assert kept() == 1


def test_nothing_is_kept_where_it_cannot_be(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = object()

    def opaque(x: Any) -> Any:
        return x if held else 2 * x

    np.testing.assert_array_equal(kept_jit(opaque)(X), X)
    with jax.disable_jit():
        assert kept() == 1
    jax.config.update("jax_compilation_cache_dir", None)
    assert [kept(), kept()] == [1, 1]
    jax.config.update("jax_compilation_cache_dir", "gs://bucket/cache")
    assert [kept(), kept()] == [1, 1]
    assert not folder.exists()
    folder.write_text("a file in the place of the folder")
    jax.config.update("jax_compilation_cache_dir", str(folder.parent))
    assert [kept(), kept()] == [1, 1]
    monkeypatch.setattr(describe, "_KNOWN_CODE", frozenset({"jaxcnn"}))
    assert [kept(), kept()] == [1, 1]


def test_those_that_were_not_used_for_the_longest_time_make_room(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = []
    for factor in (3, 4, 5):
        if factor == 5:
            monkeypatch.setattr(executables, "_MOST", 2 * paths[0].stat().st_size + 1000)
            assert kept() == 0  # used, and so newer than the second
        scale(factor)(X)
        paths += set(folder.iterdir()) - set(paths)
        os.utime(paths[-1], (factor, factor))
    assert set(folder.iterdir()) == {paths[0], paths[2]}
