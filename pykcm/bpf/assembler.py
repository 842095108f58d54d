"""The assembler: BPF text to instructions.

The syntax is the one that the kernel's verifier log, bpftool and LLVM share; docs/bpf.md describes
it.  One parser serves good and bad text alike.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from pykcm.bpf import _helpers
from pykcm.bpf import _instructions as isa
from pykcm.bpf._instructions import HOST, ByteOrder, Instruction
from pykcm.bpf._lexer import NAME, RESERVED, Block, StatementError, error_at, show
from pykcm.bpf._parser import Jump, Parser
from pykcm.bpf._statements import read
from pykcm.errors import AssemblyError


class Assembly(NamedTuple):
    """An assembled text.

    Attributes:
        code: the instructions' bytes.
        lines: for each slot of eight bytes the line of the text that made it, from 1.  What a
            macro made belongs to the line that used the macro.
    """

    code: bytes
    lines: list[int]


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


def translate(text: str, symbols: Mapping[str, int | str], byteorder: ByteOrder = HOST) -> Assembly:
    """As `assemble`, with the lines that the instructions come from, for any byte order."""
    parser = Parser(*_sorted(symbols))
    if not isinstance(text, str):
        raise TypeError(f"assembly is text, a str, not {type(text).__name__}")
    if (count := text.count("\n")) >= isa.MAX_INSTRUCTIONS:
        raise AssemblyError(
            f"line {isa.MAX_INSTRUCTIONS + 1}: the text has {count} lines, and the kernel "
            f"takes no program of more than {isa.MAX_INSTRUCTIONS} instructions",
            isa.MAX_INSTRUCTIONS + 1,
        )
    read(parser, Block(text))
    if not parser.code:
        raise show(text.split("\n", maxsplit=1)[0], 1, 1, "the text has no instruction")
    for jump in parser.jumps:
        try:
            _set_distance(parser, jump)
        except StatementError as error:
            raise error_at(jump.place, error.message) from None
    return Assembly(isa.encode(parser.code, byteorder), parser.lines)


def _sorted(symbols: Mapping[str, int | str]) -> tuple[dict[str, int], dict[str, str]]:
    """The constants and the macros."""
    constants: dict[str, int] = {}
    macros: dict[str, str] = {}
    for name, value in symbols.items():
        if not NAME.fullmatch(name) or name in RESERVED:
            raise AssemblyError(f"a symbol can't be named {name!r}")
        if isinstance(value, str):
            macros[name] = value
        elif isinstance(value, int):
            constants[name] = int(value)
        else:
            raise TypeError(f"symbol {name} is a {type(value).__name__}, not an int or a str")
    return constants, macros


def _set_distance(parser: Parser, jump: Jump) -> None:
    """Fill in where a jump or a call goes; a name that is not a label is a helper's."""
    code, here, target = parser.code, jump.slot, jump.target
    instruction = code[here]
    token = jump.place.token
    if isinstance(target, int):
        distance, end = target, here + 1 + target
    else:
        found = jump.place.block.find_label(target, here)
        if found is None:
            if instruction.opcode == isa.CALL_IMM:
                number = _helpers.by_name().get(target)
                if number is None:
                    raise StatementError(token, f"{target} is neither a label nor a known helper")
                code[here] = Instruction(isa.CALL_IMM, 0, isa.CALL_HELPER, 0, number)
                return
            raise StatementError(token, f"the label {target} is not defined")
        distance, end = found - here - 1, found
    if not 0 <= end < len(code):
        where = "before its first" if end < 0 else "past its last"
        raise StatementError(token, f"the jump leaves the program: it goes {where} instruction")
    if end in parser.seconds:
        raise StatementError(token, "the jump goes into the middle of a 64-bit load")
    if jump.in_imm:
        code[here] = instruction._replace(imm=distance)
    elif -0x8000 <= distance <= 0x7FFF:
        code[here] = instruction._replace(offset=distance)
    else:
        remedy = "; gotol reaches further" if instruction.opcode == isa.GOTO else ""
        raise StatementError(
            token,
            f"the jump is out of range: {distance} instructions, and {-0x8000} to {0x7FFF} "
            f"is what it can{remedy}",
        )
