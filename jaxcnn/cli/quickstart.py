"""Pretrain, transfer and compare in a minute or two, on images that ship with a dependency.

A network is trained on the handwritten digits 0 to 4. It is then transferred to the digits 5 to 9, with a few images of
each: from scratch, and with its blocks frozen, partly frozen, and free.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from jaxcnn.cli.digits import NETWORK, SOURCE, TARGET
from jaxcnn.cli.flags import parse_flags
from jaxcnn.config.experiment import DataConfig, ExperimentConfig, TransferConfig
from jaxcnn.config.training import FreezeConfig, OptimConfig, TrainConfig
from jaxcnn.errors import set_path


@dataclass(frozen=True)
class Flags:
    """Where the results go, and how long to train."""

    runs_dir: Path = Path("runs/quickstart")
    """Folder that holds the runs."""
    epochs: int = 40
    """Epochs of each transfer; the pretraining takes a quarter of them."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds to repeat everything with. Each draws other images, weights and orders."""
    overwrite: bool = False
    """Delete existing runs in these folders and start again."""

    def __post_init__(self) -> None:
        set_path(self, "runs_dir")


def configs(flags: Flags) -> tuple[list[ExperimentConfig], list[TransferConfig]]:
    """Configurations of the pretraining (one per seed) and of the transfers (one per mask and seed)."""
    optim = OptimConfig(schedule="cosine")
    train = TrainConfig(epochs=flags.epochs, batch_size=32, early_stopping_patience=None, early_stopping_target=None)
    pretrainings, transfers = [], []
    for seed in flags.seeds:
        source = ExperimentConfig(
            name=f"digits_0_to_4_seed{seed}",
            runs_dir=flags.runs_dir,
            seed=seed,
            data=DataConfig(name="digits", classes=SOURCE, augment="none"),
            model=NETWORK,
            optim=optim,
            train=replace(train, epochs=max(flags.epochs // 4, 1)),
        )
        pretrainings.append(source)
        for mask in ("scratch", "frozen", "partial", "full"):
            transfers.append(
                TransferConfig(
                    name=f"digits_5_to_9_{mask}_seed{seed}",
                    runs_dir=flags.runs_dir,
                    seed=seed,
                    source=flags.runs_dir / source.name,
                    data=DataConfig(name="digits", classes=TARGET, augment="none", fraction=0.08, validation=0.25),
                    optim=replace(optim, learning_rate=3e-3),
                    train=replace(train, batch_size=16),
                    freeze=FreezeConfig(mask=mask),
                )
            )
    return pretrainings, transfers


def quickstart(flags: Flags) -> None:
    """Pretrains, transfers with every mask, and prints the comparison."""
    from jaxcnn.config.experiment import Existing
    from jaxcnn.studies.execute import require_all
    from jaxcnn.studies.plan import compare_runs
    from jaxcnn.studies.study import run_study

    pretrainings, transfers = configs(flags)
    study = compare_runs(transfers, flags.runs_dir / "comparison", pretrainings)
    result = run_study(study, Existing(overwrite=flags.overwrite), figures="png", pictures=True)
    require_all(result.failed, len(pretrainings) + len(transfers))


def program(argv: Sequence[str]) -> None:
    """Runs the program with these arguments."""
    quickstart(parse_flags(Flags(), __doc__, argv))
