"""PyTorch's side on a GPU: images that are stored there as bytes, shuffled, augmented and standardised there."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from experiments.bench.pytorch_program import Batches
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.data.splits import Split

PADDING = 4


def torch_device(device: str) -> str:
    """Torch's name of a setting's device."""
    return "cuda" if device == "gpu" else device


class Stored:
    """Batches of what is stored on a device, in a new random order in each iteration.

    All batches have the same size, because torch.compile compiles for one size: the last one is filled with others.
    jaxcnn's is padded to the same size, so both compute equally much.

    Args:
        inputs: (N, ...).
        labels: int64 (N,), on the same device.
        batch_size: images in a batch.
        prepare: what is done with the inputs of each batch.
    """

    def __init__(
        self, inputs: Tensor, labels: Tensor, batch_size: int, prepare: Callable[[Tensor], Tensor] = lambda x: x
    ) -> None:
        self.inputs, self.labels, self.batch_size, self.prepare = inputs, labels, batch_size, prepare

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        count = len(self.labels)
        filled = -(-count // self.batch_size) * self.batch_size
        order = torch.randperm(count, device=self.labels.device).repeat(-(-filled // count))[:filled]
        for part in order.split(self.batch_size):
            yield self.prepare(self.inputs[part]), self.labels[part]


def stored_images(split: Split, batch_size: int, device: str, *, flip_and_crop: bool = False) -> Stored:
    """Images that are stored as bytes, and standardised (first augmented, if asked for) batch by batch."""
    images = torch.from_numpy(split.images.transpose(0, 3, 1, 2).copy()).to(device)
    labels = torch.from_numpy(split.labels.astype(np.int64)).to(device)
    mean, std = (torch.tensor(values, device=device).view(-1, 1, 1) for values in CIFAR10_STANDARDISATION)

    def prepare(images: Tensor) -> Tensor:
        if flip_and_crop:
            images = flipcrop(images)
        return images.float().div_(255).sub_(mean).div_(std)

    return Stored(images, labels, batch_size, prepare)


def flipcrop(images: Tensor) -> Tensor:
    """Pads by 4 black pixels on each side, crops each image at random, and mirrors it with probability 1/2.

    Args:
        images: uint8 (B, C, H, W).

    Returns:
        uint8 (B, C, H, W).
    """
    count, channels, height, width = images.shape
    device = images.device
    padded = functional.pad(images, (PADDING,) * 4)
    top, left = torch.randint(2 * PADDING + 1, (2, count, 1), device=device)
    rows = top + torch.arange(height, device=device)
    columns = left + torch.arange(width, device=device)
    columns = torch.where(torch.rand(count, 1, device=device) < 0.5, columns.flip(1), columns)
    image = torch.arange(count, device=device).view(-1, 1, 1, 1)
    channel = torch.arange(channels, device=device).view(-1, 1, 1)
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


class Copied:
    """The batches of a loader, copied to a device. From pinned memory, the copy runs beside the computation."""

    def __init__(self, batches: Batches, device: str) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, labels in self.batches:
            yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
