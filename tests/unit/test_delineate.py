"""The delineation program in C: what it refuses to run, and that it never leaves its memory."""

from __future__ import annotations

import errno
import os
import random
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykcm import bpf, protocols
from pykcm._binding import ffi, lib
from pykcm._offset import NONE
from pykcm.bpf import _instructions as isa
from pykcm.framing import CustomFraming, Delimiter, Framing, LengthField
from pykcm.framing.delineate import Delineator
from tests import framing_fuzz
from tests.framing_fuzz import NEAR, make_data
from tests.protocol_streams import STREAMS, messages

ROOT = Path(__file__).parents[2]
SEED = 20240607


def check(code: bytes) -> int:
    program = ffi.cast("struct bpf_insn *", ffi.from_buffer("char[]", code))
    result: int = lib.pykcm_delineate_check(program, len(code) // isa.SIZE)
    return result


def run(code: bytes, data: bytes = b"") -> int:
    assert check(code) == 0
    program = ffi.cast("struct bpf_insn *", ffi.from_buffer("char[]", code))
    result: int = lib.pykcm_delineate(program, data, len(data))
    return result


@pytest.mark.parametrize("name", STREAMS)
def test_it_runs_every_framing(name: str) -> None:
    framing, _ = STREAMS[name]
    rng = random.Random(f"{SEED} {name}")
    sent = messages(name, rng, 300, 5000)
    delineator = Delineator(framing)
    assert delineator.divide(b"".join(sent)) == [len(message) for message in sent]
    assert delineator.divide(b"".join(sent) + sent[0][:-1]) == [len(message) for message in sent]
    assert delineator.divide(b"") == []
    for message in sent[:20]:
        assert delineator.measure(memoryview(message)) == len(message)


@pytest.mark.parametrize(
    "text",
    [
        "r0 = 1",  # runs past the end
        "r1 = 5 ll",
        "r0 = 1\nif r0 == 0 goto -2",
        "call 113\nexit",
        "callx r1\nexit",
        "w0 = 1\nexit",
        "r0 = *(u32 *)skb[4]\nexit",
        "r0 = *(s32 *)(r10 - 8)\nexit",
        "*(u32 *)(r10 - 8) = 5\nexit",
        "lock *(u64 *)(r10 - 8) += r0\nexit",
        "r0 = (s8)r0\nexit",
        "r0 s/= 5\nexit",
        "r0 = bswap16 r0\nexit",
        "if w0 == 0 goto +0\nexit",
        "if r0 & 1 goto +0\nexit",
        "gotol +0\nexit",
        "r0 = map_by_fd(3)\nexit",
        ".quad 0\nexit",
    ],
)
def test_what_it_does_not_know(text: str) -> None:
    assert check(bpf.assemble(text)) == -errno.EINVAL


def test_what_no_assembler_makes() -> None:
    exit_ = isa.Instruction(isa.RETURN)
    load = [isa.Instruction(isa.LOAD_IMM64), isa.Instruction(0)]
    for distance in (-3, 1, 4, 100, -0x8000):  # outside, or into the middle of the 64-bit load
        jump = isa.Instruction(isa.GOTO, 0, 0, distance)
        assert check(isa.encode([jump, *load, exit_])) == -errno.EINVAL, distance
        call = isa.Instruction(isa.CALL_IMM, 0, isa.CALL_LOCAL, 0, distance)
        assert check(isa.encode([call, *load, exit_])) == -errno.EINVAL, distance
    assert check(isa.encode([load[0], exit_, exit_])) == -errno.EINVAL
    assert check(isa.encode([load[0], load[1]._replace(src=1), exit_])) == -errno.EINVAL
    for bad in (
        isa.Instruction(isa.ALU64 | isa.MOV, 10),  # r10 is not to be written
        isa.Instruction(isa.ALU64 | isa.MOV, 11),
        isa.Instruction(isa.ALU64 | isa.MOV | isa.REGISTER, 0, 12),
        isa.Instruction(isa.ALU64 | 0x30, 0, 0, 0, 0),  # a division by 0
        isa.Instruction(isa.ALU64 | 0x60, 0, 0, 0, 64),  # a shift by 64
        isa.Instruction(isa.ALU | isa.END, 0, 0, 0, 24),
    ):
        assert check(isa.encode([bad, exit_])) == -errno.EINVAL, bad
    assert check(isa.encode([exit_])) == 0
    with pytest.raises(ValueError, match="only the kernel"):
        Delineator(CustomFraming("w0 = 5\nexit"))


def test_what_a_program_may_not_do() -> None:
    for text in (
        "r0 = *(u64 *)(r10 + 0)\nexit",
        "r0 = *(u64 *)(r10 - 1032)\nexit",
        "r0 = *(u32 *)(r1 + 4)\nexit",
        "r0 = *(u64 *)(r1 + 0)\nexit",
        "r2 = 0\n*(u64 *)(r2 + 0) = r2\nexit",
        "r3 = r10\nr2 = 0\nr4 = 5\ncall 26\nexit",
        "r3 = r10\nr3 += -8\nr1 = 0\nr2 = 0\nr4 = 5\ncall 26\nexit",
        "call pc+1\nexit\ncall pc+1\nexit\nr0 = 0\nexit",  # one function, and none from it
    ):
        assert run(bpf.assemble(text), b"12345678") == -errno.EFAULT, text
    assert run(bpf.assemble("goto -1")) == -errno.ELOOP


def test_arithmetic_is_the_kernels() -> None:
    """Each operation on numbers at the edges, against the kernel's own."""
    numbers = (0, 1, 7, 63, 64, 1 << 31, (1 << 32) - 1, 1 << 63, (1 << 64) - 1)
    lines = []
    for operator in ("+", "-", "*", "/", "%", "|", "&", "^", "<<", ">>", "s>>"):
        lines += [f"r3 = r1; r3 {operator}= r2; r0 ^= r3; r0 *= 31"]
    for operator in ("==", "!=", "<", "<=", ">", ">=", "s<", "s<=", "s>", "s>="):
        lines += [f"r0 *= 31; if r1 {operator} r2 goto +1; r0 += 7"]
    for swap in ("be16", "be32", "be64", "le16", "le32", "le64"):
        lines += [f"r3 = r1; r3 = {swap} r3; r0 ^= r3"]
    lines += ["r3 = r1; r3 = -r3; r0 ^= r3", "r3 = r1; r3 s>>= 7; r0 ^= r3"]
    for a in numbers:
        for b in numbers:
            start = f"r6 = r1; r1 = {a:#x} ll; r2 = {b:#x} ll; r0 = 1"
            # The result is 31 bits: KCM's is an int.
            code = bpf.assemble("\n".join([start, *lines, "r1 = r0; r1 >>= 33; r0 ^= r1", "exit"]))
            assert run(code, b"x") == framing_fuzz.in_kernel(code, b"x"), (a, b)


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    assert compiler, "no C compiler, which building pykcm takes too"
    target = tmp_path_factory.mktemp("delineate") / "harness"
    sources = [ROOT / "tests/unit/delineate_harness.c", ROOT / "pykcm/_delineate.c"]
    subprocess.run(
        [
            *(compiler, "-g", "-O1", "-Wall", "-Wextra", "-Werror", "-I", str(ROOT / "pykcm")),
            *("-fsanitize=address,undefined", "-fno-sanitize-recover=all"),
            *(str(path) for path in (*sources, "-o", target)),
        ],
        check=True,
    )
    return target


def harness_says(harness: Path, cases: list[tuple[bytes, bytes]]) -> list[list[int]]:
    text = b"".join(
        struct.pack("=I", len(code) // isa.SIZE) + code + struct.pack("=I", len(data)) + data
        for code, data in cases
    )
    result = subprocess.run(
        [harness],
        input=text,
        capture_output=True,
        timeout=100,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},
    )
    assert result.returncode == 0, result.stderr.decode()[-3000:]
    return [[int(word) for word in line.split()] for line in result.stdout.splitlines()]


def every_program() -> Iterator[tuple[Framing, bytes]]:
    for framing, _ in STREAMS.values():
        for strategy in (NONE, NEAR):
            for batch in (1, 7):
                if batch == 1 or not isinstance(framing, CustomFraming):
                    yield framing, bpf.assemble(framing.assembly(strategy, batch))


def test_under_the_sanitizers(harness: Path) -> None:
    rng = random.Random(SEED)
    cases, expected = [], []
    for name, (framing, _) in STREAMS.items():
        delineator = Delineator(framing)
        streams = [b"".join(messages(name, rng, 9)) for _ in range(10)]
        for whole in streams:
            data = whole[: rng.randint(0, len(whole))]
            cases.append((delineator.code, data))
            lengths = delineator.divide(data)[:64]
            expected.append([0, delineator.measure(data), len(lengths), sum(lengths)])
    assert harness_says(harness, cases) == expected
    programs = list(every_program())
    cases = [(code, make_data(rng, framing)) for framing, code in programs for _ in range(20)]
    assert all(said[0] == 0 for said in harness_says(harness, cases))


def test_damaged_programs_under_the_sanitizers(harness: Path) -> None:
    """Programs that no verifier has seen: refused, or run to an end inside of their memory."""
    rng = random.Random(SEED)
    programs = list(every_program())
    cases = []
    for _ in range(6000):
        framing, code = rng.choice(programs)
        damaged = bytearray(code)
        for _ in range(rng.randint(1, 3)):
            at = rng.randrange(len(damaged))
            damaged[at] = rng.choice((rng.randrange(256), damaged[at] ^ 1 << rng.randrange(8)))
        cases.append((bytes(damaged), make_data(rng, framing)))
    outcomes = [said[0] for said in harness_says(harness, cases)]
    assert len(outcomes) == len(cases)
    # Neither all refused nor all run.
    assert 500 < outcomes.count(0) < 5900


def test_measure_without_the_compiled_part() -> None:
    script = """
import sys
sys.modules["pykcm._native"] = None
from pykcm.framing import Delimiter, LengthField
assert LengthField(size=2).measure(b"\\0\\5") == 7
assert Delimiter(b"x").measure(b"abx") == 3
"""
    subprocess.run(["python3", "-c", script], check=True, cwd=ROOT, timeout=60)


def test_measure_says_why_a_header_is_refused() -> None:
    with pytest.raises(ValueError, match="a length of 7 is over the maximum, 6"):
        LengthField(size=2, max_length=6).measure(b"\0\5")
    with pytest.raises(ValueError, match="within 5 bytes"):
        Delimiter(b"\n", 5).measure(b"123456")
    assert protocols.DNS.measure(bytearray(b"\0\x20")) == 34
