"""A configurable CNN in JAX/Flax for CIFAR-10, CIFAR-100 and SVHN, with transfer learning and PyTorch weights.

Names are imported when first used, so that a command line answers `--help` before JAX is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcnn.config.experiment import DataConfig as DataConfig
    from jaxcnn.config.experiment import ExperimentConfig as ExperimentConfig
    from jaxcnn.config.experiment import TransferConfig as TransferConfig
    from jaxcnn.config.network import DEEP as DEEP
    from jaxcnn.config.network import SHALLOW as SHALLOW
    from jaxcnn.config.network import ModelConfig as ModelConfig
    from jaxcnn.config.training import FreezeConfig as FreezeConfig
    from jaxcnn.config.training import OptimConfig as OptimConfig
    from jaxcnn.config.training import TrainConfig as TrainConfig
    from jaxcnn.data.augment import standardise as standardise
    from jaxcnn.data.sets import from_arrays as from_arrays
    from jaxcnn.data.sets import load_dataset as load_dataset
    from jaxcnn.data.splits import Dataset as Dataset
    from jaxcnn.errors import InputError as InputError
    from jaxcnn.masks import freeze_mask as freeze_mask
    from jaxcnn.model import CNN as CNN
    from jaxcnn.model import init_variables as init_variables
    from jaxcnn.runs.run import run_experiment as run_experiment
    from jaxcnn.studies.study import study as study
    from jaxcnn.training.loop import fit as fit
    from jaxcnn.training.step import cross_entropy as cross_entropy
    from jaxcnn.training.step import init_state as init_state
    from jaxcnn.weights.classifier import Classifier as Classifier
    from jaxcnn.weights.classifier import load as load
    from jaxcnn.weights.source import TransferModel as TransferModel
    from jaxcnn.weights.source import create_transfer_model as create_transfer_model

__version__ = "0.1.0"

_HOMES = {
    "config": (
        "DEEP",
        "SHALLOW",
        "DataConfig",
        "ExperimentConfig",
        "FreezeConfig",
        "ModelConfig",
        "OptimConfig",
        "TrainConfig",
        "TransferConfig",
    ),
    "data.augment": ("standardise",),
    "data.sets": ("from_arrays", "load_dataset"),
    "data.splits": ("Dataset",),
    "errors": ("InputError",),
    "masks": ("freeze_mask",),
    "model": ("CNN", "init_variables"),
    "runs.run": ("run_experiment",),
    "studies.study": ("study",),
    "training.loop": ("fit",),
    "training.step": ("cross_entropy", "init_state"),
    "weights.classifier": ("Classifier", "load"),
    "weights.source": ("TransferModel", "create_transfer_model"),
}

__all__ = ["__version__", *(name for names in _HOMES.values() for name in names)]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"jaxcnn.{home}"), name)
    raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
