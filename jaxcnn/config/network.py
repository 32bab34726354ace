"""Typed, frozen configuration of the network, validated on construction, and the original's two networks."""

from dataclasses import dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal

from jaxcnn.errors import require, require_choice, require_int, require_number, set_plain, set_sequence

Activation = Literal["relu", "gelu", "silu", "tanh", "leaky_relu", "elu"]
WeightInit = Literal["default", "xavier", "kaiming", "normal"]
Resize = Literal["squash", "crop", "pad"]


@dataclass(frozen=True)
class ModelConfig:
    """The configurable CNN. Sequences of `num_blocks` entries describe one block each.

    Raises:
        InputError: when the fields cannot describe a network; the message names the field.
    """

    input_size: int = 32
    """Height and width of the images, in pixels."""
    in_channels: int = 3
    """Channels of the images: 3 for RGB, 1 for grey."""
    num_classes: int = 10
    """Width of the last layer; experiments take it from the data set."""
    hidden_dims: tuple[int, ...] = (32, 128, 256, 512, 512, 128)
    """Channels of each block, then the widths of fc1 and fc2 (the last two entries)."""
    layers_per_block: tuple[int, ...] = (1, 1, 1, 1)
    """Convolutional layers in each block."""
    apply_pooling: tuple[int, ...] = (1, 1, 1, 0)
    """Whether (1 or 0) each block ends in a 2x2 max pool."""
    apply_bn: tuple[int, ...] = (1, 1, 1, 0)
    """Whether (1 or 0) each block's convolutions are followed by batch normalisation."""
    num_blocks: int = 4
    """Number of convolutional blocks."""
    activation_function: Activation = "relu"
    """Activation after every convolution and after fc1 and fc2, with PyTorch's default parameters."""
    dropout_rate: float = 0.2
    """Probability of dropping an input of fc1 and fc2 while training."""
    weight_init: WeightInit = "default"
    """Initialiser: PyTorch's own defaults, or Xavier uniform, Kaiming uniform (ReLU), N(0, 0.01) with zero biases."""

    def __post_init__(self) -> None:
        set_plain(self)
        for name in ("hidden_dims", "layers_per_block"):
            set_sequence(self, name, "model.")
        for name in ("apply_pooling", "apply_bn"):
            set_sequence(self, name, "model.", flags=True)
        require_int("model.input_size", self.input_size, least=1, most=4096)
        require_int("model.in_channels", self.in_channels, least=1)
        require_int("model.num_classes", self.num_classes, least=1)
        require_int("model.num_blocks", self.num_blocks, least=1, most=100)
        n = self.num_blocks
        for name, length, why in (
            ("hidden_dims", n + 2, "one for each block, then fc1 and fc2"),
            ("layers_per_block", n, "one for each block"),
            ("apply_pooling", n, "one for each block"),
            ("apply_bn", n, "one for each block"),
        ):
            value = getattr(self, name)
            require(len(value) == length, f"model.{name}", value, f"num_blocks={n} needs {length} entries, {why}")
        for name in ("hidden_dims", "layers_per_block"):
            value = getattr(self, name)
            within = all(1 <= v < 2**31 for v in value)
            require(within, f"model.{name}", value, f"every entry must be at least 1 and at most {2**31 - 1}")
        few = max(self.layers_per_block) <= 100
        require(few, "model.layers_per_block", self.layers_per_block, "give at most 100 layers a block")
        small = self.weights < 2**31
        require(small, "model.hidden_dims", self.hidden_dims, f"that makes {self.weights:.2g} weights; give fewer")
        pools = sum(self.apply_pooling)
        require(
            self.final_size >= 1,
            "model.apply_pooling",
            self.apply_pooling,
            f"{pools} poolings leave nothing of input_size={self.input_size}; at least {2**pools} pixels are needed",
        )
        require_choice("model.activation_function", self.activation_function, Activation)
        require_choice("model.weight_init", self.weight_init, WeightInit)
        require_number("model.dropout_rate", self.dropout_rate, least=0, most=1, open_ends=")")

    @property
    def channels(self) -> tuple[int, ...]:
        """Output channels of each block."""
        return self.hidden_dims[:-2]

    @property
    def final_size(self) -> int:
        """Height and width of the feature maps that fc1 reads."""
        return self.input_size >> sum(self.apply_pooling)

    @property
    def dense_widths(self) -> tuple[int, ...]:
        """Number of inputs of fc1, fc2 and fc3, for one image."""
        return (self.channels[-1] * self.final_size**2, *self.hidden_dims[-2:])

    @property
    def weights(self) -> int:
        """Number of weights in all kernels, without biases and batch norm."""
        wide = (self.in_channels, *self.channels)
        blocks = (9 * (i * o + (n - 1) * o * o) for i, o, n in zip(wide, wide[1:], self.layers_per_block, strict=False))
        head = (*self.dense_widths, self.num_classes)
        return sum(blocks) + sum(i * o for i, o in pairwise(head))

    @property
    def num_stages(self) -> int:
        """Number of stages that can be frozen: the blocks, fc1 and fc2. fc3 is always trained."""
        return self.num_blocks + 2


@dataclass(frozen=True, kw_only=True)
class NetworkOverrides:
    """Settings of a network that cannot be read off the shapes of its weights.

    A value replaces what the weight file's metadata or a `config.json` beside it says. None keeps what they say, or
    takes the default where they say nothing.

    Raises:
        InputError: when a field has an unusable value; the message names the field.
    """

    input_size: int | None = None
    """Height and width of the images; if not given, what the files say, or 32."""
    apply_pooling: tuple[int, ...] | None = None
    """Whether (1 or 0) each block ends in a pool; if not given, what the files say, or the first blocks."""
    activation_function: Activation | None = None
    """The activation; if not given, what the files say, or ReLU."""

    def __post_init__(self) -> None:
        set_plain(self)
        if self.input_size is not None:
            require_int("input_size", self.input_size, least=1, most=4096)
        if self.apply_pooling is not None:
            set_sequence(self, "apply_pooling", flags=True)
        if self.activation_function is not None:
            require_choice("activation_function", self.activation_function, Activation)

    def values(self) -> dict[str, Any]:
        """The fields that are not None, by name."""
        values = {each.name: getattr(self, each.name) for each in fields(NetworkOverrides)}
        return {name: value for name, value in values.items() if value is not None}

    def apply(self, config: ModelConfig) -> ModelConfig:
        """A copy of `config` with these values in place of its own."""
        return replace(config, **self.values())


SHALLOW = ModelConfig()
"""The original's shallow network: four blocks."""

DEEP = ModelConfig(
    hidden_dims=(32, 128, 256, 512, 512, 512, 512, 128),
    layers_per_block=(1,) * 6,
    apply_pooling=(1, 1, 1, 1, 1, 0),
    apply_bn=(1, 1, 1, 1, 1, 0),
    num_blocks=6,
)
"""The original's deep network: six blocks."""

PRESETS = {"shallow": SHALLOW, "deep": DEEP}


def stage_of(name: str, config: ModelConfig) -> int:
    """The index of a top-level module's stage, counted from the input: `block_k` has k, fc3 `config.num_stages`."""
    kind, _, number = name.partition("_")
    return int(number) if kind == "block" else config.num_blocks + int(name.removeprefix("fc")) - 1
