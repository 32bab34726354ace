"""Finds a prepared tfds data set, and recognises folders that a user gave by mistake."""

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
"""How many names in a folder are read to recognise its kind."""


class Mistaken(NamedTuple):
    """What a path really is that was given in place of a data folder."""

    what: str
    remedy: str | None = None
    """What path to give instead, if that is known."""
    flags: str | None = None
    """Flags with which the path can be read as it is, if there are any."""

    @property
    def data_remedy(self) -> str:
        """What to do if it was given as a folder of prepared sets."""
        return self.remedy or (_BY_TFDS if self.flags is None else f"give {self.flags}")


def find_prepared(name: str, data_dir: Path) -> Path | None:
    """The folder of a prepared set: of the version in `name`, or else of the highest version; None if there is none.

    Args:
        name: `set`, `set/config`, `set:version` or `set/config:version`.
        data_dir: folder of prepared tfds data sets.

    Raises:
        InputError: when the name is not valid, or does not choose one of several configurations.
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
    """What a path is that holds neither the prepared set nor the archives; None if it is not recognised."""
    with suppress(OSError):  # an unreadable path is not recognised
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
    """Refuses a folder of another kind, in which a missing set must not be prepared.

    Args:
        name: of the set, as for `find_prepared`.
        data_dir: the folder, in which the set was not found.
        archives_given: whether the set will be prepared there from archives, which may be in the same folder.

    Raises:
        InputError: when the folder is of another kind; the message says which.
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
    """Whether a folder contains prepared sets."""
    try:
        return path.is_dir() and any(_versions(each) for each in _folders(path))
    except OSError:
        return False


def _holds_archives(path: Path) -> bool:
    """Whether a folder contains archives of CIFAR-10, CIFAR-100 or SVHN, or the folders torchvision unpacks them to."""
    try:
        return any((path / name).exists() for name in _ARCHIVES)
    except OSError:
        return False


def _own_folder(path: Path) -> Mistaken | None:
    """Recognises a folder inside a prepared set: of one version, or of all versions."""
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
    """The name of the configuration in a prepared set's description."""
    try:
        info = json.loads((version / "dataset_info.json").read_text(encoding="utf-8"))
        return str(info["configName"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _unpacked(path: Path) -> Mistaken | None:
    """Recognises the folder that an archive unpacks to."""
    for kind in (CIFAR10, CIFAR100):
        if (path / kind.meta).is_file() and (path / kind.python_files[1]).is_file():
            return Mistaken("an unpacked archive", f"give the folder that it is in: --data.archives {path.parent}")
        if kind.binary_folder in (path.name, *(each.name for each in _folders(path))):
            return Mistaken("an unpacked archive", f"give a folder with {kind.binary} by --data.archives")
    return None


def _foreign(path: Path) -> Mistaken | None:
    """Recognises the layouts of other programs."""
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
    """Names of the folders that contain image files, if there are at least two."""
    names = [
        each.name
        for each in _folders(path)
        if any(_IMAGE.search(below.name) for below in islice(each.iterdir(), _LOOKED_AT))
    ]
    return names if len(names) > 1 else []


def _versions(path: Path) -> list[Path]:
    """The folders of a set's versions."""
    return [each for each in _folders(path) if re.fullmatch(_VERSION, each.name)]


def _folders(path: Path) -> list[Path]:
    return sorted(each for each in islice(path.iterdir(), _LOOKED_AT) if each.is_dir())
