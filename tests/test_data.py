"""Loading, against scikit-learn and stock tfds."""

import contextlib
import errno
import io
import os
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from refusals import message
from sklearn.datasets import load_digits

from experiments.checks import make_archives as archives
from jaxcnn.config import DataConfig
from jaxcnn.data import sets as data_module
from jaxcnn.data.images import fit_image
from jaxcnn.data.prepare import prepare
from jaxcnn.data.sets import load_dataset, select_classes
from jaxcnn.data.splits import Dataset, Split, Stored


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared sets: 100 and 20 images of CIFAR-10, 120 and 60 of CIFAR-100, 30 and 15 of SVHN."""
    root = tmp_path_factory.mktemp("prepared")
    for name, make in (
        ("cifar10", archives.cifar10),
        ("cifar100", archives.cifar100),
        ("svhn_cropped", archives.svhn),
    ):
        checksums = archives.write_official(root / "archives" / name, name, make())
        prepare(name, root, root / "archives" / name, checksums)
    return root


def load(size: int = 32, channels: int = 3, seed: int = 0, **config: Any) -> Dataset:
    return load_dataset(DataConfig(**config), input_size=size, in_channels=channels, seed=seed)


def assert_same_split(one: Split, other: Split) -> None:
    np.testing.assert_array_equal(one.images, other.images)
    np.testing.assert_array_equal(one.labels, other.labels)


def make_set(
    data_dir: Path,
    examples: dict[str, list[Any]],
    *,
    shape: tuple[int | None, int | None, int] = (None, None, 3),
    name: str = "toys",
    version: str = "1.0.0",
    config: str | None = None,
    supervised: bool = True,
    features: dict[str, Any] | None = None,
    in_order: bool = False,
) -> Path:
    """Prepares a set with a builder of tfds's kind.

    Args:
        data_dir: where.
        examples: by split: an array or what else tfds takes for an image, a label, and maybe a dict of other features.
        features: in place of `picture` and `kind`.
        in_order: keeps the order of the examples, which tfds shuffles otherwise.
    """

    class Toys(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(version)
        BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=config)] if config else []

        def _info(self) -> Any:
            return tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict(
                    features
                    or {
                        "picture": tfds.features.Image(shape=shape),
                        "kind": tfds.features.ClassLabel(names=["ant", "bee", "cow"]),
                    }
                ),
                supervised_keys=("picture", "kind") if supervised else None,
                disable_shuffling=in_order,
            )

        def _split_generators(self, _: Any) -> Any:
            return {split: self._generate_examples(split) for split in examples}

        def _generate_examples(self, split: str) -> Any:
            for i, (image, label, *others) in enumerate(examples[split]):
                picture = Image.fromarray(image) if isinstance(image, np.ndarray) else image
                yield i, {"picture": picture, "kind": label, **dict(*others)}

    Toys.name = name
    tfds.disable_progress_bar()
    builder = Toys(data_dir=data_dir, file_format="array_record")
    with contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()
    return Path(builder.data_dir)


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Digits.


def test_digits_are_scikit_learns() -> None:
    data = load(8, 1, name="digits", validation=0)
    assert data.validation is None
    assert (len(data.train.labels), len(data.test.labels)) == (1438, 359)
    assert data.class_names == tuple("0123456789")
    assert (data.num_classes, data.name) == (10, "digits")
    digits = load_digits()
    whole = {image.tobytes(): label for image, label in zip(digits.images, digits.target, strict=True)}
    found = set()
    for split in (data.train, data.test):
        assert (split.images.dtype, split.labels.dtype) == (np.uint8, np.int32)
        counts, wanted = np.bincount(split.labels), np.bincount(digits.target)
        np.testing.assert_allclose(counts, wanted * len(split.labels) / 1797, atol=1)
        for image, label in zip(split.images[..., 0], split.labels, strict=True):
            grey = np.rint(image * (16 / 255)).astype(np.float64)
            np.testing.assert_array_equal(np.rint(grey * (255 / 16)), image)
            assert whole[grey.tobytes()] == label
            found.add(grey.tobytes())
    assert found == whole.keys()


def test_the_digits_are_the_same_where_scikit_learn_keeps_them_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = data_module._digits_table()
    for elsewhere in (None, ModuleSpec("sklearn", None)):
        monkeypatch.setattr(data_module, "find_spec", lambda name, spec=elsewhere: spec)
        np.testing.assert_array_equal(data_module._digits_table.__wrapped__(), quick)


def test_digits_are_enlarged_and_their_test_split_is_fixed() -> None:
    small, large = (load(size, channels, seed, name="digits") for size, channels, seed in ((8, 1, 0), (32, 3, 1)))
    assert large.train.images.shape == (1294, 32, 32, 3)
    assert large.validation is not None
    assert large.validation.images.shape == (144, 32, 32, 3)
    for before, after in zip(small.test.images, large.test.images, strict=True):
        np.testing.assert_array_equal(after, fit_image(before, 32, 3))
    np.testing.assert_array_equal(small.test.labels, large.test.labels)
    assert small.train.labels.tolist() != large.train.labels.tolist()


# Prepared sets.


@pytest.mark.parametrize(
    ("name", "stock"), [("cifar10", "cifar10"), ("cifar100", "cifar100"), ("svhn", "svhn_cropped")]
)
def test_loads_what_stock_tfds_reads(name: str, stock: str, prepared: Path) -> None:
    data = load(name=name, dir=prepared, validation=0)
    builder = tfds.builder(stock, data_dir=prepared)
    for split, source in builder.as_data_source({"train": "train", "test": "test"}).items():
        found = getattr(data, split)
        np.testing.assert_array_equal(found.images, [example["image"] for example in source])
        np.testing.assert_array_equal(found.labels, [example["label"] for example in source])
        assert (found.images.dtype, found.labels.dtype) == (np.uint8, np.int32)
    assert data.class_names == tuple(builder.info.features["label"].names)
    assert data.name == name
    version = builder.version
    assert_same_split(load(name=f"{name}:{version}", dir=prepared, validation=0).test, data.test)
    np.testing.assert_allclose(data.standardisation.mean, (data.train.images / 255).mean((0, 1, 2)), rtol=1e-13)
    np.testing.assert_allclose(data.standardisation.std, (data.train.images / 255).std((0, 1, 2)), rtol=1e-13)


def test_the_data_dir_is_tfdss_own_by_default(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared))
    assert len(load().test.labels) == 20
    monkeypatch.delenv("TFDS_DATA_DIR")
    (prepared / "tensorflow_datasets").symlink_to(prepared)
    monkeypatch.setenv("HOME", str(prepared))
    assert len(load().test.labels) == 20


def test_validation_and_fraction_divide_the_training_images(prepared: Path) -> None:
    whole = load(dir=prepared, validation=0)
    data = load(dir=prepared, validation=0.2, fraction=0.5)
    assert data.validation is not None
    assert (len(data.train.labels), len(data.validation.labels)) == (40, 10)
    assert np.bincount(data.validation.labels).tolist() == [1] * 10
    assert np.bincount(data.train.labels).tolist() == [4] * 10
    place = {image.tobytes(): i for i, image in enumerate(whole.train.images)}
    chosen = [[place[image.tobytes()] for image in split.images] for split in (data.train, data.validation)]
    assert not set(chosen[0]) & set(chosen[1])
    for indices, split in zip(chosen, (data.train, data.validation), strict=True):
        assert indices == sorted(indices)
        np.testing.assert_array_equal(whole.train.labels[indices], split.labels)
    assert_same_split(data.test, whole.test)
    assert data.standardisation == whole.standardisation
    assert_same_split(load(dir=prepared, validation=0.2, fraction=0.5).train, data.train)
    other = load(dir=prepared, validation=0.2, fraction=0.5, seed=1)
    assert other.train.images.tobytes() != data.train.images.tobytes()


def test_every_class_keeps_a_training_image(prepared: Path) -> None:
    data = load(dir=prepared, fraction=0.01, validation=0)
    assert np.bincount(data.train.labels).tolist() == [1] * 10
    told = message(lambda: load(dir=prepared, fraction=0.01))
    assert told == (
        "data.validation=0.1 of 10 training images leaves none to validate on; raise it or "
        "data.fraction=0.01, or give data.validation=0"
    )


def test_classes_are_renumbered_in_the_order_given(prepared: Path) -> None:
    whole = load(dir=prepared, validation=0)
    data = load(dir=prepared, validation=0, classes=(7, 2))
    assert data.class_names == ("horse", "bird")
    for split in ("train", "test"):
        found, of = getattr(data, split), getattr(whole, split)
        np.testing.assert_array_equal(found.images, of.images[np.isin(of.labels, (7, 2))])
        assert found.labels.tolist() == [(7, 2).index(label) for label in of.labels if label in (7, 2)]
        assert found.labels.dtype == np.int32
    np.testing.assert_allclose(data.standardisation.mean, (data.train.images / 255).mean((0, 1, 2)), rtol=1e-13)
    told = message(lambda: load(dir=prepared, classes=(3, 10)))
    assert told == "data.classes=(3, 10) asks for label 10; labels here are 0 to 9"


def test_classes_without_images(tmp_path: Path) -> None:
    pictures = [(noise(8, 8, 3, seed=i), i % 2) for i in range(20)]
    make_set(tmp_path, {"train": [*pictures, (noise(8, 8, 3), 2)], "test": pictures})
    assert load(8, name="toys", dir=tmp_path).num_classes == 3
    stored = Stored(*(Split(noise(3, 8, 8, 3), np.array([0, 1, 0])),) * 2, class_names=("a", "b", "c"))
    assert len(select_classes(stored, (2, 0)).train.labels) == 2
    make_set(tmp_path, {"train": pictures, "test": [(noise(8, 8, 3), 2)]}, version="2.0.0")
    told = message(lambda: load(8, name="toys", dir=tmp_path, classes=(0, 1)))
    assert told == "toys has no test images of data.classes=(0, 1); choose others"


def test_other_sizes_and_grey_sets(tmp_path: Path) -> None:
    grey = [(noise(28, 28, seed=i), i % 3) for i in range(30)]
    make_set(tmp_path, {"train": grey, "test": grey[:6], "extra": grey}, shape=(28, 28, 1), name="grey")
    for channels in (1, 3):
        data = load(16, channels, name="grey", dir=tmp_path, validation=0)
        wanted = {fit_image(image, 16, channels).tobytes(): label for image, label in grey}
        assert data.train.images.shape == (30, 16, 16, channels)
        assert {
            image.tobytes(): label for image, label in zip(data.train.images, data.train.labels, strict=True)
        } == wanted
        assert data.class_names == ("ant", "bee", "cow")
    colour = [(noise(9 + i, 12, 3, seed=i), i % 3) for i in range(30)]
    make_set(tmp_path, {"train": colour, "test": colour[:6]}, name="colour", supervised=False)
    data = load(8, 3, name="colour", dir=tmp_path, validation=0)
    wanted = {fit_image(image, 8, 3).tobytes(): label for image, label in colour}
    assert {image.tobytes(): label for image, label in zip(data.train.images, data.train.labels, strict=True)} == wanted
    told = message(lambda: load(8, 1, name="colour", dir=tmp_path))
    assert "data.name='colour' does not fit the network: the images are RGB, but model.in_channels=1" in told
    assert "model.in_channels=2 fits no data set" in message(lambda: load(8, 2, name="colour", dir=tmp_path))


def test_versions_and_configurations(tmp_path: Path) -> None:
    for version, n in (("1.0.0", 3), ("1.10.0", 6), ("1.9.0", 9)):
        pictures = [(noise(8, 8, 3, seed=i), i % 3) for i in range(n)]
        make_set(tmp_path, {"train": pictures, "test": pictures}, version=version)
        make_set(tmp_path, {"train": pictures, "test": pictures}, version=version, name="many", config="small")
    (tmp_path / "toys/incomplete.ABC_2.0.0").mkdir()
    sizes = {"toys": 6, "toys:1.0.0": 3, "toys:1.9.0": 9, "many/small": 6, "many/small:1.0.0": 3}
    for name, n in sizes.items():
        assert len(load(8, name=name, dir=tmp_path, validation=0).train.labels) == n
    told = message(lambda: load(8, name="many", dir=tmp_path))
    assert told == f"data.name='many' has several configurations in {tmp_path}; name one of many/small"
    for name in ("toys:3.0.0", "many/large", "unknown"):
        told = message(lambda name=name: load(8, name=name, dir=tmp_path))
        assert told.startswith(f"data.name={name!r} is not prepared in {tmp_path}; prepare it there with tfds")
        assert told.endswith("or choose cifar10, cifar100, svhn or digits")
    for name in ("../toys", "toys/../toys", "/toys", "toys:1", "toys/", "many/.."):
        assert "is no data set; give NAME" in message(lambda name=name: load(8, name=name, dir=tmp_path))


def test_a_data_dir_that_cannot_be_read(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refuse)
    told = message(lambda: load(dir=prepared))
    assert told == f"{prepared / 'cifar10'} cannot be read: [Errno 13] Permission denied; pass another --data.dir"


def test_sets_that_do_not_fit(tmp_path: Path) -> None:
    pictures = [(noise(8, 8, 3, seed=i), i % 3) for i in range(9)]
    features = {"picture": tfds.features.Image(), "kind": tfds.features.Scalar(np.int64)}
    for supervised in (True, False):
        name = f"scalar{supervised}".lower()
        splits = {"train": pictures, "test": pictures}
        folder = make_set(tmp_path, splits, name=name, features=features, supervised=supervised)
        told = message(lambda name=name: load(8, name=name, dir=tmp_path))
        assert told == f"{folder} has the features kind, picture; an image and a class label are needed"
    flat = [(np.full((8, 8, 3), 9, np.uint8), i % 3) for i in range(9)]
    make_set(tmp_path, {"train": flat, "test": flat}, name="flat")
    told = message(lambda: load(8, name="flat", dir=tmp_path))
    assert told == "a channel of flat has one value throughout; choose another data set"


def test_unprepared_without_network_or_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("socket.getaddrinfo", refuse)
    told = message(lambda: load(name="svhn", dir=tmp_path / "data"))
    assert told.endswith("into a folder, keep the file name, and pass --data.archives FOLDER")
    told = message(lambda: load(name="cifar100", dir=tmp_path / "data", archives=tmp_path))
    assert told.startswith(f"data.archives={tmp_path} holds no cifar-100-binary.tar.gz")
    archives.write_official(tmp_path, "cifar10", archives.cifar10())
    told = message(lambda: load(name="cifar10", dir=tmp_path / "data", archives=tmp_path))
    assert told.startswith(f"{tmp_path / 'cifar-10-binary.tar.gz'} is not the official file: checksum")
    assert not (tmp_path / "data").exists()


@pytest.mark.slow
def test_what_plain_methods_reach_on_the_digits_is_what_the_accuracy_page_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOKY_MAX_CPU_COUNT", "1")  # or joblib warns where it cannot count the cores
    from sklearn.linear_model import LogisticRegression
    from sklearn.neighbors import KNeighborsClassifier

    digits = load_dataset(DataConfig(name="digits", validation=0.0), input_size=8, in_channels=1, seed=0)
    train, test = (split.images.reshape(len(split.labels), -1) / 255 for split in (digits.train, digits.test))
    for method, wanted in ((LogisticRegression(max_iter=5000), 95.26), (KNeighborsClassifier(3), 98.61)):
        found = 100 * method.fit(train, digits.train.labels).score(test, digits.test.labels)
        assert found == pytest.approx(wanted, abs=0.3)  # one image of 359, for rounding elsewhere
        assert f"{wanted} %" in (Path(__file__).parent.parent / "docs/accuracy.md").read_text()
