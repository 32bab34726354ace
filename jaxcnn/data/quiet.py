"""Silences tensorflow_datasets."""

import contextlib
import io
import sys
from collections.abc import Iterator

import tensorflow_datasets as tfds
from absl import logging


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences tfds: its output on stdout, its log below errors, and its progress bars if stderr is not a terminal."""
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(verbosity)
