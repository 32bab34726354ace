"""A model card: what the model is, how it was trained, its accuracy and its limits."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import TransferConfig
from jaxcnn.runs.finished import Finished
from jaxcnn.runs.tables import escape_markdown, markdown_text

_HUB = {"cifar10": "uoft-cs/cifar10", "cifar100": "uoft-cs/cifar100", "svhn": "ufldl-stanford/svhn"}
"""Names of data sets on the Hugging Face hub."""

_FIGURES = (
    ("test_accuracy", "accuracy (%)", "{:.2f}"),
    ("top5_accuracy", "top-5 accuracy (%)", "{:.2f}"),
    ("balanced_accuracy", "balanced accuracy (%)", "{:.2f}"),
    ("test_loss", "cross-entropy (nats)", "{:.4f}"),
    ("calibration_error", "expected calibration error", "{:.4f}"),
    ("temperature", "temperature, fitted on the validation images", "{:.3f}"),
)
_COLUMNS = {"images": "{:.0f}", "accuracy": "{:.2f}", "precision": "{:.4f}", "f1": "{:.4f}"}
"""The columns of `classes.csv` to show, if they exist, and their formats. Recall equals accuracy."""


class About(NamedTuple):
    """Facts for the card that a run's folder does not contain, as Markdown. Empty fields are left out."""

    name: str = ""
    """Name of the model; if empty, the run's name."""
    dataset: str = ""
    """Name of the data set; if empty, the hub's or the run's."""
    license: str = "unknown"
    """Licence, abbreviated as on the Hugging Face hub."""
    origin: str = ""
    """Where the images come from, and their terms of use."""
    command: str = ""
    """Command that trains such a network."""
    hardware: str = ""
    """Hardware that the network was trained on; if empty, the device that the run recorded."""
    rounding: str = ""
    """What rounding the weights to float16 changed."""


def card_text(
    run: Finished,
    card: Card,
    class_names: Sequence[str],
    about: About,
    *,
    figures: Mapping[str, str] | None = None,
    onnx: bool = False,
) -> str:
    """The card of a run's network, as Markdown with the front matter of the Hugging Face hub.

    Args:
        run: the finished run.
        card: preprocessing of the run's network.
        class_names: names of the classes, in the order of the labels.
        about: facts that the run's folder does not contain.
        figures: titles of the pictures beside the card, by file name.
        onnx: whether `model.onnx` is beside the card.
    """
    summary: dict[str, Any] = {**run.summary}
    tested = [each for each in run.classes if each.get("accuracy")]
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": lambda value: json.dumps(value, ensure_ascii=False), "text": _text}
    shown = [(title, form.format(summary[key])) for key, title, form in _FIGURES if summary.get(key) is not None]
    return environment.get_template("model_card.md").render(
        about=about,
        name=about.name or summary["name"],
        dataset=about.dataset or _HUB.get(summary["dataset"], summary["dataset"]),
        summary=summary,
        model=run.config.model,
        class_names=class_names,
        images=run.images,
        test_origin=run.test_origin,
        resize=card.resize,
        mean=", ".join(f"{value:.4f}" for value in card.mean),
        std=", ".join(f"{value:.4f}" for value in card.std),
        settings=markdown_text(("setting", "value"), _settings(run, about)),
        steered_by_test=run.config.protocol == "original",
        calibrated=summary.get("temperature") is not None,
        figures_table=markdown_text(("on the test images", ""), shown),
        classes=_classes_table(run.classes),
        worst=min(tested, key=lambda each: float(each["accuracy"]), default=None),
        figures=[{"file": file, "title": title} for file, title in (figures or {}).items()],
        onnx=onnx,
    )


def _settings(run: Finished, about: About) -> list[tuple[str, str]]:
    """Rows of the table that says how the run was trained."""
    config, summary = run.config, run.summary
    optim, train, data = config.optim, config.train, config.data
    transfer = config if isinstance(config, TransferConfig) else None
    versions = run.conditions.get("versions", {})
    rows = {
        "epochs": f"{summary['epochs']} of at most {train.epochs} ({summary['stopped']})",
        "weights": f"those of epoch {summary['best_epoch']}",
        "seed": config.seed,
        "batch size": train.batch_size,
        "optimiser": f"{optim.optimizer}, weight decay {optim.weight_decay}",
        "learning rate": f"{optim.learning_rate}, {optim.schedule}, {optim.warmup_epochs:g} epochs of warm-up",
        "label smoothing": optim.label_smoothing or None,
        "class weights": None if train.class_weights == "none" else train.class_weights,
        "augmentation": data.augment,
        "share of the training images": None if data.fraction == 1 else data.fraction,
        "labels": ", ".join(map(str, data.classes)) or None,
        "began with": transfer and transfer.source.name,
        "copied": _stages(None if transfer is None else transfer.copied_stages),
        "frozen": transfer and (_stages(config.freeze.frozen_stages) or config.freeze.mask),
        "computed in": train.precision,
        "computed on": about.hardware or run.conditions.get("device"),
        "with": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return [(name, _line(value)) for name, value in rows.items() if value is not None]


def _stages(number: int | None) -> str | None:
    return None if number is None else f"{number} stages, counted from the input"


def _classes_table(classes: Sequence[Mapping[str, str]]) -> str:
    columns = [name for name in _COLUMNS if classes and name in classes[0]]
    header = ("class", *("accuracy (%)" if name == "accuracy" else name for name in columns))
    rows = [(_line(each["class"]), *(_number(each[name], _COLUMNS[name]) for name in columns)) for each in classes]
    return markdown_text(header, rows)


def _number(cell: str, form: str) -> str:
    return form.format(float(cell)) if cell else ""


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _text(value: object) -> str:
    """A text as one line of Markdown, with markup escaped."""
    return escape_markdown(_line(value))
