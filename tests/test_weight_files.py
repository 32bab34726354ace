"""The content of a weight file decides its format. For files of other formats, the message says what they are."""

import argparse
import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from refusals import message
from safetensors.torch import save as to_safetensors
from test_convert import SMALL, assert_same_tensors, draw_weights
from torch import nn

from jaxcnn.config.network import NetworkOverrides
from jaxcnn.weights.files import read_state_dict
from jaxcnn.weights.pytorch_network import TorchCNN
from jaxcnn.weights.source import read_source

WEIGHTS = draw_weights(SMALL)


def torch_bytes(content: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


FORMS = {
    "zip": torch_bytes(WEIGHTS),
    "legacy": torch_bytes(WEIGHTS, _use_new_zipfile_serialization=False),
    "protocol 3": torch_bytes(WEIGHTS, pickle_protocol=3),
    "safetensors": to_safetensors(WEIGHTS),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["a.pth", "a.safetensors", "pytorch_model.bin", "last.ckpt", "a.pth.tar", "a.h5", "a"])
def test_weights_are_read_under_any_name(form: str, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(FORMS[form])
    assert_same_tensors(read_state_dict(tmp_path / name), WEIGHTS, ordered=form != "safetensors")


def archive(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as target:
        for name, data in members.items():
            target.writestr(name, data)
    return file.getvalue()


def numpy_bytes(save: Callable[..., None], **arrays: Any) -> bytes:
    file = io.BytesIO()
    save(file, **arrays)
    return file.getvalue()


def tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as target:
        target.addfile(tarfile.TarInfo("model.pth"))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 23100000\n"
BOM = b"\xef\xbb\xbf"
INDEX = json.dumps({"metadata": {"total_size": 8}, "weight_map": {"fc1.weight": "model-00001-of-00002.safetensors"}})
ONNX = b"\x08\x08\x12\x07pytorch\x1a\x052.3.1:\x9d\x01\n\x05\n\x01x"

OTHERS: dict[str, tuple[bytes, str, str]] = {
    "nothing": (b"", "is empty", "download it again"),
    "Git LFS": (LFS, "is a Git LFS pointer", "git lfs pull"),
    "HTML": (b"<!DOCTYPE html><html><title>Sign in</title>", "is an HTML page", "download the file itself"),
    "HTML after a comment": (BOM + b"\n<!-- saved -->\n<HTML lang=en>", "is an HTML page", "download the file itself"),
    "XML": (b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>", "is an XML document", "download it again"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "is an HDF5 file", "library that wrote it"),
    "npy": (numpy_bytes(np.save, arr=np.zeros(3)), "is a NumPy array", "torch.save(model.state_dict()"),
    "npz": (numpy_bytes(np.savez, a=np.zeros(3)), "is a NumPy .npz archive", "torch.save(model.state_dict()"),
    "Keras": (archive(**{"config.json": b"{}", "model.weights.h5": b""}), "is a Keras archive", "that wrote it"),
    "ONNX": (ONNX, "is an ONNX model", "torch.save(model.state_dict()"),
    "SavedModel": (b"\x08\x01\x12\x9f\x1a\n", "is a TensorFlow SavedModel", "library that wrote it"),
    "TensorFlow's index": (
        bytes(64) + struct.pack("<Q", 0xDB4775248B80FB57), "is the index of a TensorFlow checkpoint", "that wrote it",
    ),
    "TensorFlow's list": (b'model_checkpoint_path: "ckpt-7"\n', "is TensorFlow's list of checkpoints", "that wrote it"),
    "TFLite": (b"\x1c\0\0\0TFL3" + bytes(20), "is a TensorFlow Lite model", "library that wrote it"),
    "Flax": (b"\x81\xa6params\x81\xa3fc1\x80", "is a msgpack file", "library that wrote it"),
    "GGUF": (b"GGUF\x03\0\0\0", "is a GGUF file", "torch.save(model.state_dict()"),
    "TorchScript": (
        archive(**{"m/data.pkl": b"", "m/constants.pkl": b"", "m/code/__torch__.py": b""}),
        "is a TorchScript archive", "torch.jit.load(path).state_dict()",
    ),
    "torch.export": (
        archive(**{"m/archive_format": b"pt2", "m/data/weights/weight_0": b""}),
        "is a torch.export program", "torch.export.load(path).state_dict()",
    ),
    "an older torch.export": (
        archive(**{"serialized_exported_program.json": b"{}", "version": b"5"}),
        "is a torch.export program", "torch.export.load(path).state_dict()",
    ),
    "gzip": (gzip.compress(FORMS["zip"]), "is compressed", "unpack it"),
    "tar": (tar(), "is a tar archive", "unpack it"),
    "zip": (archive(**{"run/model.pth": FORMS["zip"]}), "'run/model.pth'", "unpack it"),
    "a list of shards": (INDEX.encode(), "lists weights that lie in several files", "save them as one file"),
    "an adapter's settings": (b'{"peft_type": "LORA"}', "describes an adapter", "merge_and_unload"),
    "a path": (b"../checkpoints/best.pth\n", "is a text file", "torch.save(model.state_dict()"),
    "protocol 4": (torch_bytes(WEIGHTS, pickle_protocol=4), "pickle protocol 4", "without pickle_protocol"),
    "protocol 5": (torch_bytes(WEIGHTS, pickle_protocol=5), "pickle protocol 5", "without pickle_protocol"),
    "protocol 5, legacy": (
        torch_bytes(WEIGHTS, pickle_protocol=5, _use_new_zipfile_serialization=False),
        "pickle protocol 5", "without pickle_protocol",
    ),
    "pickle.dump": (pickle.dumps({"fc1.bias": np.zeros(2)}, protocol=5), "pickle protocol 5", "torch.save("),
    "pickle.dump, protocol 2": (
        pickle.dumps({"fc1.bias": np.zeros(2)}, protocol=2), "holds more than tensors (numpy.", "torch.save(",
    ),
    "a network": (torch_bytes(TorchCNN(SMALL)), "network (jaxcnn.weights.pytorch_network.TorchCNN)", "state_dict()"),
    "a network, legacy": (
        torch_bytes(nn.Sequential(nn.Linear(2, 2)), _use_new_zipfile_serialization=False),
        "a whole network (of torch.nn)", "state_dict()",
    ),
    "settings": (
        torch_bytes({"model": WEIGHTS, "args": argparse.Namespace(lr=1)}), "(argparse.Namespace)", "could run code",
    ),
    "settings, legacy": (
        torch_bytes({"model": WEIGHTS, "args": argparse.Namespace(lr=1)}, _use_new_zipfile_serialization=False),
        "(argparse.Namespace)", "could run code",
    ),
    "a path of pathlib's": (torch_bytes({"model": WEIGHTS, "out": Path("x")}), "(pathlib.", "could run code"),
    "a NumPy figure": (torch_bytes({"model": WEIGHTS, "best": np.float64(1)}), "(numpy.", "could run code"),
    "a defaultdict": (torch_bytes({"model": WEIGHTS, "log": defaultdict(list)}), "(collections.default", "could run"),
    "a download that ended early": (FORMS["zip"][:-100], "is damaged: its end is missing", "download it again"),
    "half of safetensors": (FORMS["safetensors"][:-100], "is damaged or not a safetensors file", ""),
    "noise": (bytes(range(128, 256)) * 9, "is damaged or not a PyTorch file", "download it again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_what_is_no_weight_file_is_called_what_it_is(kind: str, suffix: str, tmp_path: Path) -> None:
    content, what, remedy = OTHERS[kind]
    path = tmp_path / f"other{suffix}"
    path.write_bytes(content)
    problem = message(lambda: read_state_dict(path))
    assert problem.startswith(str(path))
    assert what in problem
    assert remedy in problem


def test_a_prefix_of_tensorflows_is_called_that(tmp_path: Path) -> None:
    (tmp_path / "ckpt-7.index").write_bytes(b"")
    assert "ckpt-7 is a TensorFlow checkpoint" in message(lambda: read_source(tmp_path / "ckpt-7"))


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("__0_0.distcp", "dcp_to_torch"),
        ("data.pkl", "is an unpacked PyTorch file"),
        ("saved_model.pb", "is a TensorFlow SavedModel"),
        ("adapter_config.json", "merge_and_unload"),
        ("model.safetensors.index.json", "holds weights in several files"),
        ("model.safetensors", "model.safetensors is empty"),
        ("pytorch_model.bin", "give the pytorch_model.bin in it"),
    ],
)
def test_a_folder_of_another_programs_is_called_what_it_is(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    problem = message(lambda: read_source(tmp_path))
    assert problem.startswith(str(tmp_path))
    assert what in problem


ODD: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "sparse": (
        lambda: torch.zeros(3).to_sparse(),
        "is a sparse or nested tensor (torch.sparse_coo); save tensor.to_dense",
    ),
    "meta": (lambda: torch.zeros(3, device="meta"), "is a meta tensor, without data"),
    "complex": (lambda: torch.zeros(3, dtype=torch.complex64), "holds complex64, not real numbers"),
    "bool": (lambda: torch.zeros(3, dtype=torch.bool), "holds bool, not real numbers"),
    "float8": (lambda: torch.zeros(3).to(torch.float8_e4m3fn), "holds torch.float8_e4m3fn, which NumPy does not have"),
    "whole numbers": (lambda: torch.zeros(3, dtype=torch.int8), "holds int8, not floating-point numbers"),
}


@pytest.mark.parametrize("kind", ODD)
def test_tensors_that_are_no_plain_numbers_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    """In words of this program's, whatever PyTorch itself says of them."""
    make, what = ODD[kind]
    torch.save({**WEIGHTS, "fc3.bias": make()}, tmp_path / "model.pth")
    problem = message(lambda: read_source(tmp_path / "model.pth", NetworkOverrides(input_size=8)))
    assert "fc3.bias" in problem
    assert what in problem


@pytest.mark.filterwarnings("ignore")  # of PyTorch, which gives such tensors up
def test_a_quantised_tensor_is_refused_by_name(tmp_path: Path) -> None:
    quantised = torch.quantize_per_tensor(WEIGHTS["fc3.bias"], 0.1, 0, torch.qint8)
    torch.save({**WEIGHTS, "fc3.bias": quantised}, tmp_path / "model.pth")
    assert "'fc3.bias' is a quantised tensor" in message(
        lambda: read_source(tmp_path / "model.pth", NetworkOverrides(input_size=8))
    )
