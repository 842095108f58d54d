"""A number in a header: how the program reads it, and how Python does."""

from __future__ import annotations

import sys

from pykcm.errors import FramingDefinitionError
from pykcm.framing.code import Code
from pykcm.framing.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Literal, TypeAlias

    ByteOrder: TypeAlias = Literal["big", "little"]

#: A header's last byte lies below this offset.  No protocol known comes near.
LARGEST_HEADER = 512


class IncompleteError(Exception):
    """The data ends before the header does."""


def check_integer(argument: str, value: object, low: int, high: int) -> int:
    """The value, if it is an integer from low to high; else a FramingDefinitionError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise FramingDefinitionError(argument, f"must be an integer, not {value!r}")
    if not low <= value <= high:
        raise FramingDefinitionError(argument, f"must be {low} to {high}, not {value}")
    return value


class Field(Value):
    """A number in the header.

    Args:
        offset: its first byte, counted from the message's first.
        size: 1 to 8 bytes.
        byteorder: "big" or "little".
        mask: what is kept of the number, or None for all its bits.
        shift: by how many bits what is kept is moved down.

    Raises:
        FramingDefinitionError: the field can't be; the argument is named.
    """

    offset: int
    size: int = 1
    byteorder: ByteOrder = "big"
    mask: int | None = None
    shift: int = 0

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1, 8)
        check_integer("offset", self.offset, 0, LARGEST_HEADER)
        if self.end > LARGEST_HEADER:
            raise FramingDefinitionError(
                "offset", f"the field ends after byte {LARGEST_HEADER}, the longest header"
            )
        if self.byteorder not in ("big", "little"):
            raise FramingDefinitionError(
                "byteorder", f"must be 'big' or 'little', not {self.byteorder!r}"
            )
        all_bits = (1 << 8 * self.size) - 1
        if self.mask is not None:
            check_integer("mask", self.mask, 0, all_bits)
        check_integer("shift", self.shift, 0, 8 * self.size - 1)
        if not self.largest:
            argument = "shift" if self.mask is None or self.mask else "mask"
            raise FramingDefinitionError(argument, "leaves no bits of the field")

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + self.size

    @property
    def largest(self) -> int:
        """The largest number that it can yield."""
        kept = (1 << 8 * self.size) - 1 if self.mask is None else self.mask
        return kept >> self.shift

    def read(self, data: memoryview) -> int:
        """The field's number in a message that begins with these bytes.

        Raises:
            IncompleteError: the data ends before the field does.
        """
        if len(data) < self.end:
            raise IncompleteError
        value = int.from_bytes(data[self.offset : self.end], self.byteorder)
        if self.mask is not None:
            value &= self.mask
        return value >> self.shift

    def emit(self, code: Code) -> None:
        """Leaves the field in r0; clobbers r1 to r5."""
        self._emit_number(code)
        if self.mask is not None and self.mask != (1 << 8 * self.size) - 1:
            code.apply("r0", "&", self.mask)
        if self.shift:
            code.add(f"r0 >>= {self.shift}")

    def _emit_number(self, code: Code) -> None:
        for at, size in pieces(self.size):
            code.load(8 * size, self.offset + at)
            if self.byteorder == "little" and size > 1:
                # The load made a host number of big-endian bytes; of the two conversions it is
                # the one to the foreign order that swaps.
                swap = "be" if sys.byteorder == "little" else "le"
                code.add(f"r0 = {swap}{8 * size} r0")
            if at and self.byteorder == "big":
                code.add("r1 = *(u64 *)(r10 - 24)", f"r1 <<= {8 * size}", "r0 |= r1")
            elif at:
                code.add("r1 = *(u64 *)(r10 - 24)", f"r0 <<= {8 * at}", "r0 |= r1")
            if at + size < self.size:
                code.add("*(u64 *)(r10 - 24) = r0")


def pieces(size: int) -> Iterable[tuple[int, int]]:
    """Offset and size of the 4-, 2- and 1-byte pieces that make up so many bytes."""
    at = 0
    while at < size:
        piece = 4 if size - at >= 4 else 2 if size - at >= 2 else 1
        yield at, piece
        at += piece
