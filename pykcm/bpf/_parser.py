"""The statement at hand: its pieces, read token by token, and the code that is made of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, NoReturn

from pykcm.bpf import _instructions as isa
from pykcm.bpf._instructions import Instruction
from pykcm.bpf._lexer import NAME, REGISTERS, RESERVED, SHOWN, Block, Place, StatementError

S32_MIN, S32_MAX, U32_MAX = -(1 << 31), (1 << 31) - 1, (1 << 32) - 1
U64_MAX = (1 << 64) - 1


class Jump(NamedTuple):
    """A slot whose target is not known before the whole text was read."""

    slot: int
    place: Place
    target: str | int  # a label, or slots to skip
    in_imm: bool  # the distance goes into the immediate, not into the offset


class Parser:
    """What is known at a token of the text.

    Attributes:
        constants: the symbols that stand for numbers.
        macros: the symbols that stand for lines.
        code: the instructions so far.
        lines: for each of them the line of the text that it comes from, from 1.
        jumps: those of them whose targets are to be filled in.
        seconds: the second slots of 64-bit loads.
        block: the text, or the macro's, that is read.
        line: the line's index in it, from 0.
        tokens: the line's tokens, with "" after the last.
        start: the index of the statement's first token.
        at: the index of the next token.
    """

    def __init__(self, constants: dict[str, int], macros: dict[str, str]) -> None:
        self.constants = constants
        self.macros = macros
        self.code: list[Instruction] = []
        self.lines: list[int] = []
        self.jumps: list[Jump] = []
        self.seconds: set[int] = set()
        self.block = Block("")
        self.line = 0
        self.tokens: list[str] = [""]
        self.start = self.at = 0

    def fail(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        found = self.tokens[at]
        shown = "the end of the line" if not found else repr(found[:SHOWN])
        raise StatementError(at, f"expected {expected}, found {shown}")

    def take(self, token: str) -> None:
        if self.tokens[self.at] != token:
            self.fail(f"'{token}'")
        self.at += 1

    def register(self, wide: bool | None = True) -> int:
        """A register: 64-bit, 32-bit, or with None either."""
        found = REGISTERS.get(self.tokens[self.at])
        if found is None or (wide is not None and found[1] != wide):
            names = {True: "r0 to r10", False: "w0 to w10", None: "r0 to r10 or w0 to w10"}[wide]
            self.fail(f"a register, {names}")
        self.at += 1
        return found[0]

    def same_register(self, register: int, wide: bool | None = True) -> None:
        at = self.at
        if self.register(wide) != register:
            self.fail(f"{'w' if wide is False else 'r'}{register} again", at)

    def is_value(self) -> bool:
        token = self.tokens[self.at]
        return token in ("-", "+") or token[:1].isdigit() or token in self.constants

    def value(self, what: str = "a number or a constant") -> int:
        """A sum of numbers and constants."""
        tokens = self.tokens
        negative = False
        if tokens[self.at] in ("-", "+"):
            negative = tokens[self.at] == "-"
            self.at += 1
        total = self._term(what)
        if negative:
            total = -total
        while (sign := tokens[self.at]) in ("+", "-"):
            self.at += 1
            term = self._term(what)
            total = total + term if sign == "+" else total - term
        return total

    def _term(self, what: str) -> int:
        token = self.tokens[self.at]
        if token[:1].isdigit():
            try:
                value = int(token, 0)
            except ValueError:
                self.fail(f"{what} such as 10, 0x0a or 0b1010")
        elif token in self.constants:
            value = self.constants[token]
        elif token in self.macros:
            raise StatementError(self.at, f"{token} is a macro: it stands only in `rN = {token}`")
        else:
            self.fail(what)
        self.at += 1
        return value

    def imm(self, bits: int) -> int:
        """An immediate that is used with so many bits, as the field's signed 32.

        At 64 bits the machine extends the sign, so that only what the extension gives can be had.
        """
        at = self.at
        value = self.value()
        if S32_MIN <= value <= S32_MAX and bits >= 32:
            return value
        if bits == 64:
            if U64_MAX + S32_MIN < value <= U64_MAX:
                return value - U64_MAX - 1
            raise StatementError(
                at,
                "the immediate is out of range: it has 32 bits, signed, "
                f"{S32_MIN} to {S32_MAX}; `rN = VALUE ll` loads 64",
            )
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise StatementError(
                at,
                f"the immediate is out of range: it has {bits} bits, "
                f"{-(1 << (bits - 1))} to {(1 << bits) - 1}",
            )
        return _signed(value)

    def ranged(self, low: int, high: int, what: str) -> int:
        at = self.at
        value = self.value()
        if not low <= value <= high:
            raise StatementError(at, f"{what} is out of range: {low} to {high}")
        return value

    def is_sum(self) -> bool:
        """Whether `+ 4` or `- 4` follows.  Of `+ -4`, as LLVM writes it, the '+' is skipped."""
        tokens, at = self.tokens, self.at
        if tokens[at] == "+" and tokens[at + 1] in ("-", "+"):
            self.at += 1
        return tokens[at] in ("+", "-")

    def offset(self) -> int:
        """What may follow a pointer's register: nothing, `+ 4`, `-4`, `+ NAME - 2`."""
        return self.ranged(-0x8000, 0x7FFF, "the offset") if self.is_sum() else 0

    def address(self) -> tuple[int, int]:
        """`(r1 + 4)`: the register and the offset."""
        self.take("(")
        register = self.register()
        offset = self.offset()
        self.take(")")
        return register, offset

    def type(self, names: Mapping[str, int]) -> str:
        name = self.tokens[self.at]
        if name not in names:
            self.fail("a type, one of " + " ".join(sorted(names, key=lambda n: isa.BITS[n])))
        self.at += 1
        return name

    def pointer_type(self, names: Mapping[str, int]) -> str:
        """`(u32 *)`: the type's name."""
        self.take("(")
        name = self.type(names)
        self.take("*")
        self.take(")")
        return name

    def operand(self, wide: bool) -> int:
        if not self.is_value() and self.tokens[self.at] not in self.macros:
            self.fail(
                f"a register, {'r' if wide else 'w'}0 to {'r' if wide else 'w'}10, or a number"
            )
        return self.imm(64 if wide else 32)

    def emit(self, opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> None:
        self.code.append(Instruction(opcode, dst, src, offset, imm))

    def emit_imm64(self, dst: int, src: int, value: int) -> None:
        low, high = value & U32_MAX, value >> 32 & U32_MAX
        self.emit(isa.LOAD_IMM64, dst, src, 0, _signed(low))
        self.seconds.add(len(self.code))
        self.emit(0, 0, 0, 0, _signed(high))

    def jump_target(self, in_imm: bool) -> None:
        """A label, `+3`, `pc+3` or `1f`, for the slot that is emitted next."""
        tokens = self.tokens
        if tokens[self.at] == "pc":
            self.at += 1
            if tokens[self.at] not in ("+", "-"):
                self.fail("'+' or '-' and a number of instructions")
        at = self.at
        token = tokens[at]
        target: str | int
        if token in ("+", "-"):
            target = self.value()
        elif token and (token[0].isdigit() or NAME.fullmatch(token)) and token not in RESERVED:
            target = token
            self.at += 1
        else:
            self.fail("a label, or '+' or '-' and a number of instructions")
        place = Place(self.block, self.line, at)
        self.jumps.append(Jump(len(self.code), place, target, in_imm))


def _signed(value: int) -> int:
    return value - U32_MAX - 1 if value > S32_MAX else value
