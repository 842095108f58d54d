"""The BPF instruction set: opcodes, their names, and the eight bytes of an instruction.

Source: RFC 9669.  The tables are read in both directions, by the assembler and the disassembler.
"""

from __future__ import annotations

import struct
import sys
from typing import Literal, NamedTuple

from pykcm.errors import AssemblyError

ByteOrder = Literal["little", "big"]
HOST: ByteOrder = sys.byteorder

SIZE = 8
"""Bytes in an instruction; one with a 64-bit immediate takes two such slots."""

MAX_INSTRUCTIONS = 1_000_000
"""The kernel takes no longer program (BPF_COMPLEXITY_LIMIT_INSNS in include/linux/bpf.h)."""

# Instruction classes, RFC 9669 section 3.1.
LD, LDX, ST, STX, ALU, JMP, JMP32, ALU64 = range(8)
IMM, REGISTER = 0x00, 0x08  # the source bit of the ALU and JMP classes

# Modes of the load and store classes, section 5.
MODE_IMM, MODE_ABS, MODE_IND, MODE_MEM, MODE_MEMSX, MODE_ATOMIC = (
    0x00,
    0x20,
    0x40,
    0x60,
    0x80,
    0xC0,
)
SIZE_CODES = {"u32": 0x00, "u16": 0x08, "u8": 0x10, "u64": 0x18}
SIGNED_SIZE_CODES = {"s32": 0x00, "s16": 0x08, "s8": 0x10}
BITS = {"u8": 8, "u16": 16, "u32": 32, "u64": 64, "s8": 8, "s16": 16, "s32": 32}

# Arithmetic, section 4.1.  An operator stands for an opcode and the value of the offset field.
MOV, NEG, END = 0xB0, 0x80, 0xD0
ALU_OPERATORS = {
    "+=": (0x00, 0),
    "-=": (0x10, 0),
    "*=": (0x20, 0),
    "/=": (0x30, 0),
    "s/=": (0x30, 1),
    "|=": (0x40, 0),
    "&=": (0x50, 0),
    "<<=": (0x60, 0),
    ">>=": (0x70, 0),
    "%=": (0x90, 0),
    "s%=": (0x90, 1),
    "^=": (0xA0, 0),
    "s>>=": (0xC0, 0),
}

# Byte swaps, section 4.2: the opcode and the width in bits.
SWAPS = {
    f"{name}{bits}": (opcode, bits)
    for name, opcode in (("le", ALU | END), ("be", ALU | END | 0x08), ("bswap", ALU64 | END))
    for bits in (16, 32, 64)
}

# Jumps, section 4.3.
JA, CALL, EXIT = 0x00, 0x80, 0x90
COMPARISONS = {
    "==": 0x10,
    ">": 0x20,
    ">=": 0x30,
    "&": 0x40,
    "!=": 0x50,
    "s>": 0x60,
    "s>=": 0x70,
    "<": 0xA0,
    "<=": 0xB0,
    "s<": 0xC0,
    "s<=": 0xD0,
}
GOTO, GOTOL, CALL_IMM, CALL_REGISTER, RETURN = (
    JMP | JA,
    JMP32 | JA,
    JMP | CALL,
    JMP | CALL | REGISTER,
    JMP | EXIT,
)
CALL_HELPER, CALL_LOCAL, CALL_BTF = 0, 1, 2  # what the source field of a call says

# Loads of 64-bit immediates, section 5.4: what the source field says.
LOAD_IMM64 = LD | MODE_IMM | SIZE_CODES["u64"]
(
    IMM64_VALUE,
    IMM64_MAP_FD,
    IMM64_MAP_VALUE,
    IMM64_VARIABLE,
    IMM64_CODE,
    IMM64_MAP_INDEX,
    IMM64_MAP_INDEX_VALUE,
) = range(7)

# Atomic operations, section 5.3: the immediate field.
FETCH = 0x01
ATOMICS = {"add": 0x00, "or": 0x40, "and": 0x50, "xor": 0xA0}
ATOMIC_OPERATORS = {"+=": 0x00, "|=": 0x40, "&=": 0x50, "^=": 0xA0}
XCHG, CMPXCHG = 0xE0 | FETCH, 0xF0 | FETCH


class Instruction(NamedTuple):
    """One slot of a program: eight bytes.

    Attributes:
        opcode: 0 to 255.
        dst: the destination register, 0 to 15 (a valid program has 0 to 10).
        src: the source register or another meaning that the opcode gives it, 0 to 15.
        offset: signed 16 bits.
        imm: signed 32 bits.
    """

    opcode: int
    dst: int = 0
    src: int = 0
    offset: int = 0
    imm: int = 0


def encode(instructions: list[Instruction], byteorder: ByteOrder = HOST) -> bytes:
    """The bytes of instructions whose fields are all in range (RFC 9669, section 3)."""
    if byteorder == "little":
        pack = struct.Struct("<BBhi").pack
        return b"".join(
            [pack(op, dst | src << 4, offset, imm) for op, dst, src, offset, imm in instructions]
        )
    pack = struct.Struct(">BBhi").pack
    return b"".join(
        [pack(op, dst << 4 | src, offset, imm) for op, dst, src, offset, imm in instructions]
    )


def count(code: bytes) -> int:
    """How many slots a program has.

    Raises:
        AssemblyError: the length is 0, not a multiple of 8, or over a million instructions.
    """
    if not code:
        raise AssemblyError("the code is empty: a program has at least one instruction")
    slots, rest = divmod(len(code), SIZE)
    if rest:
        raise AssemblyError(
            f"the code has {len(code)} bytes: a program is a multiple of {SIZE} bytes"
        )
    if slots > MAX_INSTRUCTIONS:
        raise AssemblyError(
            f"the code has {slots} instructions: the kernel takes at most {MAX_INSTRUCTIONS}"
        )
    return slots


def decode(code: bytes, byteorder: ByteOrder = HOST) -> list[Instruction]:
    """The slots of a program.

    Raises:
        AssemblyError: as of `count`.
    """
    count(code)
    if byteorder == "little":
        return [
            Instruction(op, registers & 15, registers >> 4, offset, imm)
            for op, registers, offset, imm in struct.iter_unpack("<BBhi", code)
        ]
    return [
        Instruction(op, registers >> 4, registers & 15, offset, imm)
        for op, registers, offset, imm in struct.iter_unpack(">BBhi", code)
    ]
