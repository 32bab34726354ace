"""Every number of a run's result against scikit-learn's, and calibration against other implementations."""

import math
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from refusals import message
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, logsumexp
from sklearn import metrics
from tiny_run import TINY, rows

import jaxcnn
from jaxcnn.config import ExperimentConfig
from jaxcnn.config.experiment import to_json
from jaxcnn.files import write_json
from jaxcnn.runs.calibration import calibration_error, confidence_bins, fit_temperature
from jaxcnn.runs.reading import read_json
from jaxcnn.runs.run import plan, run_experiment
from jaxcnn.runs.scores import balanced_accuracy, class_scores, top_accuracy
from jaxcnn.training.records import softmax


def draw(classes: int, n: int, seed: int = 0, scale: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right now and then, and labels, of which the last class has none."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes - 1, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)) + 1.5 * (np.arange(classes) == labels[:, None])
    return (scale * logits).astype(np.float32), labels


@pytest.mark.parametrize("classes", [3, 10, 100])
def test_scores_are_scikit_learns(classes: int) -> None:
    logits, labels = draw(classes, 500)
    predictions = logits.argmax(-1)
    predictions[predictions == 1] = 0  # a class that nothing is given
    scores = class_scores(labels, predictions, [str(i) for i in range(classes)])
    there, known = range(classes - 1), np.unique(labels)
    wanted = metrics.precision_recall_fscore_support(labels, predictions, labels=there, zero_division=0)
    found = [[getattr(each, name) for each in scores[:-1]] for name in ("precision", "recall", "f1", "images")]
    np.testing.assert_allclose(np.array(found, float)[:, known], np.array(wanted)[:, known], rtol=0, atol=1e-12)
    matrix = metrics.confusion_matrix(labels, predictions, labels=range(classes))
    assert [each.correct for each in scores] == np.diag(matrix).tolist()
    assert [each.predicted for each in scores] == matrix.sum(axis=0).tolist()
    last = scores[-1]
    assert (last.images, last.accuracy, last.precision, last.recall, last.f1) == (0, None, None, None, None)
    assert [each.accuracy for each in scores[:-1] if each.images] == pytest.approx(100 * wanted[1][known], abs=1e-12)
    present = np.where(np.isin(predictions, known), predictions, known[0])  # it warns of others
    wanted_balanced = 100 * metrics.balanced_accuracy_score(labels, present)
    found_balanced = balanced_accuracy(class_scores(labels, present, [str(i) for i in range(classes)]))
    assert found_balanced == pytest.approx(wanted_balanced, abs=1e-12)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_top_accuracy_is_scikit_learns(k: int) -> None:
    logits, labels = draw(30, 500)
    wanted = 100 * metrics.top_k_accuracy_score(labels, logits, k=k, labels=range(30))
    assert top_accuracy(logits, labels, k) == pytest.approx(wanted, abs=1e-12)
    assert top_accuracy(logits, labels, 1) == pytest.approx(100 * np.mean(logits.argmax(-1) == labels), abs=1e-12)


def test_of_equal_logits_the_first_counts_as_for_the_prediction() -> None:
    logits, labels = np.zeros((2, 20), np.float32), np.array([4, 5])
    assert (top_accuracy(logits, labels), top_accuracy(logits, labels, 6)) == (50, 100)


# Calibration


def by_sorting(probabilities: np.ndarray, labels: Sequence[int]) -> float:
    """The error another way: image by image, in fractions of 1/15 that are compared as they are."""
    groups: dict[int, list[tuple[float, bool]]] = {}
    for row, label in zip(probabilities.astype(float).tolist(), labels, strict=True):
        confidence = max(row)
        groups.setdefault(math.ceil(15 * confidence), []).append((confidence, row.index(confidence) == label))
    gaps = [abs(sum(c for c, _ in group) - sum(right for _, right in group)) for group in groups.values()]
    return math.fsum(gaps) / len(labels)


# torchmetrics 1.9.0, multiclass_calibration_error(probabilities in float64, n_bins=15, norm="l1").
TORCHMETRICS = {
    (2, 0.5): 0.167198062,
    (10, 0.5): 0.283606708,
    (10, 4.0): 0.282644361,
    (100, 1.0): 0.084779523,
    (100, 3.0): 0.295986563,
}


@pytest.mark.parametrize(("classes", "scale"), TORCHMETRICS)
def test_the_calibration_error_is_that_of_other_implementations(classes: int, scale: float) -> None:
    logits, labels = draw(classes, 1000, scale=scale)
    probabilities = softmax(logits)
    bins = confidence_bins(probabilities, labels)
    assert calibration_error(bins) == pytest.approx(by_sorting(probabilities, labels), abs=1e-12)
    assert calibration_error(bins) == pytest.approx(TORCHMETRICS[classes, scale], abs=1e-6)
    assert sum(each.images for each in bins) == 1000
    assert [each.low for each in bins[1:]] == [each.high for each in bins[:-1]]


def test_bins_are_open_below_and_certainty_is_in_the_last_one() -> None:
    probabilities = np.array([[1.0, 0.0], [0.6, 0.4], [np.nextafter(0.6, 1), 0.4]])  # 0.6 = 9 / 15
    bins = confidence_bins(probabilities, np.array([0, 1, 0]))
    assert {i: each.images for i, each in enumerate(bins) if each.images} == {8: 1, 9: 1, 14: 1}
    assert (bins[14].confidence, bins[14].accuracy) == (1.0, 1.0)
    assert (bins[8].confidence, bins[8].accuracy) == (0.6, 0.0)
    assert calibration_error(bins) == pytest.approx((0 + 0.6 + 0.4) / 3)


@pytest.mark.parametrize("scale", [0.2, 1.0, 5.0])
def test_the_temperature_is_that_of_another_optimiser(scale: float) -> None:
    logits, labels = draw(10, 500, scale=scale)

    def loss(log_temperature: float) -> float:
        return -float(log_softmax(logits / np.exp(log_temperature), axis=1)[np.arange(500), labels].mean())

    wanted = minimize_scalar(loss, bounds=(-4, 4), method="bounded", options={"xatol": 1e-10})
    found = fit_temperature(logits, labels)
    assert math.log(found) == pytest.approx(wanted.x, abs=1e-5)
    assert loss(math.log(found)) <= wanted.fun + 1e-12
    assert logsumexp(logits) > 0  # the logits are left as they were
    assert fit_temperature(3 * logits, labels) == pytest.approx(3 * found, rel=1e-6)


def test_a_temperature_is_limited_where_none_is_best() -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0]])
    assert fit_temperature(logits, np.array([0, 1])) == 0.01  # all right: the lower, the better
    assert fit_temperature(logits, np.array([1, 0])) == 100  # all wrong


@pytest.mark.slow
@pytest.mark.usefixtures("own_cache")
def test_a_run_with_a_temperature_says_so_wherever_probabilities_are(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(TINY, runs_dir=tmp_path, train=replace(TINY.train, temperature_scaling=True))
    folder = tmp_path / "tiny"
    shutil.copytree(finished, folder)
    (folder / "summary.json").unlink()
    resolved = read_json(folder / "config.json")["resolved"]
    write_json(folder / "config.json", {**to_json(config), "resolved": resolved})
    assert jaxcnn.load(folder).card.temperature == 1  # not fitted yet
    summary, plain = run_experiment(config), read_json(finished / "summary.json")
    temperature = summary["temperature"]
    assert temperature is not None
    assert f"at temperature {temperature:.3f}" in capsys.readouterr().out
    before, after = (np.load(each / "results/probabilities.npy") for each in (finished, folder))
    np.testing.assert_allclose(after, softmax(np.log(before) / temperature), atol=1e-6)
    labels = np.load(folder / "results/labels.npy")
    assert summary["calibration_error"] == calibration_error(confidence_bins(after, labels))
    assert plain["calibration_error"] == calibration_error(confidence_bins(before, labels))
    assert plain["temperature"] is None
    for name in ("test_accuracy", "test_loss", "val_loss", "top5_accuracy"):
        assert summary[name] == plain[name]
    images = np.uint8(np.random.default_rng(0).integers(0, 256, (2, 8, 8)))
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    wanted = softmax(np.log(jaxcnn.load(finished).predict_proba(images)) / temperature)
    for weights in (folder, folder / "model.pth", folder / "model.safetensors"):
        np.testing.assert_allclose(jaxcnn.load(weights).predict_proba(images), wanted, atol=1e-6)
    write_json(folder / "summary.json", {})
    assert f"{folder / 'summary.json'} cannot be read" in message(lambda: jaxcnn.load(folder))


def test_a_temperature_needs_validation_images() -> None:
    train = replace(TINY.train, temperature_scaling=True)
    rgb = replace(TINY.model, in_channels=3)
    for changes in ({"data": replace(TINY.data, validation=0.0)}, {"protocol": "original", "model": rgb}):
        config: ExperimentConfig = replace(TINY, train=train, **changes)
        assert message(lambda config=config: plan(config)).startswith("train.temperature_scaling=True needs validation")


def test_the_table_of_classes_has_the_scores(finished: Path) -> None:
    table = rows(finished / "classes.csv")
    labels, predictions = (np.load(finished / f"results/{name}.npy") for name in ("labels", "predictions"))
    assert list(table[0]) == ["class", "images", "correct", "accuracy", "predicted", "precision", "recall", "f1"]
    wanted = metrics.precision_recall_fscore_support(labels, predictions, zero_division=0)
    for name, values in zip(("precision", "recall", "f1", "images"), wanted, strict=True):
        np.testing.assert_allclose([float(row[name]) for row in table], values, rtol=0, atol=1e-12)
