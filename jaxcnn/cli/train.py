"""Train on any of the data sets."""

from collections.abc import Sequence
from dataclasses import replace

from jaxcnn.cli.flags import baseline, parse, value_of
from jaxcnn.config.experiment import DataConfig, ExperimentConfig
from jaxcnn.config.training import OptimConfig, TrainConfig

# Without what is CIFAR-10's own: its augmentation policy, and an accuracy that is worth stopping at.
DEFAULT = ExperimentConfig(data=DataConfig(augment="none"), train=TrainConfig(early_stopping_target=None))

# Few images: more steps an epoch, and a rate that comes down by plan, not by the loss on 144 validation images.
DIGITS = replace(
    DEFAULT,
    optim=OptimConfig(schedule="cosine"),
    train=TrainConfig(epochs=30, batch_size=64, early_stopping_patience=None, early_stopping_target=None),
)


def default_for(argv: Sequence[str]) -> ExperimentConfig:
    """The settings that a command line starts from: its data set decides."""
    return DIGITS if value_of("--data.name", list(argv)) == "digits" else DEFAULT


def program(argv: Sequence[str], data: str | None = None) -> None:
    """Trains as the command line says, from the original's settings for a data set if one is named."""
    argv = list(argv)
    default = default_for(argv) if data is None else baseline(data)
    which = "any of the data sets" if data is None else f"{data}, with the original's settings"
    config, existing = parse(default, f"Train on {which}.", argv)
    from jaxcnn.runs.run import run_experiment

    run_experiment(config, existing)
