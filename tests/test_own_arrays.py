"""Data sets from `.npz` files and a program's arrays; weights of unequal classes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from refusals import message
from sklearn.utils.class_weight import compute_class_weight
from small_training import MODEL, STANDARDISATION, draw_split, torch_inputs, variables_of
from test_data import noise

import jaxcnn
from jaxcnn.config import DataConfig, OptimConfig
from jaxcnn.data import arrays as arrays_module
from jaxcnn.data.images import fit_image
from jaxcnn.data.sets import channel_statistics, load_dataset
from jaxcnn.data.splits import Dataset
from jaxcnn.training.class_weights import balanced_weights
from jaxcnn.training.records import Batch
from jaxcnn.training.step import init_state, make_train_step
from jaxcnn.weights.convert import from_torch, to_torch
from jaxcnn.weights.pytorch_network import TorchCNN

IMAGES, LABELS = noise(30, 8, 8, 3), np.arange(30) % 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def load(file: Path, size: int = 8, channels: int = 3, **settings: Any) -> Dataset:
    config = DataConfig("npz", dir=file, **{"validation": 0, **settings})
    return load_dataset(config, input_size=size, in_channels=channels, seed=0)


def save(path: Path, **values: Any) -> Path:
    np.savez(path, **values)
    return path


def test_npz_with_medmnists_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grey = noise(18, 9, 7)
    splits = {"train": slice(0, 9), "val": slice(9, 12), "test": slice(12, 18)}
    values = {f"{name}_images": grey[part] for name, part in splits.items()}
    values |= {f"{name}_labels": (LABELS[:18, None][part]).astype(np.uint8) for name, part in splits.items()}
    file = save(tmp_path / "blood.npz", **values)
    found = load(file, validation=0.1)
    assert (found.name, found.origin, found.class_names) == ("blood", str(file), ("0", "1", "2"))
    wanted = [fit_image(image, 8, 3) for image in grey]
    np.testing.assert_array_equal(found.train.images, wanted[:9])
    assert found.validation is not None
    np.testing.assert_array_equal(found.validation.images, wanted[9:12])
    np.testing.assert_array_equal(found.test.images, wanted[12:])
    assert found.test.labels.tolist() == LABELS[12:18].tolist()
    assert found.standardisation == channel_statistics(found.train.images)
    with monkeypatch.context() as patch:
        patch.setattr(arrays_module, "_read", None)
        np.testing.assert_array_equal(load(file).test.images, wanted[12:])
    assert load(file, channels=1, resize="pad").train.images.tobytes() == b"".join(
        fit_image(image, 8, 1, "pad").tobytes() for image in grey[:9]
    )


def test_npz_with_plain_names(tmp_path: Path) -> None:
    split = np.array(["train"] * 20 + ["test"] * 10)
    names = np.array(["ant", "bee", "cow"])
    found = load(save(tmp_path / "a.npz", images=IMAGES, labels=LABELS, split=split, class_names=names))
    assert (found.class_names, found.validation) == (("ant", "bee", "cow"), None)
    np.testing.assert_array_equal(found.test.images, IMAGES[20:])
    found = load(save(tmp_path / "b.npz", images=IMAGES, labels=np.array([f"{i + 7}" for i in LABELS])))
    assert found.class_names == ("7", "8", "9")
    assert found.test_origin == "6 of the 30 images of train (20 %, stratified)"


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"x": IMAGES}, "it has the arrays x; train_images and train_labels"),
        ({"images": IMAGES, "labels": LABELS[:5]}, "the train images have the shape (30, 8, 8, 3), their labels (5,)"),
        ({"images": IMAGES, "labels": LABELS / 2}, "the labels have float64 values"),
        ({"images": IMAGES, "labels": np.eye(30, dtype=int)}, "shape (30, 30); one whole number or text"),
        ({"images": IMAGES / 255, "labels": LABELS}, "an image has float64 values"),
        ({"images": IMAGES, "labels": LABELS, "split": np.array(["fold"] * 30)}, "split has 'fold'"),
        ({"images": IMAGES, "labels": LABELS, "split": np.array(["test"] * 3)}, "3 entries of split"),
        ({"images": IMAGES, "labels": LABELS, "class_names": np.array(["a"])}, "labels have 1, but class_names has"),
        ({"images": IMAGES, "labels": LABELS.astype(object)}, "is no .npz file of plain arrays: Object arrays cannot"),
        (
            {"train_images": IMAGES, "train_labels": LABELS, "test_images": IMAGES, "test_labels": LABELS + 9},
            "labels have 9",
        ),
    ],
)
def test_npz_that_cannot_be_used_is_named(values: dict[str, Any], why: str, tmp_path: Path) -> None:
    file = save(tmp_path / "a.npz", **values)
    told = message(lambda: load(file))
    assert why in told
    assert str(file) in told


def test_files_that_are_no_npz_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_text("no arrays")
    assert "is no .npz file of plain arrays" in message(lambda: load(tmp_path / "a.npz"))
    np.save(tmp_path / "a.npy", IMAGES)
    assert "is no .npz file of plain arrays" in message(lambda: load(tmp_path / "a.npy"))
    assert "cannot be read" in message(lambda: load(tmp_path / "gone.npz"))


def test_a_programs_own_arrays() -> None:
    data = jaxcnn.from_arrays(IMAGES, LABELS, test=(IMAGES[:6], LABELS[:6]), validation=0.2, class_names="abc")
    assert (data.name, data.origin, data.class_names, data.test_origin) == ("arrays", "arrays", ("a", "b", "c"), "test")
    assert data.validation is not None
    assert (len(data.train.labels), len(data.validation.labels)) == (24, 6)
    np.testing.assert_array_equal(data.test.images, IMAGES[:6])
    grey = jaxcnn.from_arrays(IMAGES[..., 0], list("xyz" * 10), validation=(IMAGES[:3, ..., 0], list("zyx")))
    assert (grey.train.images.shape, grey.class_names) == ((24, 8, 8, 1), ("x", "y", "z"))
    assert grey.validation is not None
    assert grey.validation.labels.tolist() == [2, 1, 0]
    small = jaxcnn.from_arrays(IMAGES, LABELS, input_size=4, validation=0, resize="crop")
    assert small.test.images.shape == (6, 4, 4, 3)
    assert small.validation is None
    assert "(N,) are needed" in message(lambda: jaxcnn.from_arrays(IMAGES, LABELS[:3]))


def test_balanced_weights_are_scikit_learns() -> None:
    labels = np.random.default_rng(0).choice(4, 97, p=[0.7, 0.2, 0.06, 0.04])
    wanted = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    np.testing.assert_allclose(balanced_weights(labels, 4), wanted, rtol=1e-15)
    assert balanced_weights(np.array([0, 0, 2]), 3) == (0.5, 0.0, 1.0)


@pytest.mark.usefixtures("compiled_once")
def test_class_weights_are_those_of_pytorchs_loss() -> None:
    weights, rate = (0.5, 2.0, 0.0, 1.0), 2.0**-3
    model = replace(MODEL, layers_per_block=(1, 1), apply_bn=(0, 0))
    optim = OptimConfig(optimizer="sgd", momentum=0.0, weight_decay=0.0)
    split = draw_split(6, 0)
    torch.manual_seed(0)
    network = TorchCNN(model)
    state = init_state(from_torch(network.state_dict(), model), model, optim, seed=0)
    step = make_train_step(
        model=model,
        optim=optim,
        schedule=lambda step: jnp.float32(rate),
        standardisation=STANDARDISATION,
        augmentation="none",
        class_weights=weights,
    )
    state, metrics = jax.jit(step)(state, Batch(split.images, split.labels, np.arange(6) < 5), np.float32(1))
    per_image = torch.nn.CrossEntropyLoss(torch.tensor(weights), reduction="none")
    losses = per_image(network(torch_inputs(split).float()), torch.from_numpy(split.labels).long())[:5]
    (losses.sum() / 5).backward()
    assert float(metrics.loss) == pytest.approx(losses.sum().item(), rel=1e-5)
    assert metrics.count == 5
    trained = to_torch(variables_of(state), model)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        wanted = (parameter - rate * parameter.grad).detach()
        np.testing.assert_allclose(trained[name], wanted, rtol=1e-4, atol=1e-6)
