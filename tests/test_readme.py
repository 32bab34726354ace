"""Every command of the README is one that the programs accept; those on embedded data are run."""

import re
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import compare_pytorch
import faults
import fuzz
import jax
import numpy as np
import pytest

from experiments import cli, convert, train, transfer
from experiments.bench import __main__ as bench
from experiments.cli import baseline
from experiments.config_file import to_json
from jaxcnn import SHALLOW, init_variables
from jaxcnn.files import write_json
from jaxcnn.source import write_state_dict

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line for block in BLOCKS for line in block.replace("\\\n", " ").splitlines() if line.startswith("python -m")
]
EXPERIMENTS = [shlex.split(command, comments=True) for command in COMMANDS]


ARGPARSE = {
    "tests.faults": faults.parser,
    "tests.fuzz": fuzz.parser,
    "tests.compare_pytorch": compare_pytorch.parser,
}


def parses(words: list[str]) -> bool:
    module, flags = words[2], words[3:]
    if module == "experiments.transfer":
        return bool(transfer.parse(flags)[0])
    if module == "experiments.convert":
        return bool(convert.tyro.cli(convert.Flags, args=flags))
    if module == "experiments.bench":
        return bool(cli.parse_flags(bench.Flags(), "", flags))
    if module in ARGPARSE:
        return bool(ARGPARSE[module]().parse_args(flags))
    named = module not in ("experiments.train", "tests.checkpoint_cost")
    default = baseline(module.rpartition(".")[2]) if named else train.DEFAULT
    return bool(cli.parse(default, "", flags)[0])


def test_the_readme_has_commands_to_check() -> None:
    assert len(COMMANDS) >= 8
    assert {"make quickstart", "make test"} <= {
        line.partition(" #")[0].strip() for line in "".join(BLOCKS).splitlines()
    }


TRAINERS = ("experiments.train", "experiments.cifar10", "experiments.cifar100", "experiments.svhn")
PARSED = [words for words in EXPERIMENTS if words[2] != "experiments.baselines"]  # which takes no flags


@pytest.mark.parametrize("words", PARSED, ids=" ".join)
def test_a_command_of_the_readme_has_flags_that_exist(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_json(tmp_path / "runs/digits/config.json", to_json(train.DEFAULT))  # what an earlier command leaves
    assert parses(words)


@pytest.mark.slow
@pytest.mark.usefixtures("isolated")
def test_the_commands_on_embedded_data_run_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, so that what they share is loaded and compiled once."""
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words in EXPERIMENTS:
        embedded = "digits" in words or words[2] == "experiments.convert"
        if embedded and words[2] in (*TRAINERS, "experiments.transfer", "experiments.convert"):
            monkeypatch.setattr(sys, "argv", words[2:])
            monkeypatch.delitem(sys.modules, words[2], raising=False)
            runpy.run_module(words[2], run_name="__main__", alter_sys=True)
            ran += 1
    assert ran >= 4


def test_the_python_example_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_state_dict(Path("runs/cifar10/model.pth"), init_variables(SHALLOW, jax.random.key(0)), SHALLOW)
    write_json(Path("runs/cifar10/config.json"), to_json(baseline("cifar10")))
    (example,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
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
