"""The digits as two tasks, for what must show a transfer without a download."""

from jaxcnn.config.network import ModelConfig

# SHALLOW at a quarter of its width and half the input: enough for digits, and quick on two cores.
NETWORK = ModelConfig(input_size=16, hidden_dims=(16, 32, 64, 128, 128, 64))
SOURCE, TARGET = (0, 1, 2, 3, 4), (5, 6, 7, 8, 9)
"""Classes to learn first, and those to transfer to."""
