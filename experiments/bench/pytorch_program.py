"""The equivalent PyTorch program: network, Adam with L2, Pillow in a DataLoader, the original's training loop.

Frozen blocks need no gradient and run in evaluation mode. Imports no JAX, so that its memory can be measured.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from experiments.bench.pillow import Transform
from experiments.bench.setting import OPTIM
from jaxcnn.config import ModelConfig
from jaxcnn.data.sets import CIFAR10_MEAN, CIFAR10_STD
from jaxcnn.data.splits import Split
from jaxcnn.weights.pytorch_network import TorchCNN

Batches = Iterable[tuple[Tensor, Tensor]]


class Images(Dataset[tuple[Tensor, int]]):
    """Stored images, each transformed when it is asked for."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.split.images[i]), int(self.split.labels[i])


def make_loader(split: Split, batch_size: int, *, augment: bool, workers: int = 0) -> "DataLoader[Any]":
    """The original's loader. Workers are started once and kept: forking a process that runs JAX is not safe."""
    images = Images(split, Transform(CIFAR10_MEAN, CIFAR10_STD, augment=augment))
    if not workers:
        return DataLoader(images, batch_size, shuffle=True)
    return DataLoader(
        images, batch_size, shuffle=True, num_workers=workers, multiprocessing_context="spawn", persistent_workers=True
    )


def in_memory(split: Split, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """Whole batches of standardised images: what a step can be timed on by itself."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (CIFAR10_MEAN, CIFAR10_STD))
    pixels = torch.from_numpy(split.images.transpose(0, 3, 1, 2).copy()).float().div_(255).sub_(mean).div_(std)
    labels = torch.from_numpy(split.labels.astype(np.int64))
    return list(zip(torch.split(pixels, batch_size), torch.split(labels, batch_size), strict=True))


class Trainer(NamedTuple):
    """A network with its optimiser, in one of PyTorch's forms."""

    network: TorchCNN
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    bfloat16: bool


def make_trainer(model: ModelConfig, *, frozen_blocks: int, compiled: bool = False, bfloat16: bool = False) -> Trainer:
    """A network in training mode. `bfloat16` is autocast with channels last, PyTorch's fastest on this kind of CPU."""
    torch.manual_seed(0)
    network = TorchCNN(model).train()
    for block in network.blocks[:frozen_blocks]:
        block.eval().requires_grad_(False)
    if bfloat16:
        torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters(), lr=OPTIM.learning_rate, weight_decay=OPTIM.weight_decay)
    forward: Callable[[Tensor], Tensor] = torch.compile(network) if compiled else network
    return Trainer(network, forward, optimizer, bfloat16)


def train(trainer: Trainer, batches: Batches) -> tuple[float, int]:
    """Trains on each batch, and sums loss and hits as the original does."""
    total, hits = 0.0, 0
    for images, labels in batches:
        if trainer.bfloat16:
            images = images.contiguous(memory_format=torch.channels_last)
        trainer.optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=trainer.bfloat16):
            logits = trainer.forward(images)
            loss = functional.cross_entropy(logits, labels)
        loss.backward()
        trainer.optimizer.step()
        total += loss.item() * len(labels)
        hits += int((logits.argmax(1) == labels).sum())
    return total, hits


@torch.inference_mode()
def evaluate(network: TorchCNN, batches: Batches) -> tuple[float, int]:
    """Summed loss and hits in evaluation mode."""
    total, hits = 0.0, 0
    for images, labels in batches:
        logits = network(images)
        total += functional.cross_entropy(logits, labels).item() * len(labels)
        hits += int((logits.argmax(1) == labels).sum())
    return total, hits


def watched(batches: "DataLoader[Any]", after: Callable[[int], None]) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches; `after` is told the images seen whenever one has been trained on."""
    seen = 0
    for images, labels in batches:
        yield images, labels
        seen += len(labels)
        after(seen)
