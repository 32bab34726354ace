"""Typed, frozen configuration of a run, validated on construction. Imports neither JAX nor anything slow."""

from jaxcnn.config.experiment import DataConfig as DataConfig
from jaxcnn.config.experiment import Device as Device
from jaxcnn.config.experiment import Existing as Existing
from jaxcnn.config.experiment import ExperimentConfig as ExperimentConfig
from jaxcnn.config.experiment import Head as Head
from jaxcnn.config.experiment import Protocol as Protocol
from jaxcnn.config.experiment import TransferConfig as TransferConfig
from jaxcnn.config.experiment import from_dict as from_dict
from jaxcnn.config.experiment import to_json as to_json
from jaxcnn.config.network import DEEP as DEEP
from jaxcnn.config.network import PRESETS as PRESETS
from jaxcnn.config.network import SHALLOW as SHALLOW
from jaxcnn.config.network import Activation as Activation
from jaxcnn.config.network import ModelConfig as ModelConfig
from jaxcnn.config.network import Resize as Resize
from jaxcnn.config.network import WeightInit as WeightInit
from jaxcnn.config.network import stage_of as stage_of
from jaxcnn.config.training import Augment as Augment
from jaxcnn.config.training import ClassWeights as ClassWeights
from jaxcnn.config.training import FreezeConfig as FreezeConfig
from jaxcnn.config.training import Mask as Mask
from jaxcnn.config.training import OptimConfig as OptimConfig
from jaxcnn.config.training import Optimizer as Optimizer
from jaxcnn.config.training import Precision as Precision
from jaxcnn.config.training import Schedule as Schedule
from jaxcnn.config.training import TrainConfig as TrainConfig
