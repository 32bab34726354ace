"""TensorBoard's events as bytes, without tensorboardX: importing it imports PyTorch, seconds of a short run.

An event is a protocol buffer (`tensorboard/compat/proto/event.proto`), and lies in a file as a TFRecord.
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
    """An Event: scalars by tag, the version that a file begins with, or a restart, which drops all from `step` on.

    `wall_time` is in seconds since 1970; `step` is 0 or more.
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
    """A record as it is in a file: its length and itself, each followed by its checksum."""
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
    """CRC-32C (Castagnoli) of every byte."""
    table = list(range(256))
    for _ in range(8):
        table = [value >> 1 ^ (0x82F63B78 if value & 1 else 0) for value in table]
    return table
