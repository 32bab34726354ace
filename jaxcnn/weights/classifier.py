"""A trained network with all that it needs to classify images."""

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
from jaxcnn.config.network import Activation, ModelConfig, Resize, Untold
from jaxcnn.data.image_reader import ImageReader, Wanted
from jaxcnn.data.images import fit_image, read_image, shown, walk
from jaxcnn.errors import InputError, local_path
from jaxcnn.files import is_there
from jaxcnn.kernels.backend import backend_form, fixed_settings
from jaxcnn.training.loop import compiled_eval_step
from jaxcnn.training.records import Batch, softmax
from jaxcnn.weights.card import changed
from jaxcnn.weights.source import read_source

Array: TypeAlias = np.ndarray[Any, Any]
OneImage: TypeAlias = "Path | str | Array | Image.Image"
Images: TypeAlias = "OneImage | Iterable[OneImage]"

_BATCH = 256  # what runs evaluate by, so that their compiled program is found again
_PIXELS = 2**24
"""In one batch; larger images come in smaller batches."""


@dataclass(frozen=True, eq=False)
class Classifier:
    """A network that classifies images as they come: files, arrays, images of Pillow's, folders."""

    variables: dict[str, Any]
    config: ModelConfig
    card: Card
    assumed: tuple[str, ...] = ()
    """What neither the source nor the arguments told of the network."""
    notes: tuple[str, ...] = ()
    """What of the source was ignored or filled in."""

    @property
    def classes(self) -> Array:
        """What `predict` calls the classes, (K,): their names, or where these are not known 0 to K - 1."""
        return np.array(self.card.class_names or range(self.config.num_classes))

    def predict(self, images: Images) -> Array:
        """The most probable class of each image, (N,): its name, or where names are not known its label.

        The arguments and errors are those of `predict_proba`.
        """
        return np.asarray(self.classes[self.predict_proba(images).argmax(-1)])

    def predict_proba(self, images: Images) -> Array:
        """The probabilities of the classes, float32 (N, K), in the order of `classes`; a single image is N = 1.

        Where a run fitted a temperature (`card.temperature`), they are those of the logits divided by it.

        Args:
            images: a file; a folder, which stands for all files in and below it, in the order of `image_files`; an
                image of Pillow's; uint8 pixels (H, W), (H, W, C), (N, H, W) or (N, H, W, C), C being 1 or 3; or
                several of these. Sizes and shapes may differ: the network's own is made of them as in training.

        Raises:
            InputError: naming the image, when one cannot be read or does not fit the network.
        """
        found = []
        for each in self.each(_several(images)):
            if isinstance(each, InputError):
                raise each
            found.append(each)
        return np.stack(found) if found else np.empty((0, self.config.num_classes), np.float32)

    def each(self, images: Sequence[OneImage]) -> Iterator[Array | InputError]:
        """For one image after the other its probabilities, float32 (K,), or why it cannot be used.

        Files are read on all cores while the network computes, with a bar on stderr where that is a terminal.
        """
        config = self.config
        most = min(_BATCH, max(1, _PIXELS // config.input_size**2))
        size = min(most, 1 << max(0, len(images) - 1).bit_length())  # few shapes, each of which is compiled
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
        """The images as the network reads them, uint8 (H, W, C), or why they cannot be used."""
        wanted = Wanted(self.config.input_size, self.config.in_channels, self.card.resize)
        files = [image for image in images if isinstance(image, Path)]
        if len(files) == len(images):
            names = [shown(file) for file in files]
            with ImageReader(wanted, skip_broken=True) as reader:
                for part in reader.decode(
                    [str(file) for file in files], names, title="Classifying", total_bytes=_bytes(files)
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
            mean=self.card.mean,
            std=self.card.std,
            augmentation="none",
            first_stage=0,
            vectorized=backend_form().vectorized,
            precision="float32",
        )
        n = len(images)
        labels = jnp.zeros(n, jnp.int32)  # of a loss that is not used
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
    """A trained network that classifies images: `jaxcnn.load("runs/cifar10").predict("photo.jpg")`.

    A run's folder, and a `model.safetensors` that a run wrote, tell all that is needed. What other files do not tell
    comes from the arguments; each of them also replaces what a file tells.

    Args:
        path: a run's folder, an Orbax checkpoint, or a file that torch.save or safetensors wrote.
        input_size: height and width that the network reads.
        apply_pooling: which blocks (1 or 0 for each) end in a pool.
        activation_function: of the network.
        class_names: by label.
        mean: of each channel of the training images, divided by 255, as is `std`.
        std: see `mean`.
        resize: how images of other sizes become squares; squash if nothing tells.

    Warns:
        UserWarning: naming what had to be assumed of the network, which `assumed` of the result holds too.

    Raises:
        InputError: when the weights cannot be read, or mean and std are not known.
    """
    found = read_classifier(
        local_path("path", path),
        Untold(input_size=input_size, apply_pooling=apply_pooling, activation_function=activation_function),
        class_names=class_names,
        mean=mean,
        std=std,
        resize=resize,
    )
    if found.assumed:
        warnings.warn(
            f"{path} does not tell all of its network; assumed: {'; '.join(found.assumed)}. Where it is otherwise, "
            "give the argument of that name, or a file of the right weights alone",
            stacklevel=2,
        )
    return found


def read_classifier(path: Path, untold: Untold, **given: Any) -> Classifier:
    """What `load` returns, without its warning; `given` are the other arguments of it."""
    source = read_source(path, untold)
    card = changed(source.card or Card(), **given)
    card.check(source.config)
    if not (card.mean and card.std):
        raise InputError(
            f"{path} does not tell mean and std of the images that it was trained on; give both, or the run's folder "
            "or model.safetensors in its place"
        )
    return Classifier(jax.device_put(source.variables), source.config, card, tuple(source.assumed), tuple(source.notes))


def image_files(path: Path) -> list[Path]:
    """The file, or all files in and below a folder in the order of their names; hidden ones do not count.

    Raises:
        InputError: when there are none.
    """
    if not is_there(path):
        raise InputError(f"{path} does not exist; give an image or a folder of images")
    if not path.is_dir():
        return [path]
    if not (files := [path / name for name, _, _ in walk(path)]):
        raise InputError(f"{path} holds no files; give an image or a folder of images")
    return files


def _several(images: Images) -> list[OneImage]:
    """One by one, with the files of folders in their place."""
    if isinstance(images, (str, os.PathLike)):
        return list(image_files(local_path("images", images)))
    if isinstance(images, Image.Image):
        return [images]
    if hasattr(images, "__array__"):
        pixels = np.asarray(images)
        single = pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] <= 4)
        return [pixels] if single or pixels.ndim not in (3, 4) else list(pixels)
    if not isinstance(images, Iterable):
        raise InputError(f"images={images!r} is not usable: give files, folders, arrays or images of Pillow's")
    return [one for each in images for one in _several(each)]


def _read_one(image: OneImage, wanted: Wanted) -> Array:
    size, channels, resize = wanted
    if isinstance(image, (Path, Image.Image)):
        name = getattr(image, "filename", "") or "an image"
        return read_image(image, size=size, channels=channels, resize=resize, name=name)
    return fit_image(np.asarray(image), size, channels, resize)


def _bytes(files: Iterable[Path]) -> int:
    """The size of all files that are there."""
    total = 0
    for file in files:
        with suppress(OSError):
            total += file.stat().st_size
    return total
