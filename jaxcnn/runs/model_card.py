"""A model's card: what it is, how it was made, how good it is and what it is not good for."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from jaxcnn.config.card import Card
from jaxcnn.config.experiment import RESOLVED
from jaxcnn.config.network import ModelConfig
from jaxcnn.errors import InputError
from jaxcnn.runs.folder import read_json, read_summary
from jaxcnn.runs.tables import escape_markdown, markdown_text, read_table

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
_COLUMNS = {"images": "{:.0f}", "accuracy": "{:.2f}", "precision": "{:.4f}", "recall": "{:.4f}", "f1": "{:.4f}"}
"""What is shown of `classes.csv`, where it is there, and how."""


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


def require_finished(run: Path) -> None:
    """Refuses what is no folder of a finished run.

    Raises:
        InputError: naming what is missing.
    """
    for name in ("config.json", "summary.json", "classes.csv"):
        if not (run / name).is_file():
            raise InputError(f"{run} is no folder of a finished run: it has no {name}; give one, or finish the run")


def training_settings(run: Path) -> dict[str, Any]:
    """Every setting of a run, and what it was computed with, but not where its files lie on this machine."""
    config = read_json(run / "config.json")
    resolved = config.get(RESOLVED, {})
    sections = {name: config.get(name, {}) for name in ("seed", "protocol", "data", "optim", "train", "freeze")}
    data = {name: value for name, value in sections["data"].items() if name not in ("dir", "archives")}
    data["name"] = read_summary(run / "summary.json")["dataset"]
    transfer = {"source": Path(config["source"]).name, "head": config.get("head")} if "source" in config else {}
    return {
        **sections,
        "data": data,
        **transfer,
        **{name: resolved[name] for name in ("versions", "python", "device", "images") if name in resolved},
    }


def card_text(
    run: Path,
    model: ModelConfig,
    card: Card,
    class_names: Sequence[str],
    about: About,
    *,
    figures: Mapping[str, str] | None = None,
    onnx: bool = False,
) -> str:
    """The card of a finished run's network, as Markdown with the front matter of the Hugging Face hub.

    Args:
        run: the run's folder.
        model: the network.
        card: what belongs to it.
        class_names: by label.
        about: what the folder does not tell.
        figures: titles of pictures that lie beside the card, by file name.
        onnx: whether `model.onnx` does.

    Raises:
        InputError: when the folder is no finished run's, or damaged.
    """
    require_finished(run)
    summary: dict[str, Any] = {**read_summary(run / "summary.json")}
    training = training_settings(run)
    resolved = read_json(run / "config.json").get(RESOLVED, {})
    classes = _classes(run / "classes.csv")
    tested = [each for each in classes if each.get("accuracy")]
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
        model=model,
        class_names=class_names,
        images=resolved.get("images", {"train": 0, "validation": 0, "test": sum(int(c["images"]) for c in classes)}),
        test_origin=resolved.get("test_origin", "test"),
        resize=card.resize,
        mean=", ".join(f"{value:.4f}" for value in card.mean),
        std=", ".join(f"{value:.4f}" for value in card.std),
        settings=markdown_text(("setting", "value"), _settings(training, summary, about)),
        tested_by_test=training["protocol"] == "original",
        figures_table=markdown_text(("on the test images", ""), shown),
        classes=_classes_table(classes),
        worst=min(tested, key=lambda each: float(each["accuracy"]), default=None),
        figures=[{"file": file, "title": title} for file, title in (figures or {}).items()],
        onnx=onnx,
    )


def _settings(training: Mapping[str, Any], summary: Mapping[str, Any], about: About) -> list[tuple[str, str]]:
    """Rows that say how a run was trained."""
    optim, train, data, freeze = (training[name] for name in ("optim", "train", "data", "freeze"))
    versions = training.get("versions", {})
    rows = {
        "epochs": f"{summary['epochs']} of at most {train.get('epochs')} ({summary['stopped']})",
        "weights": f"those of epoch {summary['best_epoch']}",
        "seed": training["seed"],
        "batch size": train.get("batch_size"),
        "optimiser": f"{optim.get('optimizer')}, weight decay {optim.get('weight_decay')}",
        "learning rate": f"{optim.get('learning_rate')}, {optim.get('schedule')}, "
        f"{optim.get('warmup_epochs', 0)} epochs of warm-up",
        "label smoothing": optim.get("label_smoothing") or None,
        "class weights": None if train.get("class_weights") == "none" else train.get("class_weights"),
        "augmentation": data.get("augment"),
        "share of the training images": None if data.get("fraction", 1.0) == 1 else data["fraction"],
        "labels": data.get("classes") or None,
        "began with": training.get("source"),
        "frozen": freeze.get("mask") if "source" in training else None,
        "computed in": train.get("precision", "float32"),
        "computed on": about.hardware or training.get("device"),
        "with": ", ".join(f"{name} {version}" for name, version in versions.items()) or None,
    }
    return [(name, _line(value)) for name, value in rows.items() if value is not None]


def _classes(path: Path) -> list[dict[str, str]]:
    """The lines of `classes.csv`, with the class under `name`."""
    header, *rows = read_table(path)
    if not {"class", "images"} <= set(header):
        raise InputError(f"{path} has no columns class and images; --overwrite begins the run again")
    return [{**(cells := dict(zip(header, row, strict=True))), "name": cells["class"]} for row in rows]


def _classes_table(classes: Sequence[Mapping[str, str]]) -> str:
    columns = [name for name in _COLUMNS if classes and name in classes[0]]
    header = ("class", *("accuracy (%)" if name == "accuracy" else name for name in columns))
    rows = [(_line(each["name"]), *(_number(each[name], _COLUMNS[name]) for name in columns)) for each in classes]
    return markdown_text(header, rows)


def _number(cell: str, form: str) -> str:
    return form.format(float(cell)) if cell else ""


def _line(value: object) -> str:
    return " ".join(str(value).split())


def _text(value: object) -> str:
    """A text in one line of Markdown, with nothing in it read as markup."""
    return escape_markdown(_line(value))
