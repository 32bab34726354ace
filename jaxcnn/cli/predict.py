"""Classify images with a trained network: a table of the most probable classes, and files of all probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcnn.cli.flags import parse_flags
from jaxcnn.config.experiment import Device
from jaxcnn.config.network import Resize, Untold
from jaxcnn.errors import InputError, local_path, require_int

if TYPE_CHECKING:
    from jaxcnn.runs.predictions import Prediction
    from jaxcnn.weights.classifier import Classifier


@dataclass(frozen=True)
class Flags(Untold):
    """Which images to classify, and with what. Give the images first, or after --."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_OR_FOLDER ...")]
    """Image files, and folders, which stand for all files in and below them."""
    model: Path
    """The network: a run's folder, a model.safetensors or model.pth, or an Orbax checkpoint."""
    top_k: int | None = None
    """How many classes of each image the table shows; 3, or all if there are fewer."""
    csv: Path | None = None
    """A file for one row an image, with the probabilities of all classes."""
    json: Path | None = None
    """The same as JSON."""
    skip_broken: bool = False
    """Leave out files that cannot be read as images, and list them in the end."""
    device: Device = "auto"
    """Where to compute; auto takes the best that JAX finds."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes by label, instead of what the model tells or 0, 1, 2 ..."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel of the training images, divided by 255, instead of what the model tells."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    resize: Resize | None = None
    """How images of other sizes become squares, instead of what the model tells or squash."""


def predict(flags: Flags) -> None:
    """Classifies, and prints and writes what came of it.

    Raises:
        InputError: when the model or an image cannot be used, or a file cannot be written.
    """
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.device import select_device
    from jaxcnn.runs.folder import is_unfinished
    from jaxcnn.runs.predictions import accuracy, predictions_table, untold, write_csv, write_json
    from jaxcnn.weights.classifier import image_files, read_classifier

    if not flags.images:
        raise InputError("there is nothing to classify; give at least one image or folder, before the flags")
    if flags.top_k is not None:
        require_int("--top-k", flags.top_k, least=1)
    files: dict[Path, Path] = {}  # with the argument that each comes from; a file counts once
    for argument in (local_path("images", each) for each in flags.images):
        files |= {file: argument for file in image_files(argument) if file not in files}
    select_device(flags.device)
    model = local_path("--model", flags.model)
    classifier = read_classifier(
        model,
        flags,
        class_names=flags.class_names,
        mean=flags.mean,
        std=flags.std,
        resize=flags.resize,
    )
    console = Terminal(soft_wrap=True, highlight=False)
    for assumption in classifier.assumed:
        console.print(f"assumed, as the model does not tell: {assumption}", markup=False)
    for note in classifier.notes:
        console.print(note, markup=False)
    if (temperature := classifier.card.temperature) != 1:
        console.print(f"probabilities are those of the logits divided by {temperature:.4g}, which validation chose")
    if is_unfinished(model if model.is_dir() else model.parent):
        console.print(f"the run of {model} is not finished; its best epoch so far is taken", markup=False)
    classes = [str(name) for name in classifier.classes]
    predictions, broken = _classify(classifier, classes, files, flags.skip_broken)
    if not predictions:
        raise InputError(f"none of the files is an image that can be used; the first: {broken[0]}")
    console.print(predictions_table(predictions, classes, min(flags.top_k or 3, len(classes))))
    if more := untold(predictions):
        console.print(f"and {more:,} images more; --csv and --json write all")
    if found := accuracy(predictions):
        console.print(f"accuracy {found[0]:.2f} % of {found[1]:,} images whose folders name their class")
    if broken:
        console.print(f"{len(broken):,} files were left out:")
        for why in broken:
            console.print(str(why).rpartition("; ")[0], markup=False)
    for name, given, write in (("--csv", flags.csv, write_csv), ("--json", flags.json, write_json)):
        if given is not None:
            path = local_path(name, given)
            write(path, predictions, classes)
            console.print(f"wrote {path}", markup=False)


def _classify(
    classifier: "Classifier", classes: Sequence[str], files: dict[Path, Path], skip_broken: bool
) -> tuple[list["Prediction"], list[InputError]]:
    """The predictions of files that are given with the arguments they come from, and why others are left out."""
    from jaxcnn.runs.predictions import Prediction

    predictions, broken = [], []
    for (file, argument), probabilities in zip(files.items(), classifier.each(list(files)), strict=True):
        if not isinstance(probabilities, InputError):
            label, best = _label(file, argument, classifier.card.class_names), classes[int(probabilities.argmax())]
            predictions.append(Prediction(file, label, best, probabilities))
        elif skip_broken:
            broken.append(probabilities)
        else:
            raise InputError(f"{probabilities}, or give --skip-broken")
    return predictions, broken


def _label(file: Path, argument: Path, class_names: Sequence[str]) -> str | None:
    """The class that a file's folder names, below the folder that was given."""
    folder = file.parent.name
    return folder if file.parent != argument and file != argument and folder in class_names else None


def program(argv: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    predict(parse_flags(Flags, __doc__, argv))
