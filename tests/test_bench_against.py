"""The benchmark against another checkout, and what it keeps of the machine and of the past. No time is asserted."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from experiments.bench import __main__ as program
from experiments.bench import against, history, jax_program, machine, turns
from experiments.bench.setting import Setting
from jaxcnn import InputError
from jaxcnn.cli import main as cli

TINY = Setting(batch_size=4, rounds=2, steps=1, images=8)

CHECKOUT = {
    "__init__.py": "",
    "setting.py": "def Setting(**values):\n    return values\n",
    "jax_program.py": """
print("noise")

def evaluation(setting):
    return lambda: open(LOG, "a").write("evaluate ")
""",
    "child.py": """
import json, os, sys
task = json.loads(sys.argv[1])
open(LOG, "a").write(task["do"] + " ")
print(json.dumps({"seconds": 2.0, "peak_mib": 30.0, "images_per_second": None}))
""",
}
"""All that the benchmark needs of a checkout."""


def make_checkout(folder: Path) -> Path:
    package = folder / "experiments" / "bench"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    for name, text in CHECKOUT.items():
        (package / name).write_text(f"LOG = {str(folder / 'log')!r}\n{text}")
    return folder


def test_checkouts_take_turns_in_processes_that_run_their_own_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    this, other = make_checkout(tmp_path / "this"), make_checkout(tmp_path / "other")
    monkeypatch.setattr(against, "ROOT", this)
    kept = tmp_path / "out.json"
    sizes: dict[str, Any] = {"rounds": 2, "batch_size": 4, "steps": 1, "images": 8}
    program.run(program.Flags(rows=("evaluate", "first_step_warm"), against=other, json=kept, **sizes))
    for checkout in (this, other):
        assert (checkout / "log").read_text().split() == ["evaluate"] * 3 + ["first_step"] * 3  # the first is no round
    evaluated, started = json.loads(kept.read_text())
    assert (evaluated["name"], evaluated["unit"], len(evaluated["ratios"])) == ("evaluate", "images/s", 2)
    assert (started["this"], started["ratio"], started["interval"]) == ([2.0, 2.0], 1.0, [1.0, 1.0])
    assert started["against"] == str(other)
    assert "first_step_warm" in capsys.readouterr().out


def test_a_checkout_that_fails_ends_in_one_message(tmp_path: Path) -> None:
    other = make_checkout(tmp_path)
    turn = against.worker(other, "step_full", TINY, tmp_path)
    message = rf"measures step_full in {other} failed: .*has no attribute 'train_steps'"
    with turn as step, pytest.raises(InputError, match=message):
        step()
    with pytest.raises(InputError, match=r"rows='x' names no row of --against; there are step_full, "):
        next(against.measure(TINY, other, ["x"]))


def test_a_row_is_the_program_of_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("train_steps", "evaluation", "epochs"):
        monkeypatch.setattr(jax_program, name, lambda *given, name=name: lambda: (name, *given))
    made = {
        row: turns.make_program(row, TINY.to_dict())() for row in against.ROWS if row.startswith(("st", "ev", "ep"))
    }
    assert made["step_partial"] == ("train_steps", TINY, "partial")
    assert made["evaluate"] == ("evaluation", TINY)
    assert made["epoch_full"] == ("epochs", TINY, "full", "autoaugment")
    assert made["epoch_frozen_cached"] == [("epochs", TINY, "frozen", "none")] * turns.PASSES


def test_the_interval_is_that_of_the_mean_of_logarithms() -> None:
    row = against.Comparison("a", "s", [1.0, 1.0, 1.0], [1.0, 2.0, 4.0], more_is_better=False)
    assert row.ratios == [1.0, 2.0, 4.0]
    assert row.interval is not None
    half = 4.302652730 * math.log(2) / math.sqrt(3)  # Student's t for two degrees of freedom
    assert [math.log(end) for end in row.interval] == pytest.approx([math.log(2) - half, math.log(2) + half])
    assert against.Comparison("a", "images/s", [3.0], [2.0]).ratios == [1.5]
    assert against.Comparison("a", "images/s", [3.0], [2.0]).interval is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"against": "nowhere"}, "--against nowhere is not a checkout of this project"),
        ({"against": "nowhere", "chart": "x.png"}, "chart='x.png' is not usable: leave it out with --against"),
    ],
)
def test_bad_flags_end_in_one_message(
    given: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        cli.main(lambda: program.run(program.Flags(**{name: Path(value) for name, value in given.items()})))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_the_processor_is_named_with_its_instruction_sets(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    one = "processor\t: {}\nmodel name\t: Some CPU\nflags\t\t: fpu avx2 avx512f avx512vl\n\n"
    cpuinfo.write_text(one.format(0) + one.format(1))
    name, features = machine.read_processor(cpuinfo)
    assert (name, features) == ("Some CPU", {"AVX2": True, "AVX-512": True, "AMX": False})
    facts = {**machine.facts(), "processor": name, "features": features, "cores": 2}
    assert machine.where(facts).startswith("2 cores of Some CPU (AVX2, AVX-512, no AMX); jaxcnn")
    assert facts["date"] in machine.where(facts)
    cpuinfo.write_text("processor\t: 0\nFeatures\t: fp asimd\n")  # ARM
    for path in (cpuinfo, tmp_path / "missing"):
        name, features = machine.read_processor(path)
        assert name
        assert features is None
    assert "(instruction sets unknown)" in machine.where({**facts, "features": None})


def test_a_commit_is_told_only_of_a_checkout(tmp_path: Path) -> None:
    assert machine.commit(tmp_path) is None
    (tmp_path / ".git").touch()  # no repository
    assert machine.commit(tmp_path) is None


def test_past_figures_are_added_to(tmp_path: Path) -> None:
    path = tmp_path / "new" / "speed.jsonl"
    history.append(path, [])
    history.append(path, [{"name": "a"}, {"name": "b"}])
    history.append(path, [{"name": "c"}])
    assert [json.loads(line)["name"] for line in path.read_text().splitlines()] == ["a", "b", "c"]
    with pytest.raises(InputError, match=r"--history .*speed.jsonl/x cannot be written: "):
        history.append(path / "x", [])
