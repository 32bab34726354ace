"""Publish a finished run's network: a folder with weights, a card, and code of PyTorch that needs nothing of jaxcnn."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from jaxcnn.cli.flags import parse_flags
from jaxcnn.errors import local_path


@dataclass(frozen=True)
class Flags:
    """Which run's network to publish, and where."""

    folder: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FOLDER")]
    """The folder to write, laid out as on the Hugging Face hub."""
    model: Path
    """The folder of a finished run."""
    license: str = "unknown"
    """Of the model, as the hub abbreviates it: mit, apache-2.0, cc-by-4.0 ..."""
    onnx: bool = False
    """Write model.onnx too; needs the extra onnx."""
    overwrite: bool = False
    """Replace a model that was published in the folder before."""


def program(argv: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    flags = parse_flags(Flags, __doc__, argv)
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.device import select_device
    from jaxcnn.runs.model_card import About
    from jaxcnn.runs.publish import publish

    run, folder = local_path("--model", flags.model), local_path("folder", flags.folder)
    select_device("cpu")  # which is enough to copy weights
    publish(run, folder, About(license=flags.license), onnx=flags.onnx, overwrite=flags.overwrite)
    Terminal(soft_wrap=True, highlight=False).print(f"wrote {folder}", markup=False)
