"""Data sets through Hugging Face's `datasets`, from its hub or a local folder."""

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxcnn.config.experiment import DataConfig
from jaxcnn.data.cache import cache_title, read_through_cache
from jaxcnn.data.splits import SPLIT_NAMES, Split, Stored, hold_out_test
from jaxcnn.errors import InputError, local_path, reason

if TYPE_CHECKING:
    from jaxcnn.data.image_reader import ImageReader

PREFIX = "hf:"

_FORMAT = 1
"""Version of how images become pixels. A new number makes every cached set outdated."""

_UNLABELLED = -1


def load_hugging_face(config: DataConfig, shape: tuple[int, int, int], reader: "ImageReader") -> Stored:
    """The images of `hf:NAME_OR_PATH[:CONFIG]`; from this project's cache if the files of `datasets` are the same.

    Args:
        config: the name of the set, and optionally the columns to use.
        shape: height, width and channels to convert the images to.
        reader: decodes images to this shape, and refuses or skips those that cannot be used.

    Raises:
        InputError: when the package is missing, or the set cannot be loaded or has no labelled images.
    """
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"data.name={config.name!r} needs a package: pip install 'jaxcnn[hf]'") from error
    with _without_bars(datasets), _name_set_in_errors(config.name):
        found = _load(datasets, config.name.removeprefix(PREFIX))
    splits = dict(found) if isinstance(found, Mapping) else {"train": found}
    if "train" not in splits and len(splits) == 1:
        splits = {"train": next(iter(splits.values()))}
    if "train" not in splits:
        raise InputError(f"data.name={config.name!r} has the splits {', '.join(splits)}; a split train is needed")
    image, label = _columns(datasets, config, splits["train"].features)
    files = [Path(each["filename"]) for split in splits.values() for each in split.cache_files]

    def read() -> Stored:
        with _without_bars(datasets), _name_set_in_errors(config.name):
            return _read(datasets, config, splits, image, label, reader)

    if not files:
        return read()
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    made_of = hashlib.sha256(repr((_FORMAT, stats, image, label, config.skip_broken)).encode()).hexdigest()
    return read_through_cache(files[0], cache_title(config.title, config.resize), shape, made_of, read)


def _load(datasets: Any, name: str) -> Any:
    path, _, part = name.rpartition(":")
    if not path or "/" in part or local_path("data.name", name).exists():
        path, part = name, ""
    folder = local_path("data.name", path)
    if not folder.exists():
        return datasets.load_dataset(path, part or None)
    if folder.is_file():
        kind = {".parquet": "parquet", ".arrow": "arrow"}.get(folder.suffix)
        if kind is None:
            raise InputError(f"{folder} is a file; give a folder, or a .parquet or .arrow file")
        return datasets.load_dataset(kind, data_files=str(folder))
    if any((folder / each).exists() for each in ("dataset_dict.json", "state.json")):
        return datasets.load_from_disk(str(folder))
    return datasets.load_dataset(str(folder), part or None)


def _columns(datasets: Any, config: DataConfig, features: Mapping[str, Any]) -> tuple[str, str]:
    """Names of the image column and the label column: those asked for, or the only ones of their kind."""
    found = []
    for wanted, kind, flag in (
        (config.image_column, datasets.Image, "image"),
        (config.label_column, datasets.ClassLabel, "label"),
    ):
        names = [wanted] if wanted else [name for name, feature in features.items() if isinstance(feature, kind)]
        if len(names) != 1 or names[0] not in features:
            told = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
            raise InputError(f"data.name={config.name!r} has the columns {told}; name one by --data.{flag}-column")
        found += names
    if not isinstance(features[found[0]], datasets.Image):
        raise InputError(f"data.image_column={found[0]!r} of {config.name!r} holds no images; name another")
    return found[0], found[1]


def _read(
    datasets: Any, config: DataConfig, splits: Mapping[str, Any], image: str, label: str, reader: "ImageReader"
) -> Stored:
    feature = splits["train"].features[label]
    if isinstance(feature, datasets.ClassLabel):
        names = tuple(feature.names)
        numbers: Mapping[Any, int] = {number: number for number in range(len(names))}
    else:
        values = sorted(set(splits["train"][label]))
        names, numbers = tuple(map(str, values)), {value: number for number, value in enumerate(values)}
    read: dict[str, Split] = {}
    for name, split in splits.items():
        if name not in SPLIT_NAMES or SPLIT_NAMES[name] in read:
            continue
        labels = split[label]
        if name != "train" and all(each == _UNLABELLED for each in labels):
            continue
        if unknown := sorted({str(each) for each in labels if each not in numbers}):
            raise InputError(f"{config.name} {name} has the label {unknown[0]}, which is no class of train")
        numbered = np.array([numbers[each] for each in labels], np.int32)
        source = _Column(split.cast_column(image, datasets.Image(decode=False)), image)
        called = [f"image {i} of {config.name} {name}" for i in range(len(labels))]
        title = f"{config.title} {name}"
        read[SPLIT_NAMES[name]] = reader.read(source, called, numbered, title=title, total_bytes=split.data.nbytes)
    if "test" in read:
        return Stored(read["train"], read["test"], names, "test", read.get("validation"), tuple(reader.left_out))
    train, test, origin = hold_out_test(read["train"], "train", config.name)
    return Stored(train, test, names, origin, read.get("validation"), tuple(reader.left_out))


class _Column:
    """The encoded images of a column: for each one its content, or its path."""

    def __init__(self, rows: Any, name: str) -> None:
        self._rows, self._name = rows, name

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, chosen: slice) -> list[str | bytes]:
        return [each["bytes"] or each["path"] for each in self._rows[chosen][self._name]]


@contextmanager
def _without_bars(datasets: Any) -> Iterator[None]:
    """Disables progress bars if stderr is not a terminal."""
    disabled = datasets.are_progress_bars_disabled()
    if not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            datasets.enable_progress_bars()


@contextmanager
def _name_set_in_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (InputError, MemoryError):
        raise
    except Exception as error:  # pyarrow, fsspec and the hub each raise their own kinds
        raise InputError(f"data.name={name!r} cannot be had: {reason(error)}") from error
