"""Preprocessing and class names, which a trained network needs to classify images."""

from dataclasses import dataclass

from jaxcnn.config.network import ModelConfig, Resize
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.errors import require, require_choice, require_number, set_plain


@dataclass(frozen=True)
class Card:
    """How a network's images are preprocessed, and what its outputs are called. An empty field is unknown.

    Raises:
        InputError: when a field has an unusable value; the message names the field.
    """

    class_names: tuple[str, ...] = ()
    """Names of the classes, in the order of the labels."""
    mean: tuple[float, ...] = ()
    """Mean of each channel for pixels in [0, 1]. The network reads (pixels - mean) / std."""
    std: tuple[float, ...] = ()
    """Standard deviation of each channel; see `mean`."""
    resize: Resize = "squash"
    """How images of other sizes are resized to the network's square input."""
    temperature: float = 1.0
    """Logits are divided by it before they become probabilities."""

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

    @property
    def standardisation(self) -> Standardisation:
        """What the network expects of its images; its parts are empty where they are not known."""
        return Standardisation(self.mean, self.std)

    def check(self, model: ModelConfig) -> None:
        """Checks that the card fits a network.

        Raises:
            InputError: when the number of names, means or standard deviations is wrong; the message names the field.
        """
        for name, count, what in (
            ("class_names", model.num_classes, "class of the network"),
            ("mean", model.in_channels, "channel of the network's images"),
            ("std", model.in_channels, "channel of the network's images"),
        ):
            value = getattr(self, name)
            require(len(value) in (0, count), name, value, f"give {count}, one for each {what}")
