"""Data and settings that cannot train to anything useful are refused before training."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from refusals import message
from small_training import begin, draw_dataset, draw_variables, experiment

from jaxcnn import CNN
from jaxcnn.config import ExperimentConfig, FreezeConfig, ModelConfig
from jaxcnn.data.splits import Dataset, Split
from jaxcnn.training.loop import fit
from jaxcnn.training.soundness import require_trainable
from jaxcnn.weights.pytorch_network import TorchCNN


def with_labels(change: Callable[[np.ndarray], Any], split: str = "train") -> Dataset:
    dataset = draw_dataset()
    old: Split = getattr(dataset, split)
    return replace(dataset, **{split: Split(old.images, change(old.labels.copy()))})


def at(index: int, label: int) -> Callable[[np.ndarray], np.ndarray]:
    def change(labels: np.ndarray) -> np.ndarray:
        labels[index] = label
        return labels

    return change


@pytest.mark.parametrize(
    ("dataset", "told"),
    [
        (with_labels(at(5, -1)), "the training split of noise has the label -1 (image 5; 1 such labels)"),
        (with_labels(at(7, 4)), "the training split of noise has the label 4 (image 7; 1 such labels)"),
        (with_labels(lambda labels: labels + 1), "renumber them"),  # 1 to 4
        (with_labels(at(2, 255), "validation"), "the validation split of noise has the label 255 (image 2;"),
        (with_labels(at(0, -100), "test"), "the test split of noise has the label -100 (image 0;"),
        (with_labels(lambda labels: labels.astype(np.float32)), "has float32 labels of shape (37,)"),
        (with_labels(lambda labels: labels[:-1]), "of shape (36,); give 37 whole numbers, one an image"),
        (with_labels(lambda labels: np.eye(4)[labels]), "has float64 labels of shape (37, 4)"),  # one-hot
    ],
)
def test_labels_that_are_not_the_networks_are_refused(dataset: Dataset, told: str) -> None:
    config = experiment()
    state = begin(config)
    assert told in message(lambda: next(iter(fit(state, config, dataset))))


def test_labels_of_any_whole_type_are_taken() -> None:
    for kind in (np.uint8, np.int64):
        require_trainable(experiment(), with_labels(lambda labels, kind=kind: labels.astype(kind)))


def test_images_that_the_network_does_not_read_are_refused() -> None:
    dataset = draw_dataset()
    images, labels = dataset.train
    for changed, told in (
        (images.astype(np.float32) / 255, "holds float32 images of shape (8, 8, 3); the network reads uint8 (8, 8, 3)"),
        (images[:, :4], "holds uint8 images of shape (4, 8, 3)"),
        (images.transpose(0, 3, 1, 2), "holds uint8 images of shape (3, 8, 8)"),  # PyTorch's order
        (images[:0], "has int32 labels of shape (37,); give 0 whole numbers"),
    ):
        refused = message(lambda c=changed: require_trainable(experiment(), replace(dataset, train=Split(c, labels))))
        assert told in refused
    assert "is empty" in message(
        lambda: require_trainable(experiment(), replace(dataset, train=Split(images[:0], labels[:0])))
    )


ONE_PIXEL = ModelConfig(
    input_size=8, hidden_dims=(4, 4, 4, 4, 6, 5), layers_per_block=(1,) * 4, apply_pooling=(1, 1, 1, 0),
    apply_bn=(1, 1, 1, 1), num_blocks=4, num_classes=4,
)  # fmt: skip  # block_3 normalises maps of 1x1


def sized(batch_size: int, model: ModelConfig = ONE_PIXEL, **changes: Any) -> ExperimentConfig:
    return replace(experiment(model, batch_size=batch_size), **changes)


@pytest.mark.parametrize(
    ("config", "images", "refused"),
    [
        (sized(16), 33, True),
        (sized(1), 33, True),
        (sized(64), 1, True),
        (sized(16), 34, False),
        (sized(16), 32, False),
        (sized(1, replace(ONE_PIXEL, apply_bn=(1, 1, 1, 0))), 33, False),  # block_2 has maps of 2x2
        (sized(16, replace(ONE_PIXEL, apply_pooling=(1, 1, 0, 0))), 33, False),
        (sized(16, freeze=FreezeConfig("frozen")), 33, False),  # frozen blocks use their running averages
        (sized(16, freeze=FreezeConfig("partial", freeze_until_block=2)), 33, True),
        (sized(16, freeze=FreezeConfig("frozen"), protocol="original"), 33, True),  # or their batches' own
    ],
)
def test_batch_norm_over_a_single_value_is_refused_before_training(
    config: ExperimentConfig, images: int, refused: bool
) -> None:
    dataset = draw_dataset(train=images)
    if refused:
        told = message(lambda: require_trainable(config, dataset))
        assert told.startswith(
            f"train.batch_size={config.train.batch_size} is not usable: of {images} training images it leaves a batch "
            "of one, and block_3 normalises maps of 1x1"
        )
    else:
        require_trainable(config, dataset)


def test_pytorch_refuses_the_same_batch() -> None:
    network = TorchCNN(ONE_PIXEL)
    image = np.zeros((1, 8, 8, 3), np.float32)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        network(torch.from_numpy(image.transpose(0, 3, 1, 2)))
    model = CNN(replace(ONE_PIXEL, dropout_rate=0.0))
    apply = partial(model.apply, draw_variables(ONE_PIXEL), train=True, mutable=["batch_stats"])
    told = message(lambda: jax.eval_shape(apply, jnp.asarray(image)))
    assert told == "a batch of one image with maps of 1x1 has no variance to normalise by; x is (1, 1, 1, 4)"
