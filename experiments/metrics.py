"""The numbers of a run, epoch by epoch: `metrics.csv` and TensorBoard's events."""

import contextlib
import platform
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from experiments.tables import csv_text
from jaxcnn.errors import InputError, reason
from jaxcnn.files import write_text
from jaxcnn.train import EpochRecord


class Board:
    """A file of TensorBoard events. tensorboardX's own writer has a thread, in which a full disk is a silent end."""

    def __init__(self, folder: Path) -> None:
        """Empties the folder first: a resumed run writes its events again, so none is there twice."""
        self._folder = folder
        with self._writing():
            folder.mkdir(parents=True, exist_ok=True)
            for old in folder.glob("events.*"):
                old.unlink()
            self._file = (folder / f"events.out.tfevents.{int(time.time())}.{platform.node()}").open("wb", buffering=0)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot write {self._folder}: {reason(error)}; free space or choose another folder"
            ) from error

    def _write(self, **fields: Any) -> None:
        # Imported late: it brings PyTorch along, which the first step need not wait for.
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.record_writer import masked_crc32c

        with self._writing():
            data = Event(wall_time=time.time(), **fields).SerializeToString()
            length = struct.pack("<Q", len(data))
            record = length + struct.pack("<I", masked_crc32c(length)) + data + struct.pack("<I", masked_crc32c(data))
            while record:
                record = record[self._file.write(record) :]

    def add(self, step: int, values: dict[str, float | None]) -> None:
        """Writes what is not None of some numbers, by their tag.

        Raises:
            InputError: when the disk does not take it.
        """
        from tensorboardX.summary import scalar

        if self._file.tell() == 0:
            self._write(file_version="brain.Event:2")
        for tag, value in values.items():
            if value is not None:
                self._write(step=step, summary=scalar(tag, value))

    def add_record(self, record: EpochRecord) -> None:
        """Writes an epoch's numbers, under the original's tags where it has them."""
        self.add(
            record.epoch,
            {
                "Loss/train": record.train_loss,
                "Loss/val": record.val_loss,
                "Accuracy/train": record.train_accuracy,
                "Accuracy/val": record.val_accuracy,
                "LearningRate": record.learning_rate,
                "ImagesPerSecond": record.images_per_second,
            },
        )

    def close(self) -> None:
        """Closes the file; what `add` wrote is in it already."""
        self._file.close()


def count_metrics(folder: Path) -> int:
    """Epochs in `metrics.csv`; 0 if there is none that can be read."""
    try:
        return max(0, (folder / "metrics.csv").read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def write_metrics(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Writes `metrics.csv`: a line for every epoch so far."""
    write_text(folder / "metrics.csv", csv_text([EpochRecord._fields, *records]))
