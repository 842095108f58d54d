"""Seeded streams of messages with random bodies, in pieces as they are to be written."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Iterator

from pykcm.framing import LengthField
from pykcm.selftest.messages import HEADER, LENGTH, decode, encode

__all__ = ["FRAMING", "MAX_BODY", "Stream", "decode", "encode"]

#: The longest body, in bytes.
MAX_BODY = 20_000

FRAMING = LengthField(
    offset=0,
    size=4,
    byteorder="big",
    adjustment=LENGTH.size,
    min_length=HEADER.size,
    max_length=1 << 18,
)


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
        return sum(HEADER.size + size for size, _ in self._draws())

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
