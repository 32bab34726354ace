"""Several runs one after the other: what is printed of each, and of the best."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_run import TINY

from jaxcnn.cli import baselines, transfer
from jaxcnn.cli.baselines import run_experiments
from jaxcnn.cli.quickstart import Flags, quickstart
from jaxcnn.config import DataConfig, ExperimentConfig
from jaxcnn.config.experiment import CONTINUE, Existing
from jaxcnn.errors import InputError
from jaxcnn.runs import run
from jaxcnn.runs.style import Figures
from jaxcnn.runs.summary import SUMMARY
from jaxcnn.studies.plan import Study

MORE = ("test_images", "processor", "threads")


def _best(name: int, validation: float, test: float) -> str:
    return f"best run by validation accuracy: {name} ({validation:.2f} %), test accuracy {test:.2f} %"


def finish(
    config: ExperimentConfig, existing: Existing = CONTINUE, figures: Figures | None = "png", features: Any = None
) -> dict[str, Any]:
    accuracy = {"cifar100": 60.0}.get(config.data.name, 90.0 + config.seed)
    numbers = {"test_accuracy": accuracy, "val_accuracy": accuracy - 2, "best_epoch": 1, "seconds": 1.0, "dataset": "x"}
    return {**numbers, "seed": config.seed, "trainable_parameters": 1, "mask": config.freeze.mask}


@pytest.mark.parametrize(
    ("configs", "best"),
    [
        ([{"data": DataConfig("cifar10")}, {"data": DataConfig("cifar100")}], None),
        ([{"data": DataConfig("svhn"), "seed": 1}, {"data": DataConfig("svhn")}], _best(0, 89.0, 91.0)),
        ([{"data": DataConfig("svhn")}, {"data": DataConfig("svhn", classes=(1, 2)), "seed": 1}], None),
        ([{"data": DataConfig("x")}, {"data": DataConfig("x", dir=Path("other"))}], None),
        ([{"data": DataConfig("svhn")}, {"data": DataConfig("svhn"), "protocol": "original"}], None),
        (
            [{"data": DataConfig("svhn", fraction=0.5)}, {"data": DataConfig("svhn")}],
            _best(0, 88.0, 90.0),
        ),
    ],
)
def test_the_best_run_is_named_only_among_runs_that_were_tested_alike(
    configs: list[dict[str, Any]], best: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_experiment", finish)
    run_experiments([(str(number), ExperimentConfig(**each)) for number, each in enumerate(configs)])
    out = capsys.readouterr().out
    assert re.findall("^best run.*", out, re.MULTILINE) == ([] if best is None else [best])
    assert re.match("run 1 of 2: 0\nrun 2 of 2: 1; about 0 s left\n", out)


def test_no_run_is_the_best_where_all_failed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_experiment", lambda *_, **__: 1 / 0)
    assert [outcome.summary for outcome in run_experiments([("a", TINY), ("b", TINY)])] == [None, None]
    assert "best run" not in capsys.readouterr().out


def test_each_run_of_a_comparison_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    from jaxcnn.studies import study

    def no_report(planned: Study, finished: Any, failed: Any, figures: Figures) -> Any:
        raise InputError("no report")

    monkeypatch.setattr(study, "run_experiment", finish)
    monkeypatch.setattr(study, "plan", lambda *_: SimpleNamespace(summary=None, resolved={}))
    monkeypatch.setattr(study, "source_digest", lambda _: None)
    monkeypatch.setattr(study, "make_row", lambda *_: dict.fromkeys(["run", "mask", "seed", *SUMMARY, *MORE]))
    monkeypatch.setattr(study, "write_report", no_report)
    with pytest.raises(InputError, match="no report"):
        quickstart(Flags(runs_dir=tmp_path, seeds=(3, 4)))
    names = [
        *("digits_0_to_4_seed3", "digits_0_to_4_seed4"),
        *(f"digits_5_to_9_{mask}_seed{seed}" for seed in (3, 4) for mask in ("scratch", "frozen", "partial", "full")),
    ]
    turns = [f"run {number} of 10: {name}" for number, name in enumerate(names, 1)]
    assert re.findall("^(run.*?)(?:;.*)?$", capsys.readouterr().out, re.MULTILINE) == turns
    with pytest.raises(InputError, match="no report"):
        transfer.program(["--mask", "all", "--seeds", "0", "1", "--runs-dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert "run 3 of 8: transfer_cifar10_to_cifar100_partial_seed0; about" in out
    assert len(re.findall("^run . of 8: ", out, re.MULTILINE)) == 8


def test_the_baselines_say_which_run_it_is(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "run_experiment", finish)
    baselines.run_baselines(baselines.Flags())
    out = capsys.readouterr().out
    assert re.findall("^(run . .*?)(?:;.*)?$", out, re.MULTILINE) == [
        f"run {number} of 3: {name}" for number, name in enumerate(("cifar10", "cifar100", "svhn"), 1)
    ]
    assert "best run" not in out


def test_the_table_of_several_runs_has_their_names_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "run_experiment", finish)
    run_experiments([(name, ExperimentConfig()) for name in ("[red]x", "a:on:b")])
    cells = re.findall("^│ (.+?) *│", capsys.readouterr().out, re.MULTILINE)
    assert cells == ["[red]x", "a:on:b"]
