"""Encoding TensorBoard events without tensorboardX, whose import takes seconds because it imports PyTorch.

An event is a protocol buffer (`tensorboard/compat/proto/event.proto`). A file is a sequence of events, each framed as a
TFRecord:

    length (8 bytes) | checksum of the length (4) | event | checksum of the event (4)
"""

import struct
from collections.abc import Mapping
from functools import cache


def encode_event(
    wall_time: float,
    step: int = 0,
    *,
    values: Mapping[str, float] | None = None,
    file_version: str | None = None,
    restart: bool = False,
) -> bytes:
    """Encodes an Event.

    Args:
        wall_time: seconds since 1970.
        step: 0 or more.
        values: scalars by tag.
        file_version: version of the file format, for the first event of a file.
        restart: mark a restart; TensorBoard then drops all earlier events with this step or a later one.
    """
    event = b"\x09" + struct.pack("<d", wall_time) + b"\x10" + _varint(step)
    if file_version is not None:
        event += _field(3, file_version.encode())
    if values is not None:
        scalars = ((tag.encode(), struct.pack("<f", value)) for tag, value in values.items())
        event += _field(5, b"".join(_field(1, _field(1, tag) + b"\x15" + value) for tag, value in scalars))
    if restart:
        event += _field(7, b"\x08\x01")  # SessionLog(status=START)
    return event


def frame_record(record: bytes) -> bytes:
    """Frames a record as a TFRecord."""
    length = struct.pack("<Q", len(record))
    return length + _masked_crc32c(length) + record + _masked_crc32c(record)


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | 2]) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])


def _masked_crc32c(data: bytes) -> bytes:
    crc, table = 0xFFFFFFFF, _crc_table()
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


@cache
def _crc_table() -> list[int]:
    """Lookup table for CRC-32C (Castagnoli), one entry per byte value."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table
