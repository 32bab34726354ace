"""Compiled programs on disk, so that a later start does not trace, lower or compile them again.

JAX's own cache finds a program by its lowered form. A start with a full cache still traces and lowers, which is most of
the time until the first step. The files here are found by what determines the program: this package's source, the
values that the function closes over, the shapes of the arguments, releases, settings and the processor.

A file is a pickle that contains machine code. It is loaded only if no other user can have written it.
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
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cache, wraps
from importlib.metadata import version
from pathlib import Path
from threading import Lock
from typing import Any

import jax

from jaxcnn.kernels.backend import is_cpu, is_gpu
from jaxcnn.kernels.describe import Undescribed, describe

Option = int | str
"""The value of a compiler option."""

_DETERMINISTIC = "xla_gpu_deterministic_ops"
"""XLA's option for the same bits at each run on a GPU. Without it XLA times several algorithms while it compiles and
takes the fastest, so two compilations of a program may round differently; and a scatter adds in any order."""
_UNTUNED: Mapping[str, Option] = {
    _DETERMINISTIC: True,
    "xla_gpu_per_fusion_autotune_cache_dir": "",
    "xla_gpu_shard_autotuning": False,
}
"""With it: algorithms found by timing in an earlier process, or in another host's, must not be used either."""
_REFUSALS = ("does not have a deterministic implementation", "No compilable config found")
"""What XLA says of an operation that it has only in a form that is not deterministic."""

_MOST = 2**29
"""Bytes on disk. Beyond that, the least recently used files are removed."""

Jit = Callable[..., Any]
"""`kept_jit` below, or a function with other defaults."""


def kept_jit(
    f: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = (), options: Mapping[str, Option] | None = None
) -> Callable[..., Any]:
    """`jax.jit` for positional arguments, which also keeps compiled programs on disk for later processes.

    The files are in the folder of JAX's own cache. A program from a file computes the same bits as a newly compiled
    one. In three cases no file is written, and the compiled function is that of `jax.jit`:

    - `jax_compilation_cache_dir` is not set;
    - other users can write to that folder;
    - `f` closes over a value that `kernels.describe` cannot describe completely.

    On a GPU, XLA is asked for deterministic operations, unless `XLA_FLAGS` already says something about them. A program
    with an operation that has no such form, such as the gradient of `flax.linen.max_pool`, is compiled without them,
    with a warning.

    Args:
        f: the function. What this returns must not be called while JAX traces another function.
        donate_argnums: as for `jax.jit`.
        options: compiler options. Those that the installed compiler does not know are left out.
    """
    programs: dict[Any, Callable[..., Any]] = {}
    wanted = {**_deterministic(), **(options or {})}

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
        deterministic = _DETERMINISTIC in wanted
        try:
            return attempt(args)
        except jax.errors.JaxRuntimeError as error:
            if not deterministic or not any(refusal in str(error) for refusal in _REFUSALS):
                raise
        for name in _UNTUNED:
            wanted.pop(name, None)
        jitted.cache_clear()
        programs.clear()
        result = attempt(args)
        message = "has an operation without a deterministic form on a GPU: two runs of it may round differently"
        warnings.warn(f"{getattr(f, '__name__', 'a program')} {message}", stacklevel=2)
        return result

    def attempt(args: tuple[Any, ...]) -> Any:
        leaves, structure = jax.tree.flatten(args)
        if _needs_jit(leaves):
            return jitted()(*args)
        kinds = structure, *map(_kind, leaves), *(getattr(jax.config, name) for name in _SETTINGS_WITHIN)
        if kinds not in programs:
            programs[kinds] = obtain(args)
        return programs[kinds](*args)

    return call


def _deterministic() -> Mapping[str, Option]:
    """The options that make a GPU compute the same bits at each run, unless the user has chosen for or against it."""
    return _UNTUNED if is_gpu() and _DETERMINISTIC not in os.environ.get("XLA_FLAGS", "") else {}


_compiling: list[float] = []  # JAX's original setting, once for each thread that is compiling
_lock = Lock()


@contextmanager
def _not_in_jaxs_cache() -> Iterator[None]:
    """Keeps JAX from storing what is compiled in this block in its own cache.

    XLA cannot serialise a program that came from that cache (jax 0.10.2, CPU): the file would lack the machine code.
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


def jit(f: Callable[..., Any], *, donate_argnums: int | tuple[int, ...] = (), **options: Option) -> Callable[..., Any]:
    """`kept_jit` with compiler options that suit the default backend.

    On a CPU it selects XLA's older code emitters. The XLA of jax 0.11.0 and earlier sets up the compiler passes of its
    newer emitters again for each loop of a program. With the older ones a training step compiles in two thirds of the
    time and memory. It also runs slightly faster, although its Adam part runs three times as long.

    These options change how fast a program runs and not which bits it computes. They come and go with releases of XLA:
    those that the installed one does not know are left out.

    Args:
        f: as for `kept_jit`.
        donate_argnums: as for `jax.jit`.
        options: further compiler options, which replace the selected ones of the same name.
    """
    wanted = {**({"xla_cpu_use_fusion_emitters": False} if is_cpu() else {}), **options}
    return kept_jit(f, donate_argnums=donate_argnums, options=wanted)


_SETTINGS_WITHIN = ("jax_enable_x64", "jax_default_matmul_precision")  # settings that may change between calls


def _needs_jit(leaves: Sequence[Any]) -> bool:
    """Whether these arguments need `jax.jit` itself: several devices, a debugging mode, or a trace in progress."""
    strict = ("jax_disable_jit", "jax_debug_nans", "jax_debug_infs", "jax_default_device")
    return (
        jax.device_count() > 1
        or any(getattr(jax.config, name, None) for name in strict)
        or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
    )


def _kind(leaf: Any) -> Any:
    """Everything about an argument that a program depends on: shape, dtype and weak type; else its Python type."""
    if hasattr(leaf, "dtype"):
        return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False)
    return type(leaf)


@cache
def _is_known(name: str, value: Option) -> bool:
    """Whether the compiler knows an option; trying is the only way to find out."""
    try:
        jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
    except (jax.errors.JaxRuntimeError, ValueError, TypeError):
        return False
    return True


def _path(function: Any, args: tuple[Any, ...]) -> Path | None:
    """The file of a function's program for such arguments; None if it cannot be kept, or others could write it."""
    root = getattr(jax.config, "jax_compilation_cache_dir", None)
    if not root or "://" in root or not getattr(jax.config, "jax_enable_compilation_cache", True):
        return None
    folder = Path(root) / "executables"
    try:
        if not all(_is_own(each.lstat(), stat.S_ISDIR) for each in (folder.parent, folder)):
            return None
    except FileNotFoundError:  # `_save` makes it
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
    """JAX's settings in this thread, without those of its cache and log."""
    unrelated = ("jax_compilation_cache", "jax_persistent_cache", "jax_log")
    names = [name for name in jax.config.values if not name.startswith(unrelated)]
    return [f"{name}={getattr(jax.config, name, jax.config.values[name])}" for name in names]


@cache
def environment() -> tuple[str, ...]:
    """Everything that determines a compiled program, apart from the function, its arguments and JAX's settings."""
    source = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].glob("**/*.py")):
        source.update(path.read_bytes())
    releases = [f"{name} {version(name)}" for name in ("jax", "jaxlib", "flax", "optax", "numpy")]
    device = jax.devices()[0]
    machine = [device.platform, device.device_kind, str(getattr(device.client, "platform_version", "")), *_processor()]
    flags = [f"{name}={value}" for name, value in sorted(os.environ.items()) if name.startswith(("XLA_", "LIBTPU_"))]
    return source.hexdigest(), sys.version, *releases, *machine, *flags


def _processor() -> list[str]:
    """The processor's kind and features, and which cores this process may use: XLA divides its work among them."""
    with suppress(OSError):
        first = Path("/proc/cpuinfo").read_text().partition("\n\n")[0]
        told = [line for line in first.splitlines() if re.match(r"(vendor_id|cpu family|model|flags|Features)\b", line)]
        return [*told, str(len(os.sched_getaffinity(0)))]
    return [*platform.uname(), str(os.cpu_count())]


def _load(path: Path, args: tuple[Any, ...]) -> Callable[..., Any] | None:
    """The program in this file; None if there is none, if others could have written it, or if it is damaged."""
    try:
        from jax.experimental.serialize_executable import deserialize_and_load  # experimental: it may disappear

        with open(os.open(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
            if not _is_own(os.fstat(file.fileno()), stat.S_ISREG):
                return None
            checksum, content = file.read(32), file.read()
        if hashlib.sha256(content).digest() != checksum:
            return None
        executable, result = pickle.loads(content)
        structures = jax.tree.structure((args, {})), jax.tree.structure(result)
        program: Callable[..., Any] = deserialize_and_load(executable, *structures)
        os.utime(path)  # for `_remove_oldest`
    except Exception:  # JAX does not document what it raises; the program is then compiled
        return None
    return program


def _is_own(status: os.stat_result, is_kind: Callable[[int], bool]) -> bool:
    """Whether a file or folder belongs to this user and only this user may write it."""
    return is_kind(status.st_mode) and status.st_uid == os.geteuid() and not status.st_mode & 0o022


def _save(path: Path, program: Any) -> None:
    """Writes a program. A failure is ignored: the program is then compiled again next time."""
    with suppress(Exception):  # the API is experimental; some programs cannot be serialised; the disk may be full
        from jax.experimental.serialize_executable import serialize

        executable, _, structure = serialize(program)
        content = pickle.dumps((executable, jax.tree.unflatten(structure, range(structure.num_leaves))))
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:  # which only this user can read
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
