"""The lines of a text, and the statements that begin with a word: jumps, calls, stores."""

from __future__ import annotations

from pykcm.bpf import _helpers
from pykcm.bpf import _instructions as isa
from pykcm.bpf._assignments import arithmetic
from pykcm.bpf._lexer import (
    NAME,
    REGISTERS,
    RESERVED,
    TOKEN,
    Block,
    Place,
    StatementError,
    error_at,
    outermost,
)
from pykcm.bpf._parser import S32_MAX, S32_MIN, U64_MAX, Parser

_DEPTH = 50  # of macros in macros; an interpreter's stack holds more


def read(p: Parser, block: Block) -> None:
    """Assemble a block's lines.

    The place in the block before is the caller's to restore.

    Raises:
        AssemblyError: a line is not an instruction.
    """
    findall = TOKEN.findall
    p.block = block
    user_line = outermost(Place(block, 0, 0)).line if block.user else None
    for number, line in enumerate(block.lines):
        tokens = findall(line)
        if not tokens:
            continue
        tokens.append("")
        p.tokens, p.at, p.line = tokens, 0, number
        try:
            while True:
                _statement(p)
                token = p.tokens[p.at]
                if token == ";":
                    p.at += 1
                elif not token:
                    break
                else:
                    p.fail("the end of the statement")
            if len(p.code) > isa.MAX_INSTRUCTIONS:
                raise StatementError(
                    0, f"the program is longer than {isa.MAX_INSTRUCTIONS} instructions"
                )
        except StatementError as error:
            raise error_at(Place(block, number, error.token), error.message) from None
        made = len(p.code) - len(p.lines)
        if made:
            p.lines += [(number if user_line is None else user_line) + 1] * made


def _statement(p: Parser) -> None:
    tokens, at = p.tokens, p.at
    while tokens[at + 1 : at + 2] == [":"]:
        _label(p, tokens[at])
        p.at = at = at + 2
    if tokens[at] == "(" and tokens[at + 2 : at + 3] == [")"]:
        _annotated(p)
    else:
        _instruction(p)


def _instruction(p: Parser) -> None:
    tokens, at = p.tokens, p.at
    p.start = at
    first = tokens[at]
    if register := REGISTERS.get(first):
        if tokens[at + 1] == "=" and tokens[at + 2] in p.macros:
            p.at = at + 2
            _expand(p, *register)
        else:
            p.at = at + 1
            arithmetic(p, *register)
    elif statement := _STATEMENTS.get(first):
        p.at = at + 1
        statement(p)
    elif first not in ("", ";"):
        if tokens[at + 1] in isa.ALU_OPERATORS or tokens[at + 1] == "=":
            p.fail("a register, r0 to r10 or w0 to w10")
        if at and tokens[at - 1] == ";":
            p.fail("an instruction after the ';' (a comment starts with '#' or '//')")
        p.fail("an instruction")


def _label(p: Parser, name: str) -> None:
    block = p.block
    if name.isascii() and name.isdigit():
        block.numbered.setdefault(name, []).append(len(p.code))
        return
    if not NAME.fullmatch(name) or name in RESERVED:
        p.fail("a label's name")
    if name in block.labels:
        raise StatementError(p.at, f"the label {name} is defined twice")
    if name in p.constants or name in p.macros:
        raise StatementError(p.at, f"the label {name} has the name of a symbol")
    block.labels[name] = len(p.code)


def _annotated(p: Parser) -> None:
    """`(bf) r0 = r1`, as the verifier and bpftool print it: the opcode must be that."""
    place = p.at + 1
    text = p.tokens[place]
    try:
        opcode = int(text, 16)
    except ValueError:
        p.fail("an instruction")
    slot = len(p.code)
    p.at += 3
    _instruction(p)
    if len(p.code) == slot or p.code[slot].opcode != opcode:
        raise StatementError(place, f"({text}) is not the opcode of the instruction after it")


def _expand(p: Parser, dst: int, wide: bool) -> None:
    """`r7 = NAME`: the macro's lines, with r7 for $dst."""
    name = p.tokens[p.at]
    if not wide:
        p.fail(f"a 64-bit register on the left of the macro {name}", p.start)
    place = Place(p.block, p.line, p.at)
    block: Block | None = p.block
    depth = 0
    while block is not None:
        if block.macro == name:
            raise StatementError(p.at, f"the macro {name} uses itself")
        block = block.user.block if block.user else None
        depth += 1
    if depth > _DEPTH:
        raise StatementError(p.at, f"macros are used in macros more than {_DEPTH} deep")
    text = p.macros[name].replace("$dst", f"r{dst}")
    saved = p.block, p.line, p.tokens, p.at + 1
    read(p, Block(text, name, place))
    p.block, p.line, p.tokens, p.at = saved


def _store(p: Parser) -> None:
    """`*(u32 *)(r10 - 4) = r1`."""
    name = p.pointer_type(isa.SIZE_CODES)
    size = isa.SIZE_CODES[name]
    dst, offset = p.address()
    p.take("=")
    if p.tokens[p.at] in REGISTERS:
        src = p.register(True if name == "u64" else None)
        p.emit(isa.STX | isa.MODE_MEM | size, dst, src, offset)
    else:
        if not p.is_value() and p.tokens[p.at] not in p.macros:
            p.fail("a register or a number")
        p.emit(isa.ST | isa.MODE_MEM | size, dst, 0, offset, p.imm(isa.BITS[name]))


def _lock(p: Parser) -> None:
    """`lock *(u64 *)(r1 + 0) += r2`."""
    p.take("*")
    name = p.pointer_type({"u32": 0, "u64": 0})
    dst, offset = p.address()
    operator = p.tokens[p.at]
    if operator not in isa.ATOMIC_OPERATORS:
        p.fail("'+=', '|=', '&=' or '^='")
    p.at += 1
    src = p.register(True if name == "u64" else None)
    opcode = isa.STX | isa.MODE_ATOMIC | isa.SIZE_CODES[name]
    p.emit(opcode, dst, src, offset, isa.ATOMIC_OPERATORS[operator])


def _if(p: Parser) -> None:
    """`if r1 s< -5 goto label`."""
    wide = REGISTERS.get(p.tokens[p.at], (0, True))[1]
    dst = p.register(wide)
    operator = p.tokens[p.at]
    if operator not in isa.COMPARISONS:
        p.fail("a comparison such as '==' or 's<'")
    p.at += 1
    opcode = isa.COMPARISONS[operator] | (isa.JMP if wide else isa.JMP32)
    src = imm = 0
    if p.tokens[p.at] in REGISTERS:
        opcode |= isa.REGISTER
        src = p.register(wide)
    else:
        imm = p.operand(wide)
    p.take("goto")
    p.jump_target(in_imm=False)
    p.emit(opcode, dst, src, 0, imm)


def _goto(p: Parser) -> None:
    p.jump_target(in_imm=False)
    p.emit(isa.GOTO)


def _gotol(p: Parser) -> None:
    p.jump_target(in_imm=True)
    p.emit(isa.GOTOL)


def _call(p: Parser) -> None:
    """`call 113`, `call bpf_probe_read_kernel`, that with `#113` after it, `call function`."""
    tokens, at = p.tokens, p.at
    token = tokens[at]
    if token == "pc":
        p.jump_target(in_imm=True)
        p.emit(isa.CALL_IMM, 0, isa.CALL_LOCAL)
    elif tokens[at : at + 4] == ["kernel", "-", "function", "#"]:
        p.at += 4
        number = p.ranged(0, S32_MAX, "the BTF id")
        p.emit(isa.CALL_IMM, 0, isa.CALL_BTF, 0, number)
    elif p.is_value() and token not in ("+", "-"):
        number = p.ranged(0, S32_MAX, "the helper's number")
        p.emit(isa.CALL_IMM, 0, isa.CALL_HELPER, 0, number)
    elif NAME.fullmatch(token) and token not in RESERVED:
        p.jump_target(in_imm=True)
        if tokens[p.at] == "#":
            p.at += 1
            number_at = p.at
            number = p.ranged(S32_MIN, S32_MAX, "the helper's number")
            if _helpers.by_number().get(number, token) != token:
                raise StatementError(number_at, f"helper {number} is not {token}")
            p.jumps.pop()
            p.emit(isa.CALL_IMM, 0, isa.CALL_HELPER, 0, number)
        else:
            # Whether the name is a label is known at the end of the text only.
            p.emit(isa.CALL_IMM, 0, isa.CALL_LOCAL)
    else:
        p.fail("a helper's name or number, a label, or pc+N")


def _callx(p: Parser) -> None:
    p.emit(isa.CALL_REGISTER, p.register())


def _exit(p: Parser) -> None:
    p.emit(isa.RETURN)


def _ld_pseudo(p: Parser) -> None:
    """`ld_pseudo r1, 3, 0x100000005`, LLVM's: the source field and all 64 bits, as they are."""
    dst = p.register()
    p.take(",")
    src = p.ranged(0, 15, "the source field")
    p.take(",")
    p.emit_imm64(dst, src, p.ranged(-(1 << 63), U64_MAX, "the immediate"))


def _quad(p: Parser) -> None:
    """`.quad 0x95`: a slot as one number."""
    value = p.ranged(0, U64_MAX, "the instruction")
    p.code += isa.decode(value.to_bytes(8, "little"), "little")


_STATEMENTS = {
    "*": _store,
    "if": _if,
    "goto": _goto,
    "gotol": _gotol,
    "call": _call,
    "callx": _callx,
    "exit": _exit,
    "lock": _lock,
    "ld_pseudo": _ld_pseudo,
    ".quad": _quad,
}
