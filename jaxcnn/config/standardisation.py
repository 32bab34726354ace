"""How images are standardised before the network reads them."""

from typing import NamedTuple


class Standardisation(NamedTuple):
    """Mean and standard deviation of each channel of images / 255: (pixel / 255 - mean) / std."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
