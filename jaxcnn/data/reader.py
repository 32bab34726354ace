"""Reads prepared tfds data sets. Later reads come from a cache of memory-mapped .npy files.

tensorflow_datasets is imported only if records must be read. A cached set is opened without it.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcnn.config.network import Resize
from jaxcnn.data.cache import cache_title, fingerprint, read_through_cache
from jaxcnn.data.decode import decode_image, tell_converted
from jaxcnn.data.locate import recognise
from jaxcnn.data.progress import show_progress
from jaxcnn.data.splits import Split, Stored, hold_out_test
from jaxcnn.errors import InputError, JaxcnnError, reason, unreadable

_TEST_SPLITS = ("test", "validation", "val", "valid")
"""Splits that can be used as the test split, best first. (The validation split is held out from training images.)"""

_UNLABELLED = -1
"""The label that tfds stores for an image without one."""

Convert = Callable[[np.ndarray], np.ndarray]
"""Converts an image, uint8 (height, width, 1 or 3), to the size and channels that the network reads."""


def load_prepared(folder: Path, convert: Convert, shape: tuple[int, int, int], resize: Resize = "squash") -> Stored:
    """The arrays of a prepared set; from the cache if its files are unchanged.

    Args:
        folder: from `find_prepared`.
        convert: converts an image to `shape`.
        shape: height, width and channels of the result.
        resize: the kind of resizing that `convert` does.

    Raises:
        InputError: when the set is damaged, has an image that cannot be used, or needs TensorFlow.
    """
    with _reading(folder):
        if not (folder / "dataset_info.json").exists() and (mistaken := recognise(folder)) is not None:
            raise InputError(f"{folder} is {mistaken.what}, no prepared data set; choose another --data.dir")
        made_of = fingerprint(folder)
    title = cache_title(folder.parent.name, resize)
    return read_through_cache(folder, title, shape, made_of, lambda: _read(folder, convert, shape))


def _read(folder: Path, convert: Convert, shape: tuple[int, int, int]) -> Stored:
    from jaxcnn.data.quiet import quiet

    with quiet(), _reading(folder):
        prepared = _open_prepared(folder)
        return _divide(prepared, lambda split: _read_split(prepared, split, convert, shape))


class _Prepared(NamedTuple):
    """A prepared set, and the features to read."""

    folder: Path
    builder: Any
    features: Any
    """tfds's `FeaturesDict` of the features to read."""
    image: str
    label: str
    names: list[str]
    """Features that identify an image in messages, such as a file name."""
    class_names: tuple[str, ...]


def _open_prepared(folder: Path) -> _Prepared:
    import tensorflow_datasets as tfds

    described = json.loads((folder / "dataset_info.json").read_text(encoding="utf-8"))
    if not isinstance(described, dict) or "name" not in described:
        raise _damage_error(folder, "its dataset_info.json is another program's")
    _refuse_foreign_code(folder)
    builder = tfds.builder_from_directory(folder)
    there = builder.info.features
    image, label = _image_and_label(folder, builder.info)
    names = [key for key, feature in there.items() if _names_image(key, feature)]
    features = tfds.features.FeaturesDict({key: there[key] for key in (image, label, *names)})
    return _Prepared(folder, builder, features, image, label, names, _class_names(folder, label, there[label]))


def _read_split(prepared: _Prepared, split: str, convert: Convert, shape: tuple[int, int, int]) -> Split:
    """Decodes all images of a split. Reports conversions on stderr."""
    import tensorflow_datasets as tfds

    folder, title = prepared.folder, f"{prepared.builder.info.name} {split}"
    source = _open_split(prepared.builder, split)
    _require_files(folder, prepared.builder.info.splits[split].filepaths)
    images, labels = np.empty((len(source), *shape), np.uint8), np.empty(len(source), np.int32)
    encoded = {prepared.image: tfds.decode.SkipDecoding()}
    converted: Counter[str] = Counter()
    for i, record in enumerate(_records(source, f"Reading {title}")):
        example = prepared.features.deserialize_example_np(record, decoders=encoded)
        known_as = ", ".join(f"{key} {_text(example[key])}" for key in prepared.names)
        name = f"image {i} of {split}" + (f" ({known_as})" if known_as else "")
        pixels, was, _ = decode_image(example[prepared.image], f"{folder}: {name}")
        if was is not None:
            converted[f"{was} to {'RGB' if pixels.shape[2] == 3 else '8-bit grey'}"] += 1
        try:
            images[i] = convert(pixels)
        except InputError as error:
            raise InputError(f"{error} ({name})") from error
        label, classes = example[prepared.label], len(prepared.class_names)
        if not _UNLABELLED <= label < classes:
            raise InputError(
                f"{folder}: {name} has the label {label}, but there are {classes} classes; prepare the set again"
            )
        labels[i] = label
    tell_converted(title, converted)
    return Split(images, labels)


def _divide(prepared: _Prepared, read: Callable[[str], Split]) -> Stored:
    """Reads the training images and the test images; the latter from a labelled split, or held out from training."""
    folder, info, classes = prepared.folder, prepared.builder.info, prepared.class_names
    there = [name for name, split in info.splits.items() if split.num_examples]
    training = "train" if "train" in info.splits or len(there) != 1 else there[0]
    if training not in there:
        raise InputError(f"{folder} has images in {', '.join(sorted(there)) or 'no split'}; a split train is needed")
    train = read(training)
    if missing := int((train.labels == _UNLABELLED).sum()):
        raise InputError(f"{folder} has {missing:,} images without a label in {training}; choose another data set")
    for name in _TEST_SPLITS:
        if name in there and name != training:
            test = read(name)
            unlabelled = int((test.labels == _UNLABELLED).sum())
            if 0 < unlabelled < len(test.labels):
                raise InputError(
                    f"{folder} has {unlabelled:,} images without a label in {name}; prepare it without them"
                )
            if not unlabelled:
                origin = name if name == "test" else f"the {len(test.labels):,} images of {name}"
                return Stored(train, test, classes, origin)
    train, test, origin = hold_out_test(train, training, folder)
    return Stored(train, test, classes, origin)


def _open_split(builder: Any, split: str) -> Any:
    """The undecoded records of a split."""
    import tensorflow_datasets as tfds

    if not builder.info.available_file_formats() & tfds.core.FileFormat.with_random_access():
        raise InputError(
            f"{builder.data_path} is stored as {builder.info.file_format.value}, which only TensorFlow reads; prepare "
            "it again with file_format='array_record' (cifar10, cifar100 and svhn: it is enough to delete "
            "the folder or to pass another --data.dir)"
        )
    return builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)


def _require_files(folder: Path, paths: Any) -> None:
    """Refuses a set with missing record files, with a shorter message than the library's."""
    for path in map(Path, paths):
        if not path.exists() or not path.stat().st_size:
            raise _damage_error(folder, f"{path.name} is {'empty' if path.exists() else 'missing'}")


def _class_names(folder: Path, key: str, label: Any) -> tuple[str, ...]:
    """Names of the classes, read as UTF-8: tfds uses the locale's encoding, and has no names if that fails."""
    path = folder / f"{key.replace('/', '.')}.labels.txt"
    if not path.exists():
        return tuple(label.names)
    names = tuple(filter(None, map(str.strip, path.read_text(encoding="utf-8").split("\n"))))
    if len(names) != label.num_classes:
        raise _damage_error(folder, f"{path.name} names {len(names)} classes of {label.num_classes}")
    return names


def _names_image(key: str, feature: Any) -> bool:
    """Whether a feature identifies an image."""
    import tensorflow_datasets as tfds

    return isinstance(feature, tfds.features.Text) and re.search(r"(^|_|/)(id|(file_?)?(name|path))$", key) is not None


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def _refuse_foreign_code(folder: Path) -> None:
    """Refuses features that are not tfds's own, because tfds imports any module that features.json names."""
    found: list[Any] = [json.loads((folder / "features.json").read_text(encoding="utf-8"))]
    while found:
        node = found.pop()
        if isinstance(node, str) and node.lstrip().startswith(("{", "[")):
            with suppress(ValueError):  # an older format has JSON in JSON strings
                found.append(json.loads(node))
        if isinstance(node, dict):
            for key in ("pythonClassName", "python_class_name", "type"):
                name = node.get(key)
                if isinstance(name, str) and "." in name and not name.startswith("tensorflow_datasets.core.features."):
                    raise InputError(
                        f"{folder}/features.json names {name!r}, code that is not tfds's own; it was not loaded. "
                        "Choose another data set"
                    )
        found += node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()


def _records(source: Any, title: str) -> Iterator[Any]:
    """All records, read 1,000 at a time: twice as fast as one at a time."""
    starts = range(0, len(source), 1000)
    for start in show_progress(starts, title, len(starts)):
        yield from source.__getitems__(list(range(start, min(start + 1000, len(source)))))


def _image_and_label(folder: Path, info: Any) -> tuple[str, str]:
    """Names of the image and label features: the set's supervised keys, or the only features of their kind."""
    import tensorflow_datasets as tfds

    kinds = (tfds.features.Image, tfds.features.ClassLabel)
    features = dict(info.features.items())
    keys = info.supervised_keys
    if keys is None:
        found = [[key for key, feature in features.items() if isinstance(feature, kind)] for kind in kinds]
        keys = [names[0] for names in found if len(names) == 1]
    if len(keys) != 2 or not all(
        isinstance(key, str) and isinstance(features.get(key), kind) for key, kind in zip(keys, kinds, strict=True)
    ):
        raise InputError(
            f"{folder} has the features {', '.join(sorted(features))}; an image and a class label are needed"
        )
    image = features[keys[0]]
    if image.np_dtype not in (np.uint8, np.uint16) or len(image.shape) != 3:
        raise InputError(
            f"{folder} has images of {np.dtype(image.np_dtype)} values and shape {image.shape}; "
            "prepare it again with uint8 or uint16 images (height, width, channels)"
        )
    return keys[0], keys[1]


def _damage_error(folder: Path, what: str) -> InputError:
    return InputError(f"{folder} is no whole prepared data set: {what}; delete the folder and have it prepared again")


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except (JaxcnnError, MemoryError):  # no damage
        raise
    except Exception as error:  # protobuf, JSON, array_record and tfds each raise their own kinds
        raise unreadable(folder, error) or _damage_error(folder, reason(error)) from error
