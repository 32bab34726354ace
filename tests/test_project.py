"""What the project's own files promise each other."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from jaxcnn import __version__

ROOT = Path(__file__).parent.parent
CONSTRAINTS = {(3, 11): "constraints.txt", (3, 12): "constraints-py312.txt", (3, 13): "constraints-py312.txt"}
FILES = pytest.mark.parametrize("file", sorted(set(CONSTRAINTS.values())))


def read_pins(file: str) -> dict[str, str]:
    return dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / file).read_text(), re.MULTILINE))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@FILES
def test_every_dependency_is_pinned_within_the_range_that_is_asked_for(file: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {normal(name): version for name, version in read_pins(file).items()}
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        assert match is not None, requirement
        pinned, least = ([int(part) for part in re.findall(r"\d+", v)] for v in (pins[normal(match[1])], match[2]))
        assert pinned >= least, requirement


@FILES
def test_the_constraints_are_pins_and_comments_and_nothing_else(file: str) -> None:
    for line in (ROOT / file).read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\d.]+(\.post\d+)?", line), line
    pins = read_pins(file)
    assert list(pins) == sorted(pins, key=str.lower)


def test_the_constraints_pin_the_same_packages() -> None:
    one, other = ({normal(name) for name in read_pins(file)} for file in sorted(set(CONSTRAINTS.values())))
    assert one == other


@pytest.mark.parametrize(("version", "file"), CONSTRAINTS.items())
def test_make_takes_the_constraints_of_the_interpreter(version: tuple[int, int], file: str, tmp_path: Path) -> None:
    python = tmp_path / "python"  # one that says so of itself
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -c "import sys; sys.version_info = {version}; $2"\n')
    python.chmod(0o755)
    command = ["make", "--dry-run", "--always-make", "test", f"PYTHON={python}"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r" -c (constraints\S*) ", told) == [file]


def test_continuous_integration_runs_what_the_makefile_offers() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"^make (\S+)", script.read_text(), re.MULTILINE)
    assert used == ["check", "quickstart", "test-all"]
    assert set(used) <= set(targets)


def test_the_version_is_in_the_changelog() -> None:
    assert __version__ in (ROOT / "CHANGELOG.md").read_text()
