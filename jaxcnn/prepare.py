"""tfds data sets prepared without TensorFlow.

The builders here have the names, versions, features, ids and order of tfds's own, and leave behind what
`tfds.builder(name, data_dir=...)` reads. They differ in two things: records are stored as array_record, which
needs no TensorFlow, and SVHN comes without its "extra" split (a download of 1.3 GB that nothing here uses).
"""

import contextlib
import hashlib
import io
import queue
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import requests
import tensorflow_datasets as tfds
from absl import logging
from PIL import Image
from rich.console import Console
from rich.progress import track

from jaxcnn.archives import (
    CIFAR10,
    CIFAR100,
    Cifar,
    Contents,
    Examples,
    read_cifar_binary,
    read_cifar_python,
    read_svhn,
)
from jaxcnn.errors import InputError, reason
from jaxcnn.files import is_there
from jaxcnn.locate import holds_sets, recognise


class Checksum(NamedTuple):
    """What a file must be: its hex digest (sha256, or md5 by its length).

    tfds also wants to know the size, in bytes, of the official archives.
    """

    digest: str
    size: int | None = None


_SHA256 = {
    "cifar-10-binary.tar.gz": (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"),
    "cifar-100-binary.tar.gz": (
        168513733,
        "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
    ),
    "train_32x32.mat": (182040794, "435e94d69a87fde4fd4d7f3dd208dfc32cb6ae8af2240d066de1df7508d083b8"),
    "test_32x32.mat": (64275384, "cdce80dfb2a2c4c6160906d0bd7c68ec5a99d7ca4831afa54f09182025b6a75b"),
}
_MD5 = {
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
OFFICIAL: Mapping[str, Checksum] = {
    **{name: Checksum(digest, size) for name, (size, digest) in _SHA256.items()},
    **{name: Checksum(digest) for name, digest in _MD5.items()},
}
"""The checksums that tfds (sha256) and torchvision (md5) know, by the file's path in the archives folder."""


class Layout(NamedTuple):
    """Another form in which a folder of archives may hold a data set."""

    files: tuple[str, ...]
    """Paths in the folder."""
    read: Callable[[Path], Contents]
    """Reads them, given the folder."""


class Source(NamedTuple):
    """A data set of tfds's, and the official archives that it is made from."""

    name: str
    version: str
    home: str
    """Where the archives are downloaded."""
    files: tuple[str, ...]
    """Names of the official archives."""
    read: Callable[[Mapping[str, Path]], Contents]
    """Reads the official archives, given their paths by name."""
    classes: Mapping[str, int]
    """Number of classes by label feature."""
    id_digits: int
    layouts: tuple[Layout, ...] = ()
    """What serves where the official archives are missing, best first."""

    @property
    def instructions(self) -> str:
        """What to do without a network."""
        urls = " and ".join(self.home + name for name in self.files)
        return f"download {urls} into a folder, keep the file name, and pass --data.archives FOLDER"

    def layout(self, archives: Path) -> Layout | None:
        """The layout to read a folder of archives by; None for the official one."""
        if all((archives / name).is_file() for name in self.files):
            return None
        return next((each for each in self.layouts if (archives / each.files[0]).is_file()), None)


def _cifar(name: str, kind: Cifar) -> Source:
    batches = tuple(f"{kind.python_folder}/{file}" for file in kind.python_files)
    return Source(
        name=name,
        version="3.0.2",
        home="https://www.cs.toronto.edu/~kriz/",
        files=(kind.binary,),
        read=lambda paths: read_cifar_binary(paths[kind.binary], kind),
        classes={label.feature: label.classes for label in kind.labels},
        id_digits=5,
        layouts=(
            Layout((kind.python,), lambda archives: read_cifar_python(archives / kind.python, kind)),
            Layout(batches, lambda archives: read_cifar_python(archives / kind.python_folder, kind)),
        ),
    )


def _read_svhn(paths: Mapping[str, Path]) -> Contents:
    return Contents({name.split("_")[0]: read_svhn(path) for name, path in paths.items()}, names={})


SOURCES: Mapping[str, Source] = {
    "cifar10": _cifar("cifar10", CIFAR10),
    "cifar100": _cifar("cifar100", CIFAR100),
    "svhn_cropped": Source(
        name="svhn_cropped",
        version="3.1.0",
        home="http://ufldl.stanford.edu/housenumbers/",
        files=("train_32x32.mat", "test_32x32.mat"),
        read=_read_svhn,
        classes={"label": 10},
        id_digits=6,
    ),
}
"""The data sets that can be prepared here, by tfds name."""


with tfds.core.registered.skip_registration():  # it is no data set that tfds should offer by name

    class Builder(tfds.core.GeneratorBasedBuilder):
        """Prepares a `Source` from a folder of archives, whose checksums tfds compares with those given."""

        def __init__(self, source: Source, data_dir: Path, archives: Path, checksums: Mapping[str, Checksum]) -> None:
            self.name = source.name
            self.VERSION = tfds.core.Version(source.version)
            self.source, self.archives, self.checksums = source, archives, checksums
            super().__init__(data_dir=data_dir, file_format="array_record")

        @property
        def url_infos(self) -> dict[str, Any]:
            """What tfds compares the official archives with."""
            make = tfds.core.download.checksums.UrlInfo
            known = {name: self.checksums[name] for name in self.source.files}
            return {self.source.home + name: make(size, digest, name) for name, (digest, size) in known.items()}

        def _info(self) -> Any:
            labels = {feature: tfds.features.ClassLabel(num_classes=n) for feature, n in self.source.classes.items()}
            image = tfds.features.Image(shape=(32, 32, 3))
            info: Any = tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, **labels}),
                supervised_keys=("image", "label"),
                homepage=self.source.home,
            )
            # It would ask Google's bucket for what is about to be computed, and leave a folder in /tmp.
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            source = self.source
            if (layout := source.layout(self.archives)) is not None:
                for name in layout.files:
                    _verify(self.archives / name, self.checksums[name].digest)
                contents = layout.read(self.archives)
            else:
                paths = dl_manager.download({name: source.home + name for name in source.files})
                contents = source.read({name: Path(path) for name, path in paths.items()})
            for feature, names in contents.names.items():
                self.info.features[feature].names = names
            return {split: self._generate_examples(split, found) for split, found in contents.splits.items()}

        def _generate_examples(self, split: str, examples: Examples) -> Iterator[tuple[int, dict[str, Any]]]:
            digits = self.source.id_digits
            for i, image in enumerate(examples.images):
                labels = {feature: int(values[i]) for feature, values in examples.labels.items()}
                yield i, {"id": f"{split}_{i:0{digits}d}", "image": Image.fromarray(image), **labels}


def prepare(
    name: str,
    data_dir: Path,
    archives: Path | None = None,
    checksums: Mapping[str, Checksum] = OFFICIAL,
) -> Path:
    """Prepares a data set under `data_dir` for tfds, unless its folder is there already.

    Args:
        name: tfds name, one of `SOURCES`.
        data_dir: folder of prepared tfds data sets.
        archives: folder with the official archives or what torchvision leaves behind; downloads if not given.
        checksums: what the files of the archives folder must be, by their path in it.

    Returns:
        The folder of the prepared set, `data_dir/name/version`.

    Raises:
        InputError: when the archives cannot be had, are damaged or not the expected ones, or the disk is
            full. Nothing half-prepared stays behind.
    """
    source = SOURCES[name]
    folder = data_dir / name / source.version
    if folder.exists():
        return folder
    if archives is not None:
        _require_archives(source, archives)
    with _undone(source, data_dir, downloaded=archives is None), contextlib.ExitStack() as stack:
        if archives is None:
            data_dir.mkdir(parents=True, exist_ok=True)
            temporary = tempfile.TemporaryDirectory(prefix=".archives-", dir=data_dir)
            archives = Path(stack.enter_context(temporary))
            for file in source.files:
                _download(source, file, archives)
        stack.enter_context(quiet())
        Builder(source, data_dir, archives, checksums).download_and_prepare(
            download_config=tfds.download.DownloadConfig(manual_dir=archives)
        )
    return folder


@contextlib.contextmanager
def _undone(source: Source, data_dir: Path, *, downloaded: bool) -> Iterator[None]:
    """Says in one line what went wrong, and removes the empty folders that tfds leaves in any case."""
    made = not data_dir.exists()
    try:
        yield
    except tfds.core.download.download_manager.NonMatchingChecksumError as error:
        raise _explain_checksum(error, source, downloaded) from error
    except (OSError, RuntimeError) as error:
        # Of two processes that prepare the same set at once, the second finds it done.
        if not (data_dir / source.name / source.version / "dataset_info.json").is_file():
            why = f"{reason(error)}; free space or pass another --data.dir"
            raise InputError(f"{source.name} cannot be prepared in {data_dir}: {why}") from error
    finally:
        downloads = data_dir / "downloads"
        for folder in (downloads / "extracted", downloads, data_dir / source.name, *([data_dir] * made)):
            with contextlib.suppress(OSError):
                folder.rmdir()  # refuses unless empty


def _require_archives(source: Source, archives: Path) -> None:
    if not is_there(archives):
        raise InputError(f"data.archives={archives} is no folder; {source.instructions}")
    missing = [name for name in source.files if not (archives / name).is_file()]
    if missing and source.layout(archives) is None:
        others = "".join(f" and no {layout.files[0]}" for layout in source.layouts)
        found = f"holds no {' and no '.join(missing)}{others}"
        remedy = source.instructions
        if (mistaken := recognise(archives)) is not None:
            found, remedy = f"is {mistaken.what} and {found}", mistaken.remedy or remedy
        elif holds_sets(archives):
            found, remedy = f"is a folder of prepared sets and {found}", f"give --data.dir {archives}, or {remedy}"
        raise InputError(f"data.archives={archives} {found}; {remedy}")


def _download(source: Source, name: str, folder: Path) -> None:
    """Not left to tfds, which asks an unreachable host for minutes, and a silent one for ever."""
    url = source.home + name
    try:
        with _open(url) as response, (folder / name).open("wb") as file:
            response.raise_for_status()
            console = Console(stderr=True)
            for block in track(
                response.iter_content(2**20),
                f"Downloading {url}, MiB",
                total=int(response.headers.get("Content-Length", 0)) / 2**20 or None,
                console=console,
                transient=True,
                disable=not console.is_terminal,
            ):
                file.write(block)
    except (requests.RequestException, TimeoutError) as error:
        raise InputError(f"{url} cannot be downloaded ({type(error).__name__}); {source.instructions}") from error


def _open(url: str) -> requests.Response:
    # In a thread, for a name server that keeps silent heeds no timeout.
    answers: queue.SimpleQueue[requests.Response | requests.RequestException] = queue.SimpleQueue()

    def ask() -> None:
        try:
            answers.put(requests.get(url, stream=True, timeout=(5, 30)))
        except requests.RequestException as error:
            answers.put(error)

    threading.Thread(target=ask, daemon=True).start()
    try:
        answer = answers.get(timeout=8)
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(answer, requests.RequestException):
        raise answer
    return answer


def _verify(path: Path, expected: str) -> None:
    """Checks a file of which tfds knows no checksum."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, {32: "md5", 64: "sha256"}[len(expected)]).hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {reason(error)}; download it again") from error
    if found != expected:
        raise _wrong_checksum(str(path), expected, found, "delete it and download it again")


def _wrong_checksum(what: str, expected: str, found: str, remedy: str) -> InputError:
    return InputError(f"{what} is not the official file: checksum {expected} expected, {found} found; {remedy}")


def _explain_checksum(error: Exception, source: Source, downloaded: bool) -> InputError:
    """tfds's message of several lines in one of our own."""
    line = r".*checksum='(\w+)'.*\n?"
    match = re.match(rf"Artifact (.+), downloaded to (.+), has wrong checksum:\n{line}{line}", str(error))
    if match is None:
        return InputError(" ".join(str(error).split()))
    url, path, expected, found = match.groups()
    if downloaded:
        return _wrong_checksum(url, expected, found, f"try again later, or {source.instructions}")
    return _wrong_checksum(path, expected, found, f"delete it and download {url} again")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences tfds: its notes on stdout, its advice in the log, and bars that no terminal shows."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
