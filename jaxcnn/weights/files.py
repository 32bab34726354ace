"""Reading and writing weight files. The content decides the format, not the suffix. No code from a file is run."""

import io
import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config.network import ModelConfig
from jaxcnn.errors import InputError, JaxcnnError, is_out_of_memory, reason, unreadable
from jaxcnn.files import is_there, write_whole
from jaxcnn.weights.convert import to_arrays
from jaxcnn.weights.pretrained import names_hint
from jaxcnn.weights.state_dicts import find_network
from jaxcnn.weights.torch_file import save_torch_file

_SAVE = "give what torch.save(model.state_dict(), path) writes, or safetensors"
_FROM_ELSEWHERE = f"load it with the library that wrote it, copy its arrays into the PyTorch network, and {_SAVE}"
_FROM_PYTORCH = f"from the PyTorch network that it was made of, {_SAVE}"
_UNPACK = "unpack it and give the weight file in it"

# Files of other formats: a pattern for the first bytes, what the file is, and the remedy.
_BEGINNINGS: tuple[tuple[bytes, str, str], ...] = (
    (rb"version https://git-lfs", "is a Git LFS pointer, not the file itself", "fetch the file with git lfs pull"),
    (
        rb"(?is)(\xef\xbb\xbf)?\s*(<!--.*?-->\s*)?<(!doctype html|html|head|body)",
        "is an HTML page, perhaps of a download that needs a login or a confirmation",
        "download the file itself",
    ),
    (
        rb"(?i)(\xef\xbb\xbf)?\s*<(\?xml|error)",
        "is an XML document, perhaps of a refused download",
        "download it again",
    ),
    (rb"\x89HDF\r\n\x1a\n", "is an HDF5 file, as Keras writes", _FROM_ELSEWHERE),
    (rb"\x93NUMPY", "is a NumPy array", _SAVE),
    (rb"\x1f\x8b|BZh[1-9]|\xfd7zXZ\0|\x28\xb5\x2f\xfd|7z\xbc\xaf\x27\x1c|Rar!", "is compressed", _UNPACK),
    (rb"(?s).{257}ustar", "is a tar archive", _UNPACK),
    (rb"GGUF", "is a GGUF file of a language model", _SAVE),
    (rb"(?s).{4}TFL3", "is a TensorFlow Lite model", _FROM_ELSEWHERE),
    (rb"\x08\x01\x12", "is a TensorFlow SavedModel", _FROM_ELSEWHERE),
    (rb"\x08[\x02-\x1f][\x12\x1a\x22\x3a\x42]", "is an ONNX model", _FROM_PYTORCH),
    (rb"model_checkpoint_path:", "is TensorFlow's list of checkpoints", _FROM_ELSEWHERE),
    (rb"[\x81-\x8f][\xa1-\xbf][ -~]", "is a msgpack file, as flax.serialization writes", _FROM_ELSEWHERE),
)
_TENSORFLOW_INDEX = b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"  # the last bytes of the index of a TensorFlow checkpoint

# Zip archives of other formats: a pattern for a member's name, what the archive is, and the function that loads it.
_MEMBERS: tuple[tuple[str, str, str], ...] = (
    (r"(.*/)?constants\.pkl", "is a TorchScript archive, written by torch.jit.save", "torch.jit.load"),
    (r"(.*/)?(archive_format|serialized_exported_program\.json)", "is a torch.export program", "torch.export.load"),
)
_OTHER_MEMBERS: tuple[tuple[str, str, str], ...] = (
    (r".*\.npy", "is a NumPy .npz archive", _SAVE),
    (r"model\.weights\.h5", "is a Keras archive", _FROM_ELSEWHERE),
)

# Folders of other programs: a file in it, what the folder is, and the remedy.
_FOLDERS: tuple[tuple[str, str, str], ...] = (
    (
        "*.distcp",
        "is a checkpoint of torch.distributed",
        "make one file of it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch FOLDER FILE",
    ),
    ("data.pkl", "is an unpacked PyTorch file", "give the original file"),
    ("saved_model.pb", "is a TensorFlow SavedModel", _FROM_ELSEWHERE),
    ("adapter_config.json", "holds an adapter (LoRA, PEFT)", "merge it (merge_and_unload) and save the network"),
    ("*.index.json", "holds weights in several files", "load them all and save them as one file"),
    ("pytorch_model.bin", "is a folder of Hugging Face's", "give the pytorch_model.bin in it"),
)


def load_file(path: Path) -> Any:
    """Loads the content of a file that `torch.save` (any version) or safetensors wrote.

    Returns:
        What was saved: usually a dictionary of tensors, perhaps nested.

    Raises:
        InputError: naming the file, when it is missing, damaged, of another format, or cannot be read without running
            code from it.
    """
    if not (is_there(path) and path.is_file()):
        beside = path.with_name(path.name + ".index")
        if is_there(beside):
            raise InputError(f"{path} is a TensorFlow checkpoint; {_FROM_ELSEWHERE}")
        raise InputError(f"{path} does not exist; give the path of a model.pth or .safetensors file{names_hint()}")
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            file.seek(max(0, path.stat().st_size - 8))
            tail = file.read()
    except OSError as error:
        raise unreadable(path, error) or InputError(f"{path} cannot be read: {reason(error)}") from error
    if not head:
        raise InputError(f"{path} is empty; copy or download it again")
    for beginning, what, remedy in _BEGINNINGS:
        if re.match(beginning, head):
            raise InputError(f"{path} {what}; {remedy}")
    if tail == _TENSORFLOW_INDEX:
        raise InputError(f"{path} is the index of a TensorFlow checkpoint; {_FROM_ELSEWHERE}")
    if _is_safetensors(head):
        return _load_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        _check_archive(path)
    elif _is_text(head):
        raise InputError(f"{path} {_describe_text(path)}")
    return _load_torch(path)


def refuse_folder(path: Path) -> None:
    """Raises an InputError that says what the folder is, if it holds another program's weights."""
    for pattern, what, remedy in _FOLDERS:
        if any(path.glob(pattern)):
            raise InputError(f"{path} {what}; {remedy}")


def _is_safetensors(head: bytes) -> bool:
    # Eight bytes of header length, then the header in JSON.
    return head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 2**48


def _load_safetensors(path: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file as load_safetensors

    try:
        return load_safetensors(path)
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise _read_error(path, "a safetensors", error) from error


def _load_torch(path: Path) -> Any:
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about PyTorch's own reading of old formats
            with path.open("rb") as file:  # given a path, PyTorch would look at the suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except pickle.UnpicklingError as error:
        raise InputError(f"{path} {_explain_refusal(path)}") from error
    except Exception as error:  # a damaged file of the legacy format can raise anything
        raise _read_error(path, "a PyTorch", error) from error


def _read_error(path: Path, kind: str, error: Exception) -> Exception:
    """The exception to raise when a library failed to read a file: the machine's fault or the file's."""
    if is_out_of_memory(error):
        return MemoryError(f"{path}: {reason(error)}")
    return unreadable(path, error) or InputError(f"{path} is damaged or not {kind} file: {reason(error)}")


def _check_archive(path: Path) -> None:
    """Raises an InputError unless `torch.save` wrote the archive and its checksums match; PyTorch ignores them."""
    try:
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path} is damaged: its end is missing; copy or download it again")
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            names = [member.filename for member in members]
            pickled = any(re.fullmatch(r"[^/]*/data\.pkl", name) for name in names)
            for member, what, load in _MEMBERS:
                if any(re.fullmatch(member, name) for name in names):
                    raise InputError(f"{path} {what}; give what torch.save({load}(path).state_dict(), other) writes")
            for member, what, remedy in () if pickled else _OTHER_MEMBERS:
                if any(re.fullmatch(member, name) for name in names):
                    raise InputError(f"{path} {what}; {remedy}")
            if not pickled:
                shown = ", ".join(map(repr, names[:3])) or "nothing"
                raise InputError(f"{path} is a zip archive that torch.save did not write (of {shown}); {_UNPACK}")
            declared = sum(member.file_size for member in members)
            if declared > path.stat().st_size:  # torch.save compresses nothing
                raise InputError(
                    f"{path} would unpack to {declared:,} bytes, more than its size; it was not read. "
                    "Give a file that torch.save wrote"
                )
            for info in members:
                if info.CRC:  # PyTorch writes 0 if computing checksums is switched off
                    archive.read(info)
    except (JaxcnnError, MemoryError):
        raise
    except Exception as error:  # zipfile passes on any exception of its decoders
        raise _read_error(path, "a PyTorch", error) from error


def _explain_refusal(path: Path) -> str:
    """Why `torch.load(weights_only=True)` refused a pickle, and the remedy."""
    try:
        protocol, names = _disassemble(path)
    except (OSError, zipfile.BadZipFile, StopIteration):
        protocol, names = 0, []
    if protocol > 3:
        return (
            f"is saved with pickle protocol {protocol}, of which only those up to 3 can be read without running code; "
            "save it with torch.save(model.state_dict(), path), without pickle_protocol"
        )
    more = [name for name in names if not _TENSOR_GLOBALS.fullmatch(name)]
    if not more:
        return "is damaged or not a PyTorch file; copy or download it again"
    what = f"holds more than tensors ({', '.join(more[:4])})"
    if any(name.startswith("torch.nn.modules.") for name in more):
        own = [name for name in more if not name.startswith(("torch.", "__builtin__.", "builtins."))]
        what = f"holds a whole network ({', '.join(own[:2]) or 'of torch.nn'}) instead of its state_dict"
    return (
        f"{what}; reading it could run code, so it was not read. Where it was made, or where you trust it, save only "
        "its state_dict: torch.save(model.state_dict(), path)"
    )


# Classes and functions that a pickle of nothing but tensors refers to.
_TENSOR_GLOBALS = re.compile(
    r"torch\.(_utils\..*|_tensor\..*|\w*Storage|storage\..*|Size|[a-z]+\d+)|collections\.OrderedDict"
)


def _disassemble(path: Path) -> tuple[int, list[str]]:
    """The protocol of the pickle in a PyTorch file, and the classes and functions that it refers to. Runs nothing."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            data = archive.read(next(name for name in archive.namelist() if name.endswith("/data.pkl")))
    else:
        data = path.read_bytes()
    file = io.BytesIO(data)
    names: dict[str, None] = {}
    try:
        for _ in range(4):  # the legacy format has four pickles: magic number, version, system properties, tensors
            for op, argument, _ in pickletools.genops(file):
                if op.name == "GLOBAL":
                    names[str(argument).replace(" ", ".")] = None
    except (ValueError, UnicodeDecodeError):  # the rest is not a pickle
        pass
    protocol = data[1] if data[:1] == pickle.PROTO and data[1:2] else 0
    return protocol if protocol <= pickle.HIGHEST_PROTOCOL else 0, [name for name in names if name.isprintable()]


def _is_text(head: bytes) -> bool:
    text = head.decode("utf-8", "ignore")
    return len(text.encode()) > len(head) - 4 and all(each.isprintable() or each.isspace() for each in text)


def _describe_text(path: Path) -> str:
    """What a text file is that was given as a weight file, and the remedy."""
    with path.open("rb") as file:
        text = file.read(2**24)
    if b'"weight_map"' in text:
        return "lists weights that lie in several files; load them all and save them as one file"
    if b'"peft_type"' in text:
        return "describes an adapter (LoRA, PEFT); merge it (merge_and_unload) and save the network"
    return f"is a text file; {_SAVE}"


def read_state_dict(path: Path) -> dict[str, Any]:
    """Reads the network's tensors from a weight file, found by the rules of `jaxcnn.weights.state_dicts`.

    Raises:
        InputError: naming the file, when it is missing or damaged, or has no such network or more than one.
    """
    return find_network(load_file(path), path).tensors


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a safetensors file; empty for any other file that `load_file` reads."""
    with path.open("rb") as file:
        if not _is_safetensors(file.read(9)):
            return {}
    from safetensors import safe_open

    with safe_open(path, framework="np") as opened:
        return dict(opened.metadata() or {})


def write_state_dict(
    path: Path, variables: Mapping[str, Any], config: ModelConfig, metadata: dict[str, str] | None = None
) -> None:
    """Writes variables atomically as a `.safetensors` file, or as `.pth` under any other suffix.

    Args:
        path: path of the file.
        variables: the weights.
        config: their network.
        metadata: metadata of a `.safetensors` file; ignored for `.pth`.
    """
    arrays = to_arrays(variables, config)

    def save(temporary: Path) -> None:
        if path.suffix != ".safetensors":
            return save_torch_file(temporary, arrays)
        from safetensors.numpy import save

        # Its `save_file` would put a file in place of the temporary one, which none but its owner may read.
        temporary.write_bytes(save({name: np.array(array, order="C") for name, array in arrays.items()}, metadata))
        return None

    write_whole(path, save)
