"""The flags of transfers, and the runs that they describe."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import tyro

from jaxcnn.cli.config_file import read_config
from jaxcnn.cli.flags import WEIGHT_FILES, HostFlags, config_from, existing_from, fields_of, parse_flags, value_of
from jaxcnn.config.experiment import DataConfig, Existing, TransferConfig, case_name
from jaxcnn.config.network import ModelConfig
from jaxcnn.config.training import FreezeConfig, Mask, OptimConfig, TrainConfig
from jaxcnn.errors import InputError, local_path

MASKS: tuple[Mask, ...] = ("scratch", "frozen", "partial", "full")  # in the order of a comparison
CHOICES = (*MASKS, "all")
# Epochs, learning rate and patience of the original's transfers to CIFAR-100. They are used for SVHN too, for which the
# original gives none with `partial` and `full`. A comparison of all masks uses those of `scratch` for each.
SETTINGS = {"frozen": (100, 1e-3, 10), "partial": (150, 1e-3, 15), "full": (200, 5e-4, 15), "scratch": (200, 1e-3, 15)}
# These are names even if a folder of that name exists.
_NAMES = ("cifar10", "cifar100", "svhn", "digits", "folder", "npz")
TARGET_ACCURACY = {"cifar100": 95.0, "svhn": 98.0}


@dataclass(frozen=True)
class FreezeFlags(FreezeConfig):
    """What is frozen, without the mask."""

    mask: tyro.conf.Suppress[Mask] = "full"  # --mask is a separate flag, because it also takes `all`


@dataclass(frozen=True)
class Flags(TransferConfig):
    """The flags of a transfer."""

    model: tyro.conf.Suppress[ModelConfig] = field(default_factory=ModelConfig)  # comes from the source
    freeze: tyro.conf.OmitArgPrefixes[FreezeFlags] = field(default_factory=FreezeFlags)
    """What is frozen."""
    mask: Literal["scratch", "full", "partial", "frozen", "all"] = "full"
    """frozen: all blocks; partial: blocks 0 to freeze_until_block; full: nothing; scratch: nothing, and new weights;
    all: compare these four, trained with the same settings."""
    target: str = "cifar100"
    """The data set to transfer to, a folder of image files by class, or a .npz file. Target and mask decide the
    defaults of epochs, learning rate, patience and target accuracy."""
    seeds: tuple[int, ...] = ()
    """With --mask all: repeat the comparison with these seeds."""
    config: Path | None = None
    """A saved config.json to start from; other flags change it."""
    overwrite: bool = False
    """Delete an existing run in this folder and start again."""
    extend: bool = False
    """Train an existing run for more epochs."""


@dataclass(frozen=True)
class RunFlags(Flags, HostFlags):
    """The flags of a transfer, on one host or several."""


AnyFlags = TypeVar("AnyFlags", bound=Flags)


def settings(target: str, mask: str) -> TransferConfig:
    """The original's settings for a target and a mask. `all` has those of `scratch`."""
    epochs, learning_rate, patience = SETTINGS["scratch" if mask == "all" else mask]
    return TransferConfig(
        data=DataConfig(name=target),
        optim=OptimConfig(learning_rate=learning_rate, schedule="constant"),
        train=TrainConfig(
            epochs=epochs,
            early_stopping_patience=patience,
            early_stopping_target=TARGET_ACCURACY.get(target),
        ),
        freeze=FreezeConfig(mask=next((each for each in MASKS if each == mask), "scratch")),
    )


def _own_images(target: str) -> DataConfig | None:
    """The data set if `target` is the path of a folder or of a `.npz` file; None if it is a name."""
    if target in _NAMES or target.startswith("hf:"):
        return None
    path = local_path("target", target)
    if path.is_dir():
        return DataConfig(name="folder", dir=path)
    return DataConfig(name="npz", dir=path) if path.suffix == ".npz" and path.is_file() else None


def read_flags(
    kind: type[AnyFlags],
    description: str,
    argv: Sequence[str],
    *,
    settings: Callable[[str, str], TransferConfig] = settings,
    **more: Any,
) -> tuple[AnyFlags, str]:
    """Parses a command line into flags of a transfer.

    Args:
        kind: class of the flags.
        description: description of the program.
        argv: the command line.
        settings: returns the defaults for a target and a mask.
        more: defaults of the flags that `kind` adds to those of a transfer.

    Returns:
        The flags, and the name that the program generates for the settings in `--config`; "" without `--config`.

    Raises:
        InputError: when a value is unusable or flags contradict each other.
    """
    argv = list(argv)
    saved, target, mask = (value_of(flag, argv) for flag in ("--config", "--target", "--mask"))
    # With --data.dir, the target is the name of a data set in that folder, not a path.
    own = None if target is None or value_of("--data.dir", argv) is not None else _own_images(target)
    target = target or value_of("--data.name", argv)
    generated = ""
    if saved is not None:
        default = read_config(local_path("--config", saved), TransferConfig)
        target, mask = target or default.data.name, mask or default.freeze.mask
        generated = f"{default_name(default)}_{case_name(default)}"
    else:
        target, mask = target or "cifar100", mask or "full"
        default = settings(target, mask if mask in CHOICES else "full")
        default = replace(default, source=Path(value_of("--runs-dir", argv) or default.runs_dir) / "cifar10")
    data = replace(default.data, name=target) if own is None else replace(default.data, name=own.name, dir=own.dir)
    values = {
        **fields_of(default),
        "data": data,
        "freeze": FreezeFlags(**{**fields_of(default.freeze), "mask": "full"}),
        "mask": mask if mask in CHOICES else "full",
        "target": target,
        **more,
    }
    flags = parse_flags(kind(**values), description, argv, hidden="freeze.")
    if flags.data.name != (flags.target if own is None else own.name):
        raise InputError(f"--data.name {flags.data.name} contradicts --target {flags.target}; give one of them")
    return flags, generated


def parse(argv: Sequence[str]) -> tuple[list[TransferConfig], Existing, HostFlags]:
    """Parses a command line into transfers, one per mask and seed, what to do with existing runs, and the processes.

    Raises:
        InputError: when a value is unusable or flags contradict each other.
    """
    flags, generated = read_flags(RunFlags, "Transfer saved weights to another data set.", argv)
    if flags.seeds and flags.mask != "all":
        raise InputError(f"seeds={flags.seeds!r} belongs to --mask all; give --seed to a single run")
    masks: tuple[Mask, ...] = MASKS if flags.mask == "all" else (flags.mask,)
    cases = [
        config_from(TransferConfig, flags, freeze=FreezeConfig(**{**fields_of(flags.freeze), "mask": mask}))
        for mask in masks
    ]
    config, name = cases[0], flags.name
    if generated and re.fullmatch(rf"{re.escape(generated)}(_seed\d+)?", name):  # the saved name was generated
        name = name if len(masks) == 1 and f"{default_name(config)}_{case_name(cases[0])}" == generated else ""
    if len(masks) > 1 or not name:
        cases = [replace(case, name=f"{name or default_name(config)}_{case_name(case)}") for case in cases]
    configs = [
        replace(case, seed=seed, name=case.name + (f"_seed{seed}" if flags.seeds else ""))
        for seed in flags.seeds or (flags.seed,)
        for case in cases
    ]
    return configs, existing_from(flags), config_from(HostFlags, flags)


def default_name(config: TransferConfig) -> str:
    """`transfer_<source>_to_<target>`; the source is the run's name, or the file's."""
    path = config.source
    file = path.suffix in WEIGHT_FILES
    source = path.parent.name if path.name == "model.pth" and path.parent.name else path.stem if file else path.name
    return f"transfer_{source or 'model'}_to_{config.data.title.replace('/', '_').replace(':', '_')}"
