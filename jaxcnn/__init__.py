"""A configurable CNN in JAX/Flax for CIFAR-10, CIFAR-100 and SVHN, with transfer learning and PyTorch weights.

Names are imported when first used, so that a command line answers `--help` before JAX is loaded.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jaxcnn.config import DEEP as DEEP
    from jaxcnn.config import SHALLOW as SHALLOW
    from jaxcnn.config import DataConfig as DataConfig
    from jaxcnn.config import ExperimentConfig as ExperimentConfig
    from jaxcnn.config import ModelConfig as ModelConfig
    from jaxcnn.config import OptimConfig as OptimConfig
    from jaxcnn.config import TrainConfig as TrainConfig
    from jaxcnn.config import TransferConfig as TransferConfig
    from jaxcnn.data import Dataset as Dataset
    from jaxcnn.data import load_dataset as load_dataset
    from jaxcnn.errors import InputError as InputError
    from jaxcnn.model import CNN as CNN
    from jaxcnn.model import init_variables as init_variables
    from jaxcnn.transfer import TransferModel as TransferModel
    from jaxcnn.transfer import create_transfer_model as create_transfer_model

_HOMES = {
    "config": (
        "DEEP",
        "SHALLOW",
        "DataConfig",
        "ExperimentConfig",
        "ModelConfig",
        "OptimConfig",
        "TrainConfig",
        "TransferConfig",
    ),
    "data": ("Dataset", "load_dataset"),
    "errors": ("InputError",),
    "model": ("CNN", "init_variables"),
    "transfer": ("TransferModel", "create_transfer_model"),
}

__all__ = [name for names in _HOMES.values() for name in names]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"jaxcnn.{home}"), name)
    raise AttributeError(f"module 'jaxcnn' has no attribute {name!r}")
