"""Prepares tfds data sets without TensorFlow.

The sets have the names, versions, features, ids and order of tfds's own, and `tfds.builder(name, data_dir=...)` reads
them. They differ in two things. Records are stored as array_record, which needs no TensorFlow. SVHN has no "extra"
split (a download of 1.3 GB that nothing here uses).
"""

import contextlib
import hashlib
import queue
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import requests
import tensorflow_datasets as tfds
from PIL import Image
from rich.console import Console
from rich.progress import track

from jaxcnn.data.archives import Contents, Examples
from jaxcnn.data.locate import holds_sets, recognise
from jaxcnn.data.official import CHECKSUMS, SETS, Layout, OfficialSet
from jaxcnn.data.quiet import quiet
from jaxcnn.errors import InputError, reason, unreadable
from jaxcnn.files import is_there

with tfds.core.registered.skip_registration():  # tfds should not offer it by name

    class Builder(tfds.core.GeneratorBasedBuilder):
        """Prepares an `OfficialSet` from its contents, which `read` returns."""

        def __init__(self, source: OfficialSet, data_dir: Path, read: Callable[[], Contents]) -> None:
            self.name = source.name
            self.VERSION = tfds.core.Version(source.version)
            self.source, self.read = source, read
            super().__init__(data_dir=data_dir, file_format="array_record")

        def _info(self) -> Any:
            labels = {feature: tfds.features.ClassLabel(num_classes=n) for feature, n in self.source.classes.items()}
            image = tfds.features.Image(shape=(32, 32, 3))
            info: Any = tfds.core.DatasetInfo(
                builder=self,
                features=tfds.features.FeaturesDict({"id": tfds.features.Text(), "image": image, **labels}),
                supervised_keys=("image", "label"),
                homepage=self.source.home,
            )
            # tfds would ask Google's bucket for what is computed here anyway, and leave a folder in /tmp.
            info.initialize_from_bucket = lambda: None
            return info

        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, dict[str, Any]]]]:
            contents = self.read()
            for feature, names in contents.names.items():
                self.info.features[feature].names = names
            return {split: self._generate_examples(split, found) for split, found in contents.splits.items()}

        def _generate_examples(self, split: str, examples: Examples) -> Iterator[tuple[int, dict[str, Any]]]:
            digits = self.source.id_digits
            for i, image in enumerate(examples.images):
                labels = {feature: int(values[i]) for feature, values in examples.labels.items()}
                yield i, {"id": f"{split}_{i:0{digits}d}", "image": Image.fromarray(image), **labels}


def prepare(name: str, data_dir: Path, archives: Path | None = None, checksums: Mapping[str, str] = CHECKSUMS) -> Path:
    """Prepares a data set under `data_dir` for tfds, unless its folder is there already.

    Args:
        name: tfds name, one of `SETS`.
        data_dir: folder of prepared tfds data sets.
        archives: folder with the official archives, or with what torchvision keeps; downloads if not given.
        checksums: hex digests that the files must have, by their path in the folder of archives.

    Returns:
        The folder of the prepared set, `data_dir/name/version`.

    Raises:
        InputError: when the archives are missing, cannot be downloaded or have another checksum, or when the disk is
            full. Nothing half-prepared is left behind.
    """
    source = SETS[name]
    folder = data_dir / name / source.version
    if folder.exists():
        return folder
    layout = source.layouts[0] if archives is None else _find_layout(source, archives)
    with _clean_up(source, data_dir), contextlib.ExitStack() as stack:
        if archives is None:
            data_dir.mkdir(parents=True, exist_ok=True)
            archives = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".archives-", dir=data_dir)))
            for file in layout.files:
                _download(source, file, archives)
                remedy = f"try again later, or {source.instructions}"
                _require_checksum(archives / file, checksums[file], source.home + file, remedy)
        else:
            for file in layout.files:
                again = f"{source.home}{file} again" if file in source.files else "it again"
                _require_checksum(archives / file, checksums[file], archives / file, f"delete it and download {again}")
        stack.enter_context(quiet())
        Builder(source, data_dir, partial(layout.read, archives)).download_and_prepare()
    return folder


@contextlib.contextmanager
def _clean_up(source: OfficialSet, data_dir: Path) -> Iterator[None]:
    """Turns errors into one line, and removes the empty folders that tfds leaves in any case."""
    made = not data_dir.exists()
    try:
        yield
    except (OSError, RuntimeError) as error:
        # If two processes prepare the same set at once, the second one finds it prepared.
        if not (data_dir / source.name / source.version / "dataset_info.json").is_file():
            why = f"{reason(error)}; free space or pass another --data.dir"
            raise InputError(f"{source.name} cannot be prepared in {data_dir}: {why}") from error
    finally:
        downloads = data_dir / "downloads"
        for folder in (downloads / "extracted", downloads, data_dir / source.name, *([data_dir] * made)):
            with contextlib.suppress(OSError):
                folder.rmdir()  # fails unless it is empty


def _find_layout(source: OfficialSet, archives: Path) -> Layout:
    if not is_there(archives):
        raise InputError(f"data.archives={archives} is no folder; {source.instructions}")
    if (layout := source.find_layout(archives)) is not None:
        return layout
    missing = [name for name in source.files if not (archives / name).is_file()]
    missing += [each.files[0] for each in source.layouts[1:]]
    found = f"holds no {' and no '.join(missing)}"
    remedy = source.instructions
    if (mistaken := recognise(archives)) is not None:
        found, remedy = f"is {mistaken.what} and {found}", mistaken.remedy or remedy
    elif holds_sets(archives):
        found, remedy = f"is a folder of prepared sets and {found}", f"give --data.dir {archives}, or {remedy}"
    raise InputError(f"data.archives={archives} {found}; {remedy}")


def _download(source: OfficialSet, name: str, folder: Path) -> None:
    """Downloads a file. tfds's own download retries an unreachable host for minutes, and waits forever for others."""
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
    # In a thread, because a lookup at a name server that does not answer ignores the timeout of `requests`.
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


def _require_checksum(path: Path, expected: str, what: object, remedy: str) -> None:
    """Refuses a file that is not the official one; `what` names it in the message."""
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, {32: "md5", 64: "sha256"}[len(expected)]).hexdigest()
    except OSError as error:
        failed = InputError(f"{path} cannot be read: {reason(error)}; download it again")
        raise unreadable(path, error) or failed from error
    if found != expected:
        raise InputError(f"{what} is not the official file: checksum {expected} expected, {found} found; {remedy}")
