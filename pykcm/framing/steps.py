"""The parts that a header's rule is made of, each in two forms that mean the same.

A rule is a tuple of steps.  They share one number, the message's length so far, which starts at 0.
Each step does the same thing twice: `emit` writes it as BPF assembly, `follow` does it in Python.
A third form, `explore`, follows the smallest and largest length through every path of the rule, so
that no 64-bit sum can wrap and no length can be shorter than the header that gave it; both are
proved when the framing is made, not when a header arrives.

Registers of the emitted program: r6 is the skb, r7 the message's offset in it, r8 the length so
far, r9 a value that outlives a packet load; r0 to r5 are clobbered by every packet load
(`r0 = *(u32 *)skb[r7 + K]`).  Such a load yields the bytes as a big-endian number, and past the end
of the data it ends the program with 0, which KCM takes as "wait for more"
(bpf_gen_ld_abs in net/core/filter.c).
"""

from __future__ import annotations

import abc
import dataclasses
import errno
import sys
from collections.abc import Iterable
from typing import Literal, NoReturn, TypeAlias

from pykcm.errors import FramingDefinitionError, FramingError

ByteOrder: TypeAlias = Literal["big", "little"]

#: The program's result is a C int (kcm_parse_func_strparser in net/kcm/kcmsock.c).
LARGEST_LENGTH = (1 << 31) - 1

#: A header's last byte lies below this offset.  No protocol known comes near.
LARGEST_HEADER = 512

# A term of a sum over this is refused as too long at once.  Far over any message, and far enough
# below 2**63 that sums of some terms and constants can't reach it.
_LARGEST_TERM = 1 << 48

# No sum on any path may exceed this, so that signed 64-bit comparisons are right.
_LARGEST_SUM = (1 << 62) - 1


class IncompleteError(Exception):
    """The data ends before the header does."""


def refuse(error: int, why: str) -> NoReturn:
    """Raises the FramingError of a header: EBADMSG or EMSGSIZE."""
    raise FramingError(error, why)


def check_integer(argument: str, value: object, low: int, high: int) -> int:
    """The value, if it is an integer from low to high; else a FramingDefinitionError."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise FramingDefinitionError(argument, f"must be an integer, not {value!r}")
    if not low <= value <= high:
        raise FramingDefinitionError(argument, f"must be {low} to {high}, not {value}")
    return value


def _show(value: int) -> str:
    return str(value) if value < 256 else f"{value:#x}"


class Code:
    """The assembly of one program while it is written.

    Args:
        far_loads: as `pykcm._offset.Strategy` has it.
    """

    def __init__(self, far_loads: bool = True) -> None:
        self.far_loads = far_loads
        self._lines: list[str] = []
        self._labels: dict[str, int] = {}
        self._wanted: set[str] = set()

    def add(self, *lines: str) -> None:
        self._lines += [f"    {line}" for line in lines]

    def comment(self, text: str) -> None:
        self._lines.append(f"    # {text}")

    def label(self, stem: str) -> str:
        """A label's name that is new in this program."""
        number = self._labels[stem] = self._labels.get(stem, 0) + 1
        return f"{stem}_{number}"

    def place(self, label: str) -> None:
        self._lines.append(f"{label}:")

    def wants(self, label: str) -> bool:
        """Whether something jumps to a label; the kernel refuses code that can't be reached."""
        return label in self._wanted

    def jump(self, label: str, condition: str = "") -> None:
        self._wanted.add(label)
        self.add(f"if {condition} goto {label}" if condition else f"goto {label}")

    def compare(self, register: str, operator: str, value: int, label: str) -> None:
        """A jump if the register compares so with a number from -2**31 to 2**64 - 1."""
        if -(1 << 31) <= value < 1 << 31:
            self.jump(label, f"{register} {operator} {_show(value)}")
        else:  # an immediate is 32 bits, sign-extended
            self.add(f"r1 = {value:#x} ll")
            self.jump(label, f"{register} {operator} r1")

    def apply(self, register: str, operator: str, value: int) -> None:
        """`register operator= value` for a number from -2**31 to 2**64 - 1."""
        if -(1 << 31) <= value < 1 << 31:
            self.add(f"{register} {operator}= {_show(value)}")
        else:
            self.add(f"r1 = {value:#x} ll", f"{register} {operator}= r1")

    def bad(self) -> str:
        return "bad_header"

    def oversize(self) -> str:
        return "too_long"

    def unreadable(self) -> str:
        return "unreadable"

    def text(self) -> str:
        return "\n".join(self._lines) + "\n"


@dataclasses.dataclass(frozen=True)
class Path:
    """What is known of the length on one way through a rule.

    Attributes:
        low: the smallest length so far, in bytes.
        high: the largest.
        extent: how many bytes of the header were read on this way.
    """

    low: int = 0
    high: int = 0
    extent: int = 0

    def plus(self, low: int, high: int) -> Path:
        path = dataclasses.replace(self, low=self.low + low, high=self.high + high)
        if path.high > _LARGEST_SUM:
            raise FramingDefinitionError("steps", "the length can exceed 62 bits")
        return path

    def read(self, field: Field) -> Path:
        return dataclasses.replace(self, extent=max(self.extent, field.end))


@dataclasses.dataclass(frozen=True)
class Field:
    """A number in the header.

    Args:
        offset: its first byte, counted from the message's first.
        size: 1 to 8 bytes.
        byteorder: "big" or "little".
        mask: what is kept of the number, or None for all its bits.
        shift: by how many bits what is kept is moved down.

    Raises:
        FramingDefinitionError: the field can't be; the argument is named.
    """

    offset: int
    size: int = 1
    byteorder: ByteOrder = "big"
    mask: int | None = None
    shift: int = 0

    def __post_init__(self) -> None:
        check_integer("size", self.size, 1, 8)
        check_integer("offset", self.offset, 0, LARGEST_HEADER)
        if self.end > LARGEST_HEADER:
            raise FramingDefinitionError(
                "offset", f"the field ends after byte {LARGEST_HEADER}, the longest header"
            )
        if self.byteorder not in ("big", "little"):
            raise FramingDefinitionError(
                "byteorder", f"must be 'big' or 'little', not {self.byteorder!r}"
            )
        all_bits = (1 << 8 * self.size) - 1
        if self.mask is not None:
            check_integer("mask", self.mask, 0, all_bits)
        check_integer("shift", self.shift, 0, 8 * self.size - 1)
        if not self.largest:
            argument = "shift" if self.mask is None or self.mask else "mask"
            raise FramingDefinitionError(argument, "leaves no bits of the field")

    @property
    def end(self) -> int:
        """The offset after its last byte."""
        return self.offset + self.size

    @property
    def largest(self) -> int:
        """The largest number that it can yield."""
        kept = (1 << 8 * self.size) - 1 if self.mask is None else self.mask
        return kept >> self.shift

    def read(self, data: memoryview) -> int:
        if len(data) < self.end:
            raise IncompleteError
        value = int.from_bytes(data[self.offset : self.end], self.byteorder)
        if self.mask is not None:
            value &= self.mask
        return value >> self.shift

    def emit(self, code: Code) -> None:
        """Leaves the field in r0; clobbers r1 to r5, and r9 unless the size is 1, 2 or 4."""
        self._emit_number(code)
        if self.mask is not None and self.mask != (1 << 8 * self.size) - 1:
            code.apply("r0", "&", self.mask)
        if self.shift:
            code.add(f"r0 >>= {self.shift}")

    def _emit_number(self, code: Code) -> None:
        pieces = list(_pieces(self.size))
        for at, size in pieces:
            code.add(f"r0 = *(u{8 * size} *)skb[r7 + {self.offset + at}]")
            if self.byteorder == "little" and size > 1:
                # The load made a host number of big-endian bytes; of the two conversions it is
                # the one to the foreign order that swaps.
                swap = "be" if sys.byteorder == "little" else "le"
                code.add(f"r0 = {swap}{8 * size} r0")
            if len(pieces) == 1:
                return
            if at == 0:
                code.add("r9 = r0")
            elif self.byteorder == "big":
                code.add(f"r9 <<= {8 * size}", "r9 |= r0")
            else:
                code.add(f"r0 <<= {8 * at}", "r9 |= r0")
        code.add("r0 = r9")


def _pieces(size: int) -> Iterable[tuple[int, int]]:
    """Offset and size of the 4-, 2- and 1-byte pieces that make up so many bytes."""
    at = 0
    while at < size:
        piece = 4 if size - at >= 4 else 2 if size - at >= 2 else 1
        yield at, piece
        at += piece


class Step(abc.ABC):
    """One part of a rule."""

    @abc.abstractmethod
    def emit(self, code: Code) -> None:
        """Writes the step; r8 is the length so far."""

    @abc.abstractmethod
    def follow(self, data: memoryview, length: int) -> int:
        """The length after the step.

        Raises:
            IncompleteError: the data ends before the header does.
            FramingError: the header is refused.
        """

    def limited(self, high: int) -> Step:
        """The step where no message may be longer than `high` bytes."""
        return self

    @abc.abstractmethod
    def explore(self, path: Path) -> list[Path]:
        """Every way on from here.

        Raises:
            FramingDefinitionError: a sum could wrap.
        """


def follow_all(steps: Iterable[Step], data: memoryview, length: int) -> int:
    for step in steps:
        length = step.follow(data, length)
    return length


def explore_all(steps: Iterable[Step], path: Path) -> list[Path]:
    paths = [path]
    for step in steps:
        paths = [after for before in paths for after in step.explore(before)]
    return paths


@dataclasses.dataclass(frozen=True)
class Add(Step):
    """Adds a field's number, times a multiplier, or a constant, which may be negative."""

    term: Field | int
    multiplier: int = 1

    def __post_init__(self) -> None:
        # 128 ** 8 is the weight of a ninth LEB128 byte.
        check_integer("multiplier", self.multiplier, 1, 1 << 56)
        if not isinstance(self.term, Field):
            check_integer("term", self.term, -LARGEST_LENGTH, LARGEST_LENGTH)

    @property
    def _cap(self) -> int | None:
        """The largest number of the field that is not refused at once; None if all pass."""
        if isinstance(self.term, int) or self.term.largest * self.multiplier <= _LARGEST_TERM:
            return None
        return _LARGEST_TERM // self.multiplier

    def emit(self, code: Code) -> None:
        if isinstance(self.term, int):
            code.apply("r8", "+", self.term)
            return
        self.term.emit(code)
        if self._cap is not None:
            code.compare("r0", ">", self._cap, code.oversize())
        if self.multiplier & (self.multiplier - 1):
            code.apply("r0", "*", self.multiplier)
        elif self.multiplier > 1:
            code.add(f"r0 <<= {self.multiplier.bit_length() - 1}")
        code.add("r8 += r0")

    def follow(self, data: memoryview, length: int) -> int:
        if isinstance(self.term, int):
            return length + self.term
        number = self.term.read(data)
        if self._cap is not None and number > self._cap:
            refuse(errno.EMSGSIZE, f"the header tells a length of {number} x {self.multiplier}")
        return length + number * self.multiplier

    def explore(self, path: Path) -> list[Path]:
        if isinstance(self.term, int):
            return [path.plus(self.term, self.term)]
        largest = self.term.largest if self._cap is None else self._cap
        return [path.read(self.term).plus(0, largest * self.multiplier)]


@dataclasses.dataclass(frozen=True)
class Times(Step):
    """Multiplies the length so far."""

    factor: int

    def __post_init__(self) -> None:
        check_integer("factor", self.factor, 1, 1 << 30)

    def emit(self, code: Code) -> None:
        code.apply("r8", "*", self.factor)

    def follow(self, data: memoryview, length: int) -> int:
        return length * self.factor

    def explore(self, path: Path) -> list[Path]:
        path = dataclasses.replace(path, low=path.low * self.factor, high=path.high * self.factor)
        return [path.plus(0, 0)]


@dataclasses.dataclass(frozen=True)
class RoundUp(Step):
    """Rounds the length so far up to a multiple of a power of two: padding."""

    multiple: int

    def __post_init__(self) -> None:
        check_integer("multiple", self.multiple, 1, 1 << 16)
        if self.multiple & (self.multiple - 1):
            raise FramingDefinitionError("multiple", f"{self.multiple} is no power of two")

    def emit(self, code: Code) -> None:
        code.add(f"r8 += {self.multiple - 1}", f"r8 &= {-self.multiple}")

    def follow(self, data: memoryview, length: int) -> int:
        return (length + self.multiple - 1) & -self.multiple

    def explore(self, path: Path) -> list[Path]:
        low, high = (self.follow(memoryview(b""), length) for length in (path.low, path.high))
        return [dataclasses.replace(path, low=low, high=high).plus(0, 0)]


@dataclasses.dataclass(frozen=True)
class Within(Step):
    """Refuses a length so far under a minimum (EBADMSG) or over a maximum (EMSGSIZE)."""

    low: int
    high: int

    def __post_init__(self) -> None:
        check_integer("high", self.high, 1, LARGEST_LENGTH)
        check_integer("low", self.low, 0, self.high)

    def emit(self, code: Code) -> None:
        # Signed: a negative adjustment can make the sum negative, and `explore` has proved that
        # it is below 2**62.
        code.compare("r8", "s<", self.low, code.bad())
        code.compare("r8", "s>", self.high, code.oversize())

    def follow(self, data: memoryview, length: int) -> int:
        if length < self.low:
            refuse(errno.EBADMSG, f"a length of {length} is under the minimum, {self.low}")
        if length > self.high:
            refuse(errno.EMSGSIZE, f"a length of {length} is over the maximum, {self.high}")
        return length

    def holds(self, path: Path) -> bool:
        """Whether it is certain on this way, so that the check can be left out."""
        return self.low <= path.low and path.high <= self.high

    def explore(self, path: Path) -> list[Path]:
        low, high = max(path.low, self.low), min(path.high, self.high)
        return [dataclasses.replace(path, low=low, high=high)] if low <= high else []


@dataclasses.dataclass(frozen=True)
class Divisible(Step):
    """Refuses a length so far that is no multiple of a number (EBADMSG)."""

    divisor: int

    def __post_init__(self) -> None:
        check_integer("divisor", self.divisor, 1, 1 << 16)

    def emit(self, code: Code) -> None:
        code.add("r0 = r8", f"r0 %= {self.divisor}")
        code.compare("r0", "!=", 0, code.bad())

    def follow(self, data: memoryview, length: int) -> int:
        if length % self.divisor:
            refuse(errno.EBADMSG, f"a length of {length} is no multiple of {self.divisor}")
        return length

    def explore(self, path: Path) -> list[Path]:
        if path.low < 0:
            raise FramingDefinitionError("steps", "Divisible needs a length that is not negative")
        return [path]


@dataclasses.dataclass(frozen=True)
class Match(Step):
    """Refuses a header that does not hold these bytes at this offset (EBADMSG)."""

    value: bytes
    offset: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.value, bytes) or not 1 <= len(self.value) <= 64:
            raise FramingDefinitionError("value", f"must be 1 to 64 bytes, not {self.value!r}")
        check_integer("offset", self.offset, 0, LARGEST_HEADER - len(self.value))

    def _parts(self) -> Iterable[tuple[Field, int]]:
        for at, size in _pieces(len(self.value)):
            wanted = int.from_bytes(self.value[at : at + size], "big")
            yield Field(self.offset + at, size), wanted

    def emit(self, code: Code) -> None:
        for field, wanted in self._parts():
            field.emit(code)
            code.compare("r0", "!=", wanted, code.bad())

    def follow(self, data: memoryview, length: int) -> int:
        for field, wanted in self._parts():
            if field.read(data) != wanted:
                found = bytes(data[self.offset : self.offset + len(self.value)])
                refuse(errno.EBADMSG, f"{found!r} at byte {self.offset} instead of {self.value!r}")
        return length

    def explore(self, path: Path) -> list[Path]:
        for field, _ in self._parts():
            path = path.read(field)
        return [path]


@dataclasses.dataclass(frozen=True)
class Case:
    """What to do for some numbers of a Switch's field.

    Args:
        values: the numbers, each one number or a range (first, last).
        steps: what follows then.
    """

    values: tuple[int | tuple[int, int], ...]
    steps: tuple[Step, ...] = ()

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        return tuple((v, v) if isinstance(v, int) else v for v in self.values)


@dataclasses.dataclass(frozen=True)
class Switch(Step):
    """Goes on by what a field holds; a number that no case names is refused (EBADMSG)."""

    field: Field
    cases: tuple[Case, ...]

    def __post_init__(self) -> None:
        if not self.cases:
            raise FramingDefinitionError("cases", "must be one or more")
        taken: list[tuple[int, int]] = []
        for low, high in (r for case in self.cases for r in case.ranges):
            if not 0 <= low <= high <= self.field.largest:
                raise FramingDefinitionError(
                    "cases", f"{low} to {high} is not in 0 to {self.field.largest}"
                )
            if any(low <= last and first <= high for first, last in taken):
                raise FramingDefinitionError("cases", f"{low} to {high} is named twice")
            taken.append((low, high))

    def emit(self, code: Code) -> None:
        self.field.emit(code)
        targets = [code.label("case") for _ in self.cases]
        end = code.label("then")
        tests = [
            (low, high, target)
            for case, target in zip(self.cases, targets, strict=True)
            for low, high in case.ranges
        ]
        if sum(high - low + 1 for low, high, _ in tests) == self.field.largest + 1:
            refused = tests.pop()[2]  # what is left is the last range, and nothing is refused
        else:
            refused = code.bad()
        for low, high, target in tests:
            if low == high:
                code.compare("r0", "==", low, target)
            elif low == 0:
                code.compare("r0", "<=", high, target)
            else:
                # One comparison for two: a number under `low` wraps to a large one.
                code.add("r2 = r0")
                code.apply("r2", "-", low)
                code.compare("r2", "<=", high - low, target)
        code.jump(refused)
        for number, (case, target) in enumerate(zip(self.cases, targets, strict=True), 1):
            code.place(target)
            for step in case.steps:
                step.emit(code)
            if number < len(self.cases):
                code.jump(end)
        code.place(end)

    def follow(self, data: memoryview, length: int) -> int:
        number = self.field.read(data)
        for case in self.cases:
            if any(low <= number <= high for low, high in case.ranges):
                return follow_all(case.steps, data, length)
        refuse(errno.EBADMSG, f"{number:#x} at byte {self.field.offset}")

    def limited(self, high: int) -> Step:
        return Switch(
            self.field,
            tuple(
                Case(case.values, tuple(step.limited(high) for step in case.steps))
                for case in self.cases
            ),
        )

    def explore(self, path: Path) -> list[Path]:
        path = path.read(self.field)
        return [after for case in self.cases for after in explore_all(case.steps, path)]


#: The longest message of a Find, in bytes: what the kernel's verifier can follow (it walks through
#: every turn of the loop, and stops at a million instructions).
LARGEST_SEARCH = 1 << 16

# The stack is 512 bytes.  A chunk is scanned in words of 8 bytes; the word after its last one holds
# what follows of a delimiter that begins in it.
_WORD = 8
_BUFFER = 512
_CHUNK = _BUFFER - _WORD


@dataclasses.dataclass(frozen=True)
class Find(Step):
    """The length is that up to the end of the first delimiter; nothing may be added before it.

    Args:
        delimiter: 1 to 8 bytes.
        limit: in how many bytes from the message's first it must lie, up to LARGEST_SEARCH.
    """

    delimiter: bytes
    limit: int

    def __post_init__(self) -> None:
        if not isinstance(self.delimiter, bytes) or not 1 <= len(self.delimiter) <= _WORD:
            raise FramingDefinitionError(
                "delimiter", f"must be 1 to {_WORD} bytes, not {self.delimiter!r}"
            )
        check_integer("limit", self.limit, len(self.delimiter), LARGEST_SEARCH)

    def emit(self, code: Code) -> None:
        end = code.label("found")
        if code.far_loads:
            self._emit_chunks(code, end)
        else:
            self._emit_places(code, end)
        code.place(end)
        code.add("r8 = *(u32 *)(r10 - 4)")

    @staticmethod
    def _emit_found(code: Code) -> None:
        """Puts r8, the length, where it is found at the end.

        A 4-byte store beside an 8-byte slot makes the verifier forget what it knows of a number.
        Otherwise a comparison with it would make each place of the delimiter a case of its own,
        over which the 6.1 kernel's verifier sits for seconds.
        """
        code.add("*(u32 *)(r10 - 4) = r8")

    def _emit_places(self, code: Code, end: str) -> None:
        """Looks at one place after the other, by packet loads; r9 is the place in the skb.

        A load past the end of the data ends the program with 0, which is the right answer here: a
        delimiter that begins at this place is not complete yet.
        """
        size = len(self.delimiter)
        width = max(w for w in (1, 2, 4) if w <= size)
        # Two loads may overlap: so two are enough for any size.
        loads = [(at, self.delimiter[at : at + width]) for at in sorted({0, size - width})]
        turns, rest = divmod(self.limit - size + 1, _WORD)
        turn = code.label("turn")
        code.add("r8 = 0", f"*(u64 *)(r10 - {_WORD}) = r8", "r9 = r7")

        def look(at: int) -> None:
            after = code.label("after")
            for number, (offset, wanted) in enumerate(loads):
                code.add(f"r0 = *(u{8 * width} *)skb[r9 + {at + offset}]")
                value = int.from_bytes(wanted, "big", signed=width == 4)  # an immediate is signed
                code.add(f"w0 ^= {value}")
                if number < len(loads) - 1:
                    code.add(f"*(u64 *)(r10 - {2 * _WORD}) = r0")
            if len(loads) > 1:
                code.add(f"r1 = *(u64 *)(r10 - {2 * _WORD})", "r0 |= r1")
            # One comparison: as in the other search, only one way is left to come back to.
            code.jump(after, "r0 != 0")
            code.add(f"r8 += {at + size}")
            self._emit_found(code)
            code.jump(end)
            code.place(after)

        if turns:
            code.place(turn)
            for at in range(_WORD):
                look(at)
            code.add(f"r8 += {_WORD}", f"r9 += {_WORD}")
            code.compare("r8", "<", turns * _WORD, turn)
        for at in range(rest):
            look(at)
        code.jump(code.oversize())

    def _emit_chunks(self, code: Code, end: str) -> None:
        """Scans 8 bytes at a time; r9 is how many bytes of the message may be looked at."""
        size = len(self.delimiter)
        chunk, word = code.label("chunk"), code.label("word")
        following, none = code.label("following"), code.label("none")
        # The smaller of what is there and the limit, here and below without a branch: each would
        # double what the verifier has to walk through.
        code.add("r9 = *(u32 *)(r6 + 0)", "r9 -= r7", f"r9 -= {self.limit}")  # __sk_buff.len
        code.add("r0 = r9", "r0 s>>= 63", "r9 &= r0", f"r9 += {self.limit}")
        # The verifier wants the buffer initialised, as the last chunk may not fill it.
        code.add("r0 = 0", *(f"*(u64 *)(r10 - {at}) = r0" for at in range(_BUFFER, 0, -_WORD)))
        code.add("r8 = 0")

        code.place(chunk)
        code.compare("r8", ">=", self.limit, none)
        code.add("r4 = r9", "r4 -= r8", f"r4 -= {_BUFFER}")
        code.add("r0 = r4", "r0 s>>= 63", "r4 &= r0", f"r4 += {_BUFFER}")
        code.compare("r4", "s<", size, none)
        code.compare("r4", "s>", _BUFFER, none)  # never; the verifier wants to be told
        code.add("r1 = r6", "r2 = r7", "r2 += r8", "r3 = r10", f"r3 += -{_BUFFER}")
        code.add("call bpf_skb_load_bytes")
        # The bytes are there.  To wait for more of them would be to wait for ever.
        code.compare("r0", "!=", 0, code.unreadable())
        code.add("r1 = r10", f"r1 += -{_BUFFER}", "r2 = 0")

        code.place(word)
        self._emit_differences(code)
        # The lowest byte of r0 that is zero becomes the lowest bit of r3 that is set.
        code.add("r3 = r0", "r4 = 0x0101010101010101 ll", "r3 -= r4", "r0 ^= -1", "r3 &= r0")
        code.add("r4 = 0x8080808080808080 ll", "r3 &= r4")
        # The way that ends is the one that goes straight on: the verifier walks it first, and so
        # never has more than one way left to come back to for each chunk.
        code.compare("r3", "==", 0, following)
        code.add("r0 = r3", "r0 = -r0", "r3 &= r0", "r3 >>= 7")  # 1 << 8 * index
        code.add("r4 = 0x0001020304050607 ll", "r3 *= r4", "r3 >>= 56")
        code.add("r8 += r2", "r8 += r3", f"r8 += {size}")
        self._emit_found(code)
        # Past the end of the data lie bytes of the chunk before.
        code.jump(end, "r8 <= r9")
        code.place(none)
        code.compare("r9", "==", self.limit, code.oversize())
        code.add("r0 = 0", "exit")

        code.place(following)
        code.add(f"r1 += {_WORD}", f"r2 += {_WORD}")
        code.compare("r2", "<", _CHUNK, word)
        code.add(f"r8 += {_CHUNK}")
        code.jump(chunk)

    def _emit_differences(self, code: Code) -> None:
        """Leaves in r0, a byte for each of the 8 places from r1 on, 0 where the delimiter is."""
        # Places count from the lowest byte: a conversion to little-endian does nothing on a
        # little-endian host.
        little = ["le64"] if sys.byteorder == "big" else []
        code.add("r5 = *(u64 *)(r1 + 0)", *(f"r5 = {swap} r5" for swap in little))
        for number, byte in enumerate(self.delimiter):
            if number == 0:
                code.add(f"r0 = {byte * 0x0101010101010101:#x} ll", "r0 ^= r5")
                continue
            # Stack loads must be aligned: a word that begins within one is made of two.
            code.add(f"r3 = *(u64 *)(r1 + {_WORD})", *(f"r3 = {swap} r3" for swap in little))
            code.add(f"r3 <<= {8 * (_WORD - number)}", "r4 = r5", f"r4 >>= {8 * number}")
            code.add("r3 |= r4", f"r4 = {byte * 0x0101010101010101:#x} ll", "r3 ^= r4")
            code.add("r0 |= r3")

    def follow(self, data: memoryview, length: int) -> int:
        seen = bytes(data[: self.limit])
        at = seen.find(self.delimiter)
        if at >= 0:
            return at + len(self.delimiter)
        if len(seen) == self.limit:
            refuse(errno.EMSGSIZE, f"no {self.delimiter!r} within {self.limit} bytes")
        raise IncompleteError

    def limited(self, high: int) -> Step:
        # Not to wait for more than the longest message before it is refused.
        return Find(self.delimiter, min(self.limit, max(high, len(self.delimiter))))

    def explore(self, path: Path) -> list[Path]:
        if path.high or path.low:
            raise FramingDefinitionError("steps", "nothing may be added before a Find")
        return [path.plus(len(self.delimiter), self.limit)]
