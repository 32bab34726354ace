"""A model's card: what it is, how it was made, how good it is and what it is not good for."""

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
"""What the Hugging Face hub calls data sets."""

_FIGURES = (
    ("test_accuracy", "accuracy (%)", "{:.2f}"),
    ("top5_accuracy", "top-5 accuracy (%)", "{:.2f}"),
    ("balanced_accuracy", "balanced accuracy (%)", "{:.2f}"),
    ("test_loss", "cross-entropy (nats)", "{:.4f}"),
    ("calibration_error", "expected calibration error", "{:.4f}"),
    ("temperature", "temperature, fitted on the validation images", "{:.3f}"),
)
_COLUMNS = {"images": "{:.0f}", "accuracy": "{:.2f}", "precision": "{:.4f}", "f1": "{:.4f}"}
"""What is shown of `classes.csv`, where it is there, and how. Recall is what it calls accuracy."""


class About(NamedTuple):
    """What a run's folder does not tell, as Markdown; nothing is said of what is empty."""

    name: str = ""
    """Of weights that come with the project; of others it is the run's."""
    dataset: str = ""
    """What to call the data set, if not as the run does."""
    license: str = "unknown"
    """As the Hugging Face hub abbreviates it."""
    origin: str = ""
    """Where the images come from, and under which terms."""
    command: str = ""
    """That trains such a network."""
    hardware: str = ""
    """That it was trained on."""
    rounding: str = ""
    """What rounding the weights changed."""


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
        run: what it tells.
        card: what belongs to its network.
        class_names: by label.
        about: what the run does not tell.
        figures: titles of pictures that lie beside the card, by file name.
        onnx: whether `model.onnx` does.
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
    """Rows that say how a run was trained."""
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
    """A text in one line of Markdown, with nothing in it read as markup."""
    return escape_markdown(_line(value))
