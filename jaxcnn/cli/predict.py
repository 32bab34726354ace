"""Classify images with a trained network: a table of the most probable classes, and files of all probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from jaxcnn.cli.flags import parse_flags
from jaxcnn.config.experiment import Device
from jaxcnn.config.network import NetworkOverrides, Resize
from jaxcnn.errors import InputError, local_path, require_int
from jaxcnn.weights.pretrained import DEFAULT, locate_weights

if TYPE_CHECKING:
    from jaxcnn.runs.predictions import Prediction
    from jaxcnn.weights.classifier import Classifier


@dataclass(frozen=True)
class Flags(NetworkOverrides):
    """The images and the network. Give the images first, or after --."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE_OR_FOLDER ...")]
    """Image files, and folders, of which all files are classified, in subfolders too."""
    model: Path = DEFAULT
    """The network: a run's folder, a published model's folder, a model.safetensors or model.pth, an Orbax checkpoint,
    or the name of weights that come with the project."""
    top_k: int | None = None
    """Number of classes that the table shows for each image; if not given, 3 or all."""
    csv: Path | None = None
    """CSV file to write: one row per image, with the probabilities of all classes."""
    json: Path | None = None
    """JSON file to write, with the same content."""
    skip_broken: bool = False
    """Leave out files that cannot be read as images, and list them at the end."""
    device: Device = "auto"
    """Device to compute on; auto takes the best one that JAX finds."""
    class_names: tuple[str, ...] | None = None
    """Names of the classes in the order of the labels; if not given, what the model contains, or 0, 1, 2 ..."""
    mean: tuple[float, ...] | None = None
    """Mean of each channel of the training images, for pixels in [0, 1]; if not given, what the model contains."""
    std: tuple[float, ...] | None = None
    """Standard deviation of each channel, likewise."""
    resize: Resize | None = None
    """How images of other sizes are resized; if not given, what the model contains, or squash."""


def predict(flags: Flags) -> None:
    """Classifies images, and prints and writes the predictions.

    Raises:
        InputError: when the model or an image cannot be used.
        MachineError: when a file cannot be written.
    """
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.device import select_device
    from jaxcnn.runs.folder import is_unfinished
    from jaxcnn.runs.predictions import accuracy, count_omitted, predictions_table, write_csv, write_json
    from jaxcnn.weights.classifier import image_files, read_classifier

    if not flags.images:
        raise InputError("there is nothing to classify; give at least one image or folder, before the flags")
    if flags.top_k is not None:
        require_int("--top-k", flags.top_k, least=1)
    files: dict[Path, Path] = {}  # each file once, with the argument that it comes from
    for argument in (local_path("images", each) for each in flags.images):
        files |= {file: argument for file in image_files(argument) if file not in files}
    select_device(flags.device)
    model = locate_weights(local_path("--model", flags.model))
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
        console.print(f"assumed, because the model's files do not say: {assumption}", markup=False)
    for note in classifier.notes:
        console.print(note, markup=False)
    if (temperature := classifier.card.temperature) != 1:
        console.print(f"probabilities are those of the logits divided by {temperature:.4g}, which validation chose")
    if is_unfinished(model if model.is_dir() else model.parent):
        console.print(f"the run of {model} is not finished; its best epoch so far is used", markup=False)
    classes = [str(name) for name in classifier.classes]
    predictions, broken = _classify(classifier, classes, files, flags.skip_broken)
    if not predictions:
        raise InputError(f"none of the files is an image that can be used; the first: {broken[0]}")
    console.print(predictions_table(predictions, classes, min(flags.top_k or 3, len(classes))))
    if more := count_omitted(predictions):
        console.print(f"and {more:,} more images; --csv and --json write all")
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
    """Classifies files.

    Args:
        classifier: the network.
        classes: names of the classes.
        files: each file with the argument that it comes from.
        skip_broken: go on after a file that cannot be used.

    Returns:
        The predictions, and the errors of the files that were left out.

    Raises:
        InputError: when a file cannot be used, unless `skip_broken`.
    """
    from jaxcnn.runs.predictions import Prediction

    predictions, broken = [], []
    for (file, argument), probabilities in zip(files.items(), classifier.iterate(list(files)), strict=True):
        if not isinstance(probabilities, InputError):
            label, best = _label(file, argument, classifier.card.class_names), classes[int(probabilities.argmax())]
            predictions.append(Prediction(file, label, best, probabilities))
        elif skip_broken:
            broken.append(probabilities)
        else:
            raise InputError(f"{probabilities}, or give --skip-broken")
    return predictions, broken


def _label(file: Path, argument: Path, class_names: Sequence[str]) -> str | None:
    """The class of a file: the name of its folder, if that is a class and a subfolder of the argument; else None."""
    folder = file.parent.name
    return folder if file.parent != argument and file != argument and folder in class_names else None


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments."""
    predict(parse_flags(Flags, __doc__, argv))
