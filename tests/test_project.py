"""What the project's own files promise each other."""

import os
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE))


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_every_dependency_is_pinned_within_the_range_that_is_asked_for() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = {normal(name): version for name, version in PINS.items()}
    for requirement in project["dependencies"] + project["optional-dependencies"]["test"]:
        match = re.fullmatch(r"([\w.-]+)>=([\d.]+)", requirement)
        assert match is not None, requirement
        pinned, least = ([int(part) for part in re.findall(r"\d+", v)] for v in (pins[normal(match[1])], match[2]))
        assert pinned >= least, requirement


def test_the_constraints_are_pins_and_comments_and_nothing_else() -> None:
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert line.startswith("#") or re.fullmatch(r"[\w.-]+==[\d.]+", line), line
    assert list(PINS) == sorted(PINS, key=str.lower)


def test_continuous_integration_runs_what_the_makefile_offers() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    used = re.findall(r"^make (\S+)", script.read_text(), re.MULTILINE)
    assert used == ["check", "quickstart", "test"]
    assert set(used) <= set(targets)


def test_the_version_is_in_the_changelog() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in (ROOT / "CHANGELOG.md").read_text()
