"""AutoAugment's CIFAR-10 policy with Pillow, one image at a time, as torchvision does it.

Written from the paper's table and torchvision's documented behaviour. Tests compare the JAX implementation with it,
byte by byte.
"""

import math
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageOps

from jaxcnn.config.standardisation import Standardisation


class Operation(NamedTuple):
    """One half of a sub-policy."""

    name: str
    probability: float
    level: int
    """Index of the magnitude, 0 to 9; 0 if the operation has none."""


_TABLE = """
    Invert 0.1 -       Contrast 0.2 6     | Rotate 0.7 2      TranslateX 0.3 9  | Sharpness 0.8 1  Sharpness 0.9 3
    ShearY 0.5 8       TranslateY 0.7 9   | AutoContrast 0.5 - Equalize 0.9 -   | ShearY 0.2 7     Posterize 0.3 7
    Color 0.4 3        Brightness 0.6 7   | Sharpness 0.3 9   Brightness 0.7 9  | Equalize 0.6 -   Equalize 0.5 -
    Contrast 0.6 7     Sharpness 0.6 5    | Color 0.7 7       TranslateX 0.5 8  | Equalize 0.3 -   AutoContrast 0.4 -
    TranslateY 0.4 3   Sharpness 0.2 6    | Brightness 0.9 6  Color 0.2 8       | Solarize 0.5 2   Invert 0.0 -
    Equalize 0.2 -     AutoContrast 0.6 - | Equalize 0.2 -    Equalize 0.6 -    | Color 0.9 9      Equalize 0.6 -
    AutoContrast 0.8 - Solarize 0.2 8     | Brightness 0.1 3  Color 0.7 0       | Solarize 0.4 5   AutoContrast 0.9 -
    TranslateY 0.9 9   TranslateY 0.7 9   | AutoContrast 0.9 - Solarize 0.8 3   | Equalize 0.8 -   Invert 0.1 -
    TranslateY 0.7 9   AutoContrast 0.9 -
"""


def _read(table: str) -> tuple[tuple[Operation, Operation], ...]:
    words = table.replace("|", " ").replace(" -", " 0").split()
    each = [Operation(words[i], float(words[i + 1]), int(words[i + 2])) for i in range(0, len(words), 3)]
    return tuple(zip(each[::2], each[1::2], strict=True))


POLICY = _read(_TABLE)
"""The 25 sub-policies."""


def magnitudes(height: int, width: int) -> dict[str, tuple[torch.Tensor, bool]]:
    """For each operation with magnitudes: its strength by level, and whether a random sign is applied."""
    table = {
        "ShearX": (torch.linspace(0.0, 0.3, 10), True),
        "ShearY": (torch.linspace(0.0, 0.3, 10), True),
        "TranslateX": (torch.linspace(0.0, 150.0 / 331.0 * width, 10), True),
        "TranslateY": (torch.linspace(0.0, 150.0 / 331.0 * height, 10), True),
        "Rotate": (torch.linspace(0.0, 30.0, 10), True),
        "Posterize": (8 - (torch.arange(10) / (9 / 4)).round().int(), False),
        "Solarize": (torch.linspace(255.0, 0.0, 10), False),
    }
    blends = ("Brightness", "Color", "Contrast", "Sharpness")
    return table | {name: (torch.linspace(0.0, 0.9, 10), True) for name in blends}


def magnitude(name: str, level: int, negative: bool, height: int, width: int) -> float:
    """Strength of an operation at a level, for images of this size; 0 if the operation has no magnitude."""
    if (found := magnitudes(height, width).get(name)) is None:
        return 0.0
    levels, signed = found
    return float(levels[level]) * (-1 if signed and negative else 1)


def operate(picture: Image.Image, name: str, strength: float) -> Image.Image:
    """Applies one operation through Pillow, with the arguments that torchvision gives it."""
    # torchvision passes shears in degrees, which rounds.
    slope = math.tan(math.radians(math.degrees(math.atan(strength))))
    match name:
        case "ShearX":
            return _transform(picture, (1.0, slope, 0.0, 0.0, 1.0, 0.0))
        case "ShearY":
            return _transform(picture, (1.0, 0.0, 0.0, slope, 1.0, 0.0))
        case "TranslateX":
            return _transform(picture, (1.0, 0.0, -int(strength), 0.0, 1.0, 0.0))
        case "TranslateY":
            return _transform(picture, (1.0, 0.0, 0.0, 0.0, 1.0, -int(strength)))
        case "Rotate":
            return picture.rotate(strength, Image.Resampling.NEAREST)
        case "Posterize":
            return ImageOps.posterize(picture, int(strength))
        case "Solarize":
            return ImageOps.solarize(picture, math.ceil(strength))  # the same threshold for integer values
        case "AutoContrast":
            return ImageOps.autocontrast(picture)
        case "Equalize":
            return ImageOps.equalize(picture)
        case "Invert":
            return ImageOps.invert(picture)
    enhancers = {
        "Brightness": ImageEnhance.Brightness,
        "Color": ImageEnhance.Color,
        "Contrast": ImageEnhance.Contrast,
        "Sharpness": ImageEnhance.Sharpness,
    }
    return enhancers[name](picture).enhance(1.0 + strength)


def _transform(picture: Image.Image, matrix: tuple[float, ...]) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


def apply_steps(image: np.ndarray, steps: Iterable[tuple[str, int, bool]]) -> np.ndarray:
    """Applies operations to an image, uint8 (H, W, 1 or 3). Each is (name, level, whether the sign is negative)."""
    picture = Image.fromarray(image if image.shape[2] == 3 else image[:, :, 0])
    for name, level, negative in steps:
        picture = operate(picture, name, magnitude(name, level, negative, *image.shape[:2]))
    return np.asarray(picture).reshape(image.shape)


class Transform:
    """The original's transform: uint8 (H, W, C) -> standardised float32 tensor (C, H, W), augmented or not.

    Like torchvision, it computes the table of magnitudes again for every operation, and the tensors of mean and std for
    every image. With `lean` it computes them once, so that only Pillow's work and the arithmetic remain.
    """

    def __init__(self, standardisation: Standardisation, *, augment: bool, lean: bool = False) -> None:
        self.standardisation, self.augment = standardisation, augment
        self.known: tuple[dict[tuple[str, int, bool], float], torch.Tensor, torch.Tensor] | None = None
        if lean:
            keys = {(op.name, op.level, sign) for pair in POLICY for op in pair for sign in (False, True)}
            self.known = ({key: magnitude(*key, 32, 32) for key in keys}, *self._statistics())

    def __call__(self, image: np.ndarray) -> torch.Tensor:
        """Transforms an image, uint8 (H, W, 3), with random numbers from torch's global generator."""
        picture = Image.fromarray(image)
        if self.augment:
            picture = self.autoaugment(picture)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous().float().div_(255)
        mean, std = self._statistics() if self.known is None else self.known[1:]
        return pixels.sub_(mean).div_(std)

    def autoaugment(self, picture: Image.Image) -> Image.Image:
        """Applies a random sub-policy to a picture."""
        pair = POLICY[int(torch.randint(len(POLICY), (1,)))]
        chances, signs = torch.rand(2), torch.randint(2, (2,))
        for operation, chance, sign in zip(pair, chances, signs, strict=True):
            if chance <= operation.probability:
                name, level, negative = operation.name, operation.level, bool(sign)
                size = picture.height, picture.width
                strength = (
                    self.known[0][name, level, negative] if self.known else magnitude(name, level, negative, *size)
                )
                picture = operate(picture, operation.name, strength)
        return picture

    def _statistics(self) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in self.standardisation)
        return mean, std
