"""Command line flags, generated from the configuration dataclasses."""

import contextlib
import io
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import tyro

from jaxcnn.cli.config_file import read_config
from jaxcnn.config.experiment import DataConfig, Existing, ExperimentConfig
from jaxcnn.config.network import PRESETS, ModelConfig
from jaxcnn.config.training import FreezeConfig
from jaxcnn.errors import InputError, local_path

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

Config = TypeVar("Config", bound="DataclassInstance")

WEIGHT_FILES = (".pth", ".pt", ".safetensors")
"""Suffixes of files that hold weights."""


@dataclass(frozen=True)
class _ModelFlags(ModelConfig):
    num_classes: tyro.conf.Suppress[int] = 10  # comes from the data set, so it is not a flag
    preset: Literal["shallow", "deep", "as given"] = "shallow"
    """One of the original's networks. Other model flags change it."""


@dataclass(frozen=True)
class Flags(ExperimentConfig):
    """The flags of a training run."""

    model: _ModelFlags = field(default_factory=_ModelFlags)
    """Network."""
    freeze: tyro.conf.Suppress[FreezeConfig] = field(default_factory=FreezeConfig)
    config: Path | None = None
    """A saved config.json to start from; other flags change it."""
    overwrite: bool = False
    """Delete an existing run in this folder and start again."""
    extend: bool = False
    """Train an existing run for more epochs."""


@dataclass(frozen=True)
class HostFlags:
    """The flags of a run that several processes train together, usually one on each host."""

    coordinator: str = ""
    """HOST:PORT of process 0. This and the next two flags are needed, except in a step of SLURM, under Open MPI's
    mpirun and on a TPU pod, where the processes find each other."""
    processes: int | None = None
    """The number of processes that train this run together."""
    process: int | None = None
    """The number of this process, from 0."""


@dataclass(frozen=True)
class RunFlags(Flags, HostFlags):
    """The flags of a training run, on one host or several."""


AnyFlags = TypeVar("AnyFlags", bound=Flags)


def read_flags(
    kind: type[AnyFlags], default: ExperimentConfig, description: str, argv: Sequence[str], **more: Any
) -> AnyFlags:
    """Parses a command line into flags of a training run.

    `--config` and `--model.preset` change the defaults of all other flags, so they are read first.

    Args:
        kind: class of the flags.
        default: the values of flags that are not given.
        description: description of the program.
        argv: the command line.
        more: defaults of the flags that `kind` adds to those of a training run.
    """
    saved, preset = value_of("--config", argv), value_of("--model.preset", argv)
    if saved is not None:
        default = read_config(local_path("--config", saved), ExperimentConfig)
    if preset in PRESETS:
        default = replace(default, model=PRESETS[preset])
    elif default.model in PRESETS.values():
        preset = next(name for name, config in PRESETS.items() if config == default.model)
    else:
        preset = "as given"
    model = _ModelFlags(**{**fields_of(default.model), "preset": preset})
    return parse_flags(kind(**{**fields_of(default), "model": model, **more}), description, argv)


def parse(
    default: ExperimentConfig, description: str, argv: list[str] | None = None
) -> tuple[ExperimentConfig, Existing, HostFlags]:
    """Parses a command line into a configuration, what to do with an existing run, and which processes train it."""
    flags = read_flags(RunFlags, default, description, sys.argv[1:] if argv is None else argv)
    config = config_from(ExperimentConfig, flags, model=config_from(ModelConfig, flags.model))
    return config, existing_from(flags), config_from(HostFlags, flags)


def parse_flags(
    default: Config | type[Config], description: str | None, argv: Sequence[str], *, hidden: str = ""
) -> Config:
    """Parses a command line into a dataclass.

    Args:
        default: the default values, or the dataclass if its fields have defaults or are required.
        description: the text at the top of the help.
        argv: the arguments.
        hidden: a section, such as "freeze.", whose flags are spelt without its name.

    Raises:
        InputError: naming the flag, when the dataclass refuses a value. (tyro would name the dataclass.)
        SystemExit: when tyro has printed an error or the help.
    """
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            if isinstance(default, type):
                return tyro.cli(default, prog=prog(), description=description, args=argv)
            return tyro.cli(type(default), prog=prog(), default=default, description=description, args=argv)
    except SystemExit as end:
        # tyro catches the InputError that a dataclass raises, prints a message of its own and exits.
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is None:
            sys.stderr.write(printed.getvalue())
            raise
        name, _, rest = str(cause).partition("=")
        raise InputError(f"--{name.removeprefix(hidden).replace('_', '-')}={rest}") from None


def prog() -> str:
    """The command that started this program, for its help."""
    program = Path(sys.argv[0])
    if program.stem == "jaxcnn":  # the console script
        return f"jaxcnn {sys.argv[1]}"
    package = program.parent.name if program.stem == "__main__" else ""
    return (
        f"python -m jaxcnn {sys.argv[1]}" if package == "jaxcnn" else f"python -m experiments.{package or program.stem}"
    )


def existing_from(flags: Any) -> Existing:
    """What `--overwrite` and `--extend` ask for.

    Raises:
        InputError: when both are given.
    """
    if flags.overwrite and flags.extend:
        raise InputError("--overwrite starts again and --extend continues; give one of them")
    return Existing(flags.overwrite, flags.extend)


def fields_of(config: Any) -> dict[str, Any]:
    """The fields of a dataclass by name. Unlike `asdict`, nested dataclasses stay dataclasses."""
    return {f.name: getattr(config, f.name) for f in fields(config)}


def config_from(kind: type[Config], flags: Any, **changes: Any) -> Config:
    """Makes a configuration from flags that have at least its fields. `changes` replaces some of them."""
    return kind(**{**{f.name: getattr(flags, f.name) for f in fields(kind)}, **changes})


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """The value of a flag in a command line that is not parsed yet (the last one); None if it is not given."""
    value = None
    for i, word in enumerate(argv):
        name, given, rest = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        if given:
            value = rest
        elif i + 1 < len(argv):
            value = argv[i + 1]
    return value


def baseline(name: str) -> ExperimentConfig:
    """The original's training settings for a data set."""
    return ExperimentConfig(data=DataConfig(name=name))
