"""Runs are shown again from their folders by one command, in any format; a program may have none shown."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from refusals import message
from test_present import make_finished
from tiny_run import TINY, rows

from jaxcnn.cli.report import compare, program
from jaxcnn.files import write_json
from jaxcnn.runs.present import remove_products
from jaxcnn.runs.run import run_experiment

COMPARED = {
    *("results.csv", "comparison.csv", "comparison.md", "comparison.tex", "study.html"),
    *("accuracy.svg", "curves.svg", "time.svg"),
}
DRAWN = {"curves.svg", "confusion.svg", "classes.md", "classes.tex", "report.html"}


def test_a_command_draws_runs_again_and_compares_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = make_finished(tmp_path / "runs")
    other = shutil.copytree(one, tmp_path / "runs/b")
    config = json.loads((other / "config.json").read_bytes())
    write_json(other / "config.json", {**config, "seed": 1})
    summary = json.loads((other / "summary.json").read_bytes())
    write_json(other / "summary.json", {**summary, "seed": 1})
    (one / "report.html").write_text("old")
    before = {path.name for path in one.iterdir()}
    program([str(one), str(other), "--figures", "svg", "--comparison", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert {path.name for path in one.iterdir()} == before | DRAWN
    assert (one / "report.html").read_text() != "old"
    for name in DRAWN:
        assert name in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == COMPARED
    (row,) = rows(tmp_path / "out/comparison.csv")
    assert (row["case"], row["runs"], row["test_accuracy"]) == ("full", "2", "93.75")
    assert [(row["run"], row["seed"]) for row in rows(tmp_path / "out/results.csv")] == [("a", "0"), ("b", "1")]
    assert out.endswith(f"comparison in {tmp_path / 'out'}\n")
    assert (
        message(lambda: compare([one, one], tmp_path / "twice", "png"))
        == "a and a have the same settings and seed; give only one of them"
    )


def test_what_cannot_be_drawn_again_is_refused(tmp_path: Path) -> None:
    folder = make_finished(tmp_path)
    assert message(lambda: program([])).startswith("there is nothing to show; give the folder")
    assert f"{tmp_path} holds no finished run" in message(lambda: program([str(tmp_path)]))
    (folder / "results/probabilities.npy").write_bytes(b"")
    assert f"{folder / 'results/probabilities.npy'} cannot be read" in message(lambda: program([str(folder)]))


@pytest.mark.usefixtures("own_cache")
def test_a_run_is_not_shown_where_nobody_asks_for_it(finished: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(finished, tmp_path / "tiny")
    remove_products(folder)
    config = replace(TINY, runs_dir=tmp_path)
    before = {path.name for path in folder.iterdir()}
    run_experiment(config, figures=None)
    assert {path.name for path in folder.iterdir()} == before
    run_experiment(config, figures="svg")
    assert {path.name for path in folder.iterdir()} == before | DRAWN
