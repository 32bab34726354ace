"""Typed, frozen configuration of a run, validated on construction. Imports neither JAX nor anything slow."""

import json
import re
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxcnn.config.network import ModelConfig, NetworkOverrides, Resize
from jaxcnn.config.training import Augment, FreezeConfig, OptimConfig, TrainConfig
from jaxcnn.errors import (
    require,
    require_choice,
    require_int,
    require_number,
    require_text,
    set_path,
    set_plain,
    set_sequence,
)

Device = Literal["auto", "cpu", "gpu", "tpu"]
Head = Literal["fc3", "all"]
Protocol = Literal["sound", "original"]
Stream = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on, and how they are split and augmented."""

    name: str = "cifar10"
    """cifar10, cifar100, svhn, digits, or any prepared tfds image classification set; folder for image files in one
    folder per class, npz for arrays, hf:NAME_OR_PATH[:CONFIG] for a Hugging Face data set."""
    dir: Path | None = None
    """Folder of prepared tfds data sets (tfds's default if not given), folder of images, or .npz file."""
    archives: Path | None = None
    """Folder of archives that are already downloaded: the official ones, or torchvision's files."""
    augment: Augment = "autoaugment"
    """Augmentation of the training images: AutoAugment's CIFAR-10 policy, random flip and crop, or none."""
    classes: tuple[int, ...] = ()
    """Keep only these labels, renumbered from 0 in the order given; all when empty."""
    fraction: float = 1.0
    """Fraction of the training images to use, drawn by the seed and stratified by class."""
    validation: float = 0.1
    """Fraction of the training images held out for validation, unless the set has validation images of its own. 0: no
    validation, so the plateau schedule and early stopping have no effect."""
    split_seed: int | None = None
    """Decides which images `fraction` and `validation` take; the run's seed if not given."""
    image_column: str = ""
    """Column of a Hugging Face data set that holds the images; if empty, the only one of that type."""
    label_column: str = ""
    """Column of a Hugging Face data set that holds the labels; if empty, the only one of class labels."""
    resize: Resize = "squash"
    """How images are resized to the network's square input: squash ignores the proportions, crop keeps the middle, pad
    adds black borders. All are bilinear."""
    skip_broken: bool = False
    """Leave out image files that cannot be used, and list them."""
    stream: Stream = "auto"
    """always: training images stay in the cache's memory-mapped file, and a few batches at a time are copied to the
    device; never: all are on the device; auto: streamed if they need more than half of its memory."""

    def __post_init__(self) -> None:
        set_plain(self)
        set_sequence(self, "classes", "data.")
        require_text("data.name", self.name, "name a data set")
        require(bool(self.name), "data.name", self.name, "name a data set")
        for name in ("image_column", "label_column"):
            require_text(f"data.{name}", getattr(self, name), "name a column")
        require(isinstance(self.skip_broken, bool), "data.skip_broken", self.skip_broken, "give true or false")
        require_choice("data.resize", self.resize, Resize)
        require_choice("data.augment", self.augment, Augment)
        require_choice("data.stream", self.stream, Stream)
        for name in ("dir", "archives"):
            if getattr(self, name) is not None:
                set_path(self, name, "data.")
        distinct = len(set(self.classes)) == len(self.classes) and all(c >= 0 for c in self.classes)
        require(distinct, "data.classes", self.classes, "give distinct labels, each at least 0")
        require(len(self.classes) != 1, "data.classes", self.classes, "give at least two labels, or none for all")
        require_number("data.fraction", self.fraction, least=0, most=1, open_ends="(")
        require_number("data.validation", self.validation, least=0, most=1, open_ends=")")
        if self.split_seed is not None:
            require_int("data.split_seed", self.split_seed, least=0, most=2**32 - 1)

    @property
    def title(self) -> str:
        """The set's name in runs and tables: `name`, or the name of the user's folder, file or Hugging Face set."""
        if self.name.startswith("hf:"):
            title = self.name.removeprefix("hf:").rstrip("/").rpartition("/")[2]
        elif self.name in ("folder", "npz") and self.dir is not None:
            title = self.dir.resolve().stem if self.name == "npz" else self.dir.resolve().name
        else:
            return self.name
        return re.sub(r"[^\w.+-]+", "_", title).lstrip(".")[:100] or "images"


@dataclass(frozen=True)
class ExperimentConfig:
    """One run: all settings that affect its results, and where it is stored."""

    name: str = ""
    """Name of the run's folder. If empty, the data set's name; jaxcnn transfer takes transfer_SOURCE_to_TARGET_MASK
    instead."""
    runs_dir: Path = Path("runs")
    """Folder that holds the runs."""
    seed: int = 0
    """Seed of the split, the initial weights, the order of the images, augmentation and dropout."""
    device: Device = "auto"
    """Device to compute on; auto takes the best one that JAX finds."""
    devices: int | None = None
    """Number of devices that share each batch. If not given, all of this machine's GPUs or TPU cores; on a CPU, one."""
    protocol: Protocol = "sound"
    """sound: training decisions use validation images, and frozen batch statistics do not change; original: what the
    PyTorch program did, to check its figures."""
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
        if self.devices is not None:
            require_int("devices", self.devices, least=1, most=4096)

    @property
    def run_name(self) -> str:
        """The folder's name: `name`, or the data set's title."""
        return self.name or self.data.title


@dataclass(frozen=True)
class TransferConfig(NetworkOverrides, ExperimentConfig):
    """A transfer: a run that starts from saved weights. `data` is the target data set."""

    source: Path = Path("runs/cifar10")
    """The weights: a run's folder, a published model's, an Orbax checkpoint, a model.pth or a .safetensors file, or the
    name of weights that come with the project (cifar10-shallow)."""
    head: Head = "fc3"
    """Which layers start with new weights: fc3, or all of fc1, fc2 and fc3."""
    copied_stages: int | None = None
    """Copy the weights of this many stages, counted from the input; the others start with new weights. If not given,
    all stages except the head are copied. 0 is the mask scratch."""
    dropout_rate: float | None = None
    """Dropout rate of fine-tuning; if not given, the source's (0.2 if its files do not say)."""

    def __post_init__(self) -> None:
        NetworkOverrides.__post_init__(self)
        ExperimentConfig.__post_init__(self)
        set_path(self, "source")
        require_choice("head", self.head, Head)
        if self.copied_stages is not None:
            require_int("copied_stages", self.copied_stages, least=0)
            require(self.head == "fc3", "copied_stages", self.copied_stages, "head='all' says it too; give one of them")
            none = self.freeze.mask == "scratch" and self.copied_stages > 0
            require(not none, "copied_stages", self.copied_stages, "the mask scratch takes nothing over; give 0")
            if self.copied_stages == 0:
                alone = self.freeze.mask in ("full", "scratch")
                require(alone, "copied_stages", 0, f"the mask {self.freeze.mask} would freeze new weights; raise it")
                object.__setattr__(self, "freeze", replace(self.freeze, mask="scratch"))
        if self.dropout_rate is not None:
            require_number("dropout_rate", self.dropout_rate, least=0, most=1, open_ends=")")
        if self.head == "all" and self.freeze.mask != "scratch":
            self_frozen = self.freeze.probe_epochs or self.freeze.unfreeze_every
            require(
                not self_frozen, "head", self.head, "probing and gradual unfreezing train fc3 alone at first; give fc3"
            )


def case_name(config: ExperimentConfig) -> str:
    """What a run copies and freezes, as a part of a name: the mask, or the numbers of stages."""
    freeze = config.freeze
    frozen = freeze.mask if freeze.frozen_stages is None else f"frozen{freeze.frozen_stages}"
    copied = config.copied_stages if isinstance(config, TransferConfig) else None
    return f"copied{copied}_{frozen}" if copied else frozen


def from_dict(kind: type[Any], values: object, where: str = "") -> Any:
    """Builds a configuration of type `kind` from parsed JSON.

    Args:
        kind: the dataclass.
        values: the parsed JSON, which should be an object.
        where: prefix of the names in messages, such as "model.".

    Raises:
        InputError: naming the field, when a name is unknown or a value unusable.
    """
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


# The section of config.json in which a run records versions, device and data set. Reading a configuration ignores it.
RESOLVED = "resolved"


PLACES = ("device", "devices", "runs_dir", "name", "data.dir", "data.archives", "data.stream")
"""Settings that may differ when a run continues, because they do not affect its results."""


class Existing(NamedTuple):
    """What to do if the run's folder already holds a run. The default continues it, or shows its result."""

    overwrite: bool = False
    """Delete it and start again."""
    extend: bool = False
    """Train it for more epochs. All other settings must be the same."""


CONTINUE = Existing()


def to_json(config: ExperimentConfig) -> dict[str, Any]:
    """A configuration as JSON values, which `from_dict` reads back."""
    return dict(json.loads(json.dumps(asdict(config), default=str)))


def flatten(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """The values of nested JSON objects by dotted name, such as `optim.learning_rate`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flatten(value, f"{where}{name}.") if isinstance(value, dict) else {f"{where}{name}": value}
    return found
