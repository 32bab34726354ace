"""Train on any of the data sets."""

from experiments.cli import train_main
from jaxcnn.config import DataConfig, ExperimentConfig, TrainConfig

# Without what is CIFAR-10's own: its augmentation policy, and an accuracy that is worth stopping at.
DEFAULT = ExperimentConfig(data=DataConfig(augment="none"), train=TrainConfig(early_stopping_target=None))

if __name__ == "__main__":
    train_main(DEFAULT, "Train the configurable CNN on any of the data sets.")
