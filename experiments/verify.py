"""The same weights in PyTorch and in Flax."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import torch
from torch.nn import functional

from jaxcnn.config import ModelConfig
from jaxcnn.convert import to_torch
from jaxcnn.model import BN_EPSILON, CNN

_BATCH_NORM = ("running_mean", "running_var", "weight", "bias")
_ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "tanh": torch.tanh,
    "leaky_relu": functional.leaky_relu,
    "elu": functional.elu,
}


def torch_logits(state_dict: dict[str, torch.Tensor], config: ModelConfig, images: torch.Tensor) -> torch.Tensor:
    """Logits (B, num_classes) that PyTorch computes in evaluation mode from images (B, C, H, W)."""
    act = _ACTIVATIONS[config.activation_function]
    x = images
    for i in range(config.num_blocks):
        j = 0
        for _ in range(config.layers_per_block[i]):
            name = f"blocks.{i}.{j}"
            x = functional.conv2d(x, state_dict[f"{name}.weight"], state_dict[f"{name}.bias"], padding=1)
            j += 1
            if config.apply_bn[i]:
                mean, var, scale, bias = (state_dict[f"blocks.{i}.{j}.{leaf}"] for leaf in _BATCH_NORM)
                x = functional.batch_norm(x, mean, var, scale, bias, eps=BN_EPSILON)
                j += 1
            x = act(x)
            j += 1
        if config.apply_pooling[i]:
            x = functional.max_pool2d(x, 2)
    x = x.flatten(1)
    for name in ("fc1", "fc2"):
        x = act(functional.linear(x, state_dict[f"{name}.weight"], state_dict[f"{name}.bias"]))
    return functional.linear(x, state_dict["fc3.weight"], state_dict["fc3.bias"])


def largest_difference(variables: Any, config: ModelConfig) -> tuple[float, float]:
    """Largest absolute difference of the two networks' logits on 64 random images, and the largest logit."""
    shape = (64, config.input_size, config.input_size, config.in_channels)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    ours = np.asarray(jax.jit(CNN(config).apply)(variables, images))
    theirs = torch_logits(to_torch(variables, config), config, torch.from_numpy(images.transpose(0, 3, 1, 2).copy()))
    return float(np.abs(ours - theirs.numpy()).max()), float(np.abs(ours).max())
