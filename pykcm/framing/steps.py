"""The parts that a header's rule is made of, each in two forms that mean the same.

A rule is a tuple of steps.  They share one number, the message's length so far, which starts at 0.
Each step does the same thing twice: `emit` writes it as BPF assembly, `follow` does it in Python.
A third form, `explore`, follows the smallest and largest length through every path of the rule, so
that no 64-bit sum can wrap and no length can be shorter than the header that gave it; both are
proved when the framing is made, not when a header arrives.
"""

from __future__ import annotations

import abc
import errno

from pykcm.errors import FramingDefinitionError, FramingError
from pykcm.framing.code import Code
from pykcm.framing.field import LARGEST_HEADER, Field, check_integer, pieces
from pykcm.framing.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

#: The program's result is a C int (kcm_parse_func_strparser in net/kcm/kcmsock.c).
LARGEST_LENGTH = (1 << 31) - 1

# A term of a sum over this is refused as too long at once.  Far over any message, and far enough
# below 2**63 that sums of some terms and constants can't reach it.
_LARGEST_TERM = 1 << 48

# No sum on any path may exceed this, so that signed 64-bit comparisons are right.
_LARGEST_SUM = (1 << 62) - 1


class Path(Value):
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
        """The way on after adding from low to high bytes.

        Raises:
            FramingDefinitionError: the sum could exceed 62 bits.
        """
        path = self.replace(low=self.low + low, high=self.high + high)
        if path.high > _LARGEST_SUM:
            raise FramingDefinitionError("steps", "the length can exceed 62 bits")
        return path

    def read(self, field: Field) -> Path:
        """The way on after reading a field."""
        return self.replace(extent=max(self.extent, field.end))


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
    """The length after all steps, in bytes; raises as `Step.follow` does."""
    for step in steps:
        length = step.follow(data, length)
    return length


def explore_all(steps: Iterable[Step], path: Path) -> list[Path]:
    """Every way on through all steps; raises as `Step.explore` does."""
    paths = [path]
    for step in steps:
        paths = [after for before in paths for after in step.explore(before)]
    return paths


class Add(Value, Step):
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
            raise FramingError(
                errno.EMSGSIZE, f"the header tells a length of {number} x {self.multiplier}"
            )
        return length + number * self.multiplier

    def explore(self, path: Path) -> list[Path]:
        if isinstance(self.term, int):
            return [path.plus(self.term, self.term)]
        largest = self.term.largest if self._cap is None else self._cap
        return [path.read(self.term).plus(0, largest * self.multiplier)]


class Times(Value, Step):
    """Multiplies the length so far."""

    factor: int

    def __post_init__(self) -> None:
        check_integer("factor", self.factor, 1, 1 << 30)

    def emit(self, code: Code) -> None:
        code.apply("r8", "*", self.factor)

    def follow(self, data: memoryview, length: int) -> int:
        return length * self.factor

    def explore(self, path: Path) -> list[Path]:
        path = path.replace(low=path.low * self.factor, high=path.high * self.factor)
        return [path.plus(0, 0)]


class RoundUp(Value, Step):
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
        return [path.replace(low=low, high=high).plus(0, 0)]


class Within(Value, Step):
    """Refuses a length so far under a minimum (EBADMSG) or over a maximum (EMSGSIZE)."""

    low: int
    high: int

    def __post_init__(self) -> None:
        check_integer("high", self.high, 1, LARGEST_LENGTH)
        check_integer("low", self.low, 0, self.high)

    def emit(self, code: Code) -> None:
        # Signed: a negative adjustment can make the sum negative, and `explore` has proved that
        # it is below 2**62.
        if code.following:
            # To the verifier r8 is a range, and where that decides a comparison, all that it came
            # from is looked at in each combination.  What is added here it does not know.
            code.add("r0 = *(u32 *)(r6 + 0)", "r8 += r0", "r8 -= r0")
        code.compare("r8", "s<", self.low, code.bad())
        code.compare("r8", "s>", self.high, code.oversize())

    def follow(self, data: memoryview, length: int) -> int:
        if length < self.low:
            raise FramingError(
                errno.EBADMSG, f"a length of {length} is under the minimum, {self.low}"
            )
        if length > self.high:
            raise FramingError(
                errno.EMSGSIZE, f"a length of {length} is over the maximum, {self.high}"
            )
        return length

    def holds(self, path: Path) -> bool:
        """Whether it is certain on this way, so that the check can be left out."""
        return self.low <= path.low and path.high <= self.high

    def explore(self, path: Path) -> list[Path]:
        low, high = max(path.low, self.low), min(path.high, self.high)
        return [path.replace(low=low, high=high)] if low <= high else []


class Divisible(Value, Step):
    """Refuses a length so far that is not a multiple of a number (EBADMSG)."""

    divisor: int

    def __post_init__(self) -> None:
        check_integer("divisor", self.divisor, 1, 1 << 16)

    def emit(self, code: Code) -> None:
        code.add("r0 = r8", f"r0 %= {self.divisor}")
        code.compare("r0", "!=", 0, code.bad())

    def follow(self, data: memoryview, length: int) -> int:
        if length % self.divisor:
            raise FramingError(
                errno.EBADMSG, f"a length of {length} is no multiple of {self.divisor}"
            )
        return length

    def explore(self, path: Path) -> list[Path]:
        if path.low < 0:
            raise FramingDefinitionError("steps", "Divisible needs a length that is not negative")
        return [path]


class Match(Value, Step):
    """Refuses a header that does not hold these bytes at this offset (EBADMSG)."""

    value: bytes
    offset: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.value, bytes) or not 1 <= len(self.value) <= 64:
            raise FramingDefinitionError("value", f"must be 1 to 64 bytes, not {self.value!r}")
        check_integer("offset", self.offset, 0, LARGEST_HEADER - len(self.value))

    def _parts(self) -> Iterable[tuple[Field, int]]:
        for at, size in pieces(len(self.value)):
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
                raise FramingError(
                    errno.EBADMSG, f"{found!r} at byte {self.offset} instead of {self.value!r}"
                )
        return length

    def explore(self, path: Path) -> list[Path]:
        for field, _ in self._parts():
            path = path.read(field)
        return [path]


class Case(Value):
    """What to do for some numbers of a Switch's field.

    Args:
        values: the numbers, each one number or a range (first, last).
        steps: what follows then.
    """

    values: tuple[int | tuple[int, int], ...]
    steps: tuple[Step, ...] = ()

    @property
    def ranges(self) -> tuple[tuple[int, int], ...]:
        """The numbers as ranges, each its first and last."""
        return tuple((v, v) if isinstance(v, int) else v for v in self.values)


class Switch(Value, Step):
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
        before, after = code.there, []
        for number, (case, target) in enumerate(zip(self.cases, targets, strict=True), 1):
            code.place(target)
            code.there = before
            for step in case.steps:
                step.emit(code)
            after.append(code.there)
            if number < len(self.cases):
                code.jump(end)
        code.place(end)
        code.there = min(after)

    def follow(self, data: memoryview, length: int) -> int:
        number = self.field.read(data)
        for case in self.cases:
            if any(low <= number <= high for low, high in case.ranges):
                return follow_all(case.steps, data, length)
        raise FramingError(errno.EBADMSG, f"{number:#x} at byte {self.field.offset}")

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
