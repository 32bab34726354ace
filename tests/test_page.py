"""A run's page: it answers what people ask of a run, and needs nothing beside itself."""

import base64
import io
import re
import shlex
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import CHROMIUM, browser
from PIL import Image
from scipy.stats import binomtest
from test_log import SUMMARY
from tiny_run import TINY

from jaxcnn.cli import flags, transfer
from jaxcnn.cli import train as train_program
from jaxcnn.config import DataConfig, ExperimentConfig, FreezeConfig, TransferConfig
from jaxcnn.config.experiment import to_json
from jaxcnn.files import write_json, write_npy
from jaxcnn.runs.arrays import RunArrays
from jaxcnn.runs.calibration import confidence_bins
from jaxcnn.runs.examples import confidently_wrong, least_sure, select_examples
from jaxcnn.runs.metrics import write_metrics
from jaxcnn.runs.page import Calibration, command, settings, wilson
from jaxcnn.runs.present import write_page
from jaxcnn.training.records import EpochRecord, softmax

VOID = {"meta", "link", "img", "br"}
NAMES_100 = [f"class number {i}" for i in range(100)]


class Page(HTMLParser):
    """A page's elements and its text; what is not closed in order fails."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.size = path.stat().st_size
        self.html = path.read_text(encoding="utf-8")
        self.feed(self.html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def assert_alone(page: Page) -> None:
    """Nothing is loaded from anywhere, nothing runs, and everything that is seen is also told."""
    plain = re.sub(r"data:image/png;base64,[\w+/=]+", "", page.html)
    assert not re.search(r"https?:|//\w|url\(|@import", plain)
    assert {tag for tag, _ in page.elements}.isdisjoint({"script", "iframe", "object", "embed", "base", "form"})
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), attributes
        if tag == "img":
            assert attributes["alt"]
        if tag == "svg":
            assert attributes.get("aria-label") or attributes.get("aria-hidden") == "true"
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    targets = {attributes["href"] for tag, attributes in page.elements if tag == "a"}
    assert set(ids.values()) == {1}
    assert targets <= {f"#{name}" for name in ids}


RECORDS = [
    EpochRecord(
        i, 4 * 0.9**i, 90 - 80 * 0.9**i, 4 * 0.95**i, 60 - (i - 20) ** 2 / 20, 1e-3 * 0.5 ** (i // 10), 1.0, 9.0
    )
    for i in range(1, 31)
]


def make(
    folder: Path, names: list[str], n: int = 1000, *, sharp: float = 1.0, keep: bool = True, **summary: Any
) -> Path:
    """The folder of a run that nobody trained, without what presents it; returns that."""
    rng, classes = np.random.default_rng(0), len(names)
    labels = rng.permutation(np.arange(n) % classes).astype(np.int32)
    near = rng.normal(size=(classes, classes)) ** 3  # some classes are alike
    logits = rng.normal(size=(n, classes)) + near[labels] / 4 + 3 * (np.arange(classes) == labels[:, None])
    probabilities = softmax(logits)
    resolved = {"class_names": names, "versions": {"jax": "0.0.1"}, "device": "abacus", "processor": "ten fingers"}
    resolved |= {"origin": "/data/pictures"}
    config = to_json(replace(ExperimentConfig(), name=folder.name, runs_dir=folder.parent, seed=7))
    write_json(folder / "config.json", {**config, "resolved": resolved})
    values = {"name": folder.name, **SUMMARY, "val_accuracy": 60.0, "val_loss": 1.0, "best_epoch": 20, "epochs": 30}
    right = float(100 * np.mean(probabilities.argmax(-1) == labels))
    write_json(folder / "summary.json", values | {"test_accuracy": right, "stopped": "patience is over"} | summary)
    write_metrics(folder, RECORDS)
    arrays = {
        "labels": labels,
        "predictions": probabilities.argmax(-1).astype(np.int32),
        "probabilities": probabilities,
    }
    if keep:
        arrays["examples"] = select_examples(probabilities, labels)
        arrays["example_images"] = rng.integers(0, 256, (len(arrays["examples"]), 32, 32, 3), dtype=np.uint8)
    for name, array in arrays.items():
        write_npy(folder / "results" / f"{name}.npy", array)
    return folder


def page_of(folder: Path) -> Page:
    write_page(folder, folder / "report.html")
    return Page(folder / "report.html")


@pytest.fixture(scope="module")
def hundred(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 100 classes and 10,000 images."""
    folder = make(tmp_path_factory.mktemp("runs") / "hundred", NAMES_100, 10_000, top5_accuracy=88.25, temperature=1.5)
    write_page(folder, folder / "report.html")
    return folder


def test_the_page_of_a_run_answers_what_is_asked_of_it(finished: Path) -> None:
    page = Page(finished / "report.html")
    assert_alone(page)
    labels, predictions = (np.load(finished / f"results/{name}.npy") for name in ("labels", "predictions"))
    matrix = np.zeros((10, 10), int)
    np.add.at(matrix, (labels, predictions), 1)
    recalls = matrix.diagonal() / matrix.sum(axis=1)
    worst = int(re.findall(r"Worst class: (\d), with", page.text)[0])
    assert recalls[worst] == recalls.min()
    np.fill_diagonal(matrix, 0)
    taken_for = re.findall(r"It is most often taken for (\d) \((\d+) image", page.text)[0]
    assert matrix[worst, int(taken_for[0])] == int(taken_for[1]) == matrix[worst].max()
    assert "validation accuracy was highest in epoch" in page.text
    assert re.search(r"Confidence: it is (neither over- nor underconfident|overconfident|underconfident)\.", page.text)
    assert f"jaxcnn train --config {finished}/config.json --name tiny_again" in page.text
    assert sum(tag == "img" for tag, _ in page.elements) == 24
    assert page.size < 3e5


def test_the_page_of_a_hundred_classes(hundred: Path) -> None:
    page = Page(hundred / "report.html")
    assert_alone(page)
    assert page.size < 3e6
    labels, predictions = (np.load(hundred / f"results/{name}.npy") for name in ("labels", "predictions"))
    wrong = Counter((int(t), int(p)) for t, p in zip(labels, predictions, strict=True) if t != p)
    told = re.findall(r"Largest confusion: class number (\d+) taken for class number (\d+), (\d+) images", page.text)[0]
    assert wrong[int(told[0]), int(told[1])] == int(told[2]) == max(wrong.values())
    titles = re.findall(r"<title>(class number \d+) taken for (class number \d+): (\d+) of 100</title>", page.html)
    cells = {(NAMES_100.index(t), NAMES_100.index(p)): int(images) for t, p, images in titles}
    assert cells == wrong
    assert f"These are the 30 largest of {len(wrong):,}." in page.text
    assert "The 10 epochs after it brought no more. Validation loss was lowest in epoch 30." in page.text
    assert "Images /data/pictures Device abacus (ten fingers)" in page.text
    assert "Among the five most probable 88.25 %" in page.text
    assert "divided by 1.500, a temperature that was fitted" in page.text
    assert "ten fingers" in page.text
    rows = re.findall(r'<th scope="row" class="name">(class number \d+)</th><td>100</td>', page.html)
    assert sorted(rows) == sorted(NAMES_100)


def test_images_are_those_of_the_test_set_the_worst_first(hundred: Path) -> None:
    page = Page(hundred / "report.html")
    labels, probabilities = (np.load(hundred / f"results/{name}.npy") for name in ("labels", "probabilities"))
    indices, kept = (np.load(hundred / f"results/{name}.npy") for name in ("examples", "example_images"))
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    assert len(images) == 24
    shown = [int(re.findall(r"Test image (\d+)", str(image["alt"]))[0]) for image in images]
    assert shown == [*confidently_wrong(probabilities, labels), *least_sure(probabilities)]
    confidence = probabilities.max(-1)
    assert np.all(np.diff(confidence[shown[:12]]) <= 0)
    assert np.all(probabilities[shown[:12]].argmax(-1) != labels[shown[:12]])
    assert max(confidence[shown[12:]]) <= np.sort(confidence)[11]
    for image, index in zip(images, shown, strict=True):
        data = base64.b64decode(str(image["src"]).removeprefix("data:image/png;base64,"))
        with Image.open(io.BytesIO(data)) as picture:
            np.testing.assert_array_equal(np.asarray(picture), kept[indices.tolist().index(index)])


HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(2)>', "{{ 7 * 7 }}", "a\0b\ud800", "&amp;", ""]


def test_names_with_markup_are_shown_as_they_are(tmp_path: Path) -> None:
    folder = make(tmp_path / "<b>run</b>", HOSTILE, 200, dataset="<i>set</i>", stopped="</ul><script>")
    page = page_of(folder)
    assert_alone(page)
    for text in (*HOSTILE[:3], "a\ufffdb?", "&amp;", "(no name)", "<b>run</b>", "<i>set</i>", "</ul><script>"):
        assert text in page.text
    assert "49" not in re.findall(r'class="name">([^<]*)<', page.html)


@pytest.mark.parametrize("images", ["none kept", "large", "grey"])
def test_images_of_other_sizes_and_runs_that_kept_none(images: str, tmp_path: Path) -> None:
    folder = make(tmp_path / "run", ["a", "b", "c"], 60, keep=images != "none kept")
    if images != "none kept":
        count = len(np.load(folder / "results/examples.npy"))
        shape = (count, 300, 300, 3) if images == "large" else (count, 8, 8, 1)
        write_npy(folder / "results/example_images.npy", np.full(shape, 9, np.uint8))
    page = page_of(folder)
    assert_alone(page)
    assert ("holds none of its test images" in page.text) == (images == "none kept")
    assert any(tag == "img" for tag, _ in page.elements) == (images != "none kept")
    assert page.size < 1e5


def test_what_a_run_lacks_is_said(tmp_path: Path) -> None:
    """No validation, one epoch, classes without images, probabilities that are not finite; then no mistakes."""
    folder = make(tmp_path / "run", ["a", "b", "c"], 60, val_accuracy=None, val_loss=None, best_epoch=1, test_loss=None)
    write_metrics(folder, [RECORDS[0]._replace(val_loss=None, val_accuracy=None)])
    labels = np.load(folder / "results/labels.npy")
    only = np.zeros_like(labels)
    write_npy(folder / "results/labels.npy", only)
    write_npy(folder / "results/probabilities.npy", np.full((60, 3), np.nan, np.float32))
    page = page_of(folder)
    assert_alone(page)
    assert "no images were held out for validation" in page.text
    assert "The probabilities are not finite" in page.text
    assert "Test loss not finite" in page.text
    write_npy(folder / "results/predictions.npy", only)
    write_npy(folder / "results/probabilities.npy", np.eye(3, dtype=np.float32)[only])
    page = page_of(folder)
    assert_alone(page)
    assert "No mistakes: all 60 test images are right." in page.text


# Its parts


def test_the_command_makes_the_same_run_beside_it(tmp_path: Path) -> None:
    for config in (
        replace(TINY, runs_dir=tmp_path, name="a run's"),
        TransferConfig(name="b", runs_dir=tmp_path, data=DataConfig("digits"), freeze=FreezeConfig(mask="partial")),
    ):
        folder = tmp_path / config.name
        write_json(folder / "config.json", {**to_json(config), "resolved": {}})
        program, *words = shlex.split(command(folder, to_json(config)))[1:]
        made = flags.parse(train_program.DEFAULT, "", words)[0] if program == "train" else transfer.parse(words)[0][0]
        assert made == replace(config, name=f"{config.name}_again")


def test_settings_that_differ_come_first() -> None:
    found = settings({**to_json(replace(TINY, seed=3)), "resolved": {"mean": [1]}})
    differing = [each for each in found if each.differs]
    assert found[: len(differing)] == differing
    by_name = {each.name: each for each in found}
    assert (by_name["seed"].value, by_name["seed"].default) == ("3", "0")
    assert by_name["model.hidden_dims"].value == "4 8 16 8"
    assert not by_name["optim.clip_norm"].differs
    assert by_name["optim.clip_norm"].value == "none"
    assert by_name.keys().isdisjoint({"name", "runs_dir", "device", "resolved", "resolved.mean"})
    older = to_json(TINY)
    del older["train"]["temperature_scaling"]
    assert {each.name: each for each in settings(older)}["train.temperature_scaling"].value == "no"


@pytest.mark.parametrize(("right", "n"), [(0, 10), (5, 10), (359, 360), (7000, 10_000)])
def test_the_interval_is_scipys(right: int, n: int) -> None:
    wanted = binomtest(right, n).proportion_ci(method="wilson")
    assert wilson(right / n, n) == pytest.approx((wanted.low, wanted.high), abs=1e-12)


@pytest.mark.parametrize(
    ("confidence", "right", "verdict"),
    [(0.9, 0.6, "overconfident"), (0.6, 0.9, "underconfident"), (0.75, 0.73, "neither over- nor underconfident")],
)
def test_the_verdict_on_confidence(confidence: float, right: float, verdict: str) -> None:
    labels = np.where(np.arange(500) < 500 * right, 0, 1)
    probabilities = np.tile(np.float32([confidence, 1 - confidence]), (500, 1))
    arrays = RunArrays(labels, np.zeros(500, np.int32), probabilities, {})
    found = Calibration.of(arrays, confidence_bins(probabilities, labels))
    assert found.verdict == verdict
    assert found.gap == pytest.approx(confidence - right)
    assert found.accuracy == pytest.approx(right)
    assert found.expected_error == pytest.approx(abs(confidence - right), abs=1e-7)


# In a browser


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium, in which pages are opened")
def test_nothing_is_cut_off_asked_for_or_complained_of_in_a_browser(
    finished: Path, hundred: Path, tmp_path: Path
) -> None:
    hostile = make(tmp_path / "run", ["x" * 150, "<b>" * 40, "c"], 60)
    write_page(hostile, hostile / "report.html")
    with browser(tmp_path / "profile") as chromium:
        for folder in (finished, hundred, hostile):
            for width, dark in ((1280, False), (400, False), (400, True)):
                page = folder / "report.html"
                chromium.open(page, width, dark=dark)
                assert chromium.evaluate("innerWidth") == width
                chromium.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
                assert chromium.evaluate("document.documentElement.scrollWidth") <= width
                # Wide things scroll within a box of their own; nothing else reaches beyond the window.
                cut = """[...document.body.querySelectorAll('*')].filter(each => !each.closest('.scroll, pre') &&
                    each.getBoundingClientRect().right > innerWidth + 0.5).map(each => each.outerHTML.slice(0, 80))"""
                assert chromium.evaluate(cut) == []
                if width == 1280:  # the matrix fits, so that no column is overlooked
                    box = "document.querySelector('.matrix')"
                    assert chromium.evaluate(f"{box}.scrollWidth <= {box}.clientWidth")
                broken = "[...document.images].filter(each => !each.complete || !each.naturalWidth).length"
                assert chromium.evaluate(broken) == 0
                assert chromium.complaints() == []
                assert chromium.requests() == [page.as_uri()]
