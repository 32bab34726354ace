"""Writing a network as an ONNX file with PyTorch's exporter."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from jaxcnn.errors import InputError
from jaxcnn.weights.pytorch_network import TorchClassifier


def require_onnx() -> None:
    """Checks that the packages which PyTorch's exporter needs are installed.

    Raises:
        InputError: when one is missing; the message names the extra.
    """
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise InputError(f"--onnx needs {' and '.join(missing)}, which the extra onnx has: pip install 'jaxcnn[onnx]'")


def write_onnx(path: Path, classifier: TorchClassifier) -> None:
    """Writes the classifier as one file, with `pixels`, uint8 (N, C, H, W), as input and `probabilities` as output."""
    import torch

    pixels = torch.zeros(2, classifier.channels, classifier.size, classifier.size, dtype=torch.uint8)
    # The exporter reports its progress, and that torchvision is missing, as warnings and log entries.
    with warnings.catch_warnings(action="ignore"), _only_errors("torch.onnx"):
        torch.onnx.export(
            classifier,
            (pixels,),
            path,
            input_names=["pixels"],
            output_names=["probabilities"],
            dynamic_shapes=({0: torch.export.Dim("images")},),
            dynamo=True,
            external_data=False,
            verbose=False,
        )


@contextmanager
def _only_errors(logger: str) -> Iterator[None]:
    logs = logging.getLogger(logger)
    level = logs.level
    logs.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logs.setLevel(level)
