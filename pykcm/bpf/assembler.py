"""The assembler: BPF text to instructions.

The syntax is the one that the kernel's verifier log, bpftool and LLVM share; docs/bpf.md describes
it.  One parser serves good and bad text alike: it works on a line's list of tokens, and columns
are worked out again only once an error has been found.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NoReturn

from pykcm.bpf import helpers
from pykcm.bpf import instructions as isa
from pykcm.bpf.instructions import HOST, ByteOrder, Instruction
from pykcm.errors import AssemblyError

Symbols = Mapping[str, "int | str"]

_TOKEN = re.compile(
    r"s(?:>>=|/=|%=|<=|>=|<|>)"  # signed operators, before the names that start with s
    r"|[A-Za-z_.][\w.]*"  # names: registers, types, labels, constants
    r"|\d\w*"  # numbers, and references to numbered labels such as 1f
    r"|<<=|>>=|[-+*/%&|^<>=!]=|\S",
    re.ASCII,
)
# A helper's number may follow its name after a '#', as in the verifier's log.
_COMMENT = re.compile(
    r"(\bcall[ \t]+[\w-]+#(?=\d))|(?:\#|//)[^\n]*|/\*.*?(\*/|\Z)", re.ASCII | re.DOTALL
)
_NAME = re.compile(r"[A-Za-z_.][\w.]*", re.ASCII)

# A register's name: its number, and whether the name means all 64 bits.
_REGISTERS = {
    f"{kind}{number}": (number, kind == "r") for kind in ("r", "w") for number in range(11)
}
_ATOMIC_CALLS = {
    # name: (the operation, the size it is bound to, how its pointer is written)
    **{f"atomic_fetch_{op}": (op, None, "typed") for op in isa.ATOMICS},
    **{f"atomic64_fetch_{op}": (op, "u64", "typed") for op in isa.ATOMICS},
    "atomic_xchg": ("xchg", "u32", "typed"),
    "atomic64_xchg": ("xchg", "u64", "typed"),
    "atomic_cmpxchg": ("cmpxchg", "u32", "typed"),
    "atomic64_cmpxchg": ("cmpxchg", "u64", "typed"),
    "xchg_64": ("xchg", "u64", "bare"),
    "xchg32_32": ("xchg", "u32", "bare"),
    "cmpxchg_64": ("cmpxchg", "u64", "bare"),
    "cmpxchg32_32": ("cmpxchg", "u32", "bare"),
}
_IMM64_CALLS = {"map_by_fd", "map_by_idx", "map_val", "var_addr", "code_addr"}
_RESERVED = frozenset(
    [
        *_REGISTERS,
        *isa.BITS,
        *isa.SWAPS,
        *_ATOMIC_CALLS,
        *_IMM64_CALLS,
        *("if", "goto", "gotol", "call", "callx", "exit", "lock", "ll", "skb", "pc", "ld_pseudo"),
    ]
)

_S32_MIN, _S32_MAX, _U32_MAX = -(1 << 31), (1 << 31) - 1, (1 << 32) - 1
_U64_MAX = (1 << 64) - 1
_SHOWN = 100  # characters of a line that an error shows


@dataclass(frozen=True)
class Assembly:
    """An assembled text.

    Attributes:
        code: the instructions' bytes.
        lines: for each slot of eight bytes the line of the text that made it, from 1.  What a
            macro made belongs to the line that used the macro.
    """

    code: bytes
    lines: list[int]


class _StatementError(Exception):
    """What was wrong at a token of the line at hand."""

    def __init__(self, token: int, message: str) -> None:
        self.token = token
        self.message = message


@dataclass
class _Block:
    """The text, or a macro's text at one place of its use; labels are known inside it."""

    lines: list[str]  # without comments
    source: list[str]  # with them, for errors to show
    macro: str = ""
    user: _Place | None = None  # where the macro was used
    labels: dict[str, int] = field(default_factory=dict)
    numbered: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Place:
    block: _Block
    line: int  # from 0
    token: int  # the token's index in the line


@dataclass(frozen=True)
class _Jump:
    """A slot whose target is not known before the whole text was read."""

    slot: int
    place: _Place
    target: str | int  # a label, or slots to skip
    in_imm: bool  # the distance goes into the immediate, not into the offset


def assemble(text: str, /, **symbols: int | str) -> bytes:
    """Assemble BPF text into instructions of the host's byte order.

    Args:
        text: the program, a statement on a line or between semicolons; see docs/bpf.md.
        symbols: names for the text to use.  An int is a constant, for any immediate or offset.
            A str is a macro: the statement `rN = NAME` is replaced by its lines, with `rN` for
            `$dst`; its labels are its own.

    Returns:
        The instructions, eight bytes each.

    Raises:
        AssemblyError: the text is not a program.  The error has the line and the column, shows
            them, and says what was expected there.
        UnavailableError: the text names a helper function, and pykcm's compiled part, which
            knows them, is missing on this platform.
    """
    return translate(text, symbols).code


def translate(text: str, symbols: Symbols, byteorder: ByteOrder = HOST) -> Assembly:
    """As `assemble`, with the lines that the instructions come from, for any byte order."""
    return _Assembler(symbols).run(text, byteorder)


class _Assembler:
    def __init__(self, symbols: Symbols) -> None:
        self.constants: dict[str, int] = {}
        self.macros: dict[str, str] = {}
        for name, value in symbols.items():
            if not _NAME.fullmatch(name) or name in _RESERVED:
                raise AssemblyError(f"a symbol can't be named {name!r}")
            if isinstance(value, str):
                self.macros[name] = value
            elif isinstance(value, int):
                self.constants[name] = int(value)
            else:
                raise TypeError(f"symbol {name} is a {type(value).__name__}, not an int or a str")
        self.code: list[Instruction] = []
        self.lines: list[int] = []
        self.jumps: list[_Jump] = []
        self.seconds: set[int] = set()  # second slots of 64-bit loads
        # The statement at hand: the line's tokens with "" after the last, and the next one.
        self.block = _Block([], [])
        self.line = 0
        self.tokens: list[str] = [""]
        self.start = self.at = 0

    # ---- the text ----

    def run(self, text: str, byteorder: ByteOrder) -> Assembly:
        if not isinstance(text, str):
            raise TypeError(f"assembly is text, a str, not {type(text).__name__}")
        if (count := text.count("\n")) >= isa.MAX_INSTRUCTIONS:
            raise AssemblyError(
                f"line {isa.MAX_INSTRUCTIONS + 1}: the text has {count} lines, and the kernel "
                f"takes no program of more than {isa.MAX_INSTRUCTIONS} instructions",
                isa.MAX_INSTRUCTIONS + 1,
            )
        self._read(_Block(_uncommented(text).split("\n"), text.split("\n")))
        if not self.code:
            raise _shown(text.split("\n", maxsplit=1)[0], 1, 1, "the text has no instruction")
        for jump in self.jumps:
            self._resolve(jump)
        return Assembly(isa.encode(self.code, byteorder), self.lines)

    def _read(self, block: _Block) -> None:
        """Assemble a block's lines.  The place in the block before is the caller's to restore."""
        findall = _TOKEN.findall
        self.block = block
        user_line = _outermost(_Place(block, 0, 0)).line if block.user else None
        for number, line in enumerate(block.lines):
            tokens = findall(line)
            if not tokens:
                continue
            tokens.append("")
            self.tokens, self.at, self.line = tokens, 0, number
            try:
                while True:
                    self._statement()
                    token = self.tokens[self.at]
                    if token == ";":
                        self.at += 1
                    elif not token:
                        break
                    else:
                        self._fail("the end of the statement")
                if len(self.code) > isa.MAX_INSTRUCTIONS:
                    raise _StatementError(
                        0, f"the program is longer than {isa.MAX_INSTRUCTIONS} instructions"
                    )
            except _StatementError as error:
                raise _error(_Place(block, number, error.token), error.message) from None
            made = len(self.code) - len(self.lines)
            if made:
                self.lines += [(number if user_line is None else user_line) + 1] * made

    def _statement(self) -> None:
        tokens, at = self.tokens, self.at
        while tokens[at + 1 : at + 2] == [":"]:
            self._label(tokens[at])
            self.at = at = at + 2
        self.start = at
        first = tokens[at]
        if first == "(" and tokens[at + 2 : at + 3] == [")"]:
            self._annotated()
            return
        if register := _REGISTERS.get(first):
            self.at = at + 1
            self._arithmetic(*register)
        elif statement := _STATEMENTS.get(first):
            self.at = at + 1
            statement(self)
        elif first not in ("", ";"):
            if tokens[at + 1] in isa.ALU_OPERATORS or tokens[at + 1] == "=":
                self._fail("a register, r0 to r10 or w0 to w10")
            if at and tokens[at - 1] == ";":
                self._fail("an instruction after the ';' (a comment starts with '#' or '//')")
            self._fail("an instruction")

    def _label(self, name: str) -> None:
        block = self.block
        if name.isascii() and name.isdigit():
            block.numbered.setdefault(name, []).append(len(self.code))
            return
        if not _NAME.fullmatch(name) or name in _RESERVED:
            self._fail("a label's name")
        if name in block.labels:
            raise _StatementError(self.at, f"the label {name} is defined twice")
        if name in self.constants or name in self.macros:
            raise _StatementError(self.at, f"the label {name} has the name of a symbol")
        block.labels[name] = len(self.code)

    def _annotated(self) -> None:
        """`(bf) r0 = r1`, as the verifier and bpftool print it: the opcode must be that."""
        place = self.at + 1
        text = self.tokens[place]
        try:
            opcode = int(text, 16)
        except ValueError:
            self._fail("an instruction")
        slot = len(self.code)
        self.at += 3
        self._statement()
        if len(self.code) == slot or self.code[slot].opcode != opcode:
            raise _StatementError(place, f"({text}) is not the opcode of the instruction after it")

    # ---- pieces of a statement ----

    def _fail(self, expected: str, at: int | None = None) -> NoReturn:
        at = self.at if at is None else at
        found = self.tokens[at]
        shown = "the end of the line" if not found else repr(found[:_SHOWN])
        raise _StatementError(at, f"expected {expected}, found {shown}")

    def _take(self, token: str) -> None:
        if self.tokens[self.at] != token:
            self._fail(f"'{token}'")
        self.at += 1

    def _register(self, wide: bool | None = True) -> int:
        """A register: 64-bit, 32-bit, or with None either."""
        found = _REGISTERS.get(self.tokens[self.at])
        if found is None or (wide is not None and found[1] != wide):
            names = {True: "r0 to r10", False: "w0 to w10", None: "r0 to r10 or w0 to w10"}[wide]
            self._fail(f"a register, {names}")
        self.at += 1
        return found[0]

    def _same_register(self, register: int, wide: bool | None = True) -> None:
        at = self.at
        if self._register(wide) != register:
            self._fail(f"{'w' if wide is False else 'r'}{register} again", at)

    def _is_value(self) -> bool:
        token = self.tokens[self.at]
        return token in ("-", "+") or token[:1].isdigit() or token in self.constants

    def _value(self, what: str = "a number or a constant") -> int:
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
                self._fail(f"{what} such as 10, 0x0a or 0b1010")
        elif token in self.constants:
            value = self.constants[token]
        elif token in self.macros:
            raise _StatementError(self.at, f"{token} is a macro: it stands only in `rN = {token}`")
        else:
            self._fail(what)
        self.at += 1
        return value

    def _imm(self, bits: int) -> int:
        """An immediate that is used with so many bits, as the field's signed 32.

        At 64 bits the machine extends the sign, so that only what the extension gives can be had.
        """
        at = self.at
        value = self._value()
        if _S32_MIN <= value <= _S32_MAX and bits >= 32:
            return value
        if bits == 64:
            if _U64_MAX + _S32_MIN < value <= _U64_MAX:
                return value - _U64_MAX - 1
            raise _StatementError(
                at,
                "the immediate is out of range: it has 32 bits, signed, "
                f"{_S32_MIN} to {_S32_MAX}; `rN = VALUE ll` loads 64",
            )
        if not -(1 << (bits - 1)) <= value < 1 << bits:
            raise _StatementError(
                at,
                f"the immediate is out of range: it has {bits} bits, "
                f"{-(1 << (bits - 1))} to {(1 << bits) - 1}",
            )
        return value - _U32_MAX - 1 if value > _S32_MAX else value

    def _ranged(self, low: int, high: int, what: str) -> int:
        at = self.at
        value = self._value()
        if not low <= value <= high:
            raise _StatementError(at, f"{what} is out of range: {low} to {high}")
        return value

    def _offset(self) -> int:
        """What may follow a pointer's register: nothing, `+ 4`, `-4`, `+ NAME - 2`."""
        if self.tokens[self.at] not in ("+", "-"):
            return 0
        if self.tokens[self.at] == "+" and self.tokens[self.at + 1] in ("-", "+"):
            self.at += 1
        return self._ranged(-0x8000, 0x7FFF, "the offset")

    def _address(self) -> tuple[int, int]:
        """`(r1 + 4)`: the register and the offset."""
        self._take("(")
        register = self._register()
        offset = self._offset()
        self._take(")")
        return register, offset

    def _type(self, names: Mapping[str, int]) -> str:
        name = self.tokens[self.at]
        if name not in names:
            self._fail("a type, one of " + " ".join(sorted(names, key=lambda n: isa.BITS[n])))
        self.at += 1
        return name

    def _pointer_type(self, names: Mapping[str, int]) -> str:
        """`(u32 *)`: the type's name."""
        self._take("(")
        name = self._type(names)
        self._take("*")
        self._take(")")
        return name

    def _emit(self, opcode: int, dst: int = 0, src: int = 0, offset: int = 0, imm: int = 0) -> None:
        self.code.append(Instruction(opcode, dst, src, offset, imm))

    # ---- registers on the left: arithmetic and loads ----

    def _arithmetic(self, dst: int, wide: bool) -> None:
        operator = self.tokens[self.at]
        found = isa.ALU_OPERATORS.get(operator)
        if found is None:
            if operator != "=":
                self._fail("'=' or an operator such as '+='")
            self.at += 1
            self._assignment(dst, wide)
            return
        self.at += 1
        opcode, offset = found
        opcode |= isa.ALU64 if wide else isa.ALU
        if self.tokens[self.at] in _REGISTERS:
            self._emit(opcode | isa.REGISTER, dst, self._register(wide), offset)
        else:
            self._emit(opcode, dst, 0, offset, self._operand(wide))

    def _operand(self, wide: bool) -> int:
        if not self._is_value() and self.tokens[self.at] not in self.macros:
            self._fail(
                f"a register, {'r' if wide else 'w'}0 to {'r' if wide else 'w'}10, or a number"
            )
        return self._imm(64 if wide else 32)

    def _assignment(self, dst: int, wide: bool) -> None:
        tokens = self.tokens
        token = tokens[self.at]
        alu = isa.ALU64 if wide else isa.ALU
        if token in _REGISTERS:
            self._emit(alu | isa.MOV | isa.REGISTER, dst, self._register(wide))
            if tokens[self.at] in ("+", "-", "*", "/"):
                self._fail("the end of the statement (write `rN += …` on a line of its own)")
        elif token == "*":
            self.at += 1
            self._load(dst, wide)
        elif token == "(":
            self._extension(dst, wide)
        elif token == "-" and tokens[self.at + 1] in _REGISTERS:
            self.at += 1
            self._same_register(dst, wide)
            self._emit(alu | isa.NEG, dst)
        elif token in isa.SWAPS:
            if not wide:
                self._fail("a 64-bit register on the left: rN = " + token + " rN", self.start)
            self.at += 1
            opcode, bits = isa.SWAPS[token]
            self._same_register(dst)
            self._emit(opcode, dst, 0, 0, bits)
        elif token in _ATOMIC_CALLS:
            self._atomic_call(dst, wide)
        elif token in _IMM64_CALLS:
            self._imm64_call(dst, wide)
        elif token in self.macros:
            self._expand(token, dst, wide)
        elif self._is_value():
            self._load_immediate(dst, wide)
        else:
            self._fail("a register, a number, a load such as *(u32 *)(r1 + 0) or a macro's name")

    def _load_immediate(self, dst: int, wide: bool) -> None:
        start = self.at
        value = self._value()
        if self.tokens[self.at] != "ll":
            self.at = start
            self._emit((isa.ALU64 if wide else isa.ALU) | isa.MOV, dst, 0, 0, self._operand(wide))
            return
        if not wide:
            self._fail("the end of the statement: a 64-bit immediate needs a 64-bit register")
        if not -(1 << 63) <= value <= _U64_MAX:
            raise _StatementError(start, "the immediate is out of range: it has 64 bits")
        self.at += 1
        self._emit_imm64(dst, isa.IMM64_VALUE, value)

    def _emit_imm64(self, dst: int, src: int, value: int) -> None:
        low, high = value & _U32_MAX, value >> 32 & _U32_MAX
        self._emit(isa.LOAD_IMM64, dst, src, 0, _signed(low))
        self.seconds.add(len(self.code))
        self._emit(0, 0, 0, 0, _signed(high))

    def _load(self, dst: int, wide: bool) -> None:
        types: Mapping[str, int] = {**isa.SIZE_CODES, **isa.SIGNED_SIZE_CODES}
        type_at = self.at + 1
        name = self._pointer_type(types)
        if self.tokens[self.at] == "skb":
            if (dst, wide) != (0, True):
                self._fail("r0: a packet load always loads r0", self.start)
            if name not in ("u8", "u16", "u32"):
                self._fail("u8, u16 or u32", type_at)
            self.at += 1
            self._packet_load(isa.SIZE_CODES[name])
            return
        if self.tokens[self.at] != "(":
            self._fail("'(' and a pointer, or 'skb['")
        if not wide and name in ("u64", "s8", "s16", "s32"):
            self._fail("u8, u16 or u32 for a 32-bit register", type_at)
        src, offset = self._address()
        if name in isa.SIZE_CODES:
            self._emit(isa.LDX | isa.MODE_MEM | isa.SIZE_CODES[name], dst, src, offset)
        else:
            self._emit(isa.LDX | isa.MODE_MEMSX | isa.SIGNED_SIZE_CODES[name], dst, src, offset)

    def _packet_load(self, size: int) -> None:
        """`[14]`, `[r7]` or `[r7 + 2]`."""
        self._take("[")
        if self.tokens[self.at] in _REGISTERS:
            src, imm = self._register(), 0
            if self.tokens[self.at] in ("+", "-"):
                if self.tokens[self.at] == "+" and self.tokens[self.at + 1] in ("-", "+"):
                    self.at += 1
                imm = self._imm(64)
            self._take("]")
            self._emit(isa.LD | isa.MODE_IND | size, 0, src, 0, imm)
        else:
            if not self._is_value() and self.tokens[self.at] not in self.macros:
                self._fail("a register, r0 to r10, or a number")
            imm = self._imm(64)
            self._take("]")
            self._emit(isa.LD | isa.MODE_ABS | size, 0, 0, 0, imm)

    def _extension(self, dst: int, wide: bool) -> None:
        """`(s16)r1`: a move that extends the sign."""
        self._take("(")
        types = isa.SIGNED_SIZE_CODES if wide else {"s8": 0, "s16": 0}
        bits = isa.BITS[self._type(types)]
        self._take(")")
        src = self._register(wide)
        alu = isa.ALU64 if wide else isa.ALU
        self._emit(alu | isa.MOV | isa.REGISTER, dst, src, bits)

    def _atomic_call(self, dst: int, wide: bool) -> None:
        """`atomic_fetch_add((u64 *)(r1 + 0), r2)` and its like, as LLVM or the kernel writes them.

        The kernel writes rN for the registers of 32-bit ones too.
        """
        operation, bound, style = _ATOMIC_CALLS[self.tokens[self.at]]
        self.at += 1
        self._take("(")
        if style == "bare":
            size = bound or "u64"
            base = self._register()
            offset = self._offset()
        else:
            types = {bound: 0} if bound else {"u32": 0, "u64": 0}
            size = self._pointer_type(types)
            base, offset = self._address()
        if size == "u64" and not wide:
            self._fail("a 64-bit register on the left of a 64-bit operation", self.start)
        self._take(",")
        if operation == "cmpxchg":
            if dst != 0:
                self._fail("r0 on the left of a cmpxchg", self.start)
            self._same_register(0, wide)
            self._take(",")
            src, imm = self._register(wide), isa.CMPXCHG
        else:
            self._same_register(dst, wide)
            src = dst
            imm = isa.XCHG if operation == "xchg" else isa.ATOMICS[operation] | isa.FETCH
        self._take(")")
        self._emit(isa.STX | isa.MODE_ATOMIC | isa.SIZE_CODES[size], base, src, offset, imm)

    def _imm64_call(self, dst: int, wide: bool) -> None:
        """RFC 9669, section 5.4: `map_by_fd(3)`, `map_val(map_by_fd(3)) + 8`, `code_addr(f)`."""
        name = self.tokens[self.at]
        if not wide:
            self._fail("a 64-bit register on the left", self.start)
        self.at += 1
        self._take("(")
        if name == "code_addr":
            self._jump_target(in_imm=True)
            self._take(")")
            self._emit_imm64(dst, isa.IMM64_CODE, 0)
            return
        low = high = 0
        if name == "map_val":
            inner = self.tokens[self.at]
            if inner not in ("map_by_fd", "map_by_idx"):
                self._fail("map_by_fd or map_by_idx")
            self.at += 1
            self._take("(")
            low = self._imm(32)
            self._take(")")
            self._take(")")
            self._take("+")
            high = self._imm(32)
            src = isa.IMM64_MAP_VALUE if inner == "map_by_fd" else isa.IMM64_MAP_INDEX_VALUE
        else:
            low = self._imm(32)
            self._take(")")
            src = {
                "map_by_fd": isa.IMM64_MAP_FD,
                "map_by_idx": isa.IMM64_MAP_INDEX,
                "var_addr": isa.IMM64_VARIABLE,
            }[name]
        self._emit_imm64(dst, src, (low & _U32_MAX) | (high & _U32_MAX) << 32)

    def _expand(self, name: str, dst: int, wide: bool) -> None:
        if not wide:
            self._fail(f"a 64-bit register on the left of the macro {name}", self.start)
        place = _Place(self.block, self.line, self.at)
        block: _Block | None = self.block
        while block is not None:
            if block.macro == name:
                raise _StatementError(self.at, f"the macro {name} uses itself")
            block = block.user.block if block.user else None
        text = self.macros[name].replace("$dst", f"r{dst}")
        saved = self.block, self.line, self.tokens, self.at + 1
        self._read(_Block(_uncommented(text).split("\n"), text.split("\n"), name, place))
        self.block, self.line, self.tokens, self.at = saved

    # ---- the other statements ----

    def _store(self) -> None:
        """`*(u32 *)(r10 - 4) = r1`."""
        name = self._pointer_type(isa.SIZE_CODES)
        size = isa.SIZE_CODES[name]
        dst, offset = self._address()
        self._take("=")
        if self.tokens[self.at] in _REGISTERS:
            src = self._register(True if name == "u64" else None)
            self._emit(isa.STX | isa.MODE_MEM | size, dst, src, offset)
        else:
            if not self._is_value() and self.tokens[self.at] not in self.macros:
                self._fail("a register or a number")
            self._emit(isa.ST | isa.MODE_MEM | size, dst, 0, offset, self._imm(isa.BITS[name]))

    def _lock(self) -> None:
        """`lock *(u64 *)(r1 + 0) += r2`."""
        self._take("*")
        name = self._pointer_type({"u32": 0, "u64": 0})
        dst, offset = self._address()
        operator = self.tokens[self.at]
        if operator not in isa.ATOMIC_OPERATORS:
            self._fail("'+=', '|=', '&=' or '^='")
        self.at += 1
        src = self._register(True if name == "u64" else None)
        opcode = isa.STX | isa.MODE_ATOMIC | isa.SIZE_CODES[name]
        self._emit(opcode, dst, src, offset, isa.ATOMIC_OPERATORS[operator])

    def _if(self) -> None:
        """`if r1 s< -5 goto label`."""
        wide = _REGISTERS.get(self.tokens[self.at], (0, True))[1]
        dst = self._register(wide)
        operator = self.tokens[self.at]
        if operator not in isa.COMPARISONS:
            self._fail("a comparison such as '==' or 's<'")
        self.at += 1
        opcode = isa.COMPARISONS[operator] | (isa.JMP if wide else isa.JMP32)
        src = imm = 0
        if self.tokens[self.at] in _REGISTERS:
            opcode |= isa.REGISTER
            src = self._register(wide)
        else:
            imm = self._operand(wide)
        self._take("goto")
        self._jump_target(in_imm=False)
        self._emit(opcode, dst, src, 0, imm)

    def _goto(self) -> None:
        self._jump_target(in_imm=False)
        self._emit(isa.GOTO)

    def _gotol(self) -> None:
        self._jump_target(in_imm=True)
        self._emit(isa.GOTOL)

    def _jump_target(self, in_imm: bool) -> None:
        """A label, `+3`, `pc+3` or `1f`, for the slot that is emitted next."""
        tokens = self.tokens
        if tokens[self.at] == "pc":
            self.at += 1
            if tokens[self.at] not in ("+", "-"):
                self._fail("'+' or '-' and a number of instructions")
        at = self.at
        token = tokens[at]
        target: str | int
        if token in ("+", "-"):
            target = self._value()
        elif token and (token[0].isdigit() or _NAME.fullmatch(token)) and token not in _RESERVED:
            target = token
            self.at += 1
        else:
            self._fail("a label, or '+' or '-' and a number of instructions")
        place = _Place(self.block, self.line, at)
        self.jumps.append(_Jump(len(self.code), place, target, in_imm))

    def _call(self) -> None:
        """`call 113`, `call bpf_probe_read_kernel`, that with `#113` after it, `call function`."""
        tokens, at = self.tokens, self.at
        token = tokens[at]
        if token == "pc":
            self._jump_target(in_imm=True)
            self._emit(isa.CALL_IMM, 0, isa.CALL_LOCAL)
        elif tokens[at : at + 4] == ["kernel", "-", "function", "#"]:
            self.at += 4
            number = self._ranged(0, _S32_MAX, "the BTF id")
            self._emit(isa.CALL_IMM, 0, isa.CALL_BTF, 0, number)
        elif self._is_value() and token not in ("+", "-"):
            number = self._ranged(0, _S32_MAX, "the helper's number")
            self._emit(isa.CALL_IMM, 0, isa.CALL_HELPER, 0, number)
        elif _NAME.fullmatch(token) and token not in _RESERVED:
            self._jump_target(in_imm=True)
            if tokens[self.at] == "#":
                self.at += 1
                number_at = self.at
                number = self._value()
                if helpers.by_number().get(number, token) != token:
                    raise _StatementError(number_at, f"helper {number} is not {token}")
                self.jumps.pop()
                self._emit(isa.CALL_IMM, 0, isa.CALL_HELPER, 0, number)
            else:
                # Whether the name is a label is known at the end of the text only.
                self._emit(isa.CALL_IMM, 0, isa.CALL_LOCAL)
        else:
            self._fail("a helper's name or number, a label, or pc+N")

    def _callx(self) -> None:
        self._emit(isa.CALL_REGISTER, self._register())

    def _exit(self) -> None:
        self._emit(isa.RETURN)

    def _ld_pseudo(self) -> None:
        """`ld_pseudo r1, 3, 0x100000005`, LLVM's: the source field and all 64 bits, as they are."""
        dst = self._register()
        self._take(",")
        src = self._ranged(0, 15, "the source field")
        self._take(",")
        self._emit_imm64(dst, src, self._ranged(-(1 << 63), _U64_MAX, "the immediate"))

    def _quad(self) -> None:
        """`.quad 0x95`: a slot as one number."""
        value = self._ranged(0, _U64_MAX, "the instruction")
        self.code += isa.decode(value.to_bytes(8, "little"), "little")

    # ---- jumps ----

    def _resolve(self, jump: _Jump) -> None:
        try:
            self._set_distance(jump)
        except _StatementError as error:
            raise _error(jump.place, error.message) from None

    def _set_distance(self, jump: _Jump) -> None:
        here, target = jump.slot, jump.target
        instruction = self.code[here]
        token = jump.place.token
        if isinstance(target, int):
            distance, end = target, here + 1 + target
        else:
            found = _find_label(jump, target)
            if found is None:
                if instruction.opcode == isa.CALL_IMM:
                    number = helpers.by_name().get(target)
                    if number is None:
                        raise _StatementError(
                            token, f"{target} is neither a label nor a known helper"
                        )
                    self.code[here] = Instruction(isa.CALL_IMM, 0, isa.CALL_HELPER, 0, number)
                    return
                raise _StatementError(token, f"the label {target} is not defined")
            distance, end = found - here - 1, found
        if not 0 <= end < len(self.code):
            where = "before its first" if end < 0 else "past its last"
            raise _StatementError(
                token, f"the jump leaves the program: it goes {where} instruction"
            )
        if end in self.seconds:
            raise _StatementError(token, "the jump goes into the middle of a 64-bit load")
        if jump.in_imm:
            self.code[here] = instruction._replace(imm=distance)
        elif -0x8000 <= distance <= 0x7FFF:
            self.code[here] = instruction._replace(offset=distance)
        else:
            remedy = "; gotol reaches further" if instruction.opcode == isa.GOTO else ""
            raise _StatementError(
                token,
                f"the jump is out of range: {distance} instructions, and {-0x8000} to {0x7FFF} "
                f"is what it can{remedy}",
            )


_STATEMENTS = {
    "*": _Assembler._store,
    "if": _Assembler._if,
    "goto": _Assembler._goto,
    "gotol": _Assembler._gotol,
    "call": _Assembler._call,
    "callx": _Assembler._callx,
    "exit": _Assembler._exit,
    "lock": _Assembler._lock,
    "ld_pseudo": _Assembler._ld_pseudo,
    ".quad": _Assembler._quad,
}


def _find_label(jump: _Jump, name: str) -> int | None:
    """The slot of a label: of this block, or of one around it."""
    block: _Block | None = jump.place.block
    while block is not None:
        if name[0].isdigit():
            slots = block.numbered.get(name[:-1], [])
            after = [slot for slot in slots if slot > jump.slot]
            before = [slot for slot in slots if slot <= jump.slot]
            if name[-1] == "f" and after:
                return after[0]
            if name[-1] == "b" and before:
                return before[-1]
        elif name in block.labels:
            return block.labels[name]
        block = block.user.block if block.user else None
    return None


def _signed(value: int) -> int:
    return value - _U32_MAX - 1 if value > _S32_MAX else value


def _uncommented(text: str) -> str:
    """The text with spaces for its comments: lines and columns stay."""
    if "#" not in text and "/" not in text:
        return text

    def blank(match: re.Match[str]) -> str:
        if match[1]:
            return match[0]
        if match[0].startswith("/*") and not match[2]:
            line = text.count("\n", 0, match.start())
            place = match.start() - (text.rfind("\n", 0, match.start()) + 1)
            source = text.split("\n")[line]
            raise _shown(source, line + 1, place + 1, "the comment has no end: expected '*/'")
        return re.sub(r"[^\n]", " ", match[0])

    return _COMMENT.sub(blank, text)


def _outermost(place: _Place) -> _Place:
    while place.block.user:
        place = place.block.user
    return place


def _error(place: _Place, message: str) -> AssemblyError:
    """The error for a place: in the user's own text, whatever macros lie between."""
    while place.block.user:
        line = place.block.source[place.line].strip()
        where = f"in the macro {place.block.macro}, its line {place.line + 1} `{line[:_SHOWN]}`"
        message = f"{where}: {message}"
        place = place.block.user
    line = place.block.lines[place.line]
    starts = [match.start() for match in _TOKEN.finditer(line)]
    starts.append(len(line.rstrip()))
    column = starts[min(place.token, len(starts) - 1)] + 1
    return _shown(place.block.source[place.line], place.line + 1, column, message)


def _shown(line: str, number: int, column: int, message: str) -> AssemblyError:
    """The error with the line and a caret under the column; a long line is cut around it."""
    start = max(0, column - _SHOWN // 2) if len(line) > _SHOWN else 0
    piece = line[start : start + _SHOWN]
    shown = "".join(c if c.isprintable() or c == "\t" else "?" for c in piece)
    caret = "".join("\t" if c == "\t" else " " for c in piece[: column - 1 - start]) + "^"
    return AssemblyError(
        f"line {number}, column {column}: {message}\n    {shown}\n    {caret}", number, column
    )
