"""Writing the file format of `torch.save` without importing PyTorch, which takes seconds.

The file is an uncompressed zip archive:

    archive/data.pkl    the pickled state_dict; each tensor refers to its storage by number
    archive/data/0      the bytes of storage 0, and so on
    archive/byteorder   "little" or "big"
    archive/version     3

The pickle is written opcode by opcode, because `pickle` would import the PyTorch classes that it refers to.
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
_ALIGNMENT = 64  # of each storage within the file, as in PyTorch, which can then map it into memory


def save_torch_file(path: Path, state_dict: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Writes arrays as a state_dict of CPU tensors, which `torch.load(path, weights_only=True)` reads.

    The same arrays give the same bytes.

    Args:
        path: path of the file.
        state_dict: names and arrays of dtype float16, float32, float64, int32 or int64.

    Raises:
        OSError: when the file cannot be written.
    """
    with ZipFile(path, "w") as archive:
        _add(archive, "data.pkl", _pickle(state_dict))
        _add(archive, "byteorder", sys.byteorder.encode())
        for i, array in enumerate(state_dict.values()):
            _add(archive, f"data/{i}", array.tobytes())
        _add(archive, "version", b"3\n")


def _add(archive: ZipFile, name: str, data: bytes) -> None:
    info = ZipInfo(f"archive/{name}")
    # Aligns the data, which follow a 30-byte header, the name, and an extra field of kind (2 bytes), length (2) and
    # padding.
    start = archive.start_dir + 30 + len(info.filename) + 4
    fill = -start % _ALIGNMENT
    info.extra = b"FB" + fill.to_bytes(2, "little") + b"Z" * fill
    archive.writestr(info, data)


def _pickle(state_dict: Mapping[str, np.ndarray[Any, Any]]) -> bytes:
    items = [_text(name) + _tensor(str(i), array) for i, (name, array) in enumerate(state_dict.items())]
    return b"\x80\x02}(" + b"".join(items) + b"u."  # protocol 2; an empty dict, then all items at once


def _tensor(key: str, array: np.ndarray[Any, Any]) -> bytes:
    storage = [_text("storage"), _global("torch", _STORAGES[array.dtype.name]), _text(key), _text("cpu")]
    strides = [int(np.prod(array.shape[i + 1 :], dtype=np.int64)) for i in range(array.ndim)]
    arguments = [
        _tuple(*storage, _int(array.size)) + b"Q",  # a persistent id: the bytes are in another member
        _int(0),  # offset in the storage
        _tuple(*map(_int, array.shape)),
        _tuple(*map(_int, strides)),
        b"\x89",  # requires_grad: False
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
