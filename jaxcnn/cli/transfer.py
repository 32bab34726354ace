"""Transfer saved weights to another data set, with all blocks frozen, some, or none."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import tyro

from jaxcnn.cli.config_file import read_config
from jaxcnn.cli.flags import WEIGHT_FILES, config_from, existing_from, fields_of, parse_flags, value_of
from jaxcnn.config.experiment import CONTINUE, DataConfig, Existing, ExperimentConfig, TransferConfig
from jaxcnn.config.network import ModelConfig
from jaxcnn.config.training import FreezeConfig, Mask, OptimConfig, TrainConfig
from jaxcnn.errors import InputError, local_path
from jaxcnn.runs.summary import Summary

MASKS: tuple[Mask, ...] = ("scratch", "frozen", "partial", "full")
CHOICES = (*MASKS, "all")
# Epochs, learning rate and patience of the original's transfers to CIFAR-100. They are used for SVHN too, for which the
# original gives none with `partial` and `full`. A comparison of all masks uses those of `scratch` for each.
SETTINGS = {"frozen": (100, 1e-3, 10), "partial": (150, 1e-3, 15), "full": (200, 5e-4, 15), "scratch": (200, 1e-3, 15)}
# These are names even if a folder of that name exists.
_NAMES = ("cifar10", "cifar100", "svhn", "digits", "folder", "npz")
TARGET_ACCURACY = {"cifar100": 95.0, "svhn": 98.0}


@dataclass(frozen=True)
class _FreezeFlags(FreezeConfig):
    mask: tyro.conf.Suppress[Mask] = "full"  # --mask is a separate flag, because it also takes `all`


@dataclass(frozen=True)
class _Flags(TransferConfig):
    model: tyro.conf.Suppress[ModelConfig] = field(default_factory=ModelConfig)  # comes from the source
    freeze: tyro.conf.OmitArgPrefixes[_FreezeFlags] = field(default_factory=_FreezeFlags)
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


def parse(argv: Sequence[str]) -> tuple[list[TransferConfig], Existing]:
    """Parses a command line into transfers, one per mask and seed, and what to do with existing runs.

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
        generated = f"{default_name(default)}_{default.freeze.mask}"
    else:
        target, mask = target or "cifar100", mask or "full"
        default = settings(target, mask if mask in CHOICES else "full")
        default = replace(default, source=Path(value_of("--runs-dir", argv) or default.runs_dir) / "cifar10")
    data = replace(default.data, name=target) if own is None else replace(default.data, name=own.name, dir=own.dir)
    values = {
        **fields_of(default),
        "data": data,
        "freeze": _FreezeFlags(**{**fields_of(default.freeze), "mask": "full"}),
        "mask": mask if mask in CHOICES else "full",
        "target": target,
    }
    flags = parse_flags(_Flags(**values), __doc__, argv, hidden="freeze.")
    if flags.data.name != (flags.target if own is None else own.name):
        raise InputError(f"--data.name {flags.data.name} contradicts --target {flags.target}; give one of them")
    if flags.seeds and flags.mask != "all":
        raise InputError(f"seeds={flags.seeds!r} belongs to --mask all; give --seed to a single run")
    config = config_from(TransferConfig, flags, freeze=FreezeConfig())
    masks: tuple[Mask, ...] = MASKS if flags.mask == "all" else (flags.mask,)
    name = flags.name
    if generated and re.fullmatch(rf"{re.escape(generated)}(_seed\d+)?", name):  # the saved name was generated
        name = name if f"{default_name(config)}_{flags.mask}" == generated else ""
    if len(masks) == 1 and name:
        names = {masks[0]: name}
    else:
        names = {each: f"{name or default_name(config)}_{each}" for each in masks}
    configs = [
        replace(
            config,
            freeze=FreezeConfig(**{**fields_of(flags.freeze), "mask": each}),
            seed=seed,
            name=names[each] + (f"_seed{seed}" if flags.seeds else ""),
        )
        for seed in flags.seeds or (flags.seed,)
        for each in masks
    ]
    return configs, existing_from(flags)


def default_name(config: TransferConfig) -> str:
    """`transfer_<source>_to_<target>`; the source is the run's name, or the file's."""
    path = config.source
    file = path.suffix in WEIGHT_FILES
    source = path.parent.name if path.name == "model.pth" and path.parent.name else path.stem if file else path.name
    return f"transfer_{source or 'model'}_to_{config.data.title.replace('/', '_').replace(':', '_')}"


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments. Several transfers are compared at the end."""
    configs, existing = parse(argv)
    from jaxcnn.runs.run import run_experiment

    if len(configs) == 1:
        run_experiment(configs[0], existing)
    else:
        first = configs[0]
        folder = re.sub(rf"_{first.freeze.mask}(_seed\d+)?$", "_comparison", first.name)
        compare(configs, first.runs_dir / folder, existing)


def compare(
    configs: Sequence[ExperimentConfig], folder: Path, existing: Existing = CONTINUE, *, before: int = 0
) -> list[Summary]:
    """Runs each configuration, and writes `comparison.png`, `.md` and `.csv` into a folder.

    Args:
        configs: the transfers.
        folder: where to write the comparison.
        existing: what to do with existing runs.
        before: number of runs that the program has already made, for the printed "run 3 of 8".

    Returns:
        The summaries, in order.

    Raises:
        InputError: when a configuration cannot be used, or the source's weights change during the comparison.
    """
    from jaxcnn.runs.comparison import comparison_table, write_comparison
    from jaxcnn.runs.console import Terminal
    from jaxcnn.runs.display import print_turn
    from jaxcnn.runs.folder import source_digest
    from jaxcnn.runs.run import plan, run_experiment

    planned = [plan(config, existing).resolved for config in configs]  # check all before training any
    console = Terminal(soft_wrap=True)
    summaries = []
    for number, (config, resolved) in enumerate(zip(configs, planned, strict=True), before + 1):
        print_turn(console, number, before + len(configs), config.run_name)
        summaries.append(run_experiment(config, existing))
        if source_digest(config.runs_dir / config.run_name) not in (None, resolved.get("source_digest")):
            raise InputError(
                f"the weights that {config.run_name} started from have changed meanwhile; repeat the comparison"
            )
    write_comparison(folder, [config.runs_dir / config.run_name for config in configs], summaries)
    console.print(comparison_table(summaries))
    console.print(f"comparison in {folder}", markup=False)
    return summaries
