"""`report.html`: a run on one page that needs no network and no script, made from the run's folder alone."""

import base64
import io
import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from jaxcnn.config.experiment import PLACES, RESOLVED, ExperimentConfig, TransferConfig, flatten, to_json
from jaxcnn.runs import charts
from jaxcnn.runs.arrays import RunArrays
from jaxcnn.runs.calibration import BINS, ConfidenceBin, calibration_error, confidence_bins
from jaxcnn.runs.examples import confidently_wrong, least_sure
from jaxcnn.runs.palette import FAINTEST, RIGHT, WRONG, mix_with_white
from jaxcnn.runs.scores import ClassScore, Confusion, class_scores, confusion_matrix, confusions
from jaxcnn.runs.style import one_line
from jaxcnn.runs.summary import Summary
from jaxcnn.training.records import EpochRecord

_CONFUSIONS = 30
"""Maximum length of the list of confusions."""
_MATRIX = 200
"""Maximum number of classes for which the matrix is drawn."""
_PIXELS = 96
"""Maximum height of an image on the page. Larger images are scaled down."""


def render(
    folder: Path, config: dict[str, Any], summary: Summary, records: Sequence[EpochRecord], arrays: RunArrays
) -> str:
    """The page of a finished run as HTML.

    Args:
        folder: the run's folder, for the command that repeats the run.
        config: the content of `config.json`.
        summary: the content of `summary.json`.
        records: the records of all epochs.
        arrays: the arrays in `results/`.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: training need not wait for it

    environment = Environment(
        loader=PackageLoader("jaxcnn.runs"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    resolved = config[RESOLVED]
    names = [one_line(name) or "(no name)" for name in resolved["class_names"]]
    scores = class_scores(arrays.labels, arrays.predictions, names)
    matrix = confusion_matrix(arrays.labels, arrays.predictions, len(names))
    mistakes = confusions(matrix)
    cells, most = charts.matrix_cells(matrix, names) if len(names) <= _MATRIX else ([], 0.0)
    finite = bool(np.isfinite(arrays.probabilities).all())
    losses = [(each.val_loss, each.epoch) for each in records if each.val_loss is not None]
    bins = confidence_bins(arrays.probabilities, arrays.labels) if finite else []
    return environment.get_template("report.html.jinja").render(
        name=one_line(summary["name"]),
        dataset=one_line(summary["dataset"]),
        summary=summary,
        images=resolved.get("images", {}),
        test_images=len(arrays.labels),
        interval=wilson(summary["test_accuracy"] / 100, len(arrays.labels)),
        names=names,
        rows=class_rows(scores, mistakes, names),
        confusions=[(names[each.true], names[each.predicted], each) for each in mistakes[:_CONFUSIONS]],
        confusions_left=len(mistakes) - _CONFUSIONS,
        mistakes=sum(each.images for each in mistakes),
        cells=cells,
        most_confused=most,
        curves=curves(records, summary),
        validated=summary["val_accuracy"] is not None,
        lowest_loss=min(losses)[1] if losses else None,
        num_bins=BINS,
        calibration=Calibration.of(arrays, bins) if finite else None,
        bars=charts.reliability(bins, 220) if finite else [],
        wrong=example_images(arrays, names, confidently_wrong(arrays.probabilities, arrays.labels)) if finite else [],
        unsure=example_images(arrays, names, least_sure(arrays.probabilities)) if finite else [],
        has_images=bool(arrays.examples),
        settings=settings(config),
        config=json.dumps({key: value for key, value in config.items() if key != RESOLVED}, indent=2),
        command=command(folder, config),
        origin=resolved.get("origin"),
        versions={**resolved.get("versions", {}), "Python": resolved.get("python", "not recorded")},
        device=resolved.get("device", "not recorded"),
        processor=resolved.get("processor"),
        colors={
            name: mix_with_white(color, share)
            for name, color, share in (
                ("right", RIGHT, 1),
                ("wrong", WRONG, 1),
                ("faint_right", RIGHT, FAINTEST),
                ("faint_wrong", WRONG, FAINTEST),
            )
        },
        geometry=charts,
    )


class ClassRow(NamedTuple):
    """A class in the table of classes."""

    score: ClassScore
    taken_for: str
    """The most frequent wrong prediction for its images; empty if all are right."""
    taken: int
    """Number of images with that prediction."""


def class_rows(scores: Sequence[ClassScore], mistakes: Sequence[Confusion], names: Sequence[str]) -> list[ClassRow]:
    """The classes by recall, lowest first. Classes without images come last."""
    first: dict[int, Confusion] = {}
    for mistake in mistakes:
        first.setdefault(mistake.true, mistake)
    found = [
        ClassRow(score, names[first[i].predicted] if i in first else "", first[i].images if i in first else 0)
        for i, score in enumerate(scores)
    ]
    return sorted(found, key=lambda row: (not row.score.images, row.score.recall or 0, row.score.f1 or 0))


def wilson(share: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % confidence interval of a proportion (0 to 1) measured on `n` images."""
    z2 = 1.959963984540054**2 / n
    middle, half = share + z2 / 2, (z2 * share * (1 - share) + z2**2 / 4) ** 0.5
    return (middle - half) / (1 + z2), (middle + half) / (1 + z2)


class Calibration(NamedTuple):
    """How well a network's confidence matches its accuracy. All values are fractions."""

    confidence: float
    """Mean probability of the most probable class."""
    accuracy: float
    gap: float
    """Confidence minus accuracy."""
    error_of_gap: float
    """Standard error of the gap."""
    expected_error: float
    """Expected calibration error."""
    bins: Sequence[ConfidenceBin]
    """The bins that are not empty."""

    @classmethod
    def of(cls, arrays: RunArrays, bins: Sequence[ConfidenceBin]) -> "Calibration":
        """Computes the calibration of a run from its arrays and all of its bins."""
        confidence = arrays.probabilities.max(-1).astype(np.float64)
        differences = confidence - (arrays.predictions == arrays.labels)
        gap, n = float(differences.mean()), len(differences)
        spread = float(differences.std(ddof=1) / n**0.5) if n > 1 else 0.0
        mean = float(confidence.mean())
        return cls(mean, mean - gap, gap, spread, calibration_error(bins), [b for b in bins if b.images])

    @property
    def verdict(self) -> str:
        """The result in words. Overconfident means that the gap exceeds two standard errors."""
        if abs(self.gap) <= 2 * self.error_of_gap:
            return "neither over- nor underconfident"
        return "overconfident" if self.gap > 0 else "underconfident"


class ExampleImage(NamedTuple):
    """A test image on the page."""

    source: str
    """A data URI; empty if the run did not keep the image."""
    true: str
    predicted: str
    probability: float
    true_probability: float
    number: int
    """Index of the image in the test split, counted from 0."""


def example_images(arrays: RunArrays, names: Sequence[str], indices: np.ndarray[Any, Any]) -> list[ExampleImage]:
    """The test images with these indices, with their predictions and probabilities."""
    found = []
    for i in indices.tolist():
        true, predicted, row = int(arrays.labels[i]), int(arrays.predictions[i]), arrays.probabilities[i]
        source = data_uri(arrays.examples[i]) if i in arrays.examples else ""
        values = float(row[predicted]), float(row[true])
        found.append(ExampleImage(source, names[true], names[predicted], *values, i))
    return found


def data_uri(pixels: np.ndarray[Any, Any]) -> str:
    """An image, uint8 (H, W, C), as a data URI with a PNG."""
    image = Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)
    if image.height > _PIXELS:
        image = image.resize((_PIXELS, _PIXELS), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    image.save(file, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def curves(records: Sequence[EpochRecord], summary: Summary) -> list[charts.Chart]:
    """Loss, accuracy and learning rate by epoch."""
    epochs = [record.epoch for record in records]
    validated = summary["val_accuracy"] is not None
    best = summary["best_epoch"] if validated else None
    made = []
    for title, name in (("Loss (cross-entropy, nats)", "loss"), ("Accuracy (%)", "accuracy")):
        train, val = ([getattr(record, f"{split}_{name}") for record in records] for split in ("train", "val"))
        lines = {"validation": val, "training": train} if validated else {"training": train}
        description = "; ".join(f"{of} from {values[0]:.4g} to {values[-1]:.4g}" for of, values in lines.items())
        made.append(charts.line_chart(title, f"{title} by epoch: {description}", epochs, lines, best))
    rates = [record.learning_rate for record in records]
    description = f"Learning rate by epoch: from {rates[0]:.4g} to {rates[-1]:.4g}"
    return [*made, charts.line_chart("Learning rate", description, epochs, {"learning rate": rates}, best)]


class Setting(NamedTuple):
    """A setting of the run."""

    name: str
    value: str
    default: str
    differs: bool


def settings(config: dict[str, Any]) -> list[Setting]:
    """The settings of a run except `PLACES`. Those that differ from their defaults come first."""
    transfers = "source" in config
    defaults = flatten(to_json(TransferConfig() if transfers else ExperimentConfig()))
    values = {**defaults, **flatten({key: value for key, value in config.items() if key != RESOLVED})}
    found = [
        Setting(name, _text(value), _text(defaults.get(name)), value != defaults.get(name))
        for name, value in values.items()
        if name not in PLACES
    ]
    return sorted(found, key=lambda setting: not setting.differs)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_text, value)) or "none"
    if isinstance(value, bool) or value is None:
        return "none" if value is None else "yes" if value else "no"
    return f"{value:g}" if isinstance(value, float) else one_line(str(value)) or "none"


def command(folder: Path, config: dict[str, Any]) -> str:
    """The command that repeats the run under another name."""
    program = "transfer" if "source" in config else "train"
    words = ["jaxcnn", program, "--config", str(folder / "config.json"), "--name", f"{folder.name}_again"]
    return shlex.join(words)
