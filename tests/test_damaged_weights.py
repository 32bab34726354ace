"""Weight files that are damaged, would run code, or are not weight files."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import message
from safetensors.torch import save_file
from test_convert import assert_same_tensors

from jaxcnn import InputError
from jaxcnn.weights.files import read_state_dict
from jaxcnn.weights.source import read_source


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path):
        self.canary = canary

    def __reduce__(self) -> Any:
        return Path.touch, (self.canary,)


@pytest.mark.parametrize("wrap", [lambda bad: bad, lambda bad: {"fc1.weight": torch.zeros(2), "state_dict": bad}])
def test_a_file_that_would_run_code_is_refused_and_does_not_run_it(wrap: Callable[[Any], Any], tmp_path: Path) -> None:
    canary, path = tmp_path / "canary", tmp_path / "model.pth"
    saves: list[Callable[[Any], object]] = [
        lambda bad: torch.save(bad, path),
        lambda bad: torch.save(bad, path, _use_new_zipfile_serialization=False),
        lambda bad: path.write_bytes(pickle.dumps(bad, protocol=2)),
    ]
    for save in saves:
        save(wrap(Malicious(canary)))
        for read in (read_state_dict, read_source):
            assert str(path) in message(lambda read=read: read(path))
            assert not canary.exists()
    assert "could run code" in message(lambda: read_state_dict(path))
    with path.open("rb") as file:  # the file is as bad as it claims
        pickle.load(file)
    assert canary.exists()


def saved(weights: dict[str, torch.Tensor], kind: str, folder: Path) -> Path:
    path = folder / ("model.safetensors" if kind == "safetensors" else "model.pth")
    if kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    return path


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_damaged_files_are_refused(kind: str, tmp_path: Path) -> None:
    weights = {"fc1.weight": torch.ones(4, 3), "fc1.bias": torch.zeros(4), "count": torch.tensor(3)}
    path = saved(weights, kind, tmp_path)
    whole = path.read_bytes()
    assert_same_tensors(read_state_dict(path), weights, ordered=False)
    rng = np.random.default_rng(0)
    lengths = {0, 1, 8, len(whole) // 2, len(whole) - 1, *rng.integers(0, len(whole), 60).tolist()}
    for length in sorted(lengths):
        path.write_bytes(whole[:length])
        assert str(path) in message(lambda: read_state_dict(path))
    for length in (1, 7, 64, 1000):
        path.write_bytes(rng.bytes(length))
        assert str(path) in message(lambda: read_state_dict(path))
    for _ in range(300):  # a few bytes of it changed: it may still be readable, or it is refused
        damaged = bytearray(whole)
        for place in rng.integers(0, min(len(whole), 900), rng.integers(1, 5)):
            damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        told = str(path)
        try:
            read_state_dict(path)
        except InputError as error:
            told = str(error)
        assert str(path) in told


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_file_is_refused(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"folder{suffix}").mkdir()
    for name in (f"folder{suffix}", f"missing{suffix}"):
        for read in (read_state_dict, read_source):
            assert name in message(lambda name=name, read=read: read(tmp_path / name))
