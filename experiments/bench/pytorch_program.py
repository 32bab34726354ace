"""The equivalent PyTorch program: network, Adam with L2, Pillow in a DataLoader, the original's training loop.

Frozen blocks have no gradient and run in evaluation mode. JAX is not imported, so that memory can be measured.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from experiments.bench.pillow import Transform
from experiments.bench.setting import OPTIM
from jaxcnn.config import ModelConfig
from jaxcnn.data.sets import CIFAR10_STANDARDISATION
from jaxcnn.data.splits import Split
from jaxcnn.weights.pytorch_network import TorchCNN

Batches = Iterable[tuple[Tensor, Tensor]]


class Images(Dataset[tuple[Tensor, int]]):
    """Stored images, transformed on access."""

    def __init__(self, split: Split, transform: Transform) -> None:
        self.split, self.transform = split, transform

    def __len__(self) -> int:
        return len(self.split.labels)

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.transform(self.split.images[i]), int(self.split.labels[i])


def make_loader(split: Split, batch_size: int, *, augment: bool, workers: int = 0) -> "DataLoader[Any]":
    """The original's loader. Workers are spawned once and kept, because forking a process that runs JAX is not safe."""
    images = Images(split, Transform(CIFAR10_STANDARDISATION, augment=augment))
    if not workers:
        return DataLoader(images, batch_size, shuffle=True)
    return DataLoader(
        images,
        batch_size,
        shuffle=True,
        num_workers=workers,
        multiprocessing_context="spawn",
        persistent_workers=True,
        pin_memory=torch.cuda.is_available(),
    )


def in_memory(split: Split, batch_size: int) -> list[tuple[Tensor, Tensor]]:
    """All batches as standardised tensors in memory, to time steps without a loader."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in CIFAR10_STANDARDISATION)
    pixels = torch.from_numpy(split.images.transpose(0, 3, 1, 2).copy()).float().div_(255).sub_(mean).div_(std)
    labels = torch.from_numpy(split.labels.astype(np.int64))
    return list(zip(torch.split(pixels, batch_size), torch.split(labels, batch_size), strict=True))


class Form(NamedTuple):
    """How PyTorch computes; by default eagerly in float32."""

    channels_last: bool = False
    compiled: bool = False
    """With torch.compile."""
    bfloat16: bool = False
    """With autocast."""
    fused: bool = False
    """Adam in one kernel."""
    tf32: bool = False
    """On a GPU: products and convolutions of float32 in TF32."""
    graphs: bool = False
    """On a GPU: torch.compile replays its kernels as CUDA graphs."""


EAGER = Form()


class Trainer(NamedTuple):
    """A network with its optimiser, in one of PyTorch's forms."""

    network: TorchCNN
    forward: Callable[[Tensor], Tensor]
    optimizer: torch.optim.Optimizer
    form: Form
    device: str

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss and logits (B, num_classes)."""
        if self.form.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.form.bfloat16):
            logits = self.forward(images)
            return functional.cross_entropy(logits, labels), logits


def make_trainer(
    model: ModelConfig,
    *,
    frozen_blocks: int,
    form: Form = EAGER,
    head_only: bool = False,
    evaluating: bool = False,
    device: str = "cpu",
) -> Trainer:
    """A network with its optimiser, on torch's `device`. With `head_only` its input is features instead of images.

    The network is in training mode, or in evaluation mode with `evaluating`. Frozen blocks are always in evaluation
    mode.
    """
    torch.manual_seed(0)
    network = TorchCNN(model).train(not evaluating).to(device)
    for block in network.blocks[:frozen_blocks]:
        block.eval().requires_grad_(False)
    if form.channels_last:
        torch.nn.utils.convert_conv2d_weight_memory_format(network, torch.channels_last)
    optimizer = torch.optim.Adam(
        network.parameters(), lr=OPTIM.learning_rate, weight_decay=OPTIM.weight_decay, fused=form.fused
    )
    forward: Callable[[Tensor], Tensor] = network.head if head_only else network
    if form.compiled:
        forward = torch.compile(forward, mode="reduce-overhead" if form.graphs else None)
    return Trainer(network, forward, optimizer, form, device)


@contextmanager
def float32_products(form: Form) -> Iterator[None]:
    """Runs a block with TF32 allowed or forbidden on a GPU, and with cuDNN trying out its convolutions."""
    cudnn = torch.backends.cudnn
    before = torch.get_float32_matmul_precision(), cudnn.allow_tf32, cudnn.benchmark
    torch.set_float32_matmul_precision("high" if form.tf32 else "highest")
    cudnn.allow_tf32, cudnn.benchmark = form.tf32, True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        cudnn.allow_tf32, cudnn.benchmark = before[1:]


def train(trainer: Trainer, batches: Batches) -> tuple[float, int]:
    """Trains on each batch; returns summed loss and correct predictions.

    Both are summed on the device, which on a GPU is waited for only at the end.
    """
    total, hits = torch.zeros(2, dtype=torch.float64, device=trainer.device)
    with nullcontext() if trainer.device == "cpu" else float32_products(trainer.form):
        for images, labels in batches:
            if trainer.form.graphs:
                torch.compiler.cudagraph_mark_step_begin()
            trainer.optimizer.zero_grad()
            loss, logits = trainer.loss(images, labels)
            loss.backward()
            trainer.optimizer.step()
            total += loss.detach() * len(labels)
            hits += (logits.argmax(1) == labels).sum()
        synchronise(trainer.device)
    return float(total), int(hits)


def synchronise(device: str) -> None:
    """Waits until a GPU has done what it was given."""
    if device != "cpu":
        torch.cuda.synchronize()


@torch.inference_mode()
def evaluate(trainer: Trainer, batches: Batches) -> tuple[float, int]:
    """Summed loss and correct predictions. The network should be in evaluation mode."""
    total, hits = 0.0, 0
    for images, labels in batches:
        loss, logits = trainer.loss(images, labels)
        total += loss.item() * len(labels)
        hits += int((logits.argmax(1) == labels).sum())
    return total, hits


class CachedFeatures:
    """Batches of the blocks' output, computed once, in a new random order in each iteration."""

    def __init__(self, network: TorchCNN, split: Split, batch_size: int, device: str = "cpu") -> None:
        self.batch_size = batch_size
        batches = in_memory(split, batch_size)
        for block in network.blocks:
            block.eval()
        with torch.no_grad():  # tensors of inference_mode cannot be trained on
            self.features = torch.cat([network.features(images.to(device)) for images, _ in batches])
        self.labels = torch.cat([labels for _, labels in batches]).to(device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in torch.randperm(len(self.labels), device=self.labels.device).split(self.batch_size):
            yield self.features[part], self.labels[part]


def count_images(batches: Batches, after: Callable[[int], None]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the batches. After each, calls `after` with the number of images so far."""
    seen = 0
    for images, labels in batches:
        yield images, labels
        seen += len(labels)
        after(seen)
