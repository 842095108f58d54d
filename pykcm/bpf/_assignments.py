"""Statements with a register on the left: arithmetic, moves, loads and atomic calls."""

from __future__ import annotations

from collections.abc import Mapping

from pykcm.bpf import _instructions as isa
from pykcm.bpf._lexer import ATOMIC_CALLS, IMM64_CALLS, REGISTERS, StatementError
from pykcm.bpf._parser import U32_MAX, U64_MAX, Parser


def arithmetic(p: Parser, dst: int, wide: bool) -> None:
    """What follows a register on the left: `+= 5`, `= *(u32 *)(r1 + 4)`."""
    operator = p.tokens[p.at]
    found = isa.ALU_OPERATORS.get(operator)
    if found is None:
        if operator != "=":
            p.fail("'=' or an operator such as '+='")
        p.at += 1
        _assignment(p, dst, wide)
        return
    p.at += 1
    opcode, offset = found
    opcode |= isa.ALU64 if wide else isa.ALU
    if p.tokens[p.at] in REGISTERS:
        p.emit(opcode | isa.REGISTER, dst, p.register(wide), offset)
    else:
        p.emit(opcode, dst, 0, offset, p.operand(wide))


def _assignment(p: Parser, dst: int, wide: bool) -> None:
    tokens = p.tokens
    token = tokens[p.at]
    alu = isa.ALU64 if wide else isa.ALU
    if token in REGISTERS:
        p.emit(alu | isa.MOV | isa.REGISTER, dst, p.register(wide))
        if tokens[p.at] in ("+", "-", "*", "/"):
            p.fail("the end of the statement (write `rN += …` on a line of its own)")
    elif token == "*":
        p.at += 1
        _load(p, dst, wide)
    elif token == "(":
        _extension(p, dst, wide)
    elif token == "-" and tokens[p.at + 1] in REGISTERS:
        p.at += 1
        p.same_register(dst, wide)
        p.emit(alu | isa.NEG, dst)
    elif token in isa.SWAPS:
        if not wide:
            p.fail("a 64-bit register on the left: rN = " + token + " rN", p.start)
        p.at += 1
        opcode, bits = isa.SWAPS[token]
        p.same_register(dst)
        p.emit(opcode, dst, 0, 0, bits)
    elif token in ATOMIC_CALLS:
        _atomic_call(p, dst, wide)
    elif token in IMM64_CALLS:
        _imm64_call(p, dst, wide)
    elif p.is_value():
        _load_immediate(p, dst, wide)
    else:
        p.fail("a register, a number, a load such as *(u32 *)(r1 + 0) or a macro's name")


def _load_immediate(p: Parser, dst: int, wide: bool) -> None:
    start = p.at
    value = p.value()
    if p.tokens[p.at] != "ll":
        p.at = start
        p.emit((isa.ALU64 if wide else isa.ALU) | isa.MOV, dst, 0, 0, p.operand(wide))
        return
    if not wide:
        p.fail("the end of the statement: a 64-bit immediate needs a 64-bit register")
    if not -(1 << 63) <= value <= U64_MAX:
        raise StatementError(start, "the immediate is out of range: it has 64 bits")
    p.at += 1
    p.emit_imm64(dst, isa.IMM64_VALUE, value)


def _load(p: Parser, dst: int, wide: bool) -> None:
    types: Mapping[str, int] = {**isa.SIZE_CODES, **isa.SIGNED_SIZE_CODES}
    type_at = p.at + 1
    name = p.pointer_type(types)
    if p.tokens[p.at] == "skb":
        if (dst, wide) != (0, True):
            p.fail("r0: a packet load always loads r0", p.start)
        if name not in ("u8", "u16", "u32"):
            p.fail("u8, u16 or u32", type_at)
        p.at += 1
        _packet_load(p, isa.SIZE_CODES[name])
        return
    if p.tokens[p.at] != "(":
        p.fail("'(' and a pointer, or 'skb['")
    if not wide and name in ("u64", "s8", "s16", "s32"):
        p.fail("u8, u16 or u32 for a 32-bit register", type_at)
    src, offset = p.address()
    if name in isa.SIZE_CODES:
        p.emit(isa.LDX | isa.MODE_MEM | isa.SIZE_CODES[name], dst, src, offset)
    else:
        p.emit(isa.LDX | isa.MODE_MEMSX | isa.SIGNED_SIZE_CODES[name], dst, src, offset)


def _packet_load(p: Parser, size: int) -> None:
    """`[14]`, `[r7]` or `[r7 + 2]`."""
    p.take("[")
    if p.tokens[p.at] in REGISTERS:
        src = p.register()
        imm = p.imm(64) if p.is_sum() else 0
        p.take("]")
        p.emit(isa.LD | isa.MODE_IND | size, 0, src, 0, imm)
    else:
        if not p.is_value() and p.tokens[p.at] not in p.macros:
            p.fail("a register, r0 to r10, or a number")
        imm = p.imm(64)
        p.take("]")
        p.emit(isa.LD | isa.MODE_ABS | size, 0, 0, 0, imm)


def _extension(p: Parser, dst: int, wide: bool) -> None:
    """`(s16)r1`: a move that extends the sign."""
    p.take("(")
    types = isa.SIGNED_SIZE_CODES if wide else {"s8": 0, "s16": 0}
    bits = isa.BITS[p.type(types)]
    p.take(")")
    src = p.register(wide)
    alu = isa.ALU64 if wide else isa.ALU
    p.emit(alu | isa.MOV | isa.REGISTER, dst, src, bits)


def _atomic_call(p: Parser, dst: int, wide: bool) -> None:
    """`atomic_fetch_add((u64 *)(r1 + 0), r2)` and its like, as LLVM or the kernel writes them.

    The kernel writes rN for the registers of 32-bit ones too.
    """
    operation, bound, style = ATOMIC_CALLS[p.tokens[p.at]]
    p.at += 1
    p.take("(")
    if style == "bare":
        size = bound or "u64"
        base = p.register()
        offset = p.offset()
    else:
        types = {bound: 0} if bound else {"u32": 0, "u64": 0}
        size = p.pointer_type(types)
        base, offset = p.address()
    if size == "u64" and not wide:
        p.fail("a 64-bit register on the left of a 64-bit operation", p.start)
    p.take(",")
    if operation == "cmpxchg":
        if dst != 0:
            p.fail("r0 on the left of a cmpxchg", p.start)
        p.same_register(0, wide)
        p.take(",")
        src, imm = p.register(wide), isa.CMPXCHG
    else:
        p.same_register(dst, wide)
        src = dst
        imm = isa.XCHG if operation == "xchg" else isa.ATOMICS[operation] | isa.FETCH
    p.take(")")
    p.emit(isa.STX | isa.MODE_ATOMIC | isa.SIZE_CODES[size], base, src, offset, imm)


def _imm64_call(p: Parser, dst: int, wide: bool) -> None:
    """RFC 9669, section 5.4: `map_by_fd(3)`, `map_val(map_by_fd(3)) + 8`, `code_addr(f)`."""
    name = p.tokens[p.at]
    if not wide:
        p.fail("a 64-bit register on the left", p.start)
    p.at += 1
    p.take("(")
    if name == "code_addr":
        p.jump_target(in_imm=True)
        p.take(")")
        p.emit_imm64(dst, isa.IMM64_CODE, 0)
        return
    low = high = 0
    if name == "map_val":
        inner = p.tokens[p.at]
        if inner not in ("map_by_fd", "map_by_idx"):
            p.fail("map_by_fd or map_by_idx")
        p.at += 1
        p.take("(")
        low = p.imm(32)
        p.take(")")
        p.take(")")
        p.take("+")
        high = p.imm(32)
        src = isa.IMM64_MAP_VALUE if inner == "map_by_fd" else isa.IMM64_MAP_INDEX_VALUE
    else:
        low = p.imm(32)
        p.take(")")
        src = {
            "map_by_fd": isa.IMM64_MAP_FD,
            "map_by_idx": isa.IMM64_MAP_INDEX,
            "var_addr": isa.IMM64_VARIABLE,
        }[name]
    p.emit_imm64(dst, src, (low & U32_MAX) | (high & U32_MAX) << 32)
