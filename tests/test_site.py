"""The documentation as a site: it builds without a warning, loads nothing from elsewhere, has every public name."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import jaxcnn

ROOT = Path(__file__).parent.parent
LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


class Loaded(HTMLParser):
    """What a browser loads for a page, and the anchors that it has."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.anchors.add(values.get("id", ""))
        if tag in LOADING and values.get("rel") != "canonical":
            self.addresses.append(values.get(LOADING[tag], ""))
        self.addresses += re.findall(r"url\(([^)]*)\)", values.get("style", ""))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocstrings", reason="needs what `make docs` installs")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    return folder


def test_what_a_page_loads_is_found() -> None:
    page = '<link href="//a/b.css"><script src="https://c/d.js"></script><a href="https://e">f</a><h1 id="g">'
    found = Loaded(page)
    assert found.addresses == ["//a/b.css", "https://c/d.js"]
    assert "g" in found.anchors


@pytest.mark.slow
def test_pages_load_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        for address in Loaded(page.read_text()).addresses:
            assert not re.match(r"[\"']?(https?:)?//", address), f"{page}: {address}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", style.read_text()), style


@pytest.mark.slow
def test_the_reference_has_every_public_name(site: Path) -> None:
    anchors = Loaded((site / "api" / "index.html").read_text()).anchors
    for name in set(jaxcnn.__all__) - {"__version__"}:
        assert any(anchor.split(".")[-1] == name for anchor in anchors), name
