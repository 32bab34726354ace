"""Train on any of the data sets."""

import sys
from collections.abc import Sequence
from dataclasses import replace

from experiments.cli import train_main, value_of
from jaxcnn.config import DataConfig, ExperimentConfig, OptimConfig, TrainConfig

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


if __name__ == "__main__":
    train_main(default_for(sys.argv[1:]), "Train the configurable CNN on any of the data sets.")
