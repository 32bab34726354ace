"""Typed, frozen configuration of a run, validated on construction. Imports neither JAX nor anything slow."""

import json
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxcnn.config.network import ModelConfig, Resize, Untold
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


@dataclass(frozen=True)
class DataConfig:
    """Which images to train on, and how they are split and augmented."""

    name: str = "cifar10"
    """cifar10, cifar100, svhn, digits, or any prepared tfds image classification set; folder for image files by class,
    npz for arrays, hf:NAME_OR_PATH[:CONFIG] for a Hugging Face data set."""
    dir: Path | None = None
    """Folder of prepared tfds data sets, tfds's own default if not given; the folder of images, or the .npz file."""
    archives: Path | None = None
    """Folder of archives already downloaded (the official ones, or what torchvision leaves behind)."""
    augment: Augment = "autoaugment"
    """Augmentation of the training images: AutoAugment's CIFAR-10 policy, random flip and crop, or none."""
    classes: tuple[int, ...] = ()
    """Keep only these labels, renumbered from 0 in the order given; all when empty."""
    fraction: float = 1.0
    """Share of the training images to use, stratified by class and seeded."""
    validation: float = 0.1
    """Share of the training images held out to steer training, unless the set has a folder or arrays for validation;
    0 trains on all of them and steers by nothing."""
    image_column: str = ""
    """Column of a Hugging Face data set that holds the images; if empty, the only one of that type."""
    label_column: str = ""
    """Column of a Hugging Face data set that holds the labels; if empty, the only one of class labels."""
    resize: Resize = "squash"
    """How images become squares of the network's size: squash changes their proportions, crop takes the middle, pad
    adds black borders; bilinear each."""
    skip_broken: bool = False
    """Go on without image files that cannot be used, and list them."""

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
        for name in ("dir", "archives"):
            if getattr(self, name) is not None:
                set_path(self, name, "data.")
        distinct = len(set(self.classes)) == len(self.classes) and all(c >= 0 for c in self.classes)
        require(distinct, "data.classes", self.classes, "give distinct labels, each at least 0")
        require(len(self.classes) != 1, "data.classes", self.classes, "give at least two labels, or none for all")
        require_number("data.fraction", self.fraction, least=0, most=1, open_ends="(")
        require_number("data.validation", self.validation, least=0, most=1, open_ends=")")

    @property
    def title(self) -> str:
        """What runs and tables call the set: its name, or that of the user's own folder or file."""
        if self.name.startswith("hf:"):
            title = self.name.removeprefix("hf:").rstrip("/").rpartition("/")[2]
        elif self.name in ("folder", "npz") and self.dir is not None:
            title = self.dir.resolve().stem if self.name == "npz" else self.dir.resolve().name
        else:
            return self.name
        return re.sub(r"[^\w.+-]+", "_", title).lstrip(".")[:100] or "images"


@dataclass(frozen=True)
class ExperimentConfig:
    """One run: everything that decides its numbers, and where they go."""

    name: str = ""
    """Name of the run's folder; if empty, the data set's, which jaxcnn transfer replaces by
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
        """The folder's name: `name`, or the data set's title."""
        return self.name or self.data.title


@dataclass(frozen=True)
class TransferConfig(Untold, ExperimentConfig):
    """One transfer: a run that begins with weights from elsewhere. `data` is the target."""

    source: Path = Path("runs/cifar10")
    """The weights: a run's folder, an Orbax checkpoint, a model.pth or a .safetensors file."""
    head: Head = "fc3"
    """What is always new: the last layer, or the whole classifier (fc1, fc2 and fc3)."""
    dropout_rate: float | None = None
    """Dropout while fine-tuning; the source's if not given, which is 0.2 for bare weights."""

    def __post_init__(self) -> None:
        Untold.__post_init__(self)
        ExperimentConfig.__post_init__(self)
        set_path(self, "source")
        require_choice("head", self.head, Head)
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


# What a run adds to its config.json; of no meaning when the file is given back.
RESOLVED = "resolved"


PLACES = ("device", "runs_dir", "name", "data.dir", "data.archives")
"""Settings that say where a run is, and not what."""


class Existing(NamedTuple):
    """What is to become of a run that is there already; by default it goes on, or shows its result."""

    overwrite: bool = False
    """Begin again."""
    extend: bool = False
    """Go on beyond its last epoch, where the configuration asks for more epochs and differs in nothing else."""


CONTINUE = Existing()


def to_json(config: ExperimentConfig) -> dict[str, Any]:
    """A configuration as JSON values; `read_config` reads them back."""
    return dict(json.loads(json.dumps(asdict(config), default=str)))
