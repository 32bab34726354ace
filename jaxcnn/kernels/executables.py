"""Compiled programs on disk. A later start loads them, and traces, lowers and compiles nothing.

JAX's own cache is looked up by the lowered program, so that a start with a full one still traces and lowers: most of
the time until the first step. These files are looked up by what the program follows from: this package's source, the
values that the function closes over, the arguments' shapes, releases, settings and the processor.

A file is a pickle, and machine code. It is loaded only where nobody but this user can have written it.
"""

import hashlib
import math
import os
import pickle
import platform
import re
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import jax

from jaxcnn.kernels.backend import is_cpu
from jaxcnn.kernels.describe import Undescribed, describe

_MOST = 2**29
"""Bytes on disk; beyond them the files go that were not used for the longest time."""


Jit = Callable[..., Any]
"""`kept_jit` below, or a function with other defaults."""


def kept_jit(
    f: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = (), options: Mapping[str, int] | None = None
) -> Callable[..., Any]:
    """`jax.jit` for positional arguments, whose programs are kept on disk wherever JAX keeps its own.

    Programs are the same whether they are loaded or compiled. What cannot be kept is compiled as by `jax.jit`: where
    `jax_compilation_cache_dir` is not set, or others may write there, or `describe` does not know all that the function
    holds.

    Args:
        f: the function; not for use while another function is traced.
        donate_argnums: as of `jax.jit`.
        options: the compiler's. Those that the installed one does not know are left out.
    """
    programs: dict[Any, Callable[..., Any]] = {}
    wanted = dict(options or {})

    @cache
    def jitted(prefix: str = "") -> jax.stages.Wrapped:
        @wraps(f)
        def named(*args: Any) -> Any:
            return f(*args)

        named.__name__ = prefix + getattr(f, "__name__", "program")
        known = {name: value for name, value in wanted.items() if _is_known(name, value)}
        return jax.jit(named, donate_argnums=donate_argnums, compiler_options=known)

    def obtain(args: tuple[Any, ...]) -> Callable[..., Any]:
        path = _path((f, donate_argnums, wanted), args)
        if path is None:
            return jitted()
        program = _load(path, args)
        if program is None:
            with _not_in_jaxs_cache():
                program = jitted("kept_").lower(*args).compile()  # a name that nothing in JAX's cache has
            _save(path, program)
        return program

    def call(*args: Any) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if _needs_jit(leaves):
            return jitted()(*args)
        kinds = structure, *map(_kind, leaves), *(getattr(jax.config, name) for name in _SETTINGS_WITHIN)
        if kinds not in programs:
            programs[kinds] = obtain(args)
        return programs[kinds](*args)

    return call


_compiling: list[float] = []  # JAX's setting as it was, once for each thread that compiles
_lock = Lock()


@contextmanager
def _not_in_jaxs_cache() -> Iterator[None]:
    """What is compiled within is not written to JAX's cache.

    XLA cannot write a program again that came from there (jax 0.10.2, CPU): the file would lack the machine code.
    """
    name = "jax_persistent_cache_min_compile_time_secs"
    with _lock:
        _compiling.append(_compiling[0] if _compiling else getattr(jax.config, name))
        jax.config.update(name, math.inf)
    try:
        yield
    finally:
        with _lock:
            before = _compiling.pop()
            if not _compiling:
                jax.config.update(name, before)


def jit(f: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = (), **options: int) -> Callable[..., Any]:
    """`kept_jit` with the compiler's `options` for the default backend.

    On a CPU, XLA up to jax 0.11.0 builds the passes of its newer emitters again for every loop. Without them a training
    step compiles in two thirds of the time and memory, and is a little faster; but Adam alone takes three times as
    long.

    Options change how fast a program is, not what it computes. They are XLA's own and come and go with its releases:
    those that the installed one does not know are left out.
    """
    wanted = {**({"xla_cpu_use_fusion_emitters": False} if is_cpu() else {}), **options}
    return kept_jit(f, donate_argnums=donate_argnums, options=wanted)


_SETTINGS_WITHIN = ("jax_enable_x64", "jax_default_matmul_precision")  # which a process may change between calls


def _needs_jit(leaves: Sequence[Any]) -> bool:
    """Whether `jax.jit` does more for these arguments than to run one program on the one device."""
    strict = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_default_device")
    return (
        jax.device_count() > 1
        or any(getattr(jax.config, name, None) for name in strict)
        or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    )


def _kind(leaf: Any) -> Any:
    """All of an argument that a program depends on; its dtype as it is without x64 too."""
    if hasattr(leaf, "dtype"):
        return leaf.shape, str(leaf.dtype), getattr(leaf, "weak_type", False)
    return type(leaf)


@cache
def _is_known(name: str, value: int) -> bool:
    """Whether the compiler takes an option, which only an attempt tells."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError, TypeError):
        return False
    return True


def _path(function: Any, args: tuple[Any, ...]) -> Path | None:
    """Where the program of a function for such arguments lies; None if it cannot be kept, or not in privacy."""
    root = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not root or "://" in root or not getattr(jax.config, "jax_enable_compilation_cache", True):
        return None
    folder = Path(root) / "executables"
    try:
        if not all(_is_own(each.lstat(), stat.S_ISDIR) for each in (folder.parent, folder)):
            return None
    except FileNotFoundError:  # to be made
        pass
    except OSError:
        return None
    leaves, structure = jax.tree.flatten(args)
    try:
        parts = [*describe(function), str(structure), *map(str, map(_kind, leaves)), *_settings(), *environment()]
    except Undescribed:
        return None
    return folder / hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _settings() -> list[str]:
    """JAX's settings as they are in this thread, but for those of its cache."""
    unrelated = ("jax_compilation_cache", "jax_persistent_cache", "jax_log")
    names = [name for name in jax.config.values if not name.startswith(unrelated)]
    return [f"{name}={getattr(jax.config, name, jax.config.values[name])}" for name in names]


@cache
def environment() -> tuple[str, ...]:
    """All beside a function and its arguments that decides its compiled program."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].glob("**/*.py")):
        source.update(path.read_bytes())
    releases = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")]
    device = jax.devices()[0]
    machine = [device.platform, device.device_kind, str(getattr(device.client, "platform_version", "")), *_processor()]
    flags = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("XLA_", "LIBTPU_"))]
    return source.hexdigest(), sys.version, *releases, *machine, *flags


def _processor() -> list[str]:
    """The processor's kind and features, and how many this process may use: XLA divides work among so many."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        told = [line for line in first.splitlines() if re.match(r"(vendor_id|cpu family|model|flags|Features)\b", line)]
        return [*told, str(len(os.sched_getaffinity(0)))]
    return [*platform.uname(), str(os.cpu_count())]


def _load(path: Path, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The program in a file of `_path`'s; None if there is none, or others may have written it, or it is damaged."""
    try:
        from jax.experimental.serialize_executable import deserialize_and_load  # experimental: it may go

        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if not _is_own(os.fstat(file.fileno()), stat.S_ISREG):
                return None
            checksum, content = file.read(32), file.read()
        if hashlib.sha256(content).digest() != checksum:
            return None
        executable, result = pickle.loads(content)
        structures = jax.tree.structure((args, {})), jax.tree.structure(result)
        program: Callable[..., Any] = deserialize_and_load(executable, *structures)
        os.utime(path)  # it was used
    except Exception:  # what JAX raises is not told; the program is compiled
        return None
    return program


def _is_own(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder is this user's, and nobody else may write it."""
    return is_kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _save(path: Path, program: Any) -> None:
    """Writes a program; where that fails, none is kept."""

    with suppress(Exception):  # experimental, as above; or a program that JAX cannot serialise, or a full disk
        from jax.experimental.serialize_executable import serialize

        executable, _, structure = serialize(program)
        content = pickle.dumps((executable, jax.tree.unflatten(structure, range(structure.num_leaves))))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # that only this user may read
            file.write(hashlib.sha256(content).digest() + content)
        os.replace(file.name, path)
        _remove_oldest(path.parent)


def _remove_oldest(folder: Path) -> None:
    files = []
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):  # another process removed it
                files.append((entry.stat().st_mtime, entry.stat().st_size, entry.path))
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= _MOST:
            break
        os.unlink(path)
        total -= size
