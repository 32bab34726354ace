"""Starting a program by name: `jaxcnn NAME ...`, or in a checkout `python -m experiments.NAME ...`."""

import signal
import sys
from collections.abc import Callable, Sequence
from importlib import import_module

from jaxcnn.errors import JaxcnnError
from jaxcnn.runs.signals import CONTINUES, as_interrupted, raise_on_signal
from jaxcnn.runs.streams import standard_streams

PROGRAMS = {
    "train": "train on any of the data sets",
    "cifar10": "train on CIFAR-10 with the original's settings",
    "cifar100": "train on CIFAR-100 with the original's settings",
    "svhn": "train on SVHN with the original's settings",
    "baselines": "train these three one after the other, and compare them",
    "transfer": "transfer saved weights to another data set",
    "study": "compare settings, masks or depths over seeds, with intervals",
    "predict": "classify images with a trained network",
    "report": "draw the figures and the page of finished runs again; compare runs",
    "convert": "convert weights between PyTorch, safetensors and checkpoints",
    "publish": "write a run's network as a folder to hand on, with a card",
    "quickstart": "pretrain, transfer and compare on images that need no download",
}
"""The programs and what they do."""

_START_AGAIN = ("predict", "report", "convert", "publish")
"""Programs that leave nothing to continue."""


def find_program(name: str) -> Callable[[Sequence[str]], None]:
    """The function that runs a program with its flags. JAX is imported only when it is called."""
    if name in ("cifar10", "cifar100", "svhn"):
        train = import_module("jaxcnn.cli.train").program
        return lambda argv: train(argv, name)
    found: Callable[[Sequence[str]], None] = import_module(f"jaxcnn.cli.{name}").program
    return found


def run_program(name: str, argv: Sequence[str] | None = None) -> None:
    """Runs a program by name, with the arguments of this process if `argv` is None."""
    arguments = sys.argv[1:] if argv is None else argv
    main(lambda: find_program(name)(arguments), continues=name not in _START_AGAIN)


def main(program: Callable[[], object], *, continues: bool = True) -> None:
    """Runs a program. A JaxcnnError becomes one message on stderr and status 2, a signal status 128 + its number.

    Args:
        program: a function without arguments.
        continues: whether the same command continues after a signal, which the message then says.
    """
    with standard_streams():
        try:
            with raise_on_signal():
                program()
        except JaxcnnError as error:
            print(f"error: {error}", file=sys.stderr)
            raise SystemExit(2) from None
        except KeyboardInterrupt as error:
            interrupted = as_interrupted(error)
            print(f"{interrupted}; {CONTINUES}" if continues else interrupted, file=sys.stderr)
            raise SystemExit(interrupted.status) from None
        except BrokenPipeError:  # the reader of our output has closed the pipe, as head does
            raise SystemExit(128 + signal.SIGPIPE) from None


def console() -> None:
    """The console script `jaxcnn`: the first argument names the program."""
    name, *argv = sys.argv[1:] or ["--help"]
    if name == "--version":
        from jaxcnn import __version__

        print(f"jaxcnn {__version__}")
    elif name in ("--help", "-h"):
        print("usage: jaxcnn PROGRAM [flags]\n       jaxcnn PROGRAM --help\n       jaxcnn --version\n\nprograms:")
        for program, what in PROGRAMS.items():
            print(f"  {program:<12}{what}")
    elif name in PROGRAMS:
        run_program(name, argv)
    else:
        print(f"error: there is no program {name!r}; there are {', '.join(PROGRAMS)}", file=sys.stderr)
        raise SystemExit(2)
