"""The README and the pages in docs/: commands have flags that exist, examples run, links lead somewhere."""

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from experiments import bundle
from experiments.bench import __main__ as bench
from experiments.bench import scale
from experiments.checks import compare_pytorch, faults, fuzz
from jaxcnn import SHALLOW, init_variables
from jaxcnn.cli import baselines, convert, predict, publish, report, study, train, transfer_flags
from jaxcnn.cli import flags as cli
from jaxcnn.cli.flags import baseline
from jaxcnn.config.experiment import to_json
from jaxcnn.files import write_json
from jaxcnn.weights.files import write_state_dict

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = {path: path.read_text() for path in (README, ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))}


def blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


SHELL = [line for page in PAGES.values() for b in blocks(page, "bash") for line in b.replace("\\\n", " ").splitlines()]
COMMANDS = [shlex.split(line, comments=True) for line in dict.fromkeys(SHELL) if line.startswith("python -m")]

FLAGS = {
    "experiments.baselines": baselines.Flags,
    "experiments.bench": bench.Flags,
    "experiments.bench.scale": scale.Assumptions,
}
REQUIRED = {  # which have flags without a default
    "experiments.bundle": bundle.Flags,
    "experiments.publish": publish.Flags,
    "experiments.report": report.Flags,
}
ARGPARSE = {
    "experiments.checks.faults": faults.parser,
    "experiments.checks.fuzz": fuzz.parser,
    "experiments.checks.compare_pytorch": compare_pytorch.parser,
}


def parses(words: list[str]) -> bool:
    module, flags = words[2], words[3:]
    if module == "experiments.transfer":
        return bool(transfer_flags.parse(flags)[0])
    if module == "experiments.study":
        return bool(study.parse(flags)[1])
    if module == "experiments.convert":
        return bool(convert.tyro.cli(convert.Flags, args=flags))
    if module == "experiments.predict":
        return bool(predict.tyro.cli(predict.Flags, args=flags).images)
    if module in REQUIRED:
        return bool(cli.parse_flags(REQUIRED[module], "", flags))
    if module in FLAGS:
        return bool(cli.parse_flags(FLAGS[module](), "", flags))
    if module in ARGPARSE:
        return bool(ARGPARSE[module]().parse_args(flags))
    named = module not in ("experiments.train", "experiments.checks.checkpoint_cost")
    default = baseline(module.rpartition(".")[2]) if named else train.DEFAULT
    return bool(cli.parse(default, "", flags)[0])


def test_the_readme_is_short() -> None:
    assert len(PAGES[README].splitlines()) <= 150


def test_links_lead_from_the_readme_to_every_page() -> None:
    reached, ahead = set(), {README}
    while ahead:
        page = ahead.pop()
        reached.add(page)
        found = {(page.parent / target).resolve() for target, _ in links(PAGES[page])}
        ahead |= (found & PAGES.keys()) - reached
    assert reached == PAGES.keys()


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 25
    readme = "".join(blocks(PAGES[README], "bash")).splitlines()
    assert {"make quickstart", "make test"} <= {line.partition(" #")[0].strip() for line in readme}


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_a_command_has_flags_that_exist(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "runs/digits/config.json", to_json(train.DEFAULT))  # what an earlier command leaves
    assert parses(words)


def links(page: str) -> list[tuple[str, str]]:
    """Path and anchor of each relative link and image."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page, flags=re.DOTALL)
    targets = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    return [(path, anchor) for path, _, anchor in (target.partition("#") for target in targets)]


def anchors(page: str) -> set[str]:
    """What GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_anchors_are_those_of_github() -> None:
    page = "# Your own model.pth\n```bash\n# no heading\n```\n## What the original's `--flag` does\n"
    assert anchors(page) == {"your-own-modelpth", "what-the-originals---flag-does"}
    assert links("[a](docs/b.md#c) ![d](e.png) [f](#g) [h](https://i/j) `[k](l)`") == [
        ("docs/b.md", "c"),
        ("e.png", ""),
        ("", "g"),
    ]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_leads_somewhere(page: Path) -> None:
    for target, anchor in links(PAGES[page]):
        path = (page.parent / target).resolve() if target else page
        assert path.is_file(), target
        if anchor:
            assert anchor in anchors(PAGES[path]), f"{target}#{anchor}"


PROGRAMS = ("train", "cifar10", "cifar100", "svhn", "transfer", "convert", "publish")
RUNNABLE = tuple(f"experiments.{name}" for name in PROGRAMS)


@pytest.mark.slow
@pytest.mark.usefixtures("isolated", "optimised")
def test_the_commands_on_embedded_data_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that what they share is loaded and compiled once."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words in COMMANDS:
        embedded = any("digits" in word for word in words)
        if embedded and words[2] in RUNNABLE:
            monkeypatch.setattr(sys, "argv", words[2:])
            monkeypatch.delitem(sys.modules, words[2], raising=False)
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            ran += 1
    assert ran >= 9


def run_examples(page: Path) -> dict[str, Any]:
    write_state_dict(Path("runs/cifar10/model.pth"), init_variables(SHALLOW, jax.random.key(0)), SHALLOW)
    resolved = {"mean": [0.5] * 3, "std": [0.25] * 3, "class_names": list("abcdefghij")}
    write_json(Path("runs/cifar10/config.json"), {**to_json(baseline("cifar10")), "resolved": resolved})
    names: dict[str, Any] = {}
    for example in blocks(PAGES[page], "python"):
        exec(example, names)
    return names


def test_the_python_examples_of_the_readme_and_of_predictions_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_examples(README)["model"].config.num_classes == 10
    assert run_examples(ROOT / "docs" / "predict.md")["probabilities"].shape == (2, 10)
    pages = {path.name for path, page in PAGES.items() if blocks(page, "python")}
    assert pages == {"README.md", "data.md", "predict.md", "publish.md", "python.md"}


@pytest.mark.slow
@pytest.mark.usefixtures("isolated", "optimised")
def test_the_examples_from_python_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run_examples(ROOT / "docs" / "python.md")
    assert names["summary"]["epochs"] == 2
    assert Path("runs/small/summary.json").is_file()
    assert names["result"].accuracy > 50  # of the network with parts of one's own
    assert names["logits"].shape == (100, 10)
    given, trained = init_variables(SHALLOW, jax.random.key(0)), names["variables"]
    moved = {
        collection: {name: not same(given[collection][name], module) for name, module in modules.items()}
        for collection, modules in trained.items()
    }
    frozen = {"block_0", "block_1"}
    assert moved["params"] == {name: name not in frozen for name in given["params"]}
    assert moved["batch_stats"] == {name: name not in frozen for name in given["batch_stats"]}


def same(one: Any, other: Any) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True))
