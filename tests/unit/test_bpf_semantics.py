"""The kernel computes what RFC 9669 says, for every arithmetic, byte-swap and jump instruction.

The operands come from the data that the program is run on, so that the verifier knows nothing of
them and the machine really computes.  The oracle is section 4 of the RFC in Python's integers.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Iterator

import pytest

from pykcm.bpf import Program
from tests.unit.bpf_oracle import needs_atomics, needs_bpf, needs_v4

pytestmark = needs_bpf

M32, M64 = (1 << 32) - 1, (1 << 64) - 1
EDGES_64 = [
    *(0, 1, 2, 7, 31, 32, 33, 63, 64, 65, 0x1234_5678_9ABC_DEF0),
    *(0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, (1 << 31) - 1, 1 << 31, M32, 1 << 32),
    *((1 << 63) - 1, 1 << 63, M64 - 1, M64, M64 - 31, 0xFFFF_FFFF_0000_0000),
]
EDGES_IMM = [0, 1, 2, 3, 7, 255, 0x12345678, (1 << 31) - 1, -1, -2, -128, -(1 << 31)]


def signed(value: int, bits: int) -> int:
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


def divided(a: int, b: int) -> int:
    """Towards zero, as the RFC asks; by zero it is 0."""
    if b == 0:
        return 0
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def remainder(a: int, b: int) -> int:
    """With the sign of the dividend; by zero it is the dividend."""
    return a if b == 0 else a - b * divided(a, b)


# The operation on unsigned operands of so many bits; what is over the width is cut off after it.
ARITHMETIC: dict[str, Callable[[int, int, int], int]] = {
    "+=": lambda a, b, bits: a + b,
    "-=": lambda a, b, bits: a - b,
    "*=": lambda a, b, bits: a * b,
    "/=": lambda a, b, bits: divided(a, b),
    "s/=": lambda a, b, bits: divided(signed(a, bits), signed(b, bits)),
    "%=": lambda a, b, bits: remainder(a, b),
    "s%=": lambda a, b, bits: remainder(signed(a, bits), signed(b, bits)),
    "|=": lambda a, b, bits: a | b,
    "&=": lambda a, b, bits: a & b,
    "^=": lambda a, b, bits: a ^ b,
    "=": lambda a, b, bits: b,
    "<<=": lambda a, b, bits: a << (b % bits),
    ">>=": lambda a, b, bits: a >> (b % bits),
    "s>>=": lambda a, b, bits: signed(a, bits) >> (b % bits),
}
COMPARISONS: dict[str, Callable[[int, int, int], bool]] = {
    "==": lambda a, b, bits: a == b,
    "!=": lambda a, b, bits: a != b,
    "&": lambda a, b, bits: a & b != 0,
    ">": lambda a, b, bits: a > b,
    ">=": lambda a, b, bits: a >= b,
    "<": lambda a, b, bits: a < b,
    "<=": lambda a, b, bits: a <= b,
    "s>": lambda a, b, bits: operator.gt(signed(a, bits), signed(b, bits)),
    "s>=": lambda a, b, bits: operator.ge(signed(a, bits), signed(b, bits)),
    "s<": lambda a, b, bits: operator.lt(signed(a, bits), signed(b, bits)),
    "s<=": lambda a, b, bits: operator.le(signed(a, bits), signed(b, bits)),
}

# r1 = the first eight bytes of the data, r2 = the next eight, both big-endian.
OPERANDS = """
    r6 = r1
    r0 = *(u32 *)skb[0]
    r7 = r0
    r7 <<= 32
    r0 = *(u32 *)skb[4]
    r7 |= r0
    r0 = *(u32 *)skb[8]
    r8 = r0
    r8 <<= 32
    r0 = *(u32 *)skb[12]
    r8 |= r0
    r1 = r7
    r2 = r8
"""


def calculate(statements: str, pairs: list[tuple[int, int]]) -> Iterator[int]:
    """r1 after the statements, for each pair of what r1 and r2 are before them."""
    halves = []
    for half in ("", "r1 >>= 32"):
        halves.append(Program.load(f"{OPERANDS}\n{statements}\n{half}\nr0 = r1\nexit"))
    with halves[0] as low, halves[1] as high:
        for a, b in pairs:
            data = a.to_bytes(8, "big") + b.to_bytes(8, "big")
            yield (high.run(data) & M32) << 32 | low.run(data) & M32


def check(
    statements: str, pairs: list[tuple[int, int]], expected: Callable[[int, int], int]
) -> None:
    for (a, b), result in zip(pairs, calculate(statements, pairs), strict=True):
        assert result == expected(a, b), f"{statements}: r1={a:#x} r2={b:#x} gave {result:#x}"


ALL_PAIRS = [(a, b) for a in EDGES_64 for b in EDGES_64]


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_v4 if name in ("s/=", "s%=") else ()) for name in ARITHMETIC],
)
@pytest.mark.parametrize("bits", [32, 64])
def test_arithmetic_with_a_register(name: str, bits: int) -> None:
    mask = (1 << bits) - 1
    r = "r" if bits == 64 else "w"

    def expected(a: int, b: int) -> int:
        return ARITHMETIC[name](a & mask, b & mask, bits) & mask

    check(f"{r}1 {name} {r}2", ALL_PAIRS, expected)


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=needs_v4 if name in ("s/=", "s%=") else ()) for name in ARITHMETIC],
)
@pytest.mark.parametrize("bits", [32, 64])
def test_arithmetic_with_an_immediate(name: str, bits: int) -> None:
    mask = (1 << bits) - 1
    r = "r" if bits == 64 else "w"
    immediates = EDGES_IMM
    if "<<" in name or ">>" in name:
        immediates = [0, 1, 7, 31, bits - 1]  # the verifier refuses others
    elif "/" in name or "%" in name:
        immediates = [imm for imm in EDGES_IMM if imm]  # likewise
    for imm in immediates:

        def expected(a: int, _: int, imm: int = imm) -> int:
            return ARITHMETIC[name](a & mask, imm & mask, bits) & mask

        check(f"{r}1 {name} {imm}", [(a, 0) for a in EDGES_64], expected)


@pytest.mark.parametrize("bits", [32, 64])
def test_negation(bits: int) -> None:
    r = "r" if bits == 64 else "w"
    check(f"{r}1 = -{r}1", [(a, 0) for a in EDGES_64], lambda a, _: -a & ((1 << bits) - 1))


@needs_v4
@pytest.mark.parametrize(("bits", "width"), [(32, 8), (32, 16), (64, 8), (64, 16), (64, 32)])
def test_moves_that_extend_the_sign(bits: int, width: int) -> None:
    r = "r" if bits == 64 else "w"
    pairs = [(0, b) for b in EDGES_64]
    check(f"{r}1 = (s{width}){r}2", pairs, lambda _, b: signed(b, width) & ((1 << bits) - 1))


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("name", ["be", "le", pytest.param("bswap", marks=needs_v4)])
def test_byte_swaps(name: str, bits: int) -> None:
    swaps = name == "bswap" or (name == "be") == (sys.byteorder == "little")

    def expected(a: int, _: int) -> int:
        a &= (1 << bits) - 1
        return int.from_bytes(a.to_bytes(bits // 8, "big"), "little") if swaps else a

    check(f"r1 = {name}{bits} r1", [(a, 0) for a in EDGES_64], expected)


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("bits", [32, 64])
def test_jumps_with_a_register(name: str, bits: int) -> None:
    mask = (1 << bits) - 1
    r = "r" if bits == 64 else "w"

    def expected(a: int, b: int) -> int:
        return int(COMPARISONS[name](a & mask, b & mask, bits))

    check(f"if {r}1 {name} {r}2 goto yes\nr1 = 0\ngoto end\nyes: r1 = 1\nend:", ALL_PAIRS, expected)


@pytest.mark.parametrize("name", COMPARISONS)
@pytest.mark.parametrize("bits", [32, 64])
def test_jumps_with_an_immediate(name: str, bits: int) -> None:
    mask = (1 << bits) - 1
    r = "r" if bits == 64 else "w"
    for imm in EDGES_IMM:

        def expected(a: int, _: int, imm: int = imm) -> int:
            return int(COMPARISONS[name](a & mask, imm & mask, bits))

        text = f"if {r}1 {name} {imm} goto yes\nr1 = 0\ngoto end\nyes: r1 = 1\nend:"
        check(text, [(a, 0) for a in EDGES_64], expected)


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
def test_loads_and_stores(bits: int) -> None:
    """What is stored is cut off, what is loaded is extended with zeros."""
    mask = (1 << bits) - 1
    store = f"*(u64 *)(r10 - 8) = 0\n*(u{bits} *)(r10 - 8) = r1\n"
    pairs = [(a, 0) for a in EDGES_64]
    check(f"{store}r1 = *(u{bits} *)(r10 - 8)", pairs, lambda a, _: a & mask)
    for imm in (0, 1, -1, 100, -100):
        text = f"*(u64 *)(r10 - 8) = 0\n*(u{bits} *)(r10 - 8) = {imm}\nr1 = *(u{bits} *)(r10 - 8)"
        check(text, [(0, 0)], lambda a, _, imm=imm: imm & mask)  # type: ignore[misc]


@needs_v4
@pytest.mark.parametrize("bits", [8, 16, 32])
def test_loads_that_extend_the_sign(bits: int) -> None:
    text = f"*(u{bits} *)(r10 - 8) = r1\nr1 = *(s{bits} *)(r10 - 8)"
    check(text, [(a, 0) for a in EDGES_64], lambda a, _: signed(a, bits) & M64)


@needs_atomics
@pytest.mark.parametrize("bits", [32, 64])
@pytest.mark.parametrize("operation", ["add", "or", "and", "xor", "xchg", "cmpxchg"])
def test_atomic_operations(operation: str, bits: int) -> None:
    """The new value in memory, and what was there before."""
    mask = (1 << bits) - 1
    r = "r" if bits == 64 else "w"
    suffix = "_64" if bits == 64 else "32_32"
    pairs = [(a, b) for a in EDGES_64[::2] for b in EDGES_64[1::2]]
    store = f"*(u{bits} *)(r10 - 8) = r1\n"
    load = f"r1 = *(u{bits} *)(r10 - 8)\n"

    def new(a: int, b: int) -> int:
        a, b = a & mask, b & mask
        return {"add": a + b, "or": a | b, "and": a & b, "xor": a ^ b}.get(operation, b) & mask

    if operation == "cmpxchg":
        exchange = f"{r}0 = cmpxchg{suffix}(r10 - 8, {r}0, {r}2)\n"
        check(f"{store}r0 = r1\n{exchange}{load}", pairs, new)
        check(f"{store}r0 = r1\n{exchange}r1 = r0", pairs, lambda a, _: a & mask)
        # What does not compare equal stays as it is.
        check(f"{store}r0 = r1\nr0 += 1\n{exchange}{load}", pairs, lambda a, _: a & mask)
        return
    if operation == "xchg":
        fetch = f"{r}2 = xchg{suffix}(r10 - 8, {r}2)\n"
    else:
        fetch = f"{r}2 = atomic_fetch_{operation}((u{bits} *)(r10 - 8), {r}2)\n"
        sign = {"add": "+=", "or": "|=", "and": "&=", "xor": "^="}[operation]
        check(f"{store}lock *(u{bits} *)(r10 - 8) {sign} {r}2\n{load}", pairs, new)
    check(f"{store}{fetch}{load}", pairs, new)
    check(f"{store}{fetch}r1 = r2", pairs, lambda a, _: a & mask)


def test_64_bit_immediates() -> None:
    for value in EDGES_64:
        check(f"r1 = {value} ll", [(0, 0)], lambda a, _, value=value: value)  # type: ignore[misc]


def test_calls_of_local_functions() -> None:
    text = """
        r1 = 20
        call double
        r0 += 2
        exit
    double:
        r0 = r1
        r0 += r1
        exit
    """
    with Program.load(text) as program:
        assert program.run(b"x") == 42


@needs_v4
def test_jumps_with_32_bits() -> None:
    text = "r0 = 1\ngotol over\nback: r0 += 2\nexit\nover: r0 += 4\ngotol back"
    with Program.load(text) as program:
        assert program.run(b"x") == 7


@pytest.mark.parametrize(("size", "width"), [("u8", 1), ("u16", 2), ("u32", 4)])
def test_packet_loads_are_big_endian_and_end_the_program_past_the_data(
    size: str, width: int
) -> None:
    data = bytes(range(0x10, 0x1A))
    text = f"r6 = r1\nr7 = 3\nr0 = *({size} *)skb[{{}}]\nexit"
    with Program.load(text.format("r7 + 2")) as indirect, Program.load(text.format(5)) as absolute:
        expected = int.from_bytes(data[5 : 5 + width], "big")
        assert indirect.run(data) == absolute.run(data) == expected
        assert indirect.run(data[: 5 + width - 1]) == absolute.run(data[: 5 + width - 1]) == 0
