"""The file that `torch.save` writes of a state_dict, made without PyTorch, which takes seconds to import.

A zip archive, uncompressed: `data.pkl` has the dictionary, in which each tensor names its storage, and `data/N` has a
storage's bytes. The pickle is written opcode by opcode, since `pickle` would load the classes of PyTorch that it names.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import ZipFile, ZipInfo

import numpy as np

_STORAGES = {
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
}
_ALIGNMENT = 64  # of storages within the file, as PyTorch has it: it can map them into memory


def save_torch_file(path: Path, state_dict: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes arrays as a state_dict of tensors on the CPU, which `torch.load(path, weights_only=True)` reads.

    The same arrays make the same bytes.

    Args:
        path: of the file.
        state_dict: arrays of floating-point numbers of 16 to 64 bits, or of integers of 32 or 64, by name.

    Raises:
        OSError: when the file cannot be written.
    """
    with ZipFile(path, "w") as archive:
        _add(archive, "data.pkl", _pickled(state_dict))
        _add(archive, "byteorder", sys.byteorder.encode())
        for i, array in enumerate(state_dict.values()):
            _add(archive, f"data/{i}", array.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: ZipFile, name: str, data: bytes) -> None:
    info = ZipInfo(f"archive/{name}")
    # The data come after a header of 30 bytes, the name, and an extra field: its kind, its length and what fills it.
    start = archive.start_dir + 30 + len(info.filename) + 4
    fill = -start % _ALIGNMENT
    info.extra = b"FB" + fill.to_bytes(2, "little") + b"Z" * fill
    archive.writestr(info, data)


def _pickled(state_dict: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    items = [_text(name) + _tensor(str(i), array) for i, (name, array) in enumerate(state_dict.items())]
    return b"\x80\x02}(" + b"".join(items) + b"u."  # protocol 2; an empty dictionary, and the items set in it


def _tensor(key: str, array: np.ndarray[Any, Any]) -> bytes:
    storage = [_text("storage"), _global("torch", _STORAGES[array.dtype.name]), _text(key), _text("cpu")]
    strides = [int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(array.ndim)]
    arguments = [
        _tuple(*storage, _int(array.size)) + b"Q",  # whose bytes lie elsewhere in the file
        _int(0),  # the offset in the storage
        _tuple(*map(_int, array.shape)),
        _tuple(*map(_int, strides)),
        b"\x89",  # False: it requires no gradient
        _global("collections", "OrderedDict") + b")R",  # backward hooks: none
    ]
    return _global("torch._utils", "_rebuild_tensor_v2") + _tuple(*arguments) + b"R"


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    data = text.encode()
    return b"X" + len(data).to_bytes(4, "little") + data


def _int(number: int) -> bytes:
    data = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(data)]) + data


def _tuple(*parts: bytes) -> bytes:
    return b"(" + b"".join(parts) + b"t"
