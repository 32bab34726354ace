"""Comparing the logits of the Flax network and the PyTorch network for the same weights."""

from typing import Any

import jax
import numpy as np
import torch

from jaxcnn.config.network import ModelConfig
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.model import CNN
from jaxcnn.weights.convert import to_torch
from jaxcnn.weights.pytorch_network import torch_network


@fixed_settings()
def largest_difference(variables: Any, config: ModelConfig) -> tuple[float, float]:
    """Runs both networks on 64 random images.

    Returns:
        The largest absolute difference of their logits, and the largest absolute logit.
    """
    shape = (64, config.input_size, config.input_size, config.in_channels)
    images = np.random.default_rng(0).standard_normal(shape, np.float32)
    ours = np.asarray(jax.jit(CNN(config).apply)(variables, images))
    network = torch_network(to_torch(variables, config), config).eval()
    with torch.inference_mode():
        theirs = network(torch.from_numpy(images.transpose(0, 3, 1, 2).copy())).numpy()
    return float(np.abs(ours - theirs).max()), float(np.abs(ours).max())
