"""Seeded message streams in which any loss, change or doubling can be seen.

A message is its length (4 bytes, of what follows), then sender, number and CRC-32 (4 bytes each,
all big-endian), then a body of random bytes.  The checksum is over all but itself and the length.
"""

from __future__ import annotations

import dataclasses
import random
import struct
import zlib
from collections.abc import Iterator

from pykcm.framing import LengthField

_LENGTH = struct.Struct(">I")
_IDENTITY = struct.Struct(">II")
_HEADER = struct.Struct(">IIII")

#: The longest body, in bytes.
MAX_BODY = 20_000

FRAMING = LengthField(
    offset=0,
    size=4,
    byteorder="big",
    adjustment=_LENGTH.size,
    min_length=_HEADER.size,
    max_length=1 << 18,
)


def encode(sender: int, number: int, body: bytes) -> bytes:
    """A message with its header."""
    identity = _IDENTITY.pack(sender, number)
    checksum = zlib.crc32(body, zlib.crc32(identity))
    return _HEADER.pack(_HEADER.size - _LENGTH.size + len(body), sender, number, checksum) + body


def decode(message: bytes) -> tuple[int, int] | None:
    """Sender and number of a message, None if it is not whole and intact."""
    if len(message) < _HEADER.size:
        return None
    length, sender, number, checksum = _HEADER.unpack_from(message)
    if length != len(message) - _LENGTH.size:
        return None
    body = memoryview(message)[_HEADER.size :]
    if zlib.crc32(body, zlib.crc32(_IDENTITY.pack(sender, number))) != checksum:
        return None
    return sender, number


@dataclasses.dataclass(frozen=True)
class Stream:
    """What one sender writes: `count` messages, cut anywhere.

    The same seed and sender give the same messages in the same pieces.

    Attributes:
        seed: any integer.
        sender: the sender's number.
        count: how many messages.
        max_body: the longest body in bytes.
        mostly_short: lengths are uniform from 0 to max_body, or else on a logarithmic scale.
        max_piece: the longest write in bytes; most are much shorter.
    """

    seed: int
    sender: int
    count: int
    max_body: int = MAX_BODY
    max_piece: int = 200_000
    mostly_short: bool = False

    def messages(self) -> Iterator[bytes]:
        """The messages in order."""
        pool = random.Random(f"{self.seed}/{self.sender}/bytes").randbytes(
            self.max_body + (1 << 16)
        )
        for number, (size, start) in enumerate(self._draws()):
            yield encode(self.sender, number, pool[start : start + size])

    @property
    def total_bytes(self) -> int:
        """The length of the whole stream in bytes."""
        return sum(_HEADER.size + size for size, _ in self._draws())

    def _draws(self) -> Iterator[tuple[int, int]]:
        """Each body's length, and where in the pool of bytes it begins."""
        rng = random.Random(f"{self.seed}/{self.sender}/messages")
        for _ in range(self.count):
            longest = self.max_body
            if self.mostly_short:
                longest >>= rng.randrange(longest.bit_length())
            yield rng.randint(0, longest), rng.randrange(1 << 16)

    def pieces(self) -> Iterator[bytes]:
        """The same bytes as they are to be written: coalesced and cut at random."""
        rng = random.Random(f"{self.seed}/{self.sender}/pieces")
        pending = bytearray()
        exponent = self.max_piece.bit_length()
        size = 1
        for message in self.messages():
            pending += message
            while len(pending) >= size:
                yield bytes(pending[:size])
                del pending[:size]
                # As many short pieces as long ones, on a logarithmic scale.
                size = rng.randint(1, min(self.max_piece, 1 << rng.randint(0, exponent)))
        if pending:
            yield bytes(pending)
