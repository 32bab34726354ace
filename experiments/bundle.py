"""Make the weights that come with the project of a finished run: rounded to float16, measured, and with a card.

    python -m experiments.bundle runs/cifar10_shallow jaxcnn/pretrained/cifar10-shallow.safetensors \
        --origin "..." --command "..." --hardware "..." --license mit

writes the file and, beside it, its card (`.md`). Both sets of weights classify the run's test images, which are read
again by the run's own settings.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import tyro

from jaxcnn.cli.flags import parse_flags
from jaxcnn.cli.main import main
from jaxcnn.config.network import NetworkOverrides
from jaxcnn.errors import InputError, local_path
from jaxcnn.files import write_text

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Flags:
    """Which run, where to, and what the card has to say that the run's folder does not tell."""

    run: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
    """The folder of a finished run."""
    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    """The .safetensors file to write; its name without the suffix is the name of the weights."""
    origin: str
    """Where the images come from, and under which terms."""
    command: str
    """That trains such a network."""
    hardware: str
    """That the network was trained on."""
    license: str = "unknown"
    """Of the weights."""
    dataset: str = ""
    """What the card calls the data set, if not as the run does."""
    data_dir: Path | None = None
    """Where the images are now, if not where the run read them."""


def bundle(flags: Flags) -> None:
    """Writes the file and its card.

    Raises:
        InputError: when the run cannot be used, its test images are others than it had, or float16 cannot hold it.
    """
    from jaxcnn.data.sets import load_dataset
    from jaxcnn.runs.finished import read_finished
    from jaxcnn.runs.model_card import About, card_text
    from jaxcnn.weights.card import to_metadata
    from jaxcnn.weights.classifier import read_classifier
    from jaxcnn.weights.files import write_state_dict

    run, file = local_path("run", flags.run), local_path("file", flags.file)
    if file.suffix != ".safetensors":
        raise InputError(f"{file} is not usable: give the name of a .safetensors file")
    finished = read_finished(run)
    trained = read_classifier(run, NetworkOverrides())
    model, card = trained.config, trained.card
    data = finished.config.data
    if flags.data_dir is not None:
        data = replace(data, dir=local_path("--data-dir", flags.data_dir))
    test = load_dataset(
        data, input_size=model.input_size, in_channels=model.in_channels, seed=finished.config.seed
    ).test
    before = trained.predict_proba(test.images)
    if abs(_accuracy(before, test.labels) - finished.summary["test_accuracy"]) > 0.1:
        raise InputError(f"the test images are not those of {run}: its accuracy on them is another; give --data-dir")
    rounded = to_float16(trained.variables)
    with TemporaryDirectory() as folder:  # what is measured is what is read back
        write_state_dict(Path(folder) / file.name, rounded, model, to_metadata(model, card))
        after = read_classifier(Path(folder) / file.name, NetworkOverrides()).predict_proba(test.images)
    about = About(
        name=file.stem,
        dataset=flags.dataset,
        license=flags.license,
        origin=flags.origin,
        command=flags.command,
        hardware=flags.hardware,
        rounding=_compared(before, after, test.labels),
    )
    text = card_text(finished, card, trained.classes.tolist(), about)
    write_state_dict(file, rounded, model, to_metadata(model, card))
    write_text(file.with_suffix(".md"), text)
    print(about.rounding)
    print(f"wrote {file} ({file.stat().st_size:,} bytes) and {file.with_suffix('.md')}")


def to_float16(variables: Any) -> Any:
    """The variables with float16 in place of other floating-point numbers.

    Raises:
        InputError: when one is too large for that.
    """
    import jax

    def rounded(leaf: Any) -> Array:
        array = np.asarray(leaf)
        if array.dtype.kind != "f":
            return array
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        if not np.isfinite(half).all():
            raise InputError("a weight is larger than float16 can hold; bundle another run")
        return half

    return jax.tree.map(rounded, variables)


def _accuracy(probabilities: Array, labels: Array) -> float:
    return float(100 * np.mean(probabilities.argmax(-1) == labels))


def _compared(before: Array, after: Array, labels: Array) -> str:
    """Both accuracies as Markdown, and how far the probabilities are apart."""
    from jaxcnn.runs.tables import markdown_text

    n = f"{len(labels):,}"
    rows = [
        (name, f"{np.sum(each.argmax(-1) == labels):,} of {n}", f"{_accuracy(each, labels):.2f}")
        for name, each in (("float32, as trained", before), ("float16, as in the file", after))
    ]
    changed = int(np.sum(before.argmax(-1) != after.argmax(-1)))
    return (
        markdown_text(("weights", "right", "accuracy (%)"), rows)
        + f"\n{changed} of {n} predictions differ. The largest difference of a probability is "
        f"{np.abs(before - after).max():.2g}.\nThe weights are widened to float32 when they are read. All other "
        "figures here are those before rounding."
    )


def program(argv: Sequence[str]) -> None:
    """Runs what the command line asks for."""
    bundle(parse_flags(Flags, __doc__, argv))


if __name__ == "__main__":
    main(lambda: program(sys.argv[1:]), continues=False)
