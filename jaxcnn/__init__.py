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
    from jaxcnn.data.sets import from_arrays as from_arrays
    from jaxcnn.data.sets import load_dataset as load_dataset
    from jaxcnn.data.splits import Dataset as Dataset
    from jaxcnn.errors import InputError as InputError
    from jaxcnn.model import CNN as CNN
    from jaxcnn.model import init_variables as init_variables
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
    "data.sets": ("from_arrays", "load_dataset"),
    "data.splits": ("Dataset",),
    "errors": ("InputError",),
    "model": ("CNN", "init_variables"),
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
