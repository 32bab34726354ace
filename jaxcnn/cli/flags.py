"""Flags from the typed configuration, and one way for every program to end."""

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
    num_classes: tyro.conf.Suppress[int] = 10  # the data set's, so not a flag
    preset: Literal["shallow", "deep", "as given"] = "shallow"
    """A network of the original, which the other model flags change."""


@dataclass(frozen=True)
class Flags(ExperimentConfig):
    """What the command line of a training run may hold."""

    model: _ModelFlags = field(default_factory=_ModelFlags)
    """Network."""
    freeze: tyro.conf.Suppress[FreezeConfig] = field(default_factory=FreezeConfig)
    config: Path | None = None
    """A saved config.json to start from; other flags change it."""
    overwrite: bool = False
    """Begin again if the run's folder is there already."""
    extend: bool = False
    """Train a run that is there already for more epochs than it was begun with."""


AnyFlags = TypeVar("AnyFlags", bound=Flags)


def read_flags(
    kind: type[AnyFlags], default: ExperimentConfig, description: str, argv: Sequence[str], **more: Any
) -> AnyFlags:
    """The flags of a command line.

    `--config` and `--model.preset` replace the defaults of all other flags, so they are looked for first.

    Args:
        kind: of the flags.
        default: the values of those that are not given.
        description: of the program.
        argv: the command line.
        more: defaults of what `kind` has beyond a training run.
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
    model = _ModelFlags(**{**shallow(default.model), "preset": preset})
    return parse_flags(kind(**{**shallow(default), "model": model, **more}), description, argv)


def parse(
    default: ExperimentConfig, description: str, argv: list[str] | None = None
) -> tuple[ExperimentConfig, Existing]:
    """The experiment that the command line asks for, and what is to become of a run that is in its folder."""
    flags = read_flags(Flags, default, description, sys.argv[1:] if argv is None else argv)
    return narrow(ExperimentConfig, flags, model=narrow(ModelConfig, flags.model)), on_existing(flags)


def parse_flags(
    default: Config | type[Config], description: str | None, argv: Sequence[str], *, hidden: str = ""
) -> Config:
    """Flags of the type of their defaults, or of a type; those of the section `hidden` do without its name.

    Raises:
        InputError: when a configuration refuses a value, naming its flag; tyro would name the configuration's type.
        SystemExit: when tyro refuses the command line, having said so, or has shown the help.
    """
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            if isinstance(default, type):
                return tyro.cli(default, prog=prog(), description=description, args=argv)
            return tyro.cli(type(default), prog=prog(), default=default, description=description, args=argv)
    except SystemExit as end:
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, InputError):
            cause = cause.__context__
        if cause is None:
            sys.stderr.write(said.getvalue())
            raise
        name, _, rest = str(cause).partition("=")
        raise InputError(f"--{name.removeprefix(hidden).replace('_', '-')}={rest}") from None


def prog() -> str:
    """How this program is called, for its help."""
    program = Path(sys.argv[0])
    if program.stem == "jaxcnn":  # the console script
        return f"jaxcnn {sys.argv[1]}"
    package = program.parent.name if program.stem == "__main__" else ""
    return (
        f"python -m jaxcnn {sys.argv[1]}" if package == "jaxcnn" else f"python -m experiments.{package or program.stem}"
    )


def on_existing(flags: Any) -> Existing:
    """What flags say of a run that is there already.

    Raises:
        InputError: when they contradict each other.
    """
    if flags.overwrite and flags.extend:
        raise InputError("--overwrite begins again and --extend goes on; give one of them")
    return Existing(flags.overwrite, flags.extend)


def shallow(config: Any) -> dict[str, Any]:
    """The fields of a dataclass, nested ones as they are."""
    return {f.name: getattr(config, f.name) for f in fields(config)}


def narrow(kind: type[Config], flags: Any, **changes: Any) -> Config:
    """A configuration from flags that have its fields and more."""
    return kind(**{**{f.name: getattr(flags, f.name) for f in fields(kind)}, **changes})


def value_of(flag: str, argv: Sequence[str]) -> str | None:
    """What a command line gives for a flag, before it is parsed (the last, if several); None if nothing."""
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
    """The original's settings for a data set."""
    return ExperimentConfig(data=DataConfig(name=name))
