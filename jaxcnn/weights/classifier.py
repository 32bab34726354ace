"""Classifying images with a trained network."""

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from jaxcnn.config.card import Card
from jaxcnn.config.network import Activation, ModelConfig, NetworkOverrides, Resize
from jaxcnn.data.image_reader import ImageReader, Wanted
from jaxcnn.data.images import fit_image, read_image, shown, walk
from jaxcnn.errors import InputError, local_path
from jaxcnn.files import is_there
from jaxcnn.kernels.backend import fixed_settings
from jaxcnn.training.loop import compiled_eval_step
from jaxcnn.training.records import Batch, softmax
from jaxcnn.weights.card import update_card
from jaxcnn.weights.source import read_source

Array: TypeAlias = np.ndarray[Any, Any]
OneImage: TypeAlias = "Path | str | Array | Image.Image"
Images: TypeAlias = "OneImage | Iterable[OneImage]"

_BATCH = 256  # as in the evaluation of a run, whose compiled program is then reused
_PIXELS = 2**24
"""Maximum number of pixels per batch. Networks with a large input get smaller batches."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network that classifies files, folders, arrays and Pillow images. `jaxcnn.load` makes one."""

    variables: dict[str, Any]
    config: ModelConfig
    card: Card
    assumed: tuple[str, ...] = ()
    """Settings of the network that neither the files nor the arguments gave, as text."""
    notes: tuple[str, ...] = ()
    """What was ignored in the files or filled in, as text."""

    @property
    def classes(self) -> Array:
        """The classes in the order of the logits, (K,): their names, or 0 to K - 1 if the names are unknown."""
        return np.array(self.card.class_names or range(self.config.num_classes))

    def predict(self, images: Images) -> Array:
        """The most probable class of each image, (N,): an entry of `classes`.

        Arguments and errors are those of `predict_proba`.
        """
        return np.asarray(self.classes[self.predict_proba(images).argmax(-1)])

    def predict_proba(self, images: Images) -> Array:
        """The class probabilities of each image, float32 (N, K), in the order of `classes`. A single image has N = 1.

        Where a run fitted a temperature (`card.temperature`), they are those of the logits divided by it.

        Args:
            images: a file; a folder, which stands for all files below it, in the order of `image_files`; a Pillow
                image; uint8 pixels (H, W), (H, W, C), (N, H, W) or (N, H, W, C) with C = 1 or 3; or an iterable of
                these. Images may have any size: they are resized as in training.

        Raises:
            InputError: naming the image, when one cannot be read or does not fit the network.
        """
        found = []
        for each in self.iterate(_flatten(images)):
            if isinstance(each, InputError):
                raise each
            found.append(each)
        return np.stack(found) if found else np.empty((0, self.config.num_classes), np.float32)

    def iterate(self, images: Sequence[OneImage]) -> Iterator[Array | InputError]:
        """Yields for each image its probabilities, float32 (K,), or the error that says why it cannot be used.

        Files are read on all cores while the network computes. A terminal on stderr shows a progress bar.
        """
        config = self.config
        most = min(_BATCH, max(1, _PIXELS // config.input_size**2))
        # A power of two, because each batch size is compiled.
        size = min(most, 1 << max(0, len(images) - 1).bit_length())
        pending = self._read(images)
        while read := list(islice(pending, size)):
            batch = np.zeros((size, config.input_size, config.input_size, config.in_channels), np.uint8)
            for place, image in enumerate(read):
                if not isinstance(image, InputError):
                    batch[place] = image
            rows = softmax(self._logits(batch) / np.float64(self.card.temperature))
            for image, row in zip(read, rows, strict=False):
                if isinstance(image, InputError):
                    yield image
                elif np.isfinite(row).all():
                    yield row
                else:
                    raise InputError("the network's outputs are not finite: its training diverged; give other weights")

    def _read(self, images: Sequence[OneImage]) -> Iterator[Array | InputError]:
        """Yields each image in the network's size, uint8 (H, W, C), or the error that says why it cannot be used."""
        wanted = Wanted(self.config.input_size, self.config.in_channels, self.card.resize)
        files = [image for image in images if isinstance(image, Path)]
        if len(files) == len(images):
            names = [shown(file) for file in files]
            with ImageReader(wanted, skip_broken=True) as reader:
                for part in reader.decode(
                    [str(file) for file in files], names, title="Classifying", total_bytes=_total_size(files)
                ):
                    for i, pixels in enumerate(part.images):
                        yield InputError(part.problems[i]) if i in part.problems else pixels
        else:
            for image in images:
                try:
                    yield _read_one(image, wanted)
                except InputError as error:
                    yield error

    @fixed_settings()
    def _logits(self, images: Array) -> Array:
        step = compiled_eval_step(
            model=self.config,
            standardisation=self.card.standardisation,
            augmentation="none",
            precision="float32",
        )
        n = len(images)
        labels = jnp.zeros(n, jnp.int32)  # for the loss, which is not used
        batch = Batch(jnp.asarray(images), labels, jnp.ones(n, bool))
        _, logits = step(self.variables, batch, jnp.zeros(2, jnp.uint32))
        return np.asarray(logits)


def load(
    path: Path | str,
    *,
    input_size: int | None = None,
    apply_pooling: tuple[int, ...] | None = None,
    activation_function: Activation | None = None,
    class_names: Sequence[str] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: Resize | None = None,
) -> Classifier:
    """Loads a trained network to classify images with.

    A run's folder, a published model's folder, their `model.safetensors`, and the weights that come with the project
    contain all that is needed. For other files, arguments give what they do not contain. An argument also replaces what
    a file contains.

    Example:
        ```python
        jaxcnn.load("runs/cifar10").predict("photo.jpg")
        jaxcnn.load("cifar10-shallow").predict("photo.jpg")
        ```

    Args:
        path: a folder, an Orbax checkpoint, a file that torch.save or safetensors wrote, or the name of weights that
            come with the project.
        input_size: height and width of the network's input, in pixels.
        apply_pooling: whether (1 or 0) each block ends in a pool.
        activation_function: the network's activation.
        class_names: names of the classes, in the order of the labels.
        mean: mean of each channel of the training images, for pixels in [0, 1].
        std: standard deviation of each channel, likewise.
        resize: how images of other sizes are resized; squash if neither this nor a file says.

    Warns:
        UserWarning: naming the settings of the network that had to be assumed. They are in `Classifier.assumed` too.

    Raises:
        InputError: when the weights cannot be read, or mean and std are unknown.
    """
    found = read_classifier(
        local_path("path", path),
        NetworkOverrides(input_size=input_size, apply_pooling=apply_pooling, activation_function=activation_function),
        class_names=class_names,
        mean=mean,
        std=std,
        resize=resize,
    )
    if found.assumed:
        warnings.warn(
            f"{path} does not describe its network completely; assumed: {'; '.join(found.assumed)}. If that is wrong, "
            "give the argument of that name, or a file with only the right weights",
            stacklevel=2,
        )
    return found


def read_classifier(path: Path, overrides: NetworkOverrides, **card_fields: Any) -> Classifier:
    """As `load`, but without its warning. `card_fields` are its arguments class_names, mean, std and resize."""
    source = read_source(path, overrides)
    card = update_card(source.card or Card(), **card_fields)
    card.check(source.config)
    if not (card.mean and card.std):
        raise InputError(
            f"{path} does not contain mean and std of its training images; give both, or the run's folder or "
            "model.safetensors instead"
        )
    return Classifier(jax.device_put(source.variables), source.config, card, tuple(source.assumed), tuple(source.notes))


def image_files(path: Path) -> list[Path]:
    """The file itself, or all files below a folder, sorted by name, without hidden ones.

    Raises:
        InputError: when the path does not exist or the folder has no files.
    """
    if not is_there(path):
        raise InputError(f"{path} does not exist; give an image or a folder of images")
    if not path.is_dir():
        return [path]
    if not (files := [path / name for name, _, _ in walk(path)]):
        raise InputError(f"{path} holds no files; give an image or a folder of images")
    return files


def _flatten(images: Images) -> list[OneImage]:
    """Single images: files instead of folders, and the images of a batch (N, ...) one by one."""
    if isinstance(images, (str, os.PathLike)):
        return list(image_files(local_path("images", images)))
    if isinstance(images, Image.Image):
        return [images]
    if hasattr(images, "__array__"):
        pixels = np.asarray(images)
        single = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] <= 4)
        return [pixels] if single or pixels.ndim not in (3, 4) else list(pixels)
    if not isinstance(images, Iterable):
        raise InputError(f"images={images!r} is not usable: give files, folders, arrays or Pillow images")
    return [one for each in images for one in _flatten(each)]


def _read_one(image: OneImage, wanted: Wanted) -> Array:
    size, channels, resize = wanted
    if isinstance(image, (Path, Image.Image)):
        name = getattr(image, "filename", "") or "an image"
        return read_image(image, size=size, channels=channels, resize=resize, name=name)
    return fit_image(np.asarray(image), size, channels, resize)


def _total_size(files: Iterable[Path]) -> int:
    """Size of all existing files together, in bytes."""
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total
