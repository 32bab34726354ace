"""Typed, frozen configuration of a run, validated on construction. Imports neither JAX nor anything slow."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from jaxcnn.model_config import DEEP as DEEP
from jaxcnn.model_config import PRESETS as PRESETS
from jaxcnn.model_config import SHALLOW as SHALLOW
from jaxcnn.model_config import Activation as Activation
from jaxcnn.model_config import ModelConfig as ModelConfig
from jaxcnn.validate import (
    require,
    require_choice,
    require_int,
    require_number,
    require_text,
    set_path,
    set_plain,
    set_sequence,
)

Augment = Literal["autoaugment", "flipcrop", "none"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["plateau", "cosine", "constant"]
Device = Literal["auto", "cpu", "gpu", "tpu"]
Mask = Literal["scratch", "full", "partial", "frozen"]
Head = Literal["fc3", "all"]
Protocol = Literal["sound", "original"]
Precision = Literal["float32", "bfloat16", "auto"]


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on, and how they are split and augmented."""

    name: str = "cifar10"
    """cifar10, cifar100, svhn, digits, or any prepared tfds image classification set."""
    dir: Path | None = None
    """Folder of prepared tfds data sets; tfds's own default if not given."""
    archives: Path | None = None
    """Folder of archives already downloaded (the official ones, or what torchvision leaves behind)."""
    augment: Augment = "autoaugment"
    """Augmentation of the training images: AutoAugment's CIFAR-10 policy, random flip and crop, or none."""
    classes: tuple[int, ...] = ()
    """Keep only these labels, renumbered from 0 in the order given; all when empty."""
    fraction: float = 1.0
    """Share of the training images to use, stratified by class and seeded."""
    validation: float = 0.1
    """Share of the training images held out to steer training; 0 trains on all of them and steers by nothing."""

    def __post_init__(self) -> None:
        set_plain(self)
        set_sequence(self, "classes", "data.")
        require_text("data.name", self.name, "name a data set")
        require(bool(self.name), "data.name", self.name, "name a data set")
        require_choice("data.augment", self.augment, Augment)
        for name in ("dir", "archives"):
            if getattr(self, name) is not None:
                set_path(self, name, "data.")
        distinct = len(set(self.classes)) == len(self.classes) and all(c >= 0 for c in self.classes)
        require(distinct, "data.classes", self.classes, "give distinct labels, each at least 0")
        require(len(self.classes) != 1, "data.classes", self.classes, "give at least two labels, or none for all")
        require_number("data.fraction", self.fraction, least=0, most=1, open_ends="(")
        require_number("data.validation", self.validation, least=0, most=1, open_ends=")")


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and the learning rate over time."""

    optimizer: Optimizer = "adam"
    """adam: weight decay is added to the gradient (L2), as in PyTorch's Adam; adamw: decoupled; sgd: with momentum."""
    learning_rate: float = 1e-3
    """The learning rate that the schedule scales."""
    weight_decay: float = 1e-5
    """Strength of the weight decay, on every trained parameter."""
    momentum: float = 0.9
    """Momentum of sgd."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; no clipping if None."""
    schedule: Schedule = "plateau"
    """plateau: cut when the validation loss stalls (PyTorch's timing); cosine: to 0 over all steps; constant."""
    plateau_factor: float = 0.5
    """What a plateau multiplies the learning rate by."""
    plateau_patience: int = 5
    """Epochs without improvement that a plateau lets pass; the next one cuts."""
    warmup_epochs: float = 0.0
    """Epochs over which the learning rate rises linearly from 0."""
    label_smoothing: float = 0.0
    """Share of the target probability spread over all classes; validation and test loss are never smoothed."""

    def __post_init__(self) -> None:
        set_plain(self)
        require_choice("optim.optimizer", self.optimizer, Optimizer)
        require_choice("optim.schedule", self.schedule, Schedule)
        require_number("optim.learning_rate", self.learning_rate, least=0, open_ends="(")
        require_number("optim.weight_decay", self.weight_decay, least=0)
        require_number("optim.momentum", self.momentum, least=0, most=1, open_ends=")")
        if self.clip_norm is not None:
            require_number("optim.clip_norm", self.clip_norm, least=0, open_ends="(")
        require_number("optim.plateau_factor", self.plateau_factor, least=0, most=1, open_ends="()")
        require_int("optim.plateau_patience", self.plateau_patience, least=0)
        require_number("optim.warmup_epochs", self.warmup_epochs, least=0, most=10_000)
        require_number("optim.label_smoothing", self.label_smoothing, least=0, most=1, open_ends=")")
        for each in fields(self):  # JAX takes a whole number for an int32
            if isinstance(value := getattr(self, each.name), int) and each.name != "plateau_patience":
                object.__setattr__(self, each.name, float(value))


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and when to stop early."""

    epochs: int = 200
    """Most epochs to train."""
    batch_size: int = 256
    """Images a step; a short last batch is trained on too."""
    early_stopping_patience: int | None = 10
    """Stop after this many epochs without a lower validation loss; None never stops for that."""
    early_stopping_target: float | None = 98.5
    """Stop once the validation accuracy reaches this many percent; None never stops for that."""
    precision: Precision = "float32"
    """What the network computes in. With bfloat16 weights, statistics, loss and optimiser stay in float32. bfloat16 is
    for accelerators; a CPU computes faster in float32. auto: bfloat16 on an accelerator, float32 on a CPU; a run that
    continues keeps what it began with."""

    def __post_init__(self) -> None:
        set_plain(self)
        require_int("train.epochs", self.epochs, least=1, most=1_000_000)
        require_int("train.batch_size", self.batch_size, least=1, most=2**20)
        require_choice("train.precision", self.precision, Precision)
        if self.early_stopping_patience is not None:
            require_int("train.early_stopping_patience", self.early_stopping_patience, least=1)
        if self.early_stopping_target is not None:
            target = self.early_stopping_target
            require_number("train.early_stopping_target", target, least=0, most=100, open_ends="(")


@dataclass(frozen=True)
class FreezeConfig:
    """Which stages (blocks, then fc1 and fc2) are frozen, counted from the input upwards, and for how long."""

    mask: Mask = "full"
    """frozen: all blocks; partial: blocks 0 to freeze_until_block; full: nothing; scratch: nothing, and new weights."""
    freeze_until_block: int = 1
    """The last block that the mask `partial` freezes, counted from 0."""
    probe_epochs: int = 0
    """Train only the head for this many epochs first (linear probing, then fine-tuning)."""
    unfreeze_every: int = 0
    """Begin with the head alone, and unfreeze one more stage every so many epochs, down to the mask; 0 does not."""
    layer_decay: float = 1.0
    """The learning rate of each stage is this many times that of the stage after it (discriminative rates). Like
    probing and unfreezing, it is for weights taken over: scratch does without."""
    cache_features: bool = True
    """Without augmentation, compute the output of the frozen stages once instead of in every epoch."""

    def __post_init__(self) -> None:
        set_plain(self)
        require_choice("freeze.mask", self.mask, Mask)
        require_int("freeze.freeze_until_block", self.freeze_until_block, least=0)
        require_int("freeze.probe_epochs", self.probe_epochs, least=0)
        require_int("freeze.unfreeze_every", self.unfreeze_every, least=0)
        require_number("freeze.layer_decay", self.layer_decay, least=0, most=1, open_ends="(")
        flag = isinstance(self.cache_features, bool)
        require(flag, "freeze.cache_features", self.cache_features, "give true or false")
        both = self.probe_epochs > 0 and self.unfreeze_every > 0
        require(
            not both, "freeze.unfreeze_every", self.unfreeze_every, "it already begins with probing; drop probe_epochs"
        )


@dataclass(frozen=True)
class ExperimentConfig:
    """One run: everything that decides its numbers, and where they go."""

    name: str = ""
    """Name of the run's folder; if empty, the data set's, which experiments.transfer replaces by
    transfer_SOURCE_to_TARGET_MASK."""
    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    seed: int = 0
    """Decides the split, the initial weights, the order of the images, augmentation and dropout."""
    device: Device = "auto"
    """Where to compute; auto takes the best that JAX finds."""
    protocol: Protocol = "sound"
    """sound: validation steers, frozen means frozen; original: as the PyTorch program did it, to check its figures."""
    data: DataConfig = field(default_factory=DataConfig)
    """Images."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Network."""
    optim: OptimConfig = field(default_factory=OptimConfig)
    """Optimiser."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Training."""
    freeze: FreezeConfig = field(default_factory=FreezeConfig)
    """What is frozen; nothing unless weights are transferred."""

    def __post_init__(self) -> None:
        set_plain(self)
        set_path(self, "runs_dir")
        require_choice("protocol", self.protocol, Protocol)
        require_text("name", self.name, "give a plain folder name")
        bad_name = self.name in (".", "..") or "/" in self.name or "\\" in self.name or len(self.name.encode()) > 200
        require(not bad_name, "name", self.name, "give a plain folder name")
        require_int("seed", self.seed, least=0, most=2**32 - 1)
        require_choice("device", self.device, Device)

    @property
    def run_name(self) -> str:
        """The folder's name: `name`, or the data set's."""
        return self.name or self.data.name


@dataclass(frozen=True)
class TransferConfig(ExperimentConfig):
    """One transfer: a run that begins with weights from elsewhere. `data` is the target."""

    source: Path = Path("runs/cifar10")
    """The weights: a run's folder, an Orbax checkpoint, a model.pth or a .safetensors file."""
    head: Head = "fc3"
    """What is always new: the last layer, or the whole classifier (fc1, fc2 and fc3)."""
    input_size: int | None = None
    """Height and width that the source's network reads, instead of what its files tell or, where they do not, 32."""
    apply_pooling: tuple[int, ...] | None = None
    """Which blocks of the source (1 or 0 for each) pool, instead of what its files tell or the first ones."""
    activation_function: Activation | None = None
    """The source's activation, instead of what its files tell or ReLU."""
    dropout_rate: float | None = None
    """Dropout while fine-tuning; the source's if not given, which is 0.2 for bare weights."""

    def __post_init__(self) -> None:
        super().__post_init__()
        set_path(self, "source")
        require_choice("head", self.head, Head)
        if self.input_size is not None:
            require_int("input_size", self.input_size, least=1, most=4096)
        if self.apply_pooling is not None:
            set_sequence(self, "apply_pooling", flags=True)
        if self.activation_function is not None:
            require_choice("activation_function", self.activation_function, Activation)
        if self.dropout_rate is not None:
            require_number("dropout_rate", self.dropout_rate, least=0, most=1, open_ends=")")
        if self.head == "all" and self.freeze.mask != "scratch":
            self_frozen = self.freeze.probe_epochs or self.freeze.unfreeze_every
            require(
                not self_frozen, "head", self.head, "probing and gradual unfreezing train fc3 alone at first; give fc3"
            )


def from_dict(kind: type[Any], values: object, where: str = "") -> Any:
    """Builds a configuration (`kind`) from parsed JSON; unknown names and wrong types are refused by name."""
    require(
        isinstance(values, dict), where.rstrip(".") or "the configuration", values, "give an object of named values"
    )
    assert isinstance(values, dict)
    known = {f.name: f for f in fields(kind)}
    for name in values:
        require(name in known, f"{where}{name}", values[name], f"known names here are {', '.join(known)}")
    made = {
        name: from_dict(_SECTIONS[name], value, f"{name}.") if name in _SECTIONS else value
        for name, value in values.items()
    }
    return kind(**made)


_SECTIONS = {
    "data": DataConfig,
    "model": ModelConfig,
    "optim": OptimConfig,
    "train": TrainConfig,
    "freeze": FreezeConfig,
}
