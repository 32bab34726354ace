"""What a trained network needs beside its weights to classify images."""

from dataclasses import dataclass

from jaxcnn.config.network import ModelConfig, Resize
from jaxcnn.errors import require, require_choice, require_number, set_plain


@dataclass(frozen=True)
class Card:
    """Which images a network reads, and what its outputs are called. An empty field is not known.

    Raises:
        InputError: when a field holds something else; the message names the field.
    """

    class_names: tuple[str, ...] = ()
    """By label."""
    mean: tuple[float, ...] = ()
    """Of each channel of pixels in [0, 1], subtracted; `std` divides what is left."""
    std: tuple[float, ...] = ()
    """See `mean`."""
    resize: Resize = "squash"
    """How images of other sizes become squares."""
    temperature: float = 1.0
    """What divides the logits before they become probabilities."""

    def __post_init__(self) -> None:
        set_plain(self)
        for name in ("class_names", "mean", "std"):
            value = getattr(self, name)
            require(isinstance(value, (list, tuple)), name, value, "give a sequence")
            object.__setattr__(self, name, tuple(value))
        names = self.class_names
        require(all(isinstance(name, str) for name in names), "class_names", names, "every entry must be a text")
        for value in self.mean:
            require_number("mean", value, least=-1e6, most=1e6)
        for value in self.std:
            require_number("std", value, least=0, most=1e6, open_ends="(")
        require_choice("resize", self.resize, Resize)
        require_number("temperature", self.temperature, least=0, most=1e6, open_ends="(")

    def check(self, model: ModelConfig) -> None:
        """Refuses a card that is not this network's.

        Raises:
            InputError: when the number of names, means or deviations does not fit; the message names the field.
        """
        for name, count, what in (
            ("class_names", model.num_classes, "class of the network"),
            ("mean", model.in_channels, "channel of the network's images"),
            ("std", model.in_channels, "channel of the network's images"),
        ):
            value = getattr(self, name)
            require(len(value) in (0, count), name, value, f"give {count}, one for each {what}")
