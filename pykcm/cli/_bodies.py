"""What stands behind a message's header: putting the header on, and taking it off."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pykcm.errors import FramingError
from pykcm.framing import Delimiter, FixedLength, LengthField, Varint

if TYPE_CHECKING:
    from pykcm.framing import Framing


def whole(framing: Framing, message: bytes) -> bytes:
    """The message, if it is one and nothing more.

    Raises:
        ValueError: it is not; the text says how.
    """
    if not message:
        raise ValueError("a message has at least one byte")
    length = framing.measure(message)
    if not length:
        raise ValueError(f"{len(message)} bytes are not a whole header")
    if length != len(message):
        raise ValueError(f"it has {len(message)} bytes, and by its header {length}")
    return message


def can_wrap(framing: Framing) -> bool:
    """Whether `wrap` knows how."""
    return isinstance(framing, (Delimiter, FixedLength, LengthField, Varint))


def wrap(framing: Framing, body: bytes) -> bytes:
    """The message with this body.

    Raises:
        ValueError: there is no such message.
    """
    try:
        return whole(framing, _wrap(framing, body))
    except FramingError as error:
        raise ValueError(error.strerror) from error


def unwrap(framing: Framing, message: bytes) -> bytes:
    """The body of a whole message."""
    if isinstance(framing, Delimiter):
        return message[: -len(framing.delimiter)]
    if isinstance(framing, LengthField):
        return message[_header_size(framing) :]
    if isinstance(framing, Varint):
        end = framing.offset
        while message[end] & 0x80:
            end += 1
        return message[end + 1 :]
    return message


def _wrap(framing: Framing, body: bytes) -> bytes:
    if isinstance(framing, Delimiter):
        if framing.delimiter in body:
            raise ValueError("the delimiter stands in it")
        return body + framing.delimiter
    if isinstance(framing, LengthField):
        return _length_field(framing, _header_size(framing) + len(body)) + body
    if isinstance(framing, Varint):
        return bytes(framing.offset) + _leb128(len(body)) + body
    return body


def _header_size(framing: LengthField) -> int:
    end = framing.offset + framing.size
    return max(end, framing.magic_offset + len(framing.magic)) if framing.magic else end


def _length_field(framing: LengthField, length: int) -> bytes:
    """The header of a message of this length; bytes that the framing does not name are 0."""
    number, rest = divmod(length - framing.adjustment, framing.multiplier)
    value = number << framing.shift
    if rest or number < 0 or value & ~framing.mask:
        raise ValueError(f"the field can't tell a length of {length} bytes")
    header = bytearray(_header_size(framing))
    if framing.magic:
        header[framing.magic_offset : framing.magic_offset + len(framing.magic)] = framing.magic
    field = value.to_bytes(framing.size, framing.byteorder)
    for at, byte in enumerate(field, framing.offset):
        header[at] |= byte
    return bytes(header)


def _leb128(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*encoded, number])
