"""How a network is trained: optimiser, length, precision, and what is frozen."""

from dataclasses import dataclass, fields
from typing import Literal

from jaxcnn.errors import require, require_choice, require_int, require_number, set_plain

Augment = Literal["autoaugment", "flipcrop", "none"]
Optimizer = Literal["adam", "adamw", "sgd"]
Schedule = Literal["plateau", "cosine", "constant"]
Mask = Literal["scratch", "full", "partial", "frozen"]
Precision = Literal["float32", "bfloat16", "auto"]
ClassWeights = Literal["none", "balanced"]


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and the learning rate over time."""

    optimizer: Optimizer = "adam"
    """adam: weight decay is added to the gradient (L2), as in PyTorch's Adam; adamw: decoupled; sgd: with momentum."""
    learning_rate: float = 1e-3
    """The learning rate that the schedule scales."""
    weight_decay: float = 1e-5
    """Weight decay, applied to every trained parameter."""
    momentum: float = 0.9
    """Momentum of sgd."""
    clip_norm: float | None = None
    """Largest global norm of the gradient; no clipping if None."""
    schedule: Schedule = "plateau"
    """plateau: cut when the validation loss stalls (PyTorch's timing); cosine: to 0 over all steps; constant."""
    plateau_factor: float = 0.5
    """Factor by which a plateau multiplies the learning rate."""
    plateau_patience: int = 5
    """Number of epochs without improvement that are tolerated; the next one cuts the learning rate."""
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
        for each in fields(self):  # JAX would make an int32 of a Python int
            if isinstance(value := getattr(self, each.name), int) and each.name != "plateau_patience":
                object.__setattr__(self, each.name, float(value))


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and when to stop early."""

    epochs: int = 200
    """Maximum number of epochs."""
    batch_size: int = 256
    """Images per step. The last batch of an epoch may be smaller."""
    early_stopping_patience: int | None = 10
    """Stop after this many epochs without a lower validation loss; never if None."""
    early_stopping_target: float | None = 98.5
    """Stop once the validation accuracy reaches this many percent; never if None."""
    class_weights: ClassWeights = "none"
    """balanced: the training loss of an image is multiplied by N / (classes * images of its class), where N is the
    number of training images. Each class then has the same total weight. Validation and test loss are not weighted."""
    precision: Precision = "float32"
    """dtype of the forward and backward pass. Weights, batch statistics, loss and optimiser state stay in float32.
    bfloat16 is for accelerators; a CPU is seldom faster with it. auto: bfloat16 on an accelerator, float32 on a CPU. A
    run that continues keeps the dtype it started with."""
    temperature_scaling: bool = False
    """After training, fit a temperature on the validation images. Logits are divided by it to get probabilities: in
    probabilities.npy, in the calibration error and in predictions. Accuracy does not change."""

    def __post_init__(self) -> None:
        set_plain(self)
        require_int("train.epochs", self.epochs, least=1, most=1_000_000)
        require_int("train.batch_size", self.batch_size, least=1, most=2**20)
        require_choice("train.class_weights", self.class_weights, ClassWeights)
        require_choice("train.precision", self.precision, Precision)
        scaled = self.temperature_scaling
        require(isinstance(scaled, bool), "train.temperature_scaling", scaled, "give true or false")
        if self.early_stopping_patience is not None:
            require_int("train.early_stopping_patience", self.early_stopping_patience, least=1)
        if self.early_stopping_target is not None:
            target = self.early_stopping_target
            require_number("train.early_stopping_target", target, least=0, most=100, open_ends="(")


@dataclass(frozen=True)
class FreezeConfig:
    """Which stages (blocks, fc1, fc2) are frozen, counted from the input, and for how many epochs."""

    mask: Mask = "full"
    """frozen: all blocks; partial: blocks 0 to freeze_until_block; full: nothing; scratch: nothing, and new weights."""
    freeze_until_block: int = 1
    """The last block that the mask `partial` freezes, counted from 0."""
    frozen_stages: int | None = None
    """Freeze this many stages, counted from the input. Needs the default mask."""
    probe_epochs: int = 0
    """Train only the head for this many epochs first (linear probing, then fine-tuning)."""
    unfreeze_every: int = 0
    """Gradual unfreezing: train only fc3 at first, then one more stage every this many epochs; 0 disables it."""
    layer_decay: float = 1.0
    """Learning rate of each stage relative to the next stage towards the output (discriminative learning rates). Like
    probing and unfreezing, it has no effect with scratch."""
    cache_features: bool = True
    """Without augmentation, compute the output of the frozen stages once instead of in every epoch."""

    def __post_init__(self) -> None:
        set_plain(self)
        require_choice("freeze.mask", self.mask, Mask)
        require_int("freeze.freeze_until_block", self.freeze_until_block, least=0)
        if self.frozen_stages is not None:
            require_int("freeze.frozen_stages", self.frozen_stages, least=0)
            alone = self.mask == "full" or (self.mask == "scratch" and not self.frozen_stages)
            remedy = f"the mask {self.mask} says what is frozen; leave one of them out"
            require(alone, "freeze.frozen_stages", self.frozen_stages, remedy)
        require_int("freeze.probe_epochs", self.probe_epochs, least=0)
        require_int("freeze.unfreeze_every", self.unfreeze_every, least=0)
        require_number("freeze.layer_decay", self.layer_decay, least=0, most=1, open_ends="(")
        flag = isinstance(self.cache_features, bool)
        require(flag, "freeze.cache_features", self.cache_features, "give true or false")
        both = self.probe_epochs > 0 and self.unfreeze_every > 0
        require(
            not both, "freeze.unfreeze_every", self.unfreeze_every, "it already begins with probing; drop probe_epochs"
        )
