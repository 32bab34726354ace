"""The original's network in PyTorch, which the Flax network is compared with."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from jaxcnn.config.network import ModelConfig

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


class TorchCNN(nn.Module):
    """The CNN that `config` describes, for images (B, C, H, W). Its `state_dict` has the names of a `model.pth`."""

    def __init__(self, config: ModelConfig) -> None:
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


def torch_network(state_dict: Mapping[str, Any], config: ModelConfig) -> TorchCNN:
    """Makes a network in training mode with these weights, whose names and shapes must match exactly."""
    network = TorchCNN(config)
    network.load_state_dict(state_dict, strict=True)
    return network
