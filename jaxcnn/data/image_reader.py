"""Decodes the images of a data set on all cores.

Threads would wait for each other, since opening a small file is mostly Python code. Instead, each worker is a separate
interpreter that imports only this module. Forking a process in which JAX runs can hang, and `multiprocessing` with
"spawn" would run a user's script again in each worker.
"""

import os
import pickle
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from itertools import islice
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np

from jaxcnn.data.decode import decode_quietly, pillow_warnings, tell_converted
from jaxcnn.data.images import fit_decoded
from jaxcnn.data.progress import show_progress
from jaxcnn.data.splits import Split, aligned_empty, take
from jaxcnn.errors import InputError

if TYPE_CHECKING:
    from jaxcnn.config.network import Resize

_CHUNK = 64
"""Images in one request to a worker."""

_FEW_BYTES, _FEW_IMAGES = 2**22, 2000
"""Up to these limits, decoding in this process is done before a worker would have started."""


class Wanted(NamedTuple):
    """The size, channels and kind of resizing of the result."""

    size: int
    channels: int
    resize: "Resize"


class Chunk(NamedTuple):
    """Decoded images."""

    images: np.ndarray
    """uint8 (N, size, size, channels); zeros where an image cannot be used."""
    converted: Counter[str]
    """Number of images that were converted, by the kind of conversion."""
    problems: dict[int, str]
    """Why an image cannot be used, by its index."""


class Sources(Protocol):
    """A sequence of paths or file contents that is read by slices."""

    def __len__(self) -> int: ...

    def __getitem__(self, chosen: slice, /) -> Sequence[str | bytes]: ...


class ImageReader:
    """Reads the splits of a set. Use it in a `with` statement, whose end stops the worker processes."""

    def __init__(self, wanted: Wanted, skip_broken: bool) -> None:
        self.left_out: list[str] = []
        """Why images were skipped, one line for each."""
        self._wanted = wanted
        self.skip_broken = skip_broken
        self._workers: SimpleQueue[_Worker] = SimpleQueue()
        self._stack = ExitStack()

    def refuse(self, problem: str) -> None:
        """Notes a problem if broken images are skipped. The text must end in "; " and a remedy.

        Raises:
            InputError: if broken images are not skipped.
        """
        if not self.skip_broken:
            raise InputError(f"{problem}, or give --data.skip-broken to go on without it")
        self.left_out.append(problem.rpartition("; ")[0])

    def read(
        self, sources: Sources, names: Sequence[str], labels: np.ndarray, *, title: str, total_bytes: int
    ) -> Split:
        """The usable images of a split, in order. Reports conversions on stderr.

        Args:
            sources: the images.
            names: of each image, for messages.
            labels: int32 (N,).
            title: of the split.
            total_bytes: size of all sources, which decides whether workers are worth starting.

        Raises:
            InputError: for the first image that cannot be used, unless broken images are skipped; or when an image has
                colour and the network reads grey images.
        """
        size, channels, _ = self._wanted
        images = aligned_empty((len(labels), size, size, channels), np.uint8)
        usable = np.ones(len(labels), bool)
        converted: Counter[str] = Counter()
        done = 0
        for part in self.decode(sources, names, title=f"Reading {title}", total_bytes=total_bytes):
            images[done : done + len(part.images)] = part.images
            converted += part.converted
            for i, problem in part.problems.items():
                self.refuse(problem)
                usable[done + i] = False
            done += len(part.images)
        tell_converted(title, converted)
        split = Split(images, labels)
        return split if usable.all() else take(split, np.flatnonzero(usable))

    def decode(self, sources: Sources, names: Sequence[str], *, title: str, total_bytes: int) -> Iterator[Chunk]:
        """All images in order, in chunks, with a progress bar. The arguments are those of `read`.

        Raises:
            InputError: when an image has colour and the network reads grey images.
        """
        chunks = [slice(start, start + _CHUNK) for start in range(0, len(sources), _CHUNK)]
        alone = total_bytes <= _FEW_BYTES and len(sources) <= _FEW_IMAGES
        decoded = self._decode_here(sources, names, chunks) if alone else self._decode(sources, names, chunks)
        yield from show_progress(decoded, title, len(chunks))

    def _decode_here(self, sources: Sources, names: Sequence[str], chunks: Sequence[slice]) -> Iterator[Chunk]:
        return (_decode_chunk(sources[chunk], names[chunk], self._wanted) for chunk in chunks)

    def _decode(self, sources: Sources, names: Sequence[str], chunks: Sequence[slice]) -> Iterator[Chunk]:
        count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        while self._workers.qsize() < count:
            self._workers.put(self._stack.enter_context(_Worker()))

        def decode(chunk: slice) -> Chunk:
            worker = self._workers.get()
            try:
                return worker.decode(sources[chunk], names[chunk], self._wanted)
            finally:
                self._workers.put(worker)

        threads = ThreadPoolExecutor(count)  # each thread waits for the answer of one worker
        try:
            begun = (threads.submit(decode, chunk) for chunk in chunks)
            waiting = deque(islice(begun, 4 * count))  # bounded: a slow consumer must not fill the memory
            while waiting:
                part = waiting.popleft().result()
                waiting.extend(islice(begun, 1))
                yield part
        finally:
            threads.shutdown(cancel_futures=True)

    def __enter__(self) -> "ImageReader":
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()


def _decode_chunk(sources: Sequence[str | bytes], names: Sequence[str], wanted: Wanted) -> Chunk:
    """Decodes images from files or their contents; `names` are for messages.

    Raises:
        InputError: when an image has colour and the network reads grey images.
    """
    size, channels, resize = wanted
    images = np.zeros((len(sources), size, size, channels), np.uint8)
    converted: Counter[str] = Counter()
    problems = {}
    with pillow_warnings():
        for i, (source, name) in enumerate(zip(sources, names, strict=True)):
            try:
                pixels, was, turned = decode_quietly(source, name, upright=True)
            except InputError as error:
                problems[i] = str(error)
                continue
            images[i] = fit_decoded(pixels, size, channels, resize, name)
            if was is not None or pixels.shape[2] < channels:
                converted[f"{was or 'grey'} to {'RGB' if channels == 3 else '8-bit grey'}"] += 1
            if turned:
                converted["turned as EXIF says"] += 1
    return Chunk(images, converted, problems)


class _Worker:
    """An interpreter that decodes the requests on its stdin until that ends."""

    def __init__(self) -> None:
        program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import serve; serve()"
        self._process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # libtiff writes warnings there
            pipesize=2**20,  # an answer has some 200 kB, a pipe's default is 64
            process_group=0,  # so that Ctrl-C reaches only the program
        )

    def decode(self, sources: Sequence[str | bytes], names: Sequence[str], wanted: Wanted) -> Chunk:
        """Runs `_decode_chunk` in the worker.

        Raises:
            InputError: as `_decode_chunk`; or when the worker ends without an answer.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            pickle.dump((sources, names, wanted), stdin, protocol=5)
            stdin.flush()
            answer = pickle.load(stdout)
        except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
            raise InputError(
                f"decoding the images from {names[0]} to {names[-1]} ended the process (status "
                f"{self._process.wait()}): memory ran out, or one of them is damaged; remove it"
            ) from error
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, Chunk)
        return answer

    def __enter__(self) -> "_Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with suppress(BrokenPipeError):  # it may not have read its last request
            self._process.__exit__(None, None, None)


def serve() -> None:
    """The worker's main loop: answers requests until stdin ends."""
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    while True:
        try:
            request = pickle.load(stdin)
        except EOFError:
            return
        try:
            answer: Chunk | Exception = _decode_chunk(*request)
        except (InputError, MemoryError) as error:
            answer = error
        pickle.dump(answer, stdout, protocol=5)
        stdout.flush()
