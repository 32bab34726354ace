"""Compare settings over seeds: which depth to freeze, what transfer buys, and how sure that is."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import tyro

from jaxcnn.cli import flags as training
from jaxcnn.cli import transfer_flags as transfers
from jaxcnn.cli.digits import NETWORK, SOURCE, TARGET
from jaxcnn.cli.flags import config_from, fields_of, value_of
from jaxcnn.cli.train import default_for
from jaxcnn.config.experiment import DataConfig, ExperimentConfig, TransferConfig
from jaxcnn.config.network import ModelConfig
from jaxcnn.config.training import FreezeConfig, OptimConfig, TrainConfig
from jaxcnn.errors import InputError
from jaxcnn.runs.style import Figures


@dataclass(frozen=True)
class _StudyFlags:
    of: Literal["transfer", "train"] = "transfer"
    """Whose flags the others are, and what is compared: transfers, or training from new weights."""
    vary: tyro.conf.UseAppendAction[tuple[tuple[str, ...], ...]] = ()
    """FIELD VALUE VALUE ...: compare these values of a flag. Several of these flags: every combination."""
    preset: Literal["masks", "depth", "yosinski", "none"] = "none"
    """masks: the four masks. depth: every stage copied, each number of them frozen, and scratch. yosinski: n stages
    copied, frozen or fine-tuned, from the source's task and from the target's own, and scratch."""
    depths: tuple[int, ...] = ()
    """The numbers of stages for the presets depth and yosinski; all if not given."""
    seeds: tuple[int, ...] = (0,)
    """The seeds of each case."""
    source_classes: tuple[int, ...] = ()
    """Train the sources too, one for each seed, on these classes of the data set, with the network --model."""
    baseline: str = ""
    """The case that the others are compared to; the first if not given. The plan lists them."""
    figures: Figures = "svg"
    """The format of the figures; the page has SVG ones in any case."""
    pictures: bool = False
    """Draw the figures of each run too, and write its page."""
    jobs: int | None = None
    """Train so many runs at once, in processes that share this machine's processors evenly."""
    cluster: str | None = None
    """Train on the workers of the Dask scheduler at this address, tcp://HOST:PORT."""


@dataclass(frozen=True)
class _Network(ModelConfig):
    num_classes: tyro.conf.Suppress[int] = 10  # the data set's, so not a flag


@dataclass(frozen=True)
class _OfTransfers(_StudyFlags, transfers.Flags):
    model: _Network = field(default_factory=_Network)
    """Network of the sources that the study trains."""
    mask: Literal["scratch", "full", "partial", "frozen"] = "full"
    """frozen: all blocks; partial: blocks 0 to freeze_until_block; full: nothing; scratch: nothing, and new weights."""
    seed: tyro.conf.Suppress[int] = 0
    extend: tyro.conf.Suppress[bool] = False


@dataclass(frozen=True)
class _OfTraining(_StudyFlags, training.Flags):
    seed: tyro.conf.Suppress[int] = 0
    extend: tyro.conf.Suppress[bool] = False


def _settings(target: str, mask: str) -> TransferConfig:
    """What the cases of a study share by default: one budget for all, that of `jaxcnn transfer --mask all`."""
    if target != "digits":
        return replace(transfers.settings(target, "all"), freeze=FreezeConfig(mask="full"))
    return TransferConfig(  # few images, and a network to match
        data=DataConfig(name="digits", classes=TARGET, augment="none", fraction=0.2, validation=0.25),
        model=NETWORK,
        optim=OptimConfig(learning_rate=3e-3, schedule="cosine"),
        train=TrainConfig(epochs=30, batch_size=16, early_stopping_patience=None, early_stopping_target=None),
    )


def parse(argv: Sequence[str]) -> tuple[ExperimentConfig, dict[str, Any]]:
    """What all runs of a study share, and the other arguments of `jaxcnn.study`.

    Raises:
        InputError: when flags contradict each other.
    """
    argv = list(argv)
    flags: _OfTransfers | _OfTraining
    if value_of("--of", argv) == "train":
        flags = training.read_flags(_OfTraining, default_for(argv), __doc__ or "", argv, seed=0)
        base = config_from(ExperimentConfig, flags, model=config_from(ModelConfig, flags.model))
        name = f"study_{base.data.title}"
    else:
        target = value_of("--target", argv) or value_of("--data.name", argv)
        sourceless = target == "digits" and not {"--source", "--config"} & {word.partition("=")[0] for word in argv}
        network = _Network(**fields_of(NETWORK if sourceless else ModelConfig()))
        flags, _ = transfers.read_flags(
            _OfTransfers, __doc__ or "", argv, settings=_settings, model=network, seed=0,
            source_classes=SOURCE if sourceless else (),
        )  # fmt: skip
        freeze = FreezeConfig(**{**fields_of(flags.freeze), "mask": flags.mask})
        base = config_from(TransferConfig, flags, freeze=freeze, model=config_from(ModelConfig, flags.model))
        what = "study" if flags.preset == "none" else flags.preset
        pair = base.data.title if flags.source_classes else transfers.default_name(base).removeprefix("transfer_")
        name = f"{what}_{pair}"
    if value_of("--name", argv) is None:  # a saved name is that of a run
        base = replace(base, name=name)
    return base, {
        "vary": _values(base, flags.vary),
        "preset": None if flags.preset == "none" else flags.preset,
        **{each: getattr(flags, each) for each in _PASSED},
    }


_PASSED = ("depths", "seeds", "source_classes", "baseline", "figures", "pictures", "overwrite", "jobs", "cluster")


def _values(base: ExperimentConfig, vary: Sequence[Sequence[str]]) -> dict[str, list[Any]]:
    """The values that vary, read as what their fields hold."""
    found: dict[str, list[Any]] = {}
    for name, *words in vary:
        if name in found:
            raise InputError(f"--vary {name} is there twice; give all its values once")
        found[name.removeprefix("--")] = [_read(base, name.removeprefix("--"), word) for word in words]
    return found


def _read(base: ExperimentConfig, name: str, word: str) -> Any:
    section, _, leaf = name.replace("-", "_").rpartition(".")
    owner = base if hasattr(base, leaf) and not section else getattr(base, section or "freeze", None)
    hint = get_type_hints(type(owner)).get(leaf) if owner is not None else None
    kinds = {hint, *get_args(hint)}
    if word == "None" and type(None) in kinds:
        return None
    if str in kinds or Path in kinds or any(get_origin(kind) is Literal for kind in kinds):
        return word
    if any(get_origin(kind) is tuple for kind in kinds):
        word = f"[{word.strip('[]()')}]"
    try:
        return json.loads(word.lower() if word in ("True", "False") else word)
    except json.JSONDecodeError:
        return word  # which the configuration refuses, by its name


def program(argv: Sequence[str]) -> None:
    """Runs the study that the command line asks for."""
    base, options = parse(argv)
    from jaxcnn.studies.execute import require_all
    from jaxcnn.studies.study import study

    result = study(base, **options)
    require_all(result.failed, len(result.rows) + len(result.failed))
