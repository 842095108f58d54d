"""Messages in which any loss, change or doubling can be seen.

A message is its length (4 bytes, of what follows), then sender, number and CRC-32 (4 bytes each,
all big-endian), then a body.  The checksum is over all but itself and the length.
"""

from __future__ import annotations

import struct
import zlib

LENGTH = struct.Struct(">I")
_IDENTITY = struct.Struct(">II")
HEADER = struct.Struct(">IIII")


def encode(sender: int, number: int, body: bytes) -> bytes:
    """A message with its header."""
    identity = _IDENTITY.pack(sender, number)
    checksum = zlib.crc32(body, zlib.crc32(identity))
    return HEADER.pack(HEADER.size - LENGTH.size + len(body), sender, number, checksum) + body


def decode(message: bytes) -> tuple[int, int] | None:
    """Sender and number of a message, None if it is not whole and intact."""
    if len(message) < HEADER.size:
        return None
    length, sender, number, checksum = HEADER.unpack_from(message)
    if length != len(message) - LENGTH.size:
        return None
    body = memoryview(message)[HEADER.size :]
    if zlib.crc32(body, zlib.crc32(_IDENTITY.pack(sender, number))) != checksum:
        return None
    return sender, number
