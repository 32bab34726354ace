"""The official archives of CIFAR-10, CIFAR-100 and SVHN: their addresses, their checksums, and how they are read."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from jaxcnn.data.archives import CIFAR10, CIFAR100, Cifar, Contents, read_cifar_binary, read_cifar_python, read_svhn

CHECKSUMS: Mapping[str, str] = {
    # sha256, as tfds knows them
    "cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
    "cifar-100-binary.tar.gz": "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    "train_32x32.mat": "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8",
    "test_32x32.mat": "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b",
    # md5, as torchvision knows them
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
    "cifar-10-batches-py/batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
    "cifar-10-batches-py/data_batch_1": "c99cafc152244af753f735de768cd75f",
    "cifar-10-batches-py/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "cifar-10-batches-py/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "cifar-10-batches-py/data_batch_4": "634d18415352ddfa80567beed471001a",
    "cifar-10-batches-py/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "cifar-10-batches-py/test_batch": "40351d587109b95175f43aff81a1287e",
    "cifar-100-python.tar.gz": "eb9058c3a382ffc7106e4002c42a8d85",
    "cifar-100-python/meta": "7973b15100ade9c7d40fb424638fde48",
    "cifar-100-python/train": "16019d7e3df5f24257cddd939b257f8d",
    "cifar-100-python/test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
"""Hex digests of the official files, by their path in a folder of archives."""


class Layout(NamedTuple):
    """One form in which a folder of archives may hold a data set."""

    files: tuple[str, ...]
    """Paths in the folder."""
    read: Callable[[Path], Contents]
    """Reads them, given the folder."""


class OfficialSet(NamedTuple):
    """A data set of tfds's, and the archives that it is made from."""

    name: str
    version: str
    home: str
    """URL of the folder with the official archives."""
    classes: Mapping[str, int]
    """Number of classes by label feature."""
    id_digits: int
    """Digits of the number in an example's id."""
    layouts: tuple[Layout, ...]
    """The official archives, then other layouts that are read if these are missing."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the official archives."""
        return self.layouts[0].files

    @property
    def instructions(self) -> str:
        """What to do without a network."""
        urls = " and ".join(self.home + name for name in self.files)
        return f"download {urls} into a folder, keep the file name, and pass --data.archives FOLDER"

    def find_layout(self, archives: Path) -> Layout | None:
        """The layout of a folder of archives; None if it has none of them."""
        official, *others = self.layouts
        if all((archives / name).is_file() for name in official.files):
            return official
        return next((each for each in others if (archives / each.files[0]).is_file()), None)


def _cifar(name: str, kind: Cifar) -> OfficialSet:
    batches = tuple(f"{kind.python_folder}/{file}" for file in kind.python_files)
    return OfficialSet(
        name=name,
        version="3.0.2",
        home="https://www.cs.toronto.edu/~kriz/",
        classes={label.feature: label.classes for label in kind.labels},
        id_digits=5,
        layouts=(
            Layout((kind.binary,), lambda archives: read_cifar_binary(archives / kind.binary, kind)),
            Layout((kind.python,), lambda archives: read_cifar_python(archives / kind.python, kind)),
            Layout(batches, lambda archives: read_cifar_python(archives / kind.python_folder, kind)),
        ),
    )


def _read_svhn(archives: Path) -> Contents:
    return Contents({split: read_svhn(archives / f"{split}_32x32.mat") for split in ("train", "test")}, names={})


SETS: Mapping[str, OfficialSet] = {
    "cifar10": _cifar("cifar10", CIFAR10),
    "cifar100": _cifar("cifar100", CIFAR100),
    "svhn_cropped": OfficialSet(
        name="svhn_cropped",
        version="3.1.0",
        home="http://ufldl.stanford.edu/housenumbers/",
        classes={"label": 10},
        id_digits=6,
        layouts=(Layout(("train_32x32.mat", "test_32x32.mat"), _read_svhn),),
    ),
}
"""The data sets that can be prepared here, by tfds name."""
