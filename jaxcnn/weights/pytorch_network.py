"""The network in PyTorch, with its preprocessing, in one file that needs torch and safetensors alone.

A published model has this file beside its weights, as `model.py`:

    from model import load

    classifier = load("FOLDER")
    names = classifier.predict(images)

SPDX-License-Identifier: MIT
"""

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


class TorchCNN(nn.Module):
    """The CNN that `config` describes, on images (B, C, H, W); its `state_dict` has the names of a `model.pth`.

    Args:
        config: an object with the fields that `config.json` has under `model`.
    """

    def __init__(self, config: Any) -> None:
        super().__init__()
        act = ACTIVATIONS[config.activation_function]
        self.blocks = nn.ModuleList()
        size, width = config.input_size, config.in_channels
        for i in range(config.num_blocks):
            layers: list[nn.Module] = []
            for _ in range(config.layers_per_block[i]):
                layers.append(nn.Conv2d(width, config.hidden_dims[i], 3, padding=1))
                width = config.hidden_dims[i]
                if config.apply_bn[i]:
                    layers.append(nn.BatchNorm2d(width))
                layers.append(act())
            if config.apply_pooling[i]:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            self.blocks.append(nn.Sequential(*layers))
        self.dropout = nn.Dropout(config.dropout_rate)
        self.act = act()
        self.fc1 = nn.Linear(width * size * size, config.hidden_dims[-2])
        self.fc2 = nn.Linear(config.hidden_dims[-2], config.hidden_dims[-1])
        self.fc3 = nn.Linear(config.hidden_dims[-1], config.num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes)."""
        return self.head(self.features(x))

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Output of the blocks, flattened: (B, C * H' * W')."""
        for block in self.blocks:
            x = block(x)
        return x.flatten(1)

    def head(self, x: torch.Tensor) -> torch.Tensor:
        """Logits (B, num_classes) from flattened features."""
        x = self.act(self.fc1(self.dropout(x)))
        x = self.act(self.fc2(self.dropout(x)))
        logits: torch.Tensor = self.fc3(x)
        return logits


def torch_network(state_dict: Mapping[str, Any], config: Any) -> TorchCNN:
    """Makes a network in training mode with these weights, whose names and shapes must match exactly."""
    network = TorchCNN(config)
    network.load_state_dict(state_dict, strict=True)
    return network


class TorchClassifier(nn.Module):
    """A trained network with its preprocessing and the names of its classes: pixels in, probabilities out."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, network: TorchCNN, config: Mapping[str, Any]) -> None:
        """Takes what `config.json` holds."""
        super().__init__()
        self.network = network
        self.class_names: list[str] = config["class_names"]
        self.size, self.channels = config["model"]["input_size"], config["model"]["in_channels"]
        self.resize = config["resize"]
        self.temperature: float = config.get("temperature", 1.0)
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(config[name]).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Probabilities, float32 (N, K), of uint8 (N, C, H, W) that have the network's own size."""
        logits: torch.Tensor = self.network((pixels / 255 - self.mean) / self.std)
        return (logits / self.temperature).softmax(1)

    @torch.inference_mode()
    def predict_proba(self, images: Any, batch_size: int = 256) -> torch.Tensor:
        """The probabilities of the classes, float32 (N, K), in the order of `class_names`.

        Args:
            images: uint8 (N, C, H, W) or (C, H, W), C being 1 or 3; an image of Pillow's; or a sequence of
                these, of whatever sizes.
            batch_size: images that go through the network at once.

        Raises:
            ValueError: when an image has other values, or colours that the network does not read.
        """
        fitted = [self._fit(image) for image in _one_by_one(images)]
        batches = [fitted[i : i + batch_size] for i in range(0, len(fitted), batch_size)]
        rows = [self(torch.stack(batch).to(self.mean.device)) for batch in batches]
        return torch.cat(rows) if rows else torch.empty(0, len(self.class_names))

    def predict(self, images: Any) -> list[str]:
        """The name of the most probable class of each image; the arguments and errors are those of `predict_proba`."""
        return [self.class_names[i] for i in self.predict_proba(images).argmax(1).tolist()]

    def _fit(self, image: torch.Tensor) -> torch.Tensor:
        """The image as the network reads it, uint8 (C, size, size)."""
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] not in (1, 3):
            raise ValueError(f"uint8 (C, H, W) is needed, C being 1 or 3; an image is {image.dtype} {[*image.shape]}")
        if image.shape[0] > self.channels:
            raise ValueError(f"the image has {image.shape[0]} channels, and the network reads {self.channels}")
        return resize_square(image, self.size, self.resize).expand(self.channels, -1, -1)


def _one_by_one(images: Any) -> Iterable[torch.Tensor]:
    """Tensors (C, H, W) of what `predict_proba` takes."""
    if isinstance(images, torch.Tensor):
        yield from images[None] if images.ndim == 3 else images
    elif hasattr(images, "convert"):  # an image of Pillow's
        from PIL import ImageOps

        upright = ImageOps.exif_transpose(images)
        upright = upright.convert("L" if upright.mode in ("1", "L") else "RGB")
        pixels = torch.frombuffer(bytearray(upright.tobytes()), dtype=torch.uint8)
        yield pixels.view(upright.height, upright.width, -1).permute(2, 0, 1)
    else:
        for each in images:
            yield from _one_by_one(each)


def resize_square(image: torch.Tensor, size: int, how: str) -> torch.Tensor:
    """uint8 (C, H, W) -> (C, size, size): bilinear and antialiased, within one grey level of Pillow.

    Args:
        image: of any size.
        size: height and width wanted.
        how: squash ignores the proportions, crop takes the middle, pad adds black borders.
    """
    spans = [(0.0, float(length)) for length in image.shape[1:]]
    shape = [size, size]
    longer, shorter = max(image.shape[1:]), min(image.shape[1:])
    if how == "crop":
        spans = [((length - shorter) / 2, (length + shorter) / 2) for length in image.shape[1:]]
    elif how == "pad":
        shape = [size if length == longer else max(1, round(length / longer * size)) for length in image.shape[1:]]
    rows, columns = map(_interpolation, image.shape[1:], spans, shape)
    resized = _rounded(rows @ _rounded(image.double() @ columns.T))
    top, left = (round((size - length) / 2) for length in shape)
    square = torch.zeros(len(image), size, size, dtype=torch.uint8)
    square[:, top : top + shape[0], left : left + shape[1]] = resized
    return square


def _interpolation(length: int, span: tuple[float, float], size: int) -> torch.Tensor:
    """What each of `size` pixels takes of each of `length` pixels, of which the span is to be seen: (size, length)."""
    scale = (span[1] - span[0]) / size
    centres = span[0] + (torch.arange(size, dtype=torch.float64) + 0.5) * scale
    places = torch.arange(length, dtype=torch.float64) + 0.5
    weights = (1 - (places - centres[:, None]).abs() / max(scale, 1.0)).clamp(min=0)
    return _rounded(weights / weights.sum(1, keepdim=True) * 2**22) / 2**22  # as Pillow has it, in whole numbers


def _rounded(values: torch.Tensor) -> torch.Tensor:
    return (values + 0.5).floor()  # after each direction, as Pillow does


def load(folder: Path | str = Path(__file__).parent) -> TorchClassifier:
    """The model in a folder that holds `config.json` and `model.safetensors`, ready for `predict`."""
    config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
    network = torch_network(load_file(Path(folder) / "model.safetensors"), SimpleNamespace(**config["model"]))
    return TorchClassifier(network, config).eval()
