"""Train on any of the data sets."""

from collections.abc import Sequence
from dataclasses import asdict, replace

from jaxcnn.cli.flags import baseline, parse, value_of
from jaxcnn.config.experiment import DataConfig, ExperimentConfig
from jaxcnn.config.training import OptimConfig, TrainConfig

# Without the settings that suit only CIFAR-10: its augmentation policy and the accuracy at which training stops.
DEFAULT = ExperimentConfig(data=DataConfig(augment="none"), train=TrainConfig(early_stopping_target=None))

# For few images: a small batch for more steps per epoch, and a cosine schedule, because 144 validation images are too
# few for plateau.
DIGITS = replace(
    DEFAULT,
    optim=OptimConfig(schedule="cosine"),
    train=TrainConfig(epochs=30, batch_size=64, early_stopping_patience=None, early_stopping_target=None),
)


def default_for(argv: Sequence[str]) -> ExperimentConfig:
    """The default settings for the data set that a command line names."""
    return DIGITS if value_of("--data.name", list(argv)) == "digits" else DEFAULT


def program(argv: Sequence[str], data: str | None = None) -> None:
    """Runs the program with these arguments; `data` selects the original's settings for a data set as defaults."""
    argv = list(argv)
    default = default_for(argv) if data is None else baseline(data)
    which = "any of the data sets" if data is None else f"{data}, with the original's settings"
    config, existing, hosts = parse(default, f"Train on {which}.", argv)
    from jaxcnn.runs.hosts import join
    from jaxcnn.runs.run import run_experiment

    with join(config.device, **asdict(hosts)):
        run_experiment(config, existing)
