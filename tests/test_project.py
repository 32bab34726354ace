"""The project's own files (pyproject, constraints, workflows, ...) agree with each other."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import jaxcnn

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
    extras = project["optional-dependencies"]
    for requirement in project["dependencies"] + extras["test"] + extras["docs"]:
        match = re.fullmatch(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", requirement)
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
    assert used == ["check", "quickstart", "docs", "test-all"]
    assert set(used) <= set(targets)


def test_the_version_is_in_the_changelog() -> None:
    assert jaxcnn.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_the_workflow_runs_what_the_makefile_offers_on_every_supported_python() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    assert set(workflow) == {"name", True, "permissions", "concurrency", "jobs"}  # YAML 1.1 reads `on` as true
    jobs = workflow["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.11", "3.12", "3.13", "3.14"]
    assert matrix["versions"] == ["pinned", "newest"]
    steps = [step for job in jobs.values() for step in job["steps"]]
    assert all(("uses" in step) != ("run" in step) for step in steps)
    commands = "\n".join(step.get("run", "") for step in steps)
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert {"check", "test-all", "docs"} <= set(re.findall(r"\bmake ([\w-]+)", commands)) <= set(targets)
    for name in re.findall(r"\btests/\w+\.py|constraints\S*\.txt", commands):
        assert (ROOT / name).is_file(), name


def test_git_hooks_run_the_tools_of_the_checks() -> None:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    entries = [hook["entry"].removeprefix(".venv/bin/python -m ") for hook in repository["hooks"]]
    checks = re.findall(r"\$\(BIN\)/python -m ((?:ruff|mypy).*)", (ROOT / "Makefile").read_text())
    assert [entry.replace(" --force-exclude", "") for entry in entries] == checks


def test_no_message_names_a_program_that_only_a_checkout_has() -> None:
    for path in (ROOT / "jaxcnn").rglob("*.py"):
        if path.name not in ("flags.py", "main.py"):  # which say how a program was called
            assert "-m experiments" not in path.read_text(), path
