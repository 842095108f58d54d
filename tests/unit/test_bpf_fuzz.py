"""Random programs, random bytes, random text.

Hypothesis prints the example that failed, and `@reproduce_failure` for it.
"""

from __future__ import annotations

import random
import re

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pykcm.bpf import assemble, disassemble
from pykcm.bpf.assembler import translate
from pykcm.errors import AssemblyError
from tests.unit.bpf_oracle import llvm_assemble, table

ROWS = [row for row in table() if row.llvm is not None and not row.text.startswith("if")]

registers = st.integers(0, 10)
s16 = st.integers(-0x8000, 0x7FFF) | st.sampled_from([-0x8000, -1, 0, 1, 0x7FFF])
s32 = st.integers(-(1 << 31), (1 << 31) - 1) | st.sampled_from([-(1 << 31), -1, 0, (1 << 31) - 1])
u64 = st.integers(0, (1 << 64) - 1)
either = st.sampled_from("rw")

ALU = ["+=", "-=", "*=", "/=", "s/=", "|=", "&=", "<<=", ">>=", "%=", "s%=", "^=", "=", "s>>="]
COMPARISONS = ["==", "!=", ">", ">=", "<", "<=", "s>", "s>=", "s<", "s<=", "&"]


def offset(value: int) -> str:
    return f"{'-' if value < 0 else '+'} {abs(value)}"


@st.composite
def statements(draw: st.DrawFn) -> str:
    """One instruction that both pykcm and LLVM know; {} is where a jump's target goes."""
    a, b, r = draw(registers), draw(registers), draw(either)
    off, imm = offset(draw(s16)), draw(s32)
    size = draw(st.sampled_from(["u8", "u16", "u32", "u64"]))
    wide = "r" if size == "u64" else draw(either)
    bits = draw(st.sampled_from([16, 32, 64]))
    # LLVM writes sub-word atomics and their registers in one way only.
    word, x = draw(st.sampled_from([("u32", "w"), ("u64", "r")]))
    suffix = "_64" if word == "u64" else "32_32"
    fetch = draw(st.sampled_from(["add", "or", "and", "xor"]))
    narrow = {"u8": draw(st.integers(-0x80, 0xFF)), "u16": draw(st.integers(-0x8000, 0xFFFF))}
    return draw(
        st.sampled_from(
            [
                f"{r}{a} {draw(st.sampled_from(ALU))} {r}{b}",
                f"{r}{a} {draw(st.sampled_from(ALU))} {imm}",
                f"{r}{a} = -{r}{a}",
                f"{r}{a} = (s{draw(st.sampled_from([8, 16]))}){r}{b}",
                f"r{a} = (s32)r{b}",
                f"r{a} = {draw(st.sampled_from(['be', 'le', 'bswap']))}{bits} r{a}",
                f"r{a} = {draw(u64):#x} ll",
                f"{wide}{a} = *({size} *)(r{b} {off})",
                f"r{a} = *(s{draw(st.sampled_from([8, 16, 32]))} *)(r{b} {off})",
                f"*({size} *)(r{a} {off}) = {wide}{b}",
                f"*({size} *)(r{a} {off}) = {narrow.get(size, imm)}",
                f"r0 = *({size.replace('u64', 'u8')} *)skb[{imm & 0x7FFFFFFF}]",
                f"r0 = *({size.replace('u64', 'u8')} *)skb[r{a}]",
                f"lock *({word} *)(r{a} {off}) {draw(st.sampled_from(['+=', '|=', '&=', '^=']))} "
                f"{x}{b}",
                f"{x}{b} = atomic_fetch_{fetch}(({word} *)(r{a} {off}), {x}{b})",
                f"{x}{b} = xchg{suffix}(r{a} {off}, {x}{b})",
                f"{x}0 = cmpxchg{suffix}(r{a} {off}, {x}0, {x}{b})",
                f"call {imm & 0x7FFFFFFF}",
                f"callx r{a}",
                "exit",
                "goto {}",
                "gotol {}",
                f"if {r}{a} {draw(st.sampled_from(COMPARISONS))} {r}{b} goto {{}}",
                f"if {r}{a} {draw(st.sampled_from(COMPARISONS))} {imm} goto {{}}",
            ]
        )
    )


@st.composite
def programs(draw: st.DrawFn) -> list[str]:
    """A program's lines, each with a label of its own, and jumps to any of them."""
    body = draw(st.lists(statements(), min_size=1, max_size=60))
    targets = st.integers(0, len(body) - 1)
    return [
        f"L{number}: {line.format(f'L{draw(targets)}') if '{}' in line else line}"
        for number, line in enumerate(body)
    ]


SLOW = settings(
    max_examples=80,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


def for_llvm(text: str) -> list[str]:
    """The same program in the words of LLVM: numbers instead of helpers' names."""
    text = re.sub(r"call \S+#(\d+)", r"call \1", text)
    return re.sub(r"skb\[(r\d+) \+ 0\]", r"skb[\1]", text).splitlines()


@SLOW
@given(programs())
def test_random_programs_are_what_llvm_makes_of_them_and_come_back(lines: list[str]) -> None:
    code = translate("\n".join(lines), {}, "little").code
    assert code.hex() == llvm_assemble(lines).hex()
    text = disassemble(code, "little")
    assert translate(text, {}, "little").code == code
    assert llvm_assemble(for_llvm(text)) == code


@settings(deadline=None, max_examples=40)
@given(programs())
def test_random_programs_of_the_other_byte_order(lines: list[str]) -> None:
    code = translate("\n".join(lines), {}, "big").code
    assert code.hex() == llvm_assemble(lines, "big").hex()
    assert translate(disassemble(code, "big"), {}, "big").code == code


def comes_back_or_is_refused(code: bytes) -> bool:
    try:
        text = disassemble(code)
    except AssemblyError as error:
        assert re.match(r"instruction \d+: |the code ", str(error))
        return False
    assert assemble(text) == code
    return True


@settings(deadline=None, max_examples=500)
@given(
    st.binary(max_size=100) | st.binary(min_size=8, max_size=400).map(lambda b: b[: len(b) & ~7])
)
@example(b"")
@example(bytes(8))
@example(b"\x18" + bytes(7))
@example(b"\x95" + bytes(6))
def test_random_bytes_never_crash_the_disassembler(code: bytes) -> None:
    comes_back_or_is_refused(code)


@pytest.mark.parametrize("seed", range(4))
def test_damaged_programs_come_back_or_are_refused(seed: int) -> None:
    """Instructions of the table with a bit or a byte changed: close to valid, often valid."""
    generator = random.Random(seed)
    padding = "\nexit" * 5
    codes = [assemble(row.text + padding) for row in ROWS]
    back = 0
    for _ in range(5000):
        code = bytearray(generator.choice(codes))
        at = generator.randrange(8)
        code[at] = code[at] ^ 1 << generator.randrange(8) if at < 2 else generator.randrange(256)
        back += comes_back_or_is_refused(bytes(code))
    assert 500 < back < 4900, f"seed {seed}: the test has lost its aim, {back} of 5000 are valid"


VOCABULARY = sorted(
    {token for row in table() for token in re.findall(r"\w+|\W", row.text)}
    | {"label", ":", "\n", ";", "#", "//", "/*", "*/", "pc", ".quad", "ld_pseudo", "MACRO", "CONST"}
    | {"0x", "1f", "08", "9" * 5000, "-", "r11", "(bf)", "$dst", "call bpf_probe_read_kernel#113"}
)
soup = st.lists(st.sampled_from(VOCABULARY) | st.text(max_size=3), max_size=40)


@settings(deadline=None, max_examples=1000)
@given(st.text() | soup.map(" ".join) | soup.map("".join))
@example("\udcff: exit")
@example("r0 = " + "9" * 5000)
@example("r0 = ٣")
@example("r0 = 1\x00")
@example("\u2028r0 = 1\x85exit\x0c")
def test_random_text_raises_nothing_but_assembly_error(text: str) -> None:
    try:
        code = assemble(text, CONST=5, MACRO="$dst = 7\nif $dst == 7 goto x\nx: $dst = $dst")
    except AssemblyError as error:
        assert str(error)
        if error.line is not None:
            assert 1 <= error.line <= text.count("\n") + 1
    else:
        assert len(code) % 8 == 0
