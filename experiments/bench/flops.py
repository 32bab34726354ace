"""Work that a step cannot avoid, counted on paper: arithmetic and bytes, and what a device needs for them at least.

Arithmetic is nominal: 2 floating point operations for each multiply-add of a direct convolution or dense layer, its
padding included, forward and for both gradients; nothing for normalisation, activations, pooling and the optimiser.
"""

from typing import NamedTuple

from jaxcnn.config import ModelConfig


class Layer(NamedTuple):
    """One convolution or dense layer, for one image."""

    stage: int
    """Counted as for freezing: blocks, then fc1 and fc2; fc3 comes last."""
    multiply_adds: int
    """Of its output; each gradient takes as many."""
    weights: int
    reads: int
    """Numbers in its input."""
    writes: int
    """Numbers in its output, before any pool."""


def layers(model: ModelConfig) -> list[Layer]:
    """The layers that multiply, input first."""
    found = []
    size, width = model.input_size, model.in_channels
    for stage, channels in enumerate(model.channels):
        for _ in range(model.layers_per_block[stage]):
            weights, pixels = 9 * width * channels, size * size
            found.append(Layer(stage, weights * pixels, weights + channels, width * pixels, channels * pixels))
            width = channels
        size >>= model.apply_pooling[stage]
    width *= size * size
    for stage, out in enumerate((*model.hidden_dims[-2:], model.num_classes), model.num_blocks):
        found.append(Layer(stage, width * out, width * out + out, width, out))
        width = out
    return found


def forward_flops(model: ModelConfig) -> int:
    """Nominal operations of one image's logits."""
    return 2 * sum(layer.multiply_adds for layer in layers(model))


def step_flops(model: ModelConfig, frozen_stages: int = 0) -> int:
    """Nominal operations of one image in a training step.

    Trained layers take twice their forward work for the gradients of weights and input; the lowest of them needs no
    gradient of its input.
    """
    trained = [layer for layer in layers(model) if layer.stage >= frozen_stages]
    gradients = 2 * sum(layer.multiply_adds for layer in trained) - trained[0].multiply_adds
    return forward_flops(model) + 2 * gradients


def step_bytes(model: ModelConfig, batch_size: int, width: int = 4) -> int:
    """Least bytes that a full training step moves, if nothing but fused neighbours stays on the chip.

    Weights are float32: read forward and backward, gradient written and read, Adam reads and writes them and two
    moments: 10 passes. Activations, `width` bytes each: a layer's input is read forward and for the filter gradient,
    and its gradient written (but for the first layer); its output is written, read for normalising, activation and
    pool, and read again for their gradient, which is written and read twice.
    """
    each = layers(model)
    moved = sum(3 * layer.reads + 6 * layer.writes for layer in each) - each[0].reads
    return 10 * 4 * sum(layer.weights for layer in each) + batch_size * width * moved


class Device(NamedTuple):
    """Peak rates that a data sheet gives for an accelerator."""

    name: str
    flops: dict[str, float]
    """Operations a second, dense, by the arithmetic's name."""
    bandwidth: float
    """Bytes a second."""


H100 = Device("H100 SXM", {"float32": 67e12, "TF32": 494e12, "bfloat16": 989e12}, 3.35e12)


class Floor(NamedTuple):
    """The least time of a step, from either bound."""

    arithmetic: str
    compute: float
    """Seconds for the operations alone."""
    memory: float
    """Seconds for the bytes alone."""
    images_per_second: float
    """At the larger of both."""


def floors(model: ModelConfig, batch_size: int, device: Device = H100) -> list[Floor]:
    """What a device would reach for a full training step, were it bound by nothing but its data sheet."""
    found = []
    for arithmetic, peak in device.flops.items():
        compute = batch_size * step_flops(model) / peak
        memory = step_bytes(model, batch_size, 2 if arithmetic == "bfloat16" else 4) / device.bandwidth
        found.append(Floor(arithmetic, compute, memory, batch_size / max(compute, memory)))
    return found
