"""Loads a data set, from any source, as uint8 arrays with training, validation and test splits."""

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from jaxcnn.config.experiment import DataConfig
from jaxcnn.config.network import Resize
from jaxcnn.config.standardisation import Standardisation
from jaxcnn.data.arrays import load_npz, stored_from_arrays
from jaxcnn.data.folders import load_folder
from jaxcnn.data.hugging_face import load_hugging_face
from jaxcnn.data.image_reader import ImageReader, Wanted
from jaxcnn.data.images import fit_image
from jaxcnn.data.locate import find_prepared, refuse_other_folders
from jaxcnn.data.reader import Convert, load_prepared
from jaxcnn.data.splits import Dataset, Split, Stored, select, stratified_split, take
from jaxcnn.data.statistics import channel_statistics
from jaxcnn.errors import InputError, local_path
from jaxcnn.files import is_there

_PREPARABLE = ("cifar10", "cifar100", "svhn_cropped")

_FRACTION, _VALIDATION = 2**31, 2**31 + 1
"""Tags of the random seeds of two choices. Epochs use their number as the tag, so no two choices share a stream."""


def load_dataset(
    config: DataConfig, *, input_size: int, in_channels: int, seed: int, most_bytes: int | None = None
) -> Dataset:
    """Loads the data set that a configuration names, and prepares it first if necessary.

    Args:
        config: the name, folder and archives of the set; the classes and shares to use; how to resize.
        input_size: height and width of the result.
        in_channels: 3, or 1 for grey images.
        seed: of the choice of images for `config.fraction` and `config.validation`, if `config.split_seed` is None.
        most_bytes: if the images of a split need more, they are not copied into memory; they are `ImageRows`, and
            training streams them. None copies in any case.

    Returns:
        The data set. Its arrays may be read-only, as those of a cached set are memory-mapped files.

    Raises:
        InputError: when the set cannot be loaded; the message names the remedy.
    """
    if in_channels not in (1, 3):
        raise InputError(f"model.in_channels={in_channels} fits no data set; give 3, or 1 for grey images")

    def convert(image: np.ndarray) -> np.ndarray:
        try:
            return fit_image(image, input_size, in_channels, config.resize)
        except InputError as error:
            raise InputError(f"data.name={config.name!r} does not fit the network: {error}") from error

    stored, origin = _load(config, convert, (input_size, input_size, in_channels))
    for problem in stored.left_out:
        print(f"left out: {problem}", file=sys.stderr)
    if stored.test_origin != "test":
        print(f"{config.title} has no labelled test split: {stored.test_origin} serve as one", file=sys.stderr)
    return _dataset(stored, config, seed if config.split_seed is None else config.split_seed, origin, most_bytes)


def from_arrays(
    images: Any,
    labels: Any,
    *,
    test: tuple[Any, Any] | None = None,
    validation: tuple[Any, Any] | float = 0.1,
    class_names: Sequence[str] = (),
    input_size: int | None = None,
    resize: Resize = "squash",
    seed: int = 0,
    name: str = "arrays",
) -> Dataset:
    """A data set from arrays in memory, for `training.loop.fit`.

    Args:
        images: uint8 (N, H, W) or (N, H, W, 1 or 3).
        labels: (N,) or (N, 1), whole numbers or text.
        test: images and labels of the test split; if None, a stratified fifth of the images is held out.
        validation: images and labels of the validation split, or the share of the training images to hold out; 0 for
            no validation.
        class_names: of the labels 0, 1, ...; if empty, the distinct training labels, sorted, are the classes.
        input_size: height and width to resize to; the images' own height if None.
        resize: how images become squares.
        seed: of the choice of validation images.
        name: of the set.

    Raises:
        InputError: when these are not labelled images, or there are too few.
    """
    pairs = {"train": (images, labels)}
    share = 0.1
    if test is not None:
        pairs["test"] = test
    if isinstance(validation, tuple):
        pairs["validation"] = validation
    else:
        share = validation
    images = np.asarray(images)
    size = input_size or (images.shape[1] if images.ndim > 1 else 1)
    channels = images.shape[3] if images.ndim == 4 else 1
    stored = stored_from_arrays(pairs, class_names, (size, size, channels), resize, name)
    return _dataset(stored, DataConfig(name=name, validation=share), seed, "arrays", None)


def _dataset(stored: Stored, config: DataConfig, seed: int, origin: str, most_bytes: int | None) -> Dataset:
    """Selects the classes and shares that a configuration asks for, and adds the statistics."""
    stored = select_classes(stored, config.classes, most_bytes)
    for name, split in (("training", stored.train), ("test", stored.test), ("validation", stored.validation)):
        if split is not None and not len(split.labels):
            raise InputError(f"{config.name} has no {name} images of data.classes={config.classes}; choose others")
    standardisation = stored.statistics or channel_statistics(stored.train.images)
    if not all(standardisation.std):
        raise InputError(f"a channel of {config.name} has one value throughout; choose another data set")
    train, validation = _divide(stored, config, seed, most_bytes)
    return Dataset(
        config.title, train, validation, stored.test, stored.class_names, standardisation, stored.test_origin, origin
    )


def _load(config: DataConfig, convert: Convert, shape: tuple[int, int, int]) -> tuple[Stored, str]:
    """The arrays of the set that a configuration names, and where they come from."""
    reader = ImageReader(Wanted(shape[0], shape[2], config.resize), config.skip_broken)
    if config.name == "digits":
        return _load_digits(convert), "scikit-learn"
    if config.name in ("folder", "npz"):
        if config.dir is None:
            wanted = "--data.dir FOLDER" if config.name == "folder" else "--data.dir FILE.npz"
            raise InputError(f"data.name={config.name!r} needs {wanted}")
        origin = str(config.dir.resolve())
        if config.name == "folder":
            with reader:
                return load_folder(config.dir, config.title, shape, config.resize, reader), origin
        return load_npz(config.dir, config.title, shape, config.resize), origin
    if config.name.startswith("hf:"):
        with reader:
            return load_hugging_face(config, shape, reader), config.name
    folder = _prepared_folder(config)
    return load_prepared(folder, convert, shape, config.resize), str(folder.resolve())


CIFAR10_STANDARDISATION = Standardisation(mean=(0.4914, 0.4822, 0.4465), std=(0.247, 0.2435, 0.2616))


def as_original(dataset: Dataset) -> Dataset:
    """The set as the original PyTorch program uses it: the test split validates, with CIFAR-10's statistics."""
    return replace(dataset, validation=dataset.test, standardisation=CIFAR10_STANDARDISATION)


def select_classes(stored: Stored, classes: Sequence[int], most_bytes: int | None = None) -> Stored:
    """Keeps the images of these labels and renumbers them from 0 in the order given. No labels keep everything.

    Raises:
        InputError: when a label is unknown.
    """
    if not classes:
        return stored
    count = len(stored.class_names)
    if unknown := [label for label in classes if not 0 <= label < count]:
        raise InputError(f"data.classes={tuple(classes)} asks for label {unknown[0]}; labels here are 0 to {count - 1}")
    new = np.full(count, -1, np.int32)
    new[list(classes)] = np.arange(len(classes))

    def keep(split: Split) -> Split:
        kept = np.flatnonzero(new[split.labels] >= 0)
        return select(Split(split.images, new[split.labels]), kept, most_bytes)

    names = tuple(stored.class_names[label] for label in classes)
    validation = None if stored.validation is None else keep(stored.validation)
    return stored._replace(
        train=keep(stored.train), test=keep(stored.test), validation=validation, class_names=names, statistics=None
    )


def _divide(stored: Stored, config: DataConfig, seed: int, most_bytes: int | None) -> tuple[Split, Split | None]:
    """The training images that `fraction` leaves, and the validation images: the set's own, or a share held out."""
    split = stored.train
    kept = np.arange(len(split.labels))
    if config.fraction < 1:
        kept, _ = stratified_split(split.labels, 1 - config.fraction, (seed, _FRACTION))
    if config.validation == 0 or stored.validation is not None:
        fits = most_bytes is None or split.images.nbytes <= most_bytes
        whole = len(kept) == len(split.labels) and fits
        return split if whole else select(split, kept, most_bytes), stored.validation if config.validation else None
    rest, held = stratified_split(split.labels[kept], config.validation, (seed, _VALIDATION))
    if not len(held):
        raise InputError(
            f"data.validation={config.validation} of {len(kept)} training images leaves none to validate on; "
            f"raise it or data.fraction={config.fraction}, or give data.validation=0"
        )
    return select(split, kept[rest], most_bytes), select(split, kept[held], most_bytes)


def _load_digits(convert: Convert) -> Stored:
    """scikit-learn's 1,797 digits of 8x8 pixels. A fifth is the test split, the same in every run."""
    rows = _digits_table()
    grey = np.rint(rows[:, :64].reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    images, labels = np.stack([convert(image) for image in grey]), rows[:, 64].astype(np.int32)
    train, test = (take(Split(images, labels), each) for each in stratified_split(labels, 0.2, seed=0))
    return Stored(train, test, tuple(str(digit) for digit in range(10)))


@cache  # each run of a study loads them, and parsing takes a fifth of a second
def _digits_table() -> np.ndarray:
    """The digits, float64 (1797, 65): 64 pixels from 0 to 16, then the label."""
    package = find_spec("sklearn")  # found but not imported, as importing takes two seconds
    for folder in (package and package.submodule_search_locations) or ():
        table = Path(folder) / "datasets/data/digits.csv.gz"
        if table.exists():
            return np.loadtxt(table, delimiter=",")
    from sklearn.datasets import load_digits  # a release that keeps the file elsewhere

    digits = load_digits()
    return np.column_stack([digits.data, digits.target])


def _prepared_folder(config: DataConfig) -> Path:
    """The folder of the prepared set. It is prepared now if it is missing and this program can prepare it."""
    name = re.sub(r"^svhn\b", "svhn_cropped", config.name)
    data_dir = config.dir or local_path("TFDS_DATA_DIR", os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    folder = find_prepared(name, data_dir)
    if folder is None:
        refuse_other_folders(name, data_dir, config.archives is not None)
    if folder is None and name in _PREPARABLE:
        from jaxcnn.data.prepare import prepare

        folder = prepare(name, data_dir, config.archives)
    if folder is None:
        gone = "" if is_there(data_dir) else ", a folder that does not exist"
        raise InputError(
            f"data.name={config.name!r} is not prepared in {data_dir}{gone}; prepare it there with tfds "
            "(file_format='array_record'), pass --data.dir, or choose cifar10, cifar100, svhn or digits"
        )
    return folder
