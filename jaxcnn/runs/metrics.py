"""Metrics of a run by epoch: `metrics.csv` and TensorBoard events."""

import contextlib
import platform
import time
from collections.abc import Iterator, Sequence
from io import FileIO
from pathlib import Path
from typing import Any

from jaxcnn.errors import InputError, reason
from jaxcnn.files import write_text
from jaxcnn.runs.events import encode_event, frame_record
from jaxcnn.runs.streams import warn
from jaxcnn.runs.tables import csv_text, read_table
from jaxcnn.training.records import EpochRecord

_PREFIX = "events.out.tfevents."
_TRAIN_LOSS = "Loss/train"


class Board:
    """TensorBoard events of a run: each epoch once, with the time at which it ended.

    Each start of the run writes a new file, whose name sorts after the existing ones: TensorBoard reads files in the
    order of their names and follows the last. (tensorboardX's writer is not used: its thread dies silently when the
    disk is full.)

    If events cannot be written, a warning is printed, and the next start of the run adds them.
    """

    def __init__(self, folder: Path, records: Sequence[EpochRecord]) -> None:
        """Opens the board so that TensorBoard shows exactly `records`, the finished epochs.

        Events of later epochs, which a killed process may have written, are dropped. So is an earlier test result.
        Missing events are added.
        """
        self._folder, self._fails = folder, False
        self._file: FileIO | None = None
        with self._warn_on_error():
            folder.mkdir(parents=True, exist_ok=True)
            if records or self._files():  # on a first start, skip the slow import for reading
                self._correct(_read(self._files()), records)

    @property
    def works(self) -> bool:
        """Whether all events so far could be written."""
        return not self._fails

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob(f"{_PREFIX}*"))

    def _correct(self, shown: dict[tuple[int, str], float], records: Sequence[EpochRecord]) -> None:
        wanted = {(record.epoch, tag) for record in records for tag in _values(record)}
        if not (different := shown.keys() ^ wanted):
            return
        first, _ = min(different)
        for _ in range(2):  # TensorBoard ignores the first restart event of a run
            self._write(encode_event(time.time(), first, restart=True))
        for record in records:
            if record.epoch >= first:  # the restart dropped these too
                self._add(record.epoch, _values(record), shown.get((record.epoch, _TRAIN_LOSS), time.time()))

    def add(self, step: int, values: dict[str, float]) -> None:
        """Writes scalars, given by tag."""
        with self._warn_on_error():
            if not self._fails:
                self._add(step, values, time.time())

    def add_record(self, record: EpochRecord) -> None:
        """Writes the metrics of an epoch."""
        self.add(record.epoch, _values(record))

    def close(self) -> None:
        """Closes the file. There is nothing to flush."""
        if self._file is not None:
            self._file.close()

    def _add(self, step: int, values: dict[str, float], wall_time: float) -> None:
        # A single event, so that a kill leaves all values or none.
        self._write(encode_event(wall_time, step, values=values))

    def _write(self, event: bytes) -> None:
        if self._file is None:
            # Larger than all existing stamps, even after a start in the same second or on a machine with a fast clock.
            stamps = [path.name.removeprefix(_PREFIX).partition(".")[0] for path in self._files()]
            stamp = max([int(time.time()), *(int(other) + 1 for other in stamps if other.isdecimal())])
            self._file = (self._folder / f"{_PREFIX}{stamp:010}.{platform.node()}").open("xb", buffering=0)
            self._write(encode_event(time.time(), file_version="brain.Event:2"))
        record = frame_record(event)
        while record:
            record = record[self._file.write(record) :]

    @contextlib.contextmanager
    def _warn_on_error(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # from the system, or from protobuf if another program wrote the files
            self._fails = True
            self.close()
            warn(
                f"no more events in {self._folder}: {reason(error)}. The numbers are in {self._folder.parent}/"
                "metrics.csv; once the cause is gone, the same command adds the events"
            )


def _values(record: EpochRecord) -> dict[str, float]:
    """The metrics of an epoch by tag. The original's tags are used where it has them."""
    values = {
        _TRAIN_LOSS: record.train_loss,
        "Loss/val": record.val_loss,
        "Accuracy/train": record.train_accuracy,
        "Accuracy/val": record.val_accuracy,
        "LearningRate": record.learning_rate,
        "ImagesPerSecond": record.images_per_second,
    }
    return {tag: value for tag, value in values.items() if value is not None}


def _read(files: Sequence[Path]) -> dict[tuple[int, str], float]:
    """What TensorBoard would show after reading the files in order: (step, tag) -> wall time."""
    from tensorboardX.proto.event_pb2 import Event, SessionLog

    shown: dict[tuple[int, str], float] = {}
    for path in files:
        for record in _records(path.read_bytes()):
            event = Event.FromString(record)
            if event.session_log.status == SessionLog.START:
                shown = {(step, tag): written for (step, tag), written in shown.items() if step < event.step}
            shown |= {(event.step, value.tag): event.wall_time for value in event.summary.value}
    return shown


def _records(data: bytes) -> Iterator[bytes]:
    """Yields the records of a file up to the first damaged or incomplete one, as TensorBoard does."""
    while data:
        record = data[12 : 12 + int.from_bytes(data[:8], "little")]
        whole = frame_record(record)
        if not data.startswith(whole):
            return
        yield record
        data = data[len(whole) :]


def count_metrics(folder: Path) -> int:
    """Number of epochs in `metrics.csv`; 0 if it cannot be read."""
    try:
        return max(0, (folder / "metrics.csv").read_bytes().count(b"\n") - 1)
    except OSError:
        return 0


def write_metrics(folder: Path, records: Sequence[EpochRecord]) -> None:
    """Writes `metrics.csv`, one line per record."""
    write_text(folder / "metrics.csv", csv_text([EpochRecord._fields, *records]))


def read_metrics(folder: Path) -> list[EpochRecord]:
    """The epochs in a run's `metrics.csv`.

    Raises:
        InputError: when it is missing or holds something else.
    """
    header, *rows = read_table(folder / "metrics.csv")
    try:
        if not rows:
            raise ValueError("it holds no epoch")
        return [_record(dict(zip(header, row, strict=True))) for row in rows]
    except (ValueError, KeyError) as error:
        told = f"lacks {error}" if isinstance(error, KeyError) else f"cannot be read: {reason(error)}"
        raise InputError(f"{folder / 'metrics.csv'} {told}; --overwrite trains the run again") from error


def _record(cells: dict[str, str]) -> EpochRecord:
    values: dict[str, Any] = {name: float(cells[name]) if cells[name] else None for name in EpochRecord._fields}
    return EpochRecord(**{**values, "epoch": int(cells["epoch"])})
