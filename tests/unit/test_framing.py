"""Framings in Python: what `measure` says of headers written out by hand, and what is refused."""

from __future__ import annotations

import errno
import pickle
from typing import Any

import pytest

from pykcm._offset import NONE
from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing import Delimiter, FixedLength, Framing, Layout, LengthField, Varint
from pykcm.framing.field import Field
from pykcm.framing.search import Find
from pykcm.framing.steps import (
    LARGEST_LENGTH,
    Add,
    Case,
    Divisible,
    Match,
    RoundUp,
    Step,
    Switch,
    Times,
    Within,
)
from pykcm.framing.variable import decimal, leb128
from tests.unit.bpf_oracle import needs_bpf

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
    Varint(300, 2, 1),
    Delimiter(b"\r\n", 80),
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


# Among them the examples of DWARF 5, section 7.6 (2, 127, 128, 129, 12857).
@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"\x00", 1),
        (b"\x02", 1 + 2),
        (b"\x7f", 1 + 127),
        (b"\x80\x01", 2 + 128),
        (b"\x81\x01", 2 + 129),
        (b"\xb9\x64", 2 + 12857),
        (b"\xe5\x8e\x26", 3 + 624485),
        (b"\x80\x00", 2),
        (b"\x80", 0),
        (b"", 0),
    ],
)
def test_varint(header: bytes, length: int) -> None:
    assert Varint().measure(header) == length


def test_varint_limits() -> None:
    assert Varint(max_length=5).measure(b"\x04") == 5
    cases = [
        (Varint(max_length=5), b"\x05", errno.EMSGSIZE),
        (Varint(), b"\xff\xff\xff\xff\x0f", errno.EMSGSIZE),
        (Varint(), b"\x80\x80\x80\x80\x80", errno.EBADMSG),
        (Varint(max_bytes=1), b"\x80", errno.EBADMSG),
        (Varint(max_bytes=9), b"\xff" * 8 + b"\x7f", errno.EMSGSIZE),
        (Varint(max_bytes=9), b"\x80" * 9, errno.EBADMSG),
    ]
    for framing, header, error in cases:
        with pytest.raises(FramingError) as caught:
            framing.measure(header)
        assert caught.value.errno == error


def test_delimiter() -> None:
    framing = Delimiter(b"\r\n", 10)
    assert framing.measure(b"\r\n") == 2
    assert framing.measure(b"ab\rc\r\n\r\n") == 6
    assert framing.measure(b"12345678\r\n") == 10
    assert framing.measure(b"12345678\r") == 0
    assert framing.measure(b"") == 0
    for late in (b"123456789\r", b"123456789\r\n", b"1234567890"):
        with pytest.raises(FramingError) as caught:
            framing.measure(late)
        assert caught.value.errno == errno.EMSGSIZE


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Varint(0), "max_length"),
        (lambda: Varint(max_bytes=0), "max_bytes"),
        (lambda: Varint(max_bytes=10), "max_bytes"),
        (lambda: Varint(offset=-1), "offset"),
        (lambda: Varint(offset=512), "offset"),
        (lambda: Varint(max_length=4, offset=4), "min_length"),
        (lambda: Delimiter(b""), "delimiter"),
        (lambda: Delimiter(b"123456789"), "delimiter"),
        (lambda: Delimiter("\n"), "delimiter"),  # type: ignore[arg-type]
        (lambda: Delimiter(b"\n", 65537), "max_length"),
        (lambda: Delimiter(b"\r\n", 1), "max_length"),
        (lambda: Delimiter(b"\n", 0), "max_length"),
        (lambda: Layout("x", (Add(Field(0, 2)),)), "min_length"),  # shorter than its header
        (lambda: Layout("x", (Add(5),), min_length=6), "min_length"),
        (lambda: Layout("x", (Add(5),), max_length=4), "min_length"),
        (lambda: Layout("x", (Add(Field(0, 4)), *[Times(1 << 30)] * 2)), "steps"),  # wraps
        (lambda: Layout("x", (Add(1), Find(b"\n", 9)), max_length=99), "steps"),
        (lambda: Layout("x", (Add(Field(0)), Add(-9), Divisible(2))), "steps"),
        (lambda: Add(Field(0), 0), "multiplier"),
        (lambda: Add(1 << 31), "term"),
        (lambda: RoundUp(6), "multiple"),
        (lambda: RoundUp(0), "multiple"),
        (lambda: Times(0), "factor"),
        (lambda: Divisible(0), "divisor"),
        (lambda: Within(5, 4), "low"),
        (lambda: Within(0, 1 << 31), "high"),
        (lambda: Match(b""), "value"),
        (lambda: Match(b"x", 512), "offset"),
        (lambda: Switch(Field(0), ()), "cases"),
        (lambda: Switch(Field(0), (Case((256,)),)), "cases"),
        (lambda: Switch(Field(0), (Case(((5, 4),)),)), "cases"),
        (lambda: Switch(Field(0), (Case((1,)), Case(((0, 9),)))), "cases"),
        (lambda: Find(b"x", 65537), "limit"),
    ],
)
def test_impossible_description(make: Any, named: str) -> None:
    with pytest.raises(FramingDefinitionError) as caught:
        make()
    assert caught.value.argument == named


# Rules by hand, a header, and what the length must be: each step in Python and in the kernel.
RULES: list[tuple[tuple[Step, ...], bytes, int]] = [
    ((Add(Field(0)), RoundUp(8), Add(1)), b"\x09", 17),
    ((Add(Field(0)), RoundUp(8), Add(1)), b"\x08", 9),
    ((Add(Field(0)), Times(10), Add(1)), b"\x03", 31),
    ((Add(Field(0), 1000), Add(1)), b"\x03", 3001),
    ((Add(Field(0)), Within(3, 9), Add(1)), b"\x02", -errno.EBADMSG),
    ((Add(Field(0)), Within(3, 9), Add(1)), b"\x0a", -errno.EMSGSIZE),
    ((Add(Field(0)), Within(3, 9), Add(1)), b"\x09", 10),
    ((Add(Field(0)), Add(1), Divisible(3)), b"\x05", 6),
    ((Add(Field(0)), Add(1), Divisible(3)), b"\x06", -errno.EBADMSG),
    ((Match(b"abcdefg", 1), Add(8)), b"xabcdefg", 8),
    ((Match(b"abcdefg", 1), Add(8)), b"xabcdefx", -errno.EBADMSG),
    ((Match(b"abcdefg", 1), Add(8)), b"xabcxxxx", -errno.EBADMSG),
    ((Match(b"abcdefg", 1), Add(8)), b"xabcdef", 0),
    ((Match(b"\xff\xff\xff\xff"), Add(4)), b"\xff\xff\xff\xff", 4),
    ((Match(b"\x80\0\0\0"), Add(4)), b"\x80\0\0\0", 4),
    ((Add(Field(0, 8, mask=0xFFFF << 40, shift=40)), Add(8)), bytes([9, 1, 2, 9, 9, 9, 9, 9]), 266),
    (
        (Add(Field(0, 8, "little", mask=0xFFFF << 40, shift=40)), Add(8)),
        bytes([9, 9, 9, 9, 9, 2, 1, 9]),
        266,
    ),
    ((Switch(Field(0, 4), (Case(((0xFFFFFFF0, 0xFFFFFFFF),), (Add(9),)),)),), b"\xff" * 4, 9),
    (
        (Switch(Field(0, 4), (Case(((0xFFFFFFF0, 0xFFFFFFFF),), (Add(9),)),)),),
        b"\xff\xff\xff\xef",
        -errno.EBADMSG,
    ),
    ((Switch(Field(0, 8), (Case(((1 << 64) - 1,), (Add(9),)),)),), b"\xff" * 8, 9),
    ((Switch(Field(0), (Case(((5, 7), 9), (Add(2),)), Case((8,), (Add(3),)))),), b"\x07", 2),
    ((Switch(Field(0), (Case(((5, 7), 9), (Add(2),)), Case((8,), (Add(3),)))),), b"\x08", 3),
    ((Switch(Field(0), (Case(((5, 7), 9), (Add(2),)), Case((8,), (Add(3),)))),), b"\x09", 2),
    (
        (Switch(Field(0), (Case(((5, 7), 9), (Add(2),)), Case((8,), (Add(3),)))),),
        b"\x04",
        -errno.EBADMSG,
    ),
    (
        (Switch(Field(0), (Case(((5, 7), 9), (Add(2),)), Case((8,), (Add(3),)))),),
        b"\x0a",
        -errno.EBADMSG,
    ),
    (decimal(b" ", 3), b"120 ", 124),
    (decimal(b" ", 3), b"0 ", 2),
    (decimal(b" ", 3), b"1200 ", -errno.EBADMSG),
    (decimal(b" ", 3), b"12", 0),
    (decimal(b" ", 3), b"012 ", -errno.EBADMSG),
    (decimal(b" ", 3), b"1/ ", -errno.EBADMSG),
    (leb128(2, 2), b"..\x81\x01", 4 + 129),
    ((Add(Field(0)), Add(-5), Add(1)), b"\x02", -errno.EBADMSG),
    ((Add(Field(0)), Add(-5), Add(1)), b"\x05", 1),
    ((Find(b"\n", 9),), b"abc\n", 4),
]


@needs_bpf
@pytest.mark.parametrize(("rule", "header", "expected"), RULES)
def test_rule(rule: tuple[Step, ...], header: bytes, expected: int) -> None:
    framing = Layout("by hand", rule)
    if expected < 0:
        with pytest.raises(FramingError) as caught:
            framing.measure(header)
        assert caught.value.errno == -expected
    else:
        assert framing.measure(header) == expected
    with framing.load(NONE) as program:
        assert program.run(header) == expected


@needs_bpf
def test_the_longest_length_of_all() -> None:
    framing = LengthField(max_length=LARGEST_LENGTH)
    header = (LARGEST_LENGTH - 4).to_bytes(4, "big")
    assert framing.measure(header) == LARGEST_LENGTH
    with framing.load(NONE) as program:
        assert program.run(header) == LARGEST_LENGTH
        assert program.run((LARGEST_LENGTH - 3).to_bytes(4, "big")) == -errno.EMSGSIZE


@pytest.mark.parametrize("order", ["big", "little"])
def test_the_program_for_a_host_of_the_other_order(
    order: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The conversion to the foreign order is the one that swaps."""
    monkeypatch.setattr("sys.byteorder", order)
    text = LengthField(size=4, byteorder="little").assembly(NONE)
    assert ("r0 = be32 r0" in text) == (order == "little")
    assert ("r0 = le32 r0" in text) == (order == "big")
    assert "32 r0" not in LengthField(size=4).assembly(NONE)
    assert ("le64" in Delimiter(b"ab").assembly(NONE)) == (order == "big")


@needs_bpf
def test_a_search_waits_for_no_more_than_the_longest_message() -> None:
    rule = (Switch(Field(0), (Case((0x2B,), (Find(b"\n", 5000),)),)),)
    framing = Layout("x", rule, max_length=100)
    assert framing.measure(b"+" * 99) == 0
    assert framing.measure(b"+" * 99 + b"\n") == 100
    with pytest.raises(FramingError) as caught:
        framing.measure(b"+" * 100)
    assert caught.value.errno == errno.EMSGSIZE
    with framing.load(NONE) as program:
        assert program.run(b"+" * 99) == 0
        assert program.run(b"+" * 99 + b"\n") == 100
        assert program.run(b"+" * 100) == -errno.EMSGSIZE
