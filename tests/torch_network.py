"""The network of the seed document in PyTorch, written from its description: what the Flax one is compared with."""

from collections import OrderedDict

import torch
from torch import nn

from jaxcnn import ModelConfig

ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
}


class TorchCNN(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        act = ACTIVATIONS[config.activation_function]
        self.blocks = nn.ModuleList()
        size, width = config.input_size, config.in_channels
        for i in range(config.num_blocks):
            layers = []
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
        for block in self.blocks:
            x = block(x)
        x = self.act(self.fc1(self.dropout(x.flatten(1))))
        x = self.act(self.fc2(self.dropout(x)))
        return self.fc3(x)


def state_arrays(network: nn.Module) -> OrderedDict:
    return OrderedDict((name, value.detach().numpy().copy()) for name, value in network.state_dict().items())
