"""The trained weights that come with the project, by name."""

from pathlib import Path

from jaxcnn.files import is_there

DEFAULT = Path("cifar10-shallow")
"""The model that `predict` uses if none is given: SHALLOW, trained on CIFAR-10."""

_FOLDER = Path(__file__).parents[1] / "pretrained"


def pretrained_names() -> list[str]:
    """The names of the weights in the package."""
    return sorted(path.stem for path in _FOLDER.glob("*.safetensors"))


def locate_weights(path: Path) -> Path:
    """The path of the weights with this name. A file or folder of that name takes precedence, and other paths are
    returned unchanged."""
    named = str(path) in pretrained_names() and not is_there(path)
    return _FOLDER / f"{path}.safetensors" if named else path


def names_hint() -> str:
    """The part of a message that lists the names, for a path that does not exist."""
    names = pretrained_names()
    return f", or a name of weights that come with the project: {', '.join(names)}" if names else ""
