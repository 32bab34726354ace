"""Computed, not measured: operations and bytes of a training step, and the least time that a device needs for them.

Operations are nominal: 2 for each multiply-add of a direct convolution (padding included) or dense layer, in the
forward pass and for both gradients. Normalisation, activations, pooling and the optimiser are not counted.
"""

from typing import NamedTuple

from jaxcnn.config import ModelConfig


class Layer(NamedTuple):
    """One convolution or dense layer, for one image."""

    stage: int
    """Index of the stage, as for freezing: the blocks, fc1, fc2, fc3."""
    multiply_adds: int
    """Multiply-adds of the output. Each gradient takes as many."""
    weights: int
    reads: int
    """Number of input values."""
    writes: int
    """Number of output values, before any pool."""


def layers(model: ModelConfig) -> list[Layer]:
    """All convolutions and dense layers, from the input on."""
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
    """Nominal operations of the forward pass, for one image."""
    return 2 * sum(layer.multiply_adds for layer in layers(model))


def step_flops(model: ModelConfig, frozen_stages: int = 0) -> int:
    """Nominal operations of a training step, for one image.

    Each trained layer takes twice its forward work for the gradients of its weights and of its input. The first trained
    layer does not need the gradient of its input.
    """
    trained = [layer for layer in layers(model) if layer.stage >= frozen_stages]
    gradients = 2 * sum(layer.multiply_adds for layer in trained) - trained[0].multiply_adds
    return forward_flops(model) + 2 * gradients


def step_bytes(model: ModelConfig, batch_size: int, width: int = 4) -> int:
    """Least bytes that a full training step moves, if only fused neighbours stay on the chip.

    Weights are float32 and take 10 passes:
        2 to read them forward and backward,
        2 to write and read the gradient,
        6 for Adam, which reads and writes the weights and two moments.
    Activations have `width` bytes. The input of a layer takes 3 passes:
        2 to read it forward and for the filter gradient,
        1 to write its gradient (not for the first layer).
    The output of a layer takes 6 passes:
        1 to write it,
        2 to read it for normalisation, activation and pool, and for their gradient,
        3 to write its gradient once and read it twice.
    """
    each = layers(model)
    moved = sum(3 * layer.reads + 6 * layer.writes for layer in each) - each[0].reads
    return 10 * 4 * sum(layer.weights for layer in each) + batch_size * width * moved


class Device(NamedTuple):
    """Peak rates of an accelerator, from its data sheet."""

    name: str
    flops: dict[str, float]
    """Dense operations per second, by arithmetic."""
    bandwidth: float
    """Bytes per second."""


H100 = Device("H100 SXM", {"float32": 67e12, "TF32": 494e12, "bfloat16": 989e12}, 3.35e12)


class StepBound(NamedTuple):
    """The least time of a training step on a device."""

    arithmetic: str
    compute: float
    """Seconds for the operations alone."""
    memory: float
    """Seconds for the bytes alone."""
    images_per_second: float
    """Rate at the larger of both times."""


def step_bounds(model: ModelConfig, batch_size: int, device: Device = H100) -> list[StepBound]:
    """For each arithmetic of a device: the least time of a full training step by its peak rates."""
    found = []
    for arithmetic, peak in device.flops.items():
        compute = batch_size * step_flops(model) / peak
        memory = step_bytes(model, batch_size, 2 if arithmetic == "bfloat16" else 4) / device.bandwidth
        found.append(StepBound(arithmetic, compute, memory, batch_size / max(compute, memory)))
    return found
