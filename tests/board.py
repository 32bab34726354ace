"""What TensorBoard shows for a folder of event files, by the rules of its own readers.

It reads the files in the order of their names, each as far as its records are whole. A START of a session drops every
value from its step on, but for the first START of a folder, which drops none (`plugin_event_accumulator.py`). The
faster reader in Rust knows no sessions; there a value drops those of its tag from its step on (`run.rs`).
"""

import struct
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.record_writer import masked_crc32c

checksum = lru_cache(masked_crc32c)  # in Python: slow


class Value(NamedTuple):
    step: int
    value: float
    wall_time: float


def frame_record(event: Any) -> bytes:
    data = event.SerializeToString()
    parts = struct.pack("<Q", len(data)), data
    return b"".join(part + struct.pack("<I", checksum(part)) for part in parts)


def events(folder: Path) -> Iterator[Any]:
    for path in sorted(folder.glob("*tfevents*")):
        data = path.read_bytes()
        while len(data) >= 12:
            (length,) = struct.unpack("<Q", data[:8])
            assert struct.unpack("<I", data[8:12])[0] == checksum(data[:8])
            if len(data) < 16 + length:
                break
            event = data[12 : 12 + length]
            assert struct.unpack("<I", data[12 + length : 16 + length])[0] == checksum(event)
            yield Event.FromString(event)
            data = data[16 + length :]


def shown(folder: Path) -> dict[str, list[Value]]:
    """The values of each tag; every step of it must be there once."""
    found: dict[str, list[Value]] = {}
    started = False
    for event in events(folder):
        if event.session_log.status == SessionLog.START:
            if started:
                found = {tag: [each for each in values if each.step < event.step] for tag, values in found.items()}
            started = True
        for value in event.summary.value:
            found.setdefault(value.tag, []).append(Value(event.step, value.simple_value, event.wall_time))
    found = {tag: values for tag, values in found.items() if values}
    for tag, values in found.items():
        steps = [value.step for value in values]
        assert steps == sorted(set(steps)), (tag, steps)
    return found


def shown_fast(folder: Path) -> dict[str, list[Value]]:
    """The same of the reader in Rust."""
    found: dict[str, list[Value]] = {}
    for event in events(folder):
        for value in event.summary.value:
            before = [each for each in found.get(value.tag, []) if each.step < event.step]
            found[value.tag] = [*before, Value(event.step, value.simple_value, event.wall_time)]
    return found
