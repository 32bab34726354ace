"""Downloads of the official archives, from a server of the test's own and without any."""

import functools
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests
from refusals import message
from test_prepare import BATCHES, assert_nothing_left, assert_same_sets

from experiments.checks import make_archives as archives
from jaxcnn.data import prepare as module
from jaxcnn.data.official import CHECKSUMS, SETS
from jaxcnn.data.prepare import prepare
from jaxcnn.errors import InputError


@pytest.mark.parametrize("name", BATCHES)
def test_no_network_says_what_to_do_at_once(name: str, tmp_path: Path, no_network: None) -> None:
    start = time.monotonic()
    told = message(lambda: prepare(name, tmp_path / "data"))
    assert time.monotonic() - start < 10
    assert "cannot be downloaded (ConnectionError); download https" in told.replace("http:", "https:")
    for file in SETS[name].files:
        assert SETS[name].home + file in told
    assert told.endswith("into a folder, keep the file name, and pass --data.archives FOLDER")
    assert_nothing_left(tmp_path / "data")


@pytest.mark.slow
def test_a_silent_name_server_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()

    def wait(*_: object, **__: object) -> None:
        done.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", wait)
    start = time.monotonic()
    told = message(lambda: prepare("cifar10", tmp_path / "data"))
    done.set()
    assert time.monotonic() - start < 10
    assert "cannot be downloaded (TimeoutError)" in told


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a web server in this process offers as the home of CIFAR-10."""
    folder = tmp_path / "served"
    folder.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder))) as server:
        home = f"http://127.0.0.1:{server.server_port}/"
        monkeypatch.setitem(module.SETS, "cifar10", SETS["cifar10"]._replace(home=home))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder
        server.shutdown()


def test_download(tmp_path: Path, served: Path) -> None:
    checksums = archives.write_official(served, "cifar10", archives.cifar10())
    prepare("cifar10", tmp_path / "data", checksums=checksums)
    prepare("cifar10", tmp_path / "other", served, checksums)
    assert_same_sets("cifar10", tmp_path / "data", tmp_path / "other")
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["cifar10"]


def test_download_of_something_else(tmp_path: Path, served: Path) -> None:
    archives.write_official(served, "cifar10", archives.cifar10())
    told = message(lambda: prepare("cifar10", tmp_path / "data"))
    assert told.startswith("http://127.0.0.1:")
    assert f"{CHECKSUMS['cifar-10-binary.tar.gz']} expected" in told
    assert "; try again later, or download http" in told
    assert_nothing_left(tmp_path / "data")


def test_download_of_nothing(tmp_path: Path, served: Path) -> None:
    told = message(lambda: prepare("cifar10", tmp_path / "data"))
    assert "cannot be downloaded (HTTPError)" in told
    assert_nothing_left(tmp_path / "data")


@pytest.mark.parametrize("stop", [KeyboardInterrupt, requests.ConnectionError])
def test_download_that_breaks_off(
    stop: type[BaseException], tmp_path: Path, served: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def iter_content(self: requests.Response, size: int) -> Iterator[bytes]:
        yield self.raw.read(100)
        raise stop

    archives.write_official(served, "cifar10", archives.cifar10())
    monkeypatch.setattr(requests.Response, "iter_content", iter_content)
    with pytest.raises((KeyboardInterrupt, InputError)) as caught:
        prepare("cifar10", tmp_path / "data")
    if stop is not KeyboardInterrupt:
        assert "cannot be downloaded (ConnectionError)" in str(caught.value)
        assert str(caught.value).endswith("--data.archives FOLDER")
    assert_nothing_left(tmp_path / "data")
