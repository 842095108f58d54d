"""The assembler's text: its lines, tokens and words, and errors that show their place.

The parser works on a line's list of tokens; columns are worked out again only once an error has
been found.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from pykcm.bpf import _instructions as isa
from pykcm.errors import AssemblyError

TOKEN = re.compile(
    r"s(?:>>=|/=|%=|<=|>=|<|>)"  # signed operators, before the names that start with s
    r"|[A-Za-z_.][\w.]*"  # names: registers, types, labels, constants
    r"|\d\w*"  # numbers, and references to numbered labels such as 1f
    r"|<<=|>>=|[-+*/%&|^<>=!]=|\S",
    re.ASCII,
)
# A helper's number may follow its name after a '#', as in the verifier's log.
_COMMENT = re.compile(
    r"(\bcall[ \t]+[\w-]+#(?=-?\d))|(?:\#|//)[^\n]*|/\*.*?(\*/|\Z)", re.ASCII | re.DOTALL
)
NAME = re.compile(r"[A-Za-z_.][\w.]*", re.ASCII)

# A register's name: its number, and whether the name means all 64 bits.
REGISTERS = {
    f"{kind}{number}": (number, kind == "r") for kind in ("r", "w") for number in range(11)
}
ATOMIC_CALLS = {
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
IMM64_CALLS = {"map_by_fd", "map_by_idx", "map_val", "var_addr", "code_addr"}
RESERVED = frozenset(
    [
        *REGISTERS,
        *isa.BITS,
        *isa.SWAPS,
        *ATOMIC_CALLS,
        *IMM64_CALLS,
        *("if", "goto", "gotol", "call", "callx", "exit", "lock", "ll", "skb", "pc", "ld_pseudo"),
    ]
)

SHOWN = 100
"""Characters of a line that an error shows."""


class StatementError(Exception):
    """What was wrong at a token of the line at hand."""

    def __init__(self, token: int, message: str) -> None:
        self.token = token
        self.message = message


class Block:
    """The text, or a macro's text at one place of its use; labels are known inside it.

    Attributes:
        lines: without comments.
        source: with them, for errors to show.
        macro: the macro's name; "" for the text itself.
        user: where the macro was used.
        labels: the slots of named labels.
        numbered: the slots of each numbered label, in order.
    """

    __slots__ = ("labels", "lines", "macro", "numbered", "source", "user")

    def __init__(self, text: str, macro: str = "", user: Place | None = None) -> None:
        self.lines = _uncommented(text).split("\n")
        self.source = text.split("\n")
        self.macro = macro
        self.user = user
        self.labels: dict[str, int] = {}
        self.numbered: dict[str, list[int]] = {}

    def find_label(self, name: str, here: int) -> int | None:
        """The slot of a label that the slot `here` names: of this block, or of one around it."""
        block: Block | None = self
        while block is not None:
            if name[0].isdigit():
                slots = block.numbered.get(name[:-1], [])
                after = [slot for slot in slots if slot > here]
                before = [slot for slot in slots if slot <= here]
                if name[-1] == "f" and after:
                    return after[0]
                if name[-1] == "b" and before:
                    return before[-1]
            elif name in block.labels:
                return block.labels[name]
            block = block.user.block if block.user else None
        return None


class Place(NamedTuple):
    """A token of a block: the line's index from 0, and the token's in the line."""

    block: Block
    line: int
    token: int


def outermost(place: Place) -> Place:
    """The place in the user's own text, whatever macros lie between."""
    while place.block.user:
        place = place.block.user
    return place


def error_at(place: Place, message: str) -> AssemblyError:
    """The error for a place, shown in the user's own text."""
    while place.block.user:
        line = place.block.source[place.line].strip()
        where = f"in the macro {place.block.macro}, its line {place.line + 1} `{line[:SHOWN]}`"
        message = f"{where}: {message}"
        place = place.block.user
    line = place.block.lines[place.line]
    starts = [match.start() for match in TOKEN.finditer(line)]
    starts.append(len(line.rstrip()))
    column = starts[min(place.token, len(starts) - 1)] + 1
    return show(place.block.source[place.line], place.line + 1, column, message)


def show(line: str, number: int, column: int, message: str) -> AssemblyError:
    """The error with the line and a caret under the column; a long line is cut around it."""
    start = max(0, column - SHOWN // 2) if len(line) > SHOWN else 0
    piece = line[start : start + SHOWN]
    shown = "".join(c if c.isprintable() or c == "\t" else "?" for c in piece)
    caret = "".join("\t" if c == "\t" else " " for c in piece[: column - 1 - start]) + "^"
    return AssemblyError(
        f"line {number}, column {column}: {message}\n    {shown}\n    {caret}", number, column
    )


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
            raise show(source, line + 1, place + 1, "the comment has no end: expected '*/'")
        return re.sub(r"[^\n]", " ", match[0])

    return _COMMENT.sub(blank, text)
