"""The file that is written without PyTorch is what PyTorch reads."""

from pathlib import Path

import numpy as np
import pytest
import torch

from jaxcnn.weights.torch_file import save_torch_file

ARRAYS = {
    "blocks.0.0.weight": np.arange(2 * 3 * 4 * 5, dtype=np.float32).reshape(5, 4, 3, 2).transpose(3, 2, 1, 0),
    "blocks.0.1.num_batches_tracked": np.array(2**40, np.int64),
    "fc1.weight": np.random.default_rng(0).normal(size=(7, 300)),
    "fc1.bias": np.array([], np.float16),
    "fc2.bias \N{GREEK SMALL LETTER ALPHA}": np.array([-1, 128, 2**31 - 1], np.int32),
}


@pytest.mark.parametrize("mapped", [False, True])
def test_pytorch_reads_every_tensor_as_it_was(tmp_path: Path, mapped: bool) -> None:
    save_torch_file(tmp_path / "model.pth", ARRAYS)
    read = torch.load(tmp_path / "model.pth", weights_only=True, mmap=mapped)
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].is_contiguous()
        assert not read[name].requires_grad
        assert read[name].numpy().dtype == array.dtype
        np.testing.assert_array_equal(read[name].numpy(), array)
        assert not read[name].numel() or read[name].data_ptr() % 64 == 0 or not mapped


def test_the_same_arrays_make_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.pth", "other.pth"):
        save_torch_file(tmp_path / name, ARRAYS)
    assert (tmp_path / "one.pth").read_bytes() == (tmp_path / "other.pth").read_bytes()
