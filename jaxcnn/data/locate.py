"""Where a prepared tfds data set lies, and what a folder is that holds none."""

import json
import re
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from jaxcnn.data.archives import CIFAR10, CIFAR100
from jaxcnn.errors import InputError, reason

_VERSION = r"\d+\.\d+\.\d+"
_IMAGE = re.compile(r"\.(?:jpe?g|png|gif|bmp|tiff?|webp|avif|p[bgp]m)$", re.IGNORECASE)
_HUB = "datasets--*"
_HUGGING_FACE = ("dataset_dict.json", "state.json", "*.arrow", "*/*.arrow", "*.parquet", "*/*.parquet", _HUB)
_TORCHVISION = ("raw/*-ubyte*", "*/raw/*-ubyte*", "*-ubyte.gz", "stl10_binary")
_BY_TFDS = "prepare it with a tfds builder that yields its images (file_format='array_record'), and give that folder"
_ARCHIVES = (
    *(name for kind in (CIFAR10, CIFAR100) for name in (kind.binary, kind.python, kind.python_folder)),
    "train_32x32.mat",
    "test_32x32.mat",
)
_LOOKED_AT = 1000
"""Of how many names in a folder its kind is told."""


class Mistaken(NamedTuple):
    """What a path is that was given as something else."""

    what: str
    remedy: str | None = None
    """Which path to give instead, if there is one."""
    flags: str | None = None
    """What reads it as it is, if anything does."""

    @property
    def data_remedy(self) -> str:
        """What to do where it was given as a folder of prepared sets."""
        return self.remedy or (_BY_TFDS if self.flags is None else f"give {self.flags}")


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """The folder of a prepared set: of the version asked for, or else of the highest.

    Args:
        name: `set`, `set/config`, `set:version` or `set/config:version`.
        data_dir: folder of prepared tfds data sets.

    Raises:
        InputError: when the name is none, or one of several configurations must be chosen.
    """
    match = re.fullmatch(rf"(\w+(?:/\w[\w.+-]*)?)(?::({_VERSION}))?", name)
    if match is None:
        raise InputError(
            f"data.name={name!r} is no data set; give NAME, NAME/CONFIG or NAME:VERSION, or --data.name folder and "
            "--data.dir for images of your own"
        )
    home, wanted = data_dir / match[1], match[2]
    try:
        inside = _folders(home) if home.is_dir() else []
        configs = [each.name for each in inside if not each.name.startswith((".", "incomplete.")) and _versions(each)]
    except OSError as error:
        raise InputError(f"{home} cannot be read: {reason(error)}; pass another --data.dir") from error
    versions = [each.name for each in inside if re.fullmatch(_VERSION, each.name)]
    if configs and not versions and "/" not in name:
        choices = ", ".join(f"{match[1]}/{config}" for config in configs)
        raise InputError(f"data.name={name!r} has several configurations in {data_dir}; name one of {choices}")
    if wanted is not None:
        versions = [each for each in versions if each == wanted]
    return max(
        (home / each for each in versions),
        key=lambda path: [int(part) for part in path.name.split(".")],
        default=None,
    )


def recognise(path: Path) -> Mistaken | None:
    """What a path is in which neither the prepared set nor the archives wanted were found; None if nothing known."""
    with suppress(OSError):  # what cannot be read is not recognised
        if path.is_file():
            if path.name in _ARCHIVES:
                return Mistaken("an archive", f"give the folder that it is in: --data.archives {path.parent}")
            if path.suffix == ".npz":
                return Mistaken("a file of arrays", flags=f"--data.name npz --data.dir {path}")
            return Mistaken("a file", f"give a folder, such as {path.parent}")
        if path.is_dir():
            return _own_folder(path) or (None if holds_sets(path) else _unpacked(path) or _foreign(path))
    return None


def refuse_other_folders(name: str, data_dir: Path, archives_given: bool) -> None:
    """Says what a folder is that does not have the prepared set wanted.

    Args:
        name: of the set, as `find_prepared` takes it.
        data_dir: where it was not found.
        archives_given: whether the set is to be prepared there from archives, which may lie beside it.

    Raises:
        InputError: when the folder is of another kind, so that nothing should be prepared there.
    """
    home, found = data_dir / name.partition(":")[0], None
    with suppress(OSError):
        if home.is_dir() and (found := _foreign(home)) is not None:
            raise InputError(f"{home} is {found.what}, no prepared set; {found.data_remedy}")
    if not _holds_archives(data_dir) or holds_sets(data_dir):
        found = recognise(data_dir)
    elif not archives_given:
        found = Mistaken("a folder of archives", f"give it by --data.archives {data_dir}")
    if found is not None:
        what = f"{found.what}, where a folder of prepared sets is needed"
        raise InputError(f"data.dir={data_dir} is {what}; {found.data_remedy}")


def holds_sets(path: Path) -> bool:
    """Whether a folder has prepared sets."""
    try:
        return path.is_dir() and any(_versions(each) for each in _folders(path))
    except OSError:
        return False


def _holds_archives(path: Path) -> bool:
    """Whether a folder has archives of CIFAR-10, CIFAR-100 or SVHN, or what torchvision unpacks of them."""
    try:
        return any((path / name).exists() for name in _ARCHIVES)
    except OSError:
        return False


def _own_folder(path: Path) -> Mistaken | None:
    """A folder in a prepared set: of a version or of all of them."""
    if (path / "dataset_info.json").exists() and re.fullmatch(_VERSION, path.name):
        what, home, version = "one version of a prepared set", path.parent, f":{path.name}"
    elif _versions(path):
        what, home, version = "the folder of one prepared set", path, ""
    else:
        for below in _folders(path):
            if (versions := _versions(below)) and _config_name(versions[0]) == below.name:
                return _own_folder(below)
        return None
    config = _config_name(_versions(home)[0])
    name = f"{home.parent.name}/{config}" if config == home.name else home.name
    root = home.parent.parent if config == home.name else home.parent
    return Mistaken(what, f"give --data.dir {root} --data.name {name}{version}")


def _config_name(version: Path) -> str | None:
    """The configuration that a prepared set names as its own."""
    try:
        info = json.loads((version / "dataset_info.json").read_text(encoding="utf-8"))
        return str(info["configName"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unpacked(path: Path) -> Mistaken | None:
    """An archive's own folder."""
    for kind in (CIFAR10, CIFAR100):
        if (path / kind.meta).is_file() and (path / kind.python_files[1]).is_file():
            return Mistaken("an unpacked archive", f"give the folder that it is in: --data.archives {path.parent}")
        if kind.binary_folder in (path.name, *(each.name for each in _folders(path))):
            return Mistaken("an unpacked archive", f"give a folder with {kind.binary} by --data.archives")
    return None


def _foreign(path: Path) -> Mistaken | None:
    """Layouts of other programs."""
    if any(next(path.glob(pattern), None) for pattern in _HUGGING_FACE):
        hub = any(path.glob(_HUB))
        return Mistaken("a data set in Hugging Face's layout", flags=None if hub else f"--data.name hf:{path}")
    if any(next(path.glob(pattern), None) for pattern in _TORCHVISION):
        return Mistaken("a folder of torchvision's archives of other sets")
    if classes := _classes(path):
        what = f"a folder of image files by class ({', '.join(classes[:3])})"
        return Mistaken(what, flags=f"--data.name folder --data.dir {path}")
    if splits := [each.name for each in _folders(path) if _classes(each)]:
        what = f"a folder of image files by split and class ({', '.join(splits[:3])})"
        return Mistaken(what, flags=f"--data.name folder --data.dir {path}")
    if (path / "dataset_info.json").exists():
        return Mistaken("a folder with the dataset_info.json of another program")
    return None


def _classes(path: Path) -> list[str]:
    """Names of the folders of image files, if there are several."""
    names = [
        each.name
        for each in _folders(path)
        if any(_IMAGE.search(below.name) for below in islice(each.iterdir(), _LOOKED_AT))
    ]
    return names if len(names) > 1 else []


def _versions(path: Path) -> list[Path]:
    """The folders of a set's versions, as tfds prepares them."""
    return [each for each in _folders(path) if re.fullmatch(_VERSION, each.name)]


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in islice(path.iterdir(), _LOOKED_AT) if each.is_dir())
