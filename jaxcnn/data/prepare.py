"""tfds data sets prepared without TensorFlow.

The builders here have the names, versions, features, ids and order of tfds's own, and leave behind what
`tfds.builder(name, data_dir=...)` reads. They differ in two things: records are stored as array_record, which
needs no TensorFlow, and SVHN comes without its "extra" split (a download of 1.3 GB that nothing here uses).
"""

import contextlib
import hashlib
import queue
import re
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import requests
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from jaxcnn.data.archives import Examples
from jaxcnn.data.locate import holds_sets, recognise
from jaxcnn.data.official import OFFICIAL, SETS, Checksum, OfficialSet
from jaxcnn.data.quiet import quiet
from jaxcnn.errors import InputError, reason
from jaxcnn.files import is_there

with tfds.core.registered.skip_registration():  # it is no data set that tfds should offer by name

    class Builder(tfds.core.GeneratorBasedBuilder):
        """Prepares a `OfficialSet` from a folder of archives, whose checksums tfds compares with those given."""

        def __init__(
            self, source: OfficialSet, data_dir: Path, archives: Path, checksums: Mapping[str, Checksum]
        ) -> None:
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
        name: tfds name, one of `SETS`.
        data_dir: folder of prepared tfds data sets.
        archives: folder with the official archives or what torchvision leaves behind; downloads if not given.
        checksums: what the files of the archives folder must be, by their path in it.

    Returns:
        The folder of the prepared set, `data_dir/name/version`.

    Raises:
        InputError: when the archives cannot be had, are damaged or not the expected ones, or the disk is
            full. Nothing half-prepared stays behind.
    """
    source = SETS[name]
    folder = data_dir / name / source.version
    if folder.exists():
        return folder
    if archives is not None:
        _require_archives(source, archives)
    with _clean_up(source, data_dir, downloaded=archives is None), contextlib.ExitStack() as stack:
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
def _clean_up(source: OfficialSet, data_dir: Path, *, downloaded: bool) -> Iterator[None]:
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


def _require_archives(source: OfficialSet, archives: Path) -> None:
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


def _download(source: OfficialSet, name: str, folder: Path) -> None:
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


def _explain_checksum(error: Exception, source: OfficialSet, downloaded: bool) -> InputError:
    """tfds's message of several lines in one of our own."""
    line = r".*checksum='(\w+)'.*\n?"
    match = re.match(rf"Artifact (.+), downloaded to (.+), has wrong checksum:\n{line}{line}", str(error))
    if match is None:
        return InputError(" ".join(str(error).split()))
    url, path, expected, found = match.groups()
    if downloaded:
        return _wrong_checksum(url, expected, found, f"try again later, or {source.instructions}")
    return _wrong_checksum(path, expected, found, f"delete it and download {url} again")
