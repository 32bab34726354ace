"""Checks before training: mistakes that would otherwise give a wrong result without an error."""

import numpy as np

from jaxcnn.config.experiment import ExperimentConfig
from jaxcnn.config.training import FreezeConfig
from jaxcnn.data.splits import Dataset, Split
from jaxcnn.errors import InputError
from jaxcnn.masks import frozen_stages
from jaxcnn.training.custom import BUILT_IN, Custom


def require_trainable(config: ExperimentConfig, dataset: Dataset, custom: Custom = BUILT_IN) -> None:
    """Refuses images and labels that are not the network's, and batches too small for its batch normalisation.

    Args:
        config: of the run; `config.model` is the network.
        dataset: the images to train and evaluate on.
        custom: the user's own parts. With an own model, images must only have one shape and type among themselves, and
            batch normalisation is not checked.

    Raises:
        InputError: naming the split and the value, or the block, the batch size and the number of images.
    """
    model = config.model
    shape = (model.input_size, model.input_size, model.in_channels)
    if custom.model is not None:
        shape = dataset.train.images.shape[1:]
    elif model.num_classes != dataset.num_classes:
        given, wanted = model.num_classes, dataset.num_classes
        raise InputError(f"model.num_classes={given} is not usable: {dataset.name} has {wanted} classes")
    for name, split in (("training", dataset.train), ("validation", dataset.validation), ("test", dataset.test)):
        if split is not None:
            _require_fitting(f"the {name} split of {dataset.name}", split, shape, dataset.num_classes)
            if not len(split.labels) and name != "test":  # training does not need test images
                raise InputError(f"the {name} split of {dataset.name} is empty; give at least one image")
    if custom.model is None:
        _require_varying(config, len(dataset.train.labels))


def require_effect(config: ExperimentConfig, custom: Custom) -> None:
    """Refuses settings that have no effect with the user's own parts, unless they are the defaults.

    Raises:
        InputError: naming the setting and what to do instead.
    """
    optim, freeze = config.optim, config.freeze
    for given, name, unused, remedy in (
        (custom.model, "freeze", freeze != FreezeConfig(), "freeze with an optimizer of your own, as by optax.freeze"),
        (custom.model, "train.precision", config.train.precision != "float32", "give the module a dtype"),
        (custom.model, "protocol", config.protocol != "sound", "it is for the built-in network"),
        (custom.loss, "optim.label_smoothing", optim.label_smoothing > 0, "smooth within the loss"),
        (custom.optimizer, "optim.clip_norm", optim.clip_norm is not None, "chain optax.clip_by_global_norm"),
        (custom.optimizer, "freeze.layer_decay", freeze.layer_decay != 1, "give rates by optax.partition"),
    ):
        if given is not None and unused:
            kind = next(field for field, value in custom._asdict().items() if value is given)
            raise InputError(f"{name} has no effect with your own {kind}: {remedy}")


def _require_fitting(where: str, split: Split, shape: tuple[int, ...], num_classes: int) -> None:
    images, labels = np.asarray(split.images), np.asarray(split.labels)
    if images.dtype != np.uint8 or images.shape[1:] != shape:
        raise InputError(
            f"{where} holds {images.dtype} images of shape {images.shape[1:]}; the network reads uint8 {shape}"
        )
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise InputError(
            f"{where} has {labels.dtype} labels of shape {labels.shape}; give {len(images)} whole numbers, one an image"
        )
    outside = (labels < 0) | (labels >= num_classes)
    if outside.any():
        first = int(np.argmax(outside))
        raise InputError(
            f"{where} has the label {labels[first]} (image {first}; {outside.sum()} such labels): the network's "
            f"{num_classes} classes are 0 to {num_classes - 1}; renumber them"
        )


def _require_varying(config: ExperimentConfig, images: int) -> None:
    """Refuses batch normalisation of one value per channel, whose variance is 0. PyTorch refuses it too."""
    model, batch_size = config.model, config.train.batch_size
    smallest = (images - 1) % batch_size + 1  # the last batch of an epoch
    drifting = config.protocol == "original"  # there, frozen blocks use their batches' statistics too
    frozen = 0 if drifting else frozen_stages(config.freeze, model, config.train.epochs - 1)
    for block in range(frozen, model.num_blocks):
        size = model.input_size >> sum(model.apply_pooling[:block])
        if model.apply_bn[block] and size * size * smallest == 1:
            raise InputError(
                f"train.batch_size={batch_size} is not usable: of {images} training images it leaves a batch of one, "
                f"and block_{block} normalises maps of 1x1, so that a channel's statistics would come from one value. "
                "Give another train.batch_size, or a 0 for that block in model.apply_bn"
            )
