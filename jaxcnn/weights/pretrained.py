"""The trained weights that come with the project, by name."""

from pathlib import Path

from jaxcnn.files import is_there

DEFAULT = Path("cifar10-shallow")
"""What `predict` takes if no model is given: SHALLOW, trained on CIFAR-10."""

_FOLDER = Path(__file__).parents[1] / "pretrained"


def pretrained_names() -> list[str]:
    """The names that `locate_weights` knows."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def locate_weights(path: Path) -> Path:
    """The file of a name, unless a file or folder of that name is there; any other path as it is."""
    named = str(path) in pretrained_names() and not is_there(path)
    return _FOLDER / f"{path}.safetensors" if named else path


def or_a_name() -> str:
    """For messages that say what may be given in place of a path that is not there."""
    names = pretrained_names()
    return f", or a name of weights that come with the project: {', '.join(names)}" if names else ""
