"""Publishing a finished run's network as a folder in the layout of the Hugging Face hub."""

import json
import shutil
from pathlib import Path

from jaxcnn.errors import InputError, MachineError, reason, require
from jaxcnn.files import is_there, whole_folder, write_json, write_text
from jaxcnn.runs.finished import read_finished, training_settings
from jaxcnn.runs.model_card import About, card_text
from jaxcnn.runs.present import present
from jaxcnn.weights import pytorch_network
from jaxcnn.weights.card import KEY, to_metadata
from jaxcnn.weights.files import write_state_dict
from jaxcnn.weights.onnx_file import require_onnx, write_onnx
from jaxcnn.weights.source import read_source

_PICTURES = {"confusion.png": "Confusion matrix of the test images", "curves.png": "Loss and accuracy by epoch"}
_FILES = {"model.safetensors", "config.json", "model.py", "model.onnx", "README.md", *_PICTURES}
"""All that a published folder may hold."""


def publish(run: Path, folder: Path, about: About, *, onnx: bool = False, overwrite: bool = False) -> None:
    """Writes the weights of a finished run's best epoch, PyTorch code that uses them, and a model card.

    The folder is written completely or not at all. Pictures that the run does not have yet are drawn first.

    Args:
        run: the run's folder.
        folder: the folder to write.
        about: facts for the card that the run's folder does not contain.
        onnx: also write `model.onnx`; needs the extra `onnx`.
        overwrite: replace a published model.

    Raises:
        InputError: when the run is not finished, or the folder exists and may not be replaced.
        MachineError: when the folder cannot be written.
    """
    named = about.license.replace("-", "").replace(".", "").isalnum()
    require(named, "license", about.license, "give an abbreviation as mit, apache-2.0 or cc-by-4.0, or unknown")
    finished = read_finished(run)
    if onnx:
        require_onnx()
    if is_there(folder):
        _require_replaceable(folder, overwrite)
    variables, model, _, _, card = read_source(run)
    if card is None or not (card.mean and card.std):
        raise InputError(f"{run} does not tell mean and std of its images, which a published model needs")
    names = list(card.class_names) or [str(label) for label in range(model.num_classes)]
    present(run)
    try:
        with whole_folder(folder) as new:
            metadata = to_metadata(model, card)
            write_state_dict(new / "model.safetensors", variables, model, metadata)
            described = {**json.loads(metadata[KEY]), "class_names": names, "training": training_settings(finished)}
            write_json(new / "config.json", described)
            write_text(new / "model.py", Path(pytorch_network.__file__).read_text(encoding="utf-8"))
            figures = {file: title for file, title in _PICTURES.items() if (run / file).is_file()}
            for file in figures:
                shutil.copyfile(run / file, new / file)
            if onnx:
                write_onnx(new / "model.onnx", pytorch_network.load(new))
            write_text(new / "README.md", card_text(finished, card, names, about, figures=figures, onnx=onnx))
    except OSError as error:
        raise MachineError(f"cannot write {folder}: {reason(error)}; free space or give another destination") from error


def _require_replaceable(folder: Path, overwrite: bool) -> None:
    """Refuses what is no published model, and one that holds something of the user's own, such as `.git`.

    Raises:
        InputError: also when `overwrite` is false.
    """
    if not (folder / "config.json").is_file() or not (folder / "model.py").is_file():
        raise InputError(f"{folder} exists and is no published model; give another folder")
    if not overwrite:
        raise InputError(f"{folder} exists; give another folder or --overwrite")
    if foreign := sorted({path.name for path in folder.iterdir()} - _FILES):
        raise InputError(f"{folder} holds {foreign[0]!r}, which --overwrite would remove; give another folder")
