"""A study from its runs to its page: counted, continued, compared. Training itself is replaced here by numbers."""

import base64
import csv
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from test_log import SUMMARY, make_run
from tiny_run import TINY

from jaxcnn import InputError
from jaxcnn.config import ExperimentConfig
from jaxcnn.config.experiment import CONTINUE, Existing
from jaxcnn.errors import DivergedError
from jaxcnn.files import write_text
from jaxcnn.runs.log import update_log
from jaxcnn.runs.style import Figures
from jaxcnn.studies import report
from jaxcnn.studies import study as module
from jaxcnn.studies.compare import compare, verdict
from jaxcnn.studies.execute import Turns, describe_time
from jaxcnn.studies.statistics import pairs_needed
from jaxcnn.studies.study import StudyResult, study
from jaxcnn.studies.tables import cells, column_names, csv_table, latex_table, markdown_table

FILES = {
    *("results.csv", "comparison.csv", "comparison.md", "comparison.tex", "study.html"),
    *("accuracy.svg", "curves.svg", "time.svg"),
}
RATES = {0.1: 60.0, 0.01: 80.0, 0.001: 81.0}


class Trainer:
    """Leaves what a run leaves, with accuracies that follow from rate and seed."""

    def __init__(self) -> None:
        self.trained: list[str] = []
        self.failing: set[str] = set()

    def plan(self, config: ExperimentConfig, existing: Existing = CONTINUE) -> Any:
        path = config.runs_dir / config.run_name / "summary.json"
        summary = json.loads(path.read_text()) if path.exists() and not existing.overwrite else None
        return type("Plan", (), {"summary": summary, "resolved": {}})

    def train(self, config: ExperimentConfig, existing: Existing, figures: Figures | None, **_: object) -> Any:
        assert figures is None
        if config.run_name in self.failing:
            raise DivergedError("the loss is nan")
        self.trained.append(config.run_name)
        accuracy = RATES[config.optim.learning_rate] + (config.seed * 7) % 5 + 1 / 3
        numbers = {"test_accuracy": accuracy, "val_accuracy": accuracy - 1.1, "seed": config.seed}
        folder = make_run(config.runs_dir, config.run_name, config, **numbers)
        values = json.loads((folder / "config.json").read_text())
        values["resolved"] = {"images": {"test": 359}, "threads": 2}
        write_text(folder / "config.json", json.dumps(values))
        header = "epoch,train_loss,train_accuracy,val_loss,val_accuracy,learning_rate,seconds,images_per_second\n"
        write_text(folder / "metrics.csv", f"{header}1,1,50,1,{accuracy - 9},0.1,1,9\n2,1,60,1,{accuracy},0.1,1,9\n")
        return {**SUMMARY, **numbers, "name": config.run_name}


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trainer]:
    made = Trainer()
    monkeypatch.setattr("os.fsync", lambda _: None)  # which takes long where others write
    monkeypatch.setattr(module, "plan", made.plan)
    monkeypatch.setattr(module, "run_experiment", made.train)
    return made


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing them takes the better part of a second."""
    monkeypatch.setattr(report, "_CAPTIONS", {})


def run(runs: Path, seeds: Any = (0, 1, 2), **options: Any) -> StudyResult:
    base = replace(TINY, runs_dir=runs, name="rates")
    return study(base, **{"vary": {"optim.learning_rate": list(RATES)}, "seeds": seeds, **options})


def test_pandas_reads_the_results_and_groups_them_to_the_tables_means(trainer: Trainer, tmp_path: Path) -> None:
    result = run(tmp_path)
    assert {path.name for path in result.folder.iterdir() if path.is_file()} >= FILES
    table = pd.read_csv(result.folder / "results.csv")
    assert list(table.columns[:3]) == ["run", "optim.learning_rate", "seed"]
    assert {"frozen_stages", "copied_stages", "test_accuracy", "val_accuracy", "seconds", "threads"} <= {*table.columns}
    assert table["run"].is_unique
    assert len(table) == len(result.rows) == 9
    text = {"run", "dataset", "mask", "stopped"}
    assert {name for name in table.columns if not pd.api.types.is_numeric_dtype(table[name])} <= text | {"val_loss"}
    means = table.groupby("optim.learning_rate")["test_accuracy"].mean()
    assert means.to_dict() == {case.settings["optim.learning_rate"]: case.test.mean for case in result.comparison.cases}
    comparison = pd.read_csv(result.folder / "comparison.csv", index_col="optim.learning_rate")
    assert comparison["test_accuracy"].to_dict() == means.to_dict()
    assert comparison["runs"].tolist() == [3, 3, 3]
    update_log(result.folder, transfers=False)
    logged = pd.read_csv(result.folder / "experiment_logs.csv")
    both = pd.concat([table, logged.rename(columns={"name": "run"})])
    assert both.groupby("optim.learning_rate")["test_accuracy"].mean().tolist() == pytest.approx(means.tolist())


@pytest.mark.usefixtures("no_figures")
def test_a_study_goes_on_past_a_failed_run_and_continues_where_it_stopped(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trainer.failing = {"learning_rate=0.01_seed0"}
    result = run(tmp_path)
    out, err = capsys.readouterr()
    assert result.failed == ["learning_rate=0.01_seed0"]
    assert err == "error: learning_rate=0.01_seed0: the loss is nan\n"
    assert "rates: 3 cases, 3 seeds, 9 runs; 0 are finished\n" in out
    assert re.search(r"^run 3 of 9: learning_rate=0.001_seed0; about \d+ s left$", out, re.MULTILINE)
    assert "learning_rate=0.01_seed0" in (result.folder / "study.html").read_text()
    trainer.failing, trainer.trained = set(), []
    again = run(tmp_path)
    out = capsys.readouterr().out
    assert trainer.trained == ["learning_rate=0.01_seed0"]
    assert "9 runs; 8 are finished\n" in out
    assert "run 9 of 9: learning_rate=0.01_seed0\n" in out
    once = run(tmp_path / "once")
    for name in ("results.csv", "comparison.csv", "comparison.md", "comparison.tex"):
        assert (again.folder / name).read_bytes() == (once.folder / name).read_bytes(), name
    trainer.trained = []
    run(tmp_path, overwrite=True)
    assert len(trainer.trained) == 9


@pytest.mark.usefixtures("no_figures")
def test_a_study_whose_every_run_failed_says_why(trainer: Trainer, tmp_path: Path) -> None:
    trainer.failing = {f"learning_rate={rate}_seed0" for rate in RATES}
    with pytest.raises(InputError, match=r"all 3 runs of .*rates failed: the loss is nan"):
        run(tmp_path, seeds=(0,))


def test_a_study_is_not_written_into_a_runs_folder(trainer: Trainer, tmp_path: Path) -> None:
    make_run(tmp_path, "rates")
    with pytest.raises(InputError, match="rates holds a run; give the study another name"):
        run(tmp_path)
    assert trainer.trained == []


@pytest.mark.usefixtures("no_figures")
def test_validation_decides_and_the_verdict_follows_from_the_intervals(trainer: Trainer, tmp_path: Path) -> None:
    result = run(tmp_path, baseline="learning_rate=0.01")
    comparison = result.comparison
    assert comparison.chosen == "learning_rate=0.001"
    said = verdict(comparison)
    assert said[0].startswith("Validation accuracy decides, and it chooses learning_rate=0.001 (82.23 %), whose test ")
    assert said[1].startswith("learning_rate=0.1 is 20.00 points below learning_rate=0.01 (95 % interval -20.00 to")
    assert said[2].startswith("learning_rate=0.001 is 1.00 points above learning_rate=0.01")
    assert "The test set's size alone leaves each accuracy open by up to" in said[-1]
    assert cells(comparison)[2][5] == "82.23 *"


def row(seed: int, accuracy: float, **values: Any) -> dict[str, Any]:
    numbers = {"val_accuracy": accuracy, "test_images": 100, "best_epoch": 3, "seconds": 2.0}
    return {"seed": seed, "test_accuracy": accuracy, "trainable_parameters": 1000, **numbers, **values}


def test_what_cannot_be_told_apart_is_said_with_what_it_costs_and_what_would_tell() -> None:
    one = [row(seed, value) for seed, value in enumerate((50.0, 61.0, 55.0))]
    other = [row(s, v, seconds=1.2, trainable_parameters=993) for s, v in enumerate((52.0, 60.5, 57.0))]
    comparison = compare([("full", {"mask": "full"}, one), ("partial", {"mask": "partial"}, other)], "full")
    (line,) = [line for line in verdict(comparison) if "can't" in line]
    assert line.startswith("partial and full can't be told apart (+1.17 points, 95 % interval -2.42 to +4.75); ")
    more = pairs_needed([2.0, -0.5, 2.0]) or 0
    assert "partial trains 0.7 % fewer parameters in 0.60 of the time; " in line
    assert f"; {more - 3} more seeds would, with a power of 80 %, if the difference" in line
    tied = compare([("full", {}, one[:1]), ("low", {}, [row(0, 40.0)]), ("partial", {}, one[:1])], "full")
    assert verdict(tied)[0] == (
        "Validation accuracy decides, and it is highest for 2 cases alike (50.00 %): full, partial. The first one is "
        "marked."
    )
    single = compare([("full", {}, one[:1]), ("partial", {}, other[:1])], "full")
    assert "One seed in common cannot tell partial and full apart (+2.00 points); give more seeds." in verdict(single)
    unvalidated = [row(0, 5.0, val_accuracy=None)]
    assert compare([("full", {}, unvalidated)], "full").chosen is None
    assert verdict(compare([("full", {}, one)], "scratch")) == [
        "No run of scratch is finished, so there is nothing to compare to."
    ]


def test_tables_label_each_spread_and_keep_to_their_formats() -> None:
    name = "a|b_50%"
    rows = [[row(seed, value + shift) for seed, value in enumerate((50.0, 61.0, 55.0))] for shift in (0, 1)]
    comparison = compare([("full", {"mask": "full"}, rows[0]), (name, {"mask": name}, rows[1])], "full")
    names = column_names(comparison)
    assert names[3:5] == ("sd between seeds", "95 % t interval")
    assert names[6:9] == ("difference to full", "95 % interval (Holm)", "p (Holm)")
    text = markdown_table(comparison)
    assert "±" not in text
    assert r"| a\|b\_50% | 3 | 56.33 | 5.51 | 42.65 to 70.01 |" in text
    latex = latex_table(comparison)
    assert r"a\textbar{}b\_50\% & 3 & 56.33 & 5.51 &" in latex
    assert latex.count(r"\\") == 3
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    header, *table = csv.reader(csv_table(comparison, ["mask"]).splitlines())
    assert dict(zip(header, table[1], strict=True))["difference"] == "1.0"


class Page(HTMLParser):
    """What a page holds that a browser would run or load, and where its links lead."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src", "xlink:href")]


@pytest.mark.slow
def test_the_page_stands_alone_and_leads_to_each_run(trainer: Trainer, tmp_path: Path) -> None:
    folder = tmp_path / "rates" / "learning_rate=0.1_seed1"
    write_text(folder / "report.html", "a run's report")
    result = run(tmp_path)
    page = Page((result.folder / "study.html").read_text())
    assert not {"script", "link", "iframe"} & {*page.tags}
    figures = [link for link in page.links if link.startswith("data:image/svg+xml;base64,")]
    assert page.tags.count("img") == len(figures) == 3
    assert base64.b64decode(figures[0].partition(",")[2]) == (result.folder / "accuracy.svg").read_bytes()
    outside = [link for link in page.links if link not in figures]
    assert "learning_rate%3D0.1_seed1/report.html" in outside
    assert len(outside) == 10
    assert not any("//" in link for link in outside)
    assert "url(http" not in (result.folder / "study.html").read_text()
    run(tmp_path, figures="pdf")
    assert {path.name for path in result.folder.glob("*.pdf")} == {"accuracy.pdf", "curves.pdf", "time.pdf"}


def test_a_picture_that_cannot_be_drawn_costs_a_warning(
    trainer: Trainer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, seeds=(0,))
    (tmp_path / "rates" / "learning_rate=0.1_seed0" / "metrics.csv").write_text("epoch\nx\n")
    (tmp_path / "rates" / "accuracy.svg").unlink()
    (tmp_path / "rates" / "accuracy.svg").mkdir()
    result = run(tmp_path, seeds=(0,))
    err = capsys.readouterr().err
    assert "accuracy.svg" in err
    assert "curves.svg" in err
    assert len(result.rows) == 3


def test_the_time_left_is_estimated_from_the_runs_that_are_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert [describe_time(seconds) for seconds in (40, 720, 12600)] == ["40 s", "12 min", "3.5 h"]
    from jaxcnn.runs.console import Terminal

    turns = Turns(Terminal(soft_wrap=True), 5, done=2)
    turns.begin(TINY)
    assert capsys.readouterr().out == "run 3 of 5: tiny\n"
