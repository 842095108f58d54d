"""Framings in Python: what `measure` says of headers written out by hand, and what is refused."""

from __future__ import annotations

import errno
import pickle
from typing import Any

import pytest

from pykcm.delineation import NONE
from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing import FixedLength, Framing, LengthField

# The arguments of a LengthField, a header, and the message's length.
LENGTHS: list[tuple[dict[str, Any], bytes, int]] = [
    ({}, bytes([0, 0, 0, 0]), 4),
    ({}, bytes([0, 0, 1, 2, 9, 9]), 4 + 258),
    ({"size": 1}, bytes([7]), 8),
    ({"size": 2, "byteorder": "little"}, bytes([1, 2]), 2 + 513),
    ({"size": 3}, bytes([0, 1, 2]), 3 + 258),
    ({"size": 3, "byteorder": "little"}, bytes([1, 2, 0]), 3 + 513),
    ({"size": 5}, bytes([0, 0, 0, 1, 2]), 5 + 258),
    ({"size": 5, "byteorder": "little"}, bytes([1, 2, 0, 0, 0]), 5 + 513),
    ({"size": 6}, bytes([0, 0, 0, 0, 1, 2]), 6 + 258),
    ({"size": 6, "byteorder": "little"}, bytes([1, 2, 3, 0, 0, 0]), 6 + 1 + 512 + 3 * 65536),
    ({"size": 7}, bytes([0, 0, 0, 0, 3, 1, 2]), 7 + 3 * 65536 + 258),
    ({"size": 7, "byteorder": "little"}, bytes([1, 2, 3, 0, 0, 0, 0]), 7 + 1 + 512 + 3 * 65536),
    ({"size": 8}, bytes([0, 0, 0, 0, 0, 0, 1, 2]), 8 + 258),
    ({"size": 8, "byteorder": "little"}, bytes([1, 2, 0, 0, 0, 0, 0, 0]), 8 + 513),
    ({"size": 2, "adjustment": 0}, bytes([0, 2]), 2),
    ({"offset": 2, "size": 2, "adjustment": 0}, bytes([9, 9, 0, 4]), 4),
    ({"offset": 1, "size": 2, "adjustment": -3}, bytes([9, 0, 6]), 3),
    ({"size": 2, "mask": 0x0FF0, "shift": 4}, bytes([0xF1, 0x2F]), 2 + 0x12),
    ({"size": 1, "multiplier": 4, "adjustment": 8}, bytes([3]), 20),
    ({"size": 1, "multiplier": 10}, bytes([3]), 31),
    ({"offset": 2, "size": 1, "magic": b"OK"}, b"OK\5", 8),
    ({"size": 1, "magic": b"OK", "magic_offset": 3, "min_length": 5}, b"\5..OK", 6),
    ({"size": 1, "multiple_of": 4}, bytes([3]), 4),
    ({"max_length": 100}, bytes([0, 0, 0, 96]), 100),
    ({"mask": 0x7FFFFFFF}, bytes([0x80, 0, 0, 5]), 9),
]


@pytest.mark.parametrize(("arguments", "header", "length"), LENGTHS)
def test_length_field(arguments: dict[str, Any], header: bytes, length: int) -> None:
    framing = LengthField(**arguments)
    assert framing.measure(header) == length
    assert framing.measure(bytearray(header + b"rest")) == length
    assert framing.measure(memoryview(header)) == length


@pytest.mark.parametrize(("arguments", "header", "length"), LENGTHS)
def test_length_field_incomplete(arguments: dict[str, Any], header: bytes, length: int) -> None:
    framing = LengthField(**arguments)
    needed = framing.offset + framing.size
    if framing.magic:
        needed = max(needed, framing.magic_offset + len(framing.magic))
    for end in range(needed):
        assert framing.measure(header[:end]) == 0


BAD: list[tuple[dict[str, Any], bytes, int]] = [
    ({"max_length": 100}, bytes([0, 0, 0, 97]), errno.EMSGSIZE),
    ({}, bytes([255] * 4), errno.EMSGSIZE),
    ({"size": 8}, bytes([255] * 8), errno.EMSGSIZE),
    ({"size": 8, "byteorder": "little"}, bytes([255] * 8), errno.EMSGSIZE),
    # 2**61 times 8 is 0 in 64 bits.
    ({"size": 8, "multiplier": 8}, bytes([0x20, 0, 0, 0, 0, 0, 0, 0]), errno.EMSGSIZE),
    # 2**64 - 4 plus 8 is 4 in 64 bits.
    ({"size": 8}, bytes([255] * 7 + [252]), errno.EMSGSIZE),
    ({"size": 2, "adjustment": 0}, bytes([0, 1]), errno.EBADMSG),
    ({"size": 2, "adjustment": 0}, bytes([0, 0]), errno.EBADMSG),
    ({"size": 2, "adjustment": -3}, bytes([0, 1]), errno.EBADMSG),
    ({"size": 2, "min_length": 14}, bytes([0, 11]), errno.EBADMSG),
    ({"offset": 2, "size": 1, "magic": b"OK"}, b"KO\5", errno.EBADMSG),
    ({"size": 1, "multiple_of": 4}, bytes([4]), errno.EBADMSG),
]


@pytest.mark.parametrize(("arguments", "header", "error"), BAD)
def test_length_field_refuses(arguments: dict[str, Any], header: bytes, error: int) -> None:
    with pytest.raises(FramingError) as caught:
        LengthField(**arguments).measure(header)
    assert caught.value.errno == error


def test_wrong_magic_is_told_before_the_length_is_there() -> None:
    with pytest.raises(FramingError):
        LengthField(offset=4, magic=b"NICE").measure(b"EVIL")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"size": 0}, "size"),
        ({"size": 9}, "size"),
        ({"size": "4"}, "size"),
        ({"size": True}, "size"),
        ({"offset": -1}, "offset"),
        ({"offset": 600}, "offset"),
        ({"offset": 510}, "offset"),
        ({"byteorder": "middle"}, "byteorder"),
        ({"mask": 0}, "mask"),
        ({"mask": 1 << 32}, "mask"),
        ({"mask": -1}, "mask"),
        ({"shift": 32}, "shift"),
        ({"mask": 0xFF, "shift": 8}, "shift"),
        ({"multiplier": 0}, "multiplier"),
        ({"multiplier": 1 << 60}, "multiplier"),
        ({"multiplier": 101, "max_length": 100}, "multiplier"),
        ({"adjustment": 101, "max_length": 100}, "adjustment"),
        ({"adjustment": 1.5}, "adjustment"),
        ({"size": 1, "adjustment": -300}, "adjustment"),
        ({"size": 1, "min_length": 500}, "adjustment"),
        ({"min_length": 3}, "min_length"),
        ({"min_length": 0}, "min_length"),
        ({"min_length": 101, "max_length": 100}, "min_length"),
        ({"max_length": 0}, "max_length"),
        ({"max_length": 3}, "max_length"),
        ({"max_length": 1 << 31}, "max_length"),
        ({"max_length": None}, "max_length"),
        ({"magic": "OK"}, "magic"),
        ({"magic": b"x" * 65}, "magic"),
        ({"magic": b"OK", "magic_offset": -1}, "magic_offset"),
        ({"magic": b"OK", "magic_offset": 511}, "magic_offset"),
        ({"magic": b"OK", "magic_offset": 50, "max_length": 40}, "max_length"),
        ({"multiple_of": 0}, "multiple_of"),
        ({"size": 1, "adjustment": 100, "min_length": 50, "max_length": 99}, "adjustment"),
    ],
)
def test_impossible_length_field(arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(FramingDefinitionError) as caught:
        LengthField(**arguments)
    assert caught.value.argument == named
    assert str(caught.value).startswith(f"{named}: ")
    assert isinstance(caught.value, ValueError)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.argument) == (str(caught.value), named)


def test_fixed_length() -> None:
    framing = FixedLength(7)
    assert framing.measure(b"") == framing.measure(b"1234567890") == framing.max_length == 7
    for wrong in (0, -1, 1 << 31, "7", None):
        with pytest.raises(FramingDefinitionError):
            FixedLength(wrong)  # type: ignore[arg-type]


FRAMINGS: list[Framing] = [
    LengthField(),
    LengthField(1, 2, "little", magic=b"x"),
    FixedLength(5),
]


@pytest.mark.parametrize("framing", FRAMINGS, ids=repr)
def test_framings_are_values(framing: Framing) -> None:
    assert framing.assembly(NONE)  # whatever is kept of it must not show below
    copy = pickle.loads(pickle.dumps(framing))
    assert copy == framing
    assert hash(copy) == hash(framing)
    assert copy.assembly(NONE) == framing.assembly(NONE)
    assert eval(repr(framing)) == framing
    with pytest.raises(AttributeError):
        framing.max_length = 5
    other = framing.replace(**{"length" if isinstance(framing, FixedLength) else "max_length": 99})
    assert other != framing
    assert other.max_length == 99


def test_repr_shows_what_differs() -> None:
    assert repr(LengthField()) == "LengthField(offset=0, size=4)"
    assert repr(LengthField(adjustment=4, mask=0xFFFFFFFF)) == repr(LengthField())
    assert repr(LengthField(size=2, adjustment=0)) == "LengthField(offset=0, size=2, adjustment=0)"
