"""Messages whose header is itself of varying length, and those that any header describes."""

from __future__ import annotations

from pykcm.errors import FramingDefinitionError
from pykcm.framing.base import DEFAULT_MAX_LENGTH, SteppedFraming
from pykcm.framing.field import LARGEST_HEADER, Field, check_integer
from pykcm.framing.search import LARGEST_SEARCH, Find
from pykcm.framing.steps import Add, Case, Step, Switch, Times
from pykcm.framing.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


def leb128(offset: int = 0, max_bytes: int = 5) -> tuple[Step, ...]:
    """Steps: a LEB128 number (7 bits a byte, lowest first) that counts the bytes that follow it.

    Args:
        offset: its first byte.
        max_bytes: how many bytes it may have, 1 to 9; a number that goes on is refused.
    """
    return _leb128_byte(offset, 0, max_bytes)


def _leb128_byte(offset: int, number: int, max_bytes: int) -> tuple[Step, ...]:
    at = offset + number
    bits = Add(Field(at, mask=0x7F), multiplier=1 << 7 * number)
    last = Case(((0, 0x7F),), (Add(at + 1),))
    if number + 1 == max_bytes:
        return bits, Switch(Field(at), (last,))
    more = Case(((0x80, 0xFF),), _leb128_byte(offset, number + 1, max_bytes))
    return bits, Switch(Field(at), (last, more))


def ber_length(offset: int = 1, max_bytes: int = 8) -> tuple[Step, ...]:
    """Steps: a definite BER length (X.690, 8.1.3) that counts the bytes that follow it.

    Args:
        offset: its first byte.
        max_bytes: how many bytes may follow the first in the long form, 1 to 8.
    """
    short = Case(((0, 0x7F),), (Add(Field(offset)), Add(offset + 1)))
    long = (
        Case((0x80 + size,), (Add(Field(offset + 1, size)), Add(offset + 1 + size)))
        for size in range(1, max_bytes + 1)
    )
    return (Switch(Field(offset), (short, *long)),)


def decimal(end: bytes, max_digits: int, offset: int = 0) -> tuple[Step, ...]:
    """Steps: a decimal number without leading zeros that counts the bytes after its end mark.

    Args:
        end: the byte that ends it.
        max_digits: how many digits it may have, 1 to 10.
        offset: its first digit.
    """
    return _digit(end[0], max_digits, offset, offset)


def _digit(end: int, left: int, at: int, first: int) -> tuple[Step, ...]:
    ended = Case((end,), (Add(at + 1),))
    if not left:
        return (Switch(Field(at), (ended,)),)
    # The low four bits of an ASCII digit are its value.
    digit = (Times(10), Add(Field(at, mask=0x0F)), *_digit(end, left - 1, at + 1, first))
    if at > first:
        return (Switch(Field(at), (ended, Case(((0x30, 0x39),), digit))),)
    zero = Case((0x30,), (Switch(Field(at + 1), (Case((end,), (Add(at + 2),)),)),))
    return (Switch(Field(at), (zero, Case(((0x31, 0x39),), digit))),)


class Layout(Value, SteppedFraming):
    """A framing put together from the steps of `pykcm.framing.steps`.

    Args:
        title: what it frames, for people.
        rule: the rule; what they add up to is the length of the message, header included.
        min_length: the shortest message in bytes, header included.
        max_length: the longest.

    Raises:
        FramingDefinitionError: the rule yields no length within the limits, or can yield one that
            is shorter than the header, or could wrap.
    """

    title: str
    rule: tuple[Step, ...]
    min_length: int = 1
    max_length: int = DEFAULT_MAX_LENGTH

    def __post_init__(self) -> None:
        self._check()

    def __repr__(self) -> str:
        return (
            f"Layout(title={self.title!r}, min_length={self.min_length}, "
            f"max_length={self.max_length})"
        )

    def _make_steps(self) -> Iterable[Step]:
        return self.rule


class Varint(Value, SteppedFraming):
    """A LEB128 number that counts the bytes that follow it, as in protobuf's delimited streams.

    Args:
        max_length: the longest message in bytes, the number included.
        max_bytes: how many bytes the number may have, 1 to 9; a number that goes on is EBADMSG.
        offset: how many bytes of the header come before the number.

    Raises:
        FramingDefinitionError: an argument is out of range, and named.
    """

    max_length: int = DEFAULT_MAX_LENGTH
    max_bytes: int = 5
    offset: int = 0

    def __post_init__(self) -> None:
        check_integer("max_bytes", self.max_bytes, 1, 9)
        check_integer("offset", self.offset, 0, LARGEST_HEADER - self.max_bytes)
        self._check()

    @property
    def min_length(self) -> int:  # type: ignore[override]
        """The shortest message in bytes: its header."""
        return self.offset + 1

    def _make_steps(self) -> Iterable[Step]:
        return leb128(self.offset, self.max_bytes)


class Delimiter(Value, SteppedFraming):
    """A message goes up to the first delimiter, which is part of it.

    The kernel looks for the delimiter from the message's first byte each time that more data
    comes, so the work for a message is its length times the number of segments that it comes in;
    keep max_length small where the peer is not trusted.

    Args:
        delimiter: 1 to 8 bytes.
        max_length: the longest message in bytes, delimiter included, up to 65,536.

    Raises:
        FramingDefinitionError: an argument is out of range, and named.
    """

    delimiter: bytes
    max_length: int = 8192

    def __post_init__(self) -> None:
        try:
            Find(self.delimiter, LARGEST_SEARCH)
        except FramingDefinitionError as error:
            raise FramingDefinitionError("delimiter", error.why) from None
        check_integer("max_length", self.max_length, len(self.delimiter), LARGEST_SEARCH)
        self._check()

    @property
    def min_length(self) -> int:  # type: ignore[override]
        """The shortest message in bytes: the delimiter."""
        return len(self.delimiter)

    def _make_steps(self) -> Iterable[Step]:
        return (Find(self.delimiter, self.max_length),)
