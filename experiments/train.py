"""Train on any of the data sets."""

from experiments.cli import train_main
from jaxcnn.config import ExperimentConfig

if __name__ == "__main__":
    train_main(ExperimentConfig(), "Train the configurable CNN on any of the data sets.")
