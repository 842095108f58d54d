"""The assembler's syntax, its constants and macros, and its errors."""

from __future__ import annotations

import pickle
import subprocess
import sys

import pytest

from pykcm.bpf import _instructions, assemble, disassemble
from pykcm.errors import AssemblyError

VARIANTS = [
    # Spacing, comments, separators.
    ("r0=1", "r0 = 1"),
    ("\tr0\t=\t-1  ", "r0 = -1"),
    ("r0 = 1;exit;", "r0 = 1\nexit"),
    ("r0 = 1 # one", "r0 = 1"),
    ("r0 = 1 // one\r\nexit", "r0 = 1\nexit"),
    ("r0 /* = 2 */ = 1 /* a\n b */; exit", "r0 = 1\nexit"),
    ("# r0 = /*\nr0 = 1", "r0 = 1"),
    ("r0-=-1", "r0 -= -1"),
    # Numbers.
    ("r0 = 0x10", "r0 = 16"),
    ("r0 = 0b11", "r0 = 3"),
    ("r0 = 1_000", "r0 = 1000"),
    ("r0 = 4 + 3 - 2", "r0 = 5"),
    ("w0 = 0xffffffff", "w0 = -1"),
    ("r0 &= 0xfffffffffffffff0", "r0 &= -16"),
    ("r0 = 0xffffffff80000000", "r0 = -2147483648"),
    ("if w0 > 0xfffffffe goto +0\nexit", "if w0 > -2 goto +0\nexit"),
    ("*(u32 *)(r10 - 4) = 0xffffffff", "*(u32 *)(r10 - 4) = -1"),
    ("r0 = -1 ll", "r0 = 0xffffffffffffffff ll"),
    # Addresses, as the verifier's log, bpftool and people write them.
    ("r0 = *(u32 *)(r1 +4)", "r0 = *(u32 *)(r1 + 4)"),
    ("r0 = *(u32*)(r1)", "r0 = *(u32 *)(r1 + 0)"),
    ("r0 = *(u32 *)(r1 + -4)", "r0 = *(u32 *)(r1 - 4)"),
    ("r0 = *(u8 *)skb[r7]", "r0 = *(u8 *)skb[r7 + 0]"),
    ("r0 = *(u8 *)skb[r7 - 1]", "r0 = *(u8 *)skb[r7 + -1]"),
    ("w0 = *(u32 *)(r1 + 4)", "r0 = *(u32 *)(r1 + 4)"),
    ("*(u32 *)(r10 - 4) = w1", "*(u32 *)(r10 - 4) = r1"),
    # The kernel's names of atomic operations beside LLVM's.
    ("r2 = atomic64_fetch_add((u64 *)(r1 +0), r2)", "r2 = atomic_fetch_add((u64 *)(r1 + 0), r2)"),
    ("r2 = atomic_fetch_or((u32 *)(r1 +0), r2)", "w2 = atomic_fetch_or((u32 *)(r1 + 0), w2)"),
    ("r2 = atomic64_xchg((u64 *)(r1 +8), r2)", "r2 = xchg_64(r1 + 8, r2)"),
    ("r2 = atomic_xchg((u32 *)(r1 +8), r2)", "w2 = xchg32_32(r1 + 8, w2)"),
    ("r0 = atomic64_cmpxchg((u64 *)(r1 +8), r0, r2)", "r0 = cmpxchg_64(r1 + 8, r0, r2)"),
    ("r0 = atomic_cmpxchg((u32 *)(r1 +8), r0, r2)", "w0 = cmpxchg32_32(r1 + 8, w0, w2)"),
    # Calls.
    ("call bpf_probe_read_kernel", "call 113"),
    ("call bpf_probe_read_kernel#113", "call 113"),
    ("call unknown#9999", "call 9999"),
    ("call unknown#-5", ".quad 0xfffffffb00000085"),  # as in what the kernel rewrote
    ("call pc+0\nexit", "call f\nf: exit"),
    ("r1 = code_addr(f)\nf: exit", "r1 = code_addr(+1)\nexit"),
    # Jumps and labels.
    ("goto pc+1\nexit\nexit", "goto +1\nexit\nexit"),
    ("goto end\nexit\nend: exit", "goto +1\nexit\nexit"),
    ("a: b: goto a", "goto -1"),
    ("goto .LBB0_1\n.LBB0_1:\nexit", "goto +0\nexit"),
    ("1: goto 1f\n1: goto 1b\n1: exit", "goto +0\ngoto -1\nexit"),
    ("if r1 == 2 goto over; r0 = 1 ll; over: exit", "if r1 == 2 goto +2\nr0 = 1 ll\nexit"),
    # A line of the verifier's log or of bpftool.
    ("0: (b7) r0 = 0\n1: (95) exit", "r0 = 0\nexit"),
    (".quad 0x95", "exit"),
    ("ld_pseudo r1, 1, 5", "r1 = map_by_fd(5)"),
]


@pytest.mark.parametrize(("text", "same"), VARIANTS)
def test_the_same_instruction_can_be_written_in_several_ways(text: str, same: str) -> None:
    assert assemble(text).hex(" ", 8) == assemble(same).hex(" ", 8)


ERRORS = [
    # text, line, column, words of the message
    ("", 1, 1, "the text has no instruction"),
    ("# nothing\n\n", 1, 1, "the text has no instruction"),
    ("label:", 1, 1, "the text has no instruction"),
    ("r0 = 1\n  r11 = 2", 2, 3, "expected a register, r0 to r10 or w0 to w10, found 'r11'"),
    ("r0 = r12", 1, 6, "expected a register, a number, a load"),
    ("r0 = w1", 1, 6, "expected a register, r0 to r10, found 'w1'"),
    ("w0 += r1", 1, 7, "expected a register, w0 to w10, found 'r1'"),
    ("r0 = 1 r1", 1, 8, "expected the end of the statement, found 'r1'"),
    ("r0 = r1 + 4", 1, 9, "on a line of its own"),
    ("mov r0, r1", 1, 1, "expected an instruction, found 'mov'"),
    ("r0 = 1  ; one", 1, 11, "(a comment starts with '#' or '//'), found 'one'"),
    ("r0 =\nexit", 1, 5, "found the end of the line"),
    ("r0 ? 1", 1, 4, "expected '=' or an operator"),
    ("r0 = 010", 1, 6, "expected a number or a constant such as 10"),
    ("r0 = 12ab", 1, 6, "found '12ab'"),
    # Ranges.
    ("r0 = 0x80000000", 1, 6, "out of range: it has 32 bits, signed"),
    ("r0 = -2147483649", 1, 6, "out of range"),
    ("r0 = 0xffffffff", 1, 6, "`rN = VALUE ll` loads 64"),
    ("r0 = 0xffffffff7fffffff", 1, 6, "out of range"),
    ("w0 = 0x100000000", 1, 6, "out of range: it has 32 bits"),
    ("w0 = -2147483649", 1, 6, "out of range: it has 32 bits"),
    ("r0 = 0x10000000000000000 ll", 1, 6, "out of range: it has 64 bits"),
    ("*(u8 *)(r10 - 1) = 256", 1, 20, "out of range: it has 8 bits, -128 to 255"),
    ("*(u16 *)(r10 - 2) = -32769", 1, 21, "out of range: it has 16 bits"),
    ("*(u64 *)(r10 - 8) = 0x80000000", 1, 21, "out of range: it has 32 bits, signed"),
    ("r0 = *(u8 *)(r1 + 32768)", 1, 17, "the offset is out of range: -32768 to 32767"),
    ("r0 = *(u8 *)(r1 - 32769)", 1, 17, "the offset is out of range"),
    ("r0 = *(u8 *)skb[0x80000000]", 1, 17, "out of range"),
    ("call -1", 1, 6, "expected a helper's name or number, a label, or pc+N, found '-'"),
    ("call pc+3", 1, 8, "the jump leaves the program"),
    ("r0 = bogus  # a comment", 1, 6, "found 'bogus'"),
    ("call 0x80000000", 1, 6, "the helper's number is out of range"),
    ("call unknown#0x80000000", 1, 14, "the helper's number is out of range"),
    # Shapes.
    ("r0 = *(u64 *)skb[0]", 1, 8, "expected u8, u16 or u32, found 'u64'"),
    ("r1 = *(u32 *)skb[0]", 1, 1, "r0: a packet load always loads r0"),
    ("r0 = *(u24 *)(r1 + 0)", 1, 8, "expected a type, one of u8 s8 u16 s16 u32 s32 u64"),
    ("w0 = *(u64 *)(r1 + 0)", 1, 8, "u8, u16 or u32 for a 32-bit register"),
    ("w0 = *(s8 *)(r1 + 0)", 1, 8, "u8, u16 or u32 for a 32-bit register"),
    ("*(s8 *)(r1 + 0) = r1", 1, 3, "expected a type, one of u8 u16 u32 u64"),
    ("*(u64 *)(r1 + 0) = w1", 1, 20, "expected a register, r0 to r10, found 'w1'"),
    ("r0 = *(u32 *)(r1 + 0", 1, 21, "expected ')'"),
    ("r0 = be16 r1", 1, 11, "expected r0 again"),
    ("w0 = be16 w0", 1, 1, "a 64-bit register on the left"),
    ("r0 = -r1", 1, 7, "expected r0 again, found 'r1'"),
    ("w0 = (s32)w1", 1, 7, "expected a type, one of s8 s16"),
    ("if r1 = 2 goto +0", 1, 7, "expected a comparison"),
    ("if r1 == 2 exit", 1, 12, "expected 'goto'"),
    ("lock *(u16 *)(r1 + 0) += r2", 1, 8, "expected a type, one of u32 u64"),
    ("lock *(u64 *)(r1 + 0) -= r2", 1, 23, "'+=', '|=', '&=' or '^='"),
    ("r2 = atomic_fetch_add((u64 *)(r1 + 0), r3)", 1, 40, "expected r2 again"),
    ("r1 = cmpxchg_64(r1 + 0, r0, r2)", 1, 1, "r0 on the left of a cmpxchg"),
    ("callx 3", 1, 7, "expected a register"),
    # Jumps.
    ("goto 5", 1, 6, "the label 5 is not defined"),
    ("goto nowhere", 1, 6, "the label nowhere is not defined"),
    ("1: goto 1f", 1, 9, "the label 1f is not defined"),
    ("goto +0", 1, 6, "past its last instruction"),
    ("r0 = 1\ngoto -3", 2, 6, "before its first instruction"),
    ("goto +1\nr0 = 1 ll\nexit", 1, 6, "into the middle of a 64-bit load"),
    ("if r0 == 1 goto end\n" + "r0 = 1\n" * 0x8000 + "end: exit", 1, 17, "out of range: 32768"),
    ("goto end\n" + "r0 = 1\n" * 0x8000 + "end: exit", 1, 6, "gotol reaches further"),
    ("a: r0 = 1\na: exit", 2, 1, "the label a is defined twice"),
    ("r1: exit", 1, 1, "expected a label's name"),
    ("CONST: exit", 1, 1, "the label CONST has the name of a symbol"),
    ("call nothing", 1, 6, "nothing is neither a label nor a known helper"),
    ("call bpf_redirect#113", 1, 19, "helper 113 is not bpf_redirect"),
    ("(bf) (bf) r0 = r1", 1, 6, "expected an instruction, found '('"),
    ("(61) r0 = 0", 1, 2, "(61) is not the opcode of the instruction after it"),
    ("r0 = 1 /* never closed\nexit", 1, 8, "the comment has no end"),
    # Symbols.
    ("r0 = MISSING", 1, 6, "expected a register, a number"),
    ("r0 = BIG", 1, 6, "out of range"),
    ("r0 += MACRO", 1, 7, "MACRO is a macro: it stands only in `rN = MACRO`"),
    ("w0 = MACRO", 1, 1, "a 64-bit register on the left of the macro MACRO"),
    ("r0 = 1\nr7 = BAD", 2, 6, "in the macro BAD, its line 2 `r7 = bogus`: expected a register"),
    ("r7 = LOOP", 1, 6, "the macro LOOP uses itself"),
    ("r7 = FAR", 1, 6, "in the macro FAR, its line 1 `goto x`: the label x is not defined"),
    ("r7 = OUTER", 1, 6, "in the macro OUTER, its line 1 `r7 = BAD`: in the macro BAD, its line 2"),
]


@pytest.mark.parametrize(("text", "line", "column", "words"), ERRORS)
def test_an_error_names_the_place_and_what_was_expected(
    text: str, line: int, column: int, words: str
) -> None:
    with pytest.raises(AssemblyError) as caught:
        assemble(
            text,
            CONST=5,
            BIG=1 << 40,
            MACRO="$dst = 0",
            BAD="$dst = 0\n$dst = bogus",
            LOOP="$dst = LOOP",
            FAR="goto x",
            OUTER="$dst = BAD",
        )
    error = caught.value
    message, shown, caret = str(error).split("\n")
    assert words in message
    assert message.startswith(f"line {line}, column {column}: ")
    assert (error.line, error.column) == (line, column)
    assert shown == "    " + text.split("\n")[line - 1] or "never closed" in shown
    assert caret == " " * (4 + column - 1) + "^"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.line, copy.column) == (str(error), line, column)


def test_the_caret_is_right_after_tabs_and_in_long_lines() -> None:
    with pytest.raises(AssemblyError) as caught:
        assemble("\tr0\t= bogus")
    assert str(caught.value).split("\n")[1:] == ["    \tr0\t= bogus", "    \t  \t  ^"]
    with pytest.raises(AssemblyError) as caught:
        assemble("r0 = 1;" * 1000 + "r0 = bogus" + ";r0 = 1" * 1000)
    _, shown, caret = str(caught.value).split("\n")
    assert len(shown) <= 104
    assert shown[caret.index("^") :].startswith("bogus")
    assert caught.value.column == 7006


def test_constants_stand_for_immediates_and_offsets() -> None:
    text = """
        r0 = *(u16 *)skb[LENGTH]
        r0 = *(u16 *)skb[r7 + LENGTH]
        r0 = *(u8 *)(r1 + LENGTH - 1)
        r0 += HEADER + LENGTH
        if r0 > -HEADER goto +HEADER
        *(u32 *)(r10 - HEADER) = LENGTH
        r1 = HEADER ll
        call LENGTH
    """
    same = """
        r0 = *(u16 *)skb[2]
        r0 = *(u16 *)skb[r7 + 2]
        r0 = *(u8 *)(r1 + 1)
        r0 += 6
        if r0 > -4 goto +4
        *(u32 *)(r10 - 4) = 2
        r1 = 4 ll
        call 2
        exit
    """
    assert assemble(text + "exit", LENGTH=2, HEADER=4) == assemble(same)


def test_a_macro_is_replaced_by_its_lines_and_has_labels_of_its_own() -> None:
    macro = "$dst = 1  # one\nif $dst == K goto over\n$dst = 2\nover: ; $dst += 0"
    assert assemble("r7 = pick\nr8 = pick; goto end\nend: exit", pick=macro, K=3) == assemble(
        "r7 = 1\nif r7 == 3 goto +1\nr7 = 2\nr7 += 0\n"
        "r8 = 1\nif r8 == 3 goto +1\nr8 = 2\nr8 += 0\ngoto +0\nexit"
    )


def test_a_macro_may_jump_out_and_may_use_macros() -> None:
    text = "r7 = outer\nexit\nfail: r0 = 0\nexit"
    outer = "$dst = inner\nif $dst == 1 goto fail"
    assert assemble(text, outer=outer, inner="$dst = 5") == assemble(
        "r7 = 5\nif r7 == 1 goto +1\nexit\nr0 = 0\nexit"
    )


def test_macros_in_macros_have_a_limit() -> None:
    macros = {f"M{number}": f"$dst = M{number + 1}" for number in range(2000)}
    assert assemble("r1 = M1951", **macros, M2000="$dst = 1") == assemble("r1 = 1")
    with pytest.raises(AssemblyError, match="used in macros more than 50 deep"):
        assemble("r1 = M1950", **macros, M2000="$dst = 1")


@pytest.mark.parametrize("name", ["r1", "goto", "skb", "u8", "be16", "a b", "1x", "é"])
def test_a_symbol_needs_a_name_that_text_can_use(name: str) -> None:
    with pytest.raises(AssemblyError, match="a symbol can't be named"):
        assemble("exit", **{name: 1})


def test_only_text_and_symbols_of_the_right_types_are_taken() -> None:
    with pytest.raises(TypeError, match="assembly is text"):
        assemble(b"exit")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="symbol X is a float"):
        assemble("exit", X=1.5)  # type: ignore[arg-type]


def test_a_million_lines_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssemblyError, match="line 1000001: the text has 1000000 lines"):
        assemble("r0 = 0\n" * 1_000_000)
    monkeypatch.setattr(_instructions, "MAX_INSTRUCTIONS", 1000)
    assemble("; ".join(["r0 = 0 ll"] * 500))
    with pytest.raises(AssemblyError, match="line 1, column 1: the program is longer than 1000 "):
        assemble("; ".join(["r0 = 0 ll"] * 501))


def test_the_disassembly_reads_well() -> None:
    text = """\
    r6 = r1
    w1 = 5
    r0 = *(u16 *)skb[r7 + 2]
    if w0 s< -5 goto L11
    r1 = 0x1122334455667788 ll
    *(u32 *)(r10 - 4) = -1
    r1 = *(s8 *)(r10 - 4)
    call bpf_get_prandom_u32#7
    call function_12
    lock *(u64 *)(r10 - 8) += r1
L11:
    exit
function_12:
    r0 = be16 r0
    goto function_12
"""
    assert disassemble(assemble(text)) == text


def test_a_translated_call_is_disassembled() -> None:
    """Its immediate is a signed distance."""
    text = "    call unknown#-69024\n    call 2043456\n    exit\n"
    assert disassemble(assemble(text)) == text


MALFORMED = [
    (b"", "the code is empty"),
    (bytes(7), "7 bytes: a program is a multiple of 8"),
    (bytes(8), "instruction 0: unknown opcode 0x00"),
    (assemble("r0 = 1") + bytes.fromhex("ff00000000000000"), "instruction 1: unknown opcode 0xff"),
    (assemble("exit")[:1] + bytes.fromhex("01000000000000"), "instruction 0: the dst field is 1"),
    (bytes.fromhex("bfb0000000000000"), "instruction 0: there is no register r11"),
    (bytes.fromhex("b70b000000000000"), "instruction 0: there is no register r11"),
    (bytes.fromhex("2000010000000000"), "instruction 0: the offset field is 1 and must be 0"),
    (bytes.fromhex("2001000000000000"), "instruction 0: the dst field is 1 and must be 0"),
    (bytes.fromhex("2010000000000000"), "instruction 0: the src field is 1 and must be 0"),
    (bytes.fromhex("0500050000000000"), "instruction 0: it jumps out of the program"),
    (assemble("goto +0\nr0 = 1 ll")[:2] + b"\x01\0" + assemble("goto +0\nr0 = 1 ll")[4:], "middle"),
    (assemble("r0 = 1 ll")[:8], "the second half of the 64-bit load is missing"),
    (assemble("r0 = 1 ll")[:8] + assemble("exit"), "instruction 1: not the second half"),
    (bytes.fromhex("d400000008000000"), "instruction 0: no such byte swap"),
    (bytes.fromhex("db21000002000000"), "instruction 0: no such atomic operation: 0x2"),
    (bytes.fromhex("8530000000000000"), "instruction 0: no such kind of call: 3"),
    (bytes.fromhex("1890000000000000" + "00" * 8), "no such 64-bit load: source 9"),
    (bytes.fromhex("b70000000000000095") * 8 * 125_001, "the kernel takes at most 1000000"),
]


@pytest.mark.skipif(sys.byteorder != "little", reason="the bytes are written for little-endian")
@pytest.mark.parametrize(("code", "words"), MALFORMED, ids=lambda value: str(value)[:40])
def test_the_disassembler_refuses_what_is_no_program(code: bytes, words: str) -> None:
    with pytest.raises(AssemblyError) as caught:
        disassemble(code)
    assert words in str(caught.value)


def test_without_the_compiled_part_text_assembles_but_programs_do_not_load() -> None:
    """As on a platform that is not Linux."""
    script = """
import sys
sys.modules["pykcm._native"] = None
from pykcm import bpf
from pykcm.errors import UnavailableError
text = "    r0 = 0\\n    call 113\\n    exit\\n"
assert bpf.disassemble(bpf.assemble(text)) == text
for call in (
    lambda: bpf.assemble("call bpf_probe_read_kernel"),
    lambda: bpf.Program.load("r0 = 0; exit"),
    lambda: bpf.Program.from_pin("/sys/fs/bpf/x"),
):
    try:
        call()
    except UnavailableError:
        pass
    else:
        raise SystemExit("nothing was raised")
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert result.returncode == 0, result.stderr.decode()
