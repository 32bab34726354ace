"""What every test file may use."""

import atexit
import os
import shutil
import signal
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

# Set before JAX starts, and so that child processes have it too. The tests compare programs on the CPU, whatever else
# the machine has; caches live and die with the session; a program that several tests use, in whichever of the
# session's processes, is compiled once. XLA's own passes run in full, but LLVM optimises no code: most programs run
# for less time than that takes. Tests of what such code rounds to use `optimised`.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="jaxcnn-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XDG_CACHE_HOME"] = _cache
    os.environ["MPLCONFIGDIR"] = os.path.join(_cache, "matplotlib")  # its table of fonts takes seconds to make
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.path.join(_cache, "jaxcnn", "compiled")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    os.environ["JAX_COMPILATION_CACHE_MAX_SIZE"] = str(2**33)  # with a limit, JAX locks what another may be writing
    os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
COMPILED = Path(os.environ["JAX_COMPILATION_CACHE_DIR"])

# A shell that starts the suite in the background has it ignore Ctrl-C, and nohup has it ignore SIGHUP. So would the
# programs that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)


def new_cache(folder: Path) -> str:
    """A cache for XDG_CACHE_HOME that has nothing but the session's compiled programs."""
    COMPILED.mkdir(parents=True, exist_ok=True)
    (folder / "jaxcnn").mkdir()
    (folder / "jaxcnn" / "compiled").symlink_to(COMPILED)
    return str(folder)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow ones begin first, so that no process waits for another at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@contextmanager
def another_cache(factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache for what runs within, and JAX's setting as it was."""
    import jax

    before = jax.config.jax_compilation_cache_dir
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", new_cache(factory.mktemp("cache")))
        yield
    jax.config.update("jax_compilation_cache_dir", before)


@pytest.fixture(scope="module")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of the module's own."""
    with another_cache(tmp_path_factory):
        yield


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No name can be looked up."""

    def refuse(*_: object, **__: object) -> None:
        raise socket.gaierror("no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def isolated(
    no_network: None, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """No network, caches of the test's own, and JAX's settings as they were."""
    import jax

    monkeypatch.setenv("XDG_CACHE_HOME", new_cache(tmp_path_factory.mktemp("cache")))
    monkeypatch.setenv("COLUMNS", "80")
    before = {name: getattr(jax.config, name) for name in ("jax_compilation_cache_dir", "jax_platforms")}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run, which all of the session's processes share; not to be changed."""
    from tiny_run import TINY

    from jaxcnn.runs.run import run_experiment

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / "finished.lock"), another_cache(tmp_path_factory):
        run_experiment(replace(TINY, runs_dir=folder / "finished"))  # which the first trains, and the others find
    return folder / "finished" / "tiny"


@pytest.fixture
def every_epoch_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each epoch leaves a checkpoint, however short it was."""
    monkeypatch.setattr("jaxcnn.runs.saving.SAVE_INTERVAL", 0.0)


@pytest.fixture
def optimised(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What is compiled here and in child processes is optimised as a user's programs are."""
    import jax

    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """`fit` compiles its steps at each call; here, calls alike share even the small ones."""
    import jax

    name = "jax_persistent_cache_min_compile_time_secs"
    old = getattr(jax.config, name)
    jax.config.update(name, 0)
    yield
    jax.config.update(name, old)
