"""Messages whose length stands in a field of fixed size at a fixed place, or is always the same."""

from __future__ import annotations

from pykcm.errors import FramingDefinitionError
from pykcm.framing.base import DEFAULT_MAX_LENGTH, Framing, SteppedFraming, check_batch
from pykcm.framing.code import Code
from pykcm.framing.field import Field, check_integer
from pykcm.framing.steps import LARGEST_LENGTH, Add, Divisible, Match, Step
from pykcm.framing.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pykcm import bpf
    from pykcm._offset import Strategy
    from pykcm.framing.base import Buffer
    from pykcm.framing.field import ByteOrder


class LengthField(Value, SteppedFraming):
    """A length field of 1 to 8 bytes at a fixed offset.

        message length = ((field & mask) >> shift) * multiplier + adjustment

    The terms are those of Tokio's LengthDelimitedCodec and Netty's LengthFieldBasedFrameDecoder;
    docs/framing.md translates both.

    Args:
        offset: the field's first byte, counted from the message's first.
        size: the field's size in bytes, 1 to 8.
        byteorder: "big" or "little".
        adjustment: what is added to the field's number to make it the length of the whole message,
            header included, in bytes; may be negative.  By default the field counts the bytes that
            follow it: offset + size.  0 is for a field that counts the whole message.
        mask: which bits of the field are the number; by default all.
        shift: by how many bits they are moved down.
        multiplier: the unit of the number, in bytes.
        min_length: the shortest message in bytes, header included; by default the header, that
            is the end of the field or of the magic bytes.
        max_length: the longest message in bytes, header included.
        magic: bytes that every message holds at magic_offset.
        magic_offset: where they stand.
        multiple_of: what every message's length must be a multiple of, in bytes.

    Raises:
        FramingDefinitionError: no message could have such a header; the argument is named.
    """

    offset: int = 0
    size: int = 4
    byteorder: ByteOrder = "big"
    adjustment: int = None  # type: ignore[assignment] # replaced in __post_init__
    mask: int = None  # type: ignore[assignment]
    shift: int = 0
    multiplier: int = 1
    min_length: int = None  # type: ignore[assignment]
    max_length: int = DEFAULT_MAX_LENGTH
    magic: bytes = b""
    magic_offset: int = 0
    multiple_of: int = 1

    def __post_init__(self) -> None:
        field = Field(self.offset, self.size, self.byteorder, self.mask, self.shift)
        if not isinstance(self.magic, bytes):
            raise FramingDefinitionError("magic", f"must be bytes, not {self.magic!r}")
        for name, value in self._derived().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)
        check_integer("max_length", self.max_length, 1, LARGEST_LENGTH)
        if self.magic:
            self._match()
        header = self._derived()["min_length"]
        if header > self.max_length:
            raise FramingDefinitionError(
                "max_length", f"{self.max_length} is less than the header's {header} bytes"
            )
        check_integer("multiplier", self.multiplier, 1, self.max_length)
        check_integer("adjustment", self.adjustment, -LARGEST_LENGTH, self.max_length)
        check_integer("multiple_of", self.multiple_of, 1, self.max_length)
        check_integer("min_length", self.min_length, 1, LARGEST_LENGTH)
        if self.min_length < header:
            raise FramingDefinitionError(
                "min_length", f"{self.min_length} is less than the header's {header} bytes"
            )
        if self.adjustment + field.largest * self.multiplier < self.min_length:
            raise FramingDefinitionError(
                "adjustment",
                f"the field's largest number, {field.largest}, makes no message of min_length, "
                f"{self.min_length}",
            )
        self._check()

    def _derived(self) -> dict[str, int]:
        """The defaults that depend on other arguments."""
        end = self.offset + self.size
        return {
            "adjustment": end,
            "mask": (1 << 8 * self.size) - 1,
            "min_length": max(end, self.magic_offset + len(self.magic) if self.magic else 0),
        }

    def _match(self) -> Match:
        try:
            return Match(self.magic, self.magic_offset)
        except FramingDefinitionError as error:
            name = "magic" if error.argument == "value" else "magic_offset"
            raise FramingDefinitionError(name, error.why) from None

    def _make_steps(self) -> Iterable[Step]:
        if self.magic:
            yield self._match()
        field = Field(self.offset, self.size, self.byteorder, self.mask, self.shift)
        yield Add(field, self.multiplier)
        if self.adjustment:
            yield Add(self.adjustment)

    def _make_checks(self) -> Iterable[Step]:
        if self.multiple_of > 1:
            yield Divisible(self.multiple_of)

    def __repr__(self) -> str:
        derived = self._derived()
        shown = [f"offset={self.offset}", f"size={self.size}"]
        for name, default in list(self._fields.items())[2:]:
            value = getattr(self, name)
            if value != derived.get(name, default):
                shown.append(f"{name}={value!r}")
        return f"{type(self).__name__}({', '.join(shown)})"


class FixedLength(Value, Framing):
    """Messages that are all of one length.

    Its program needs no offset: it loads and is right on every kernel, and for a process without
    privileges too (where /proc/sys/kernel/unprivileged_bpf_disabled is 0).

    Args:
        length: the length of every message in bytes.

    Raises:
        FramingDefinitionError: the length is not 1 to 2**31 - 1.
    """

    length: int

    def __post_init__(self) -> None:
        check_integer("length", self.length, 1, LARGEST_LENGTH)

    @property
    def max_length(self) -> int:  # type: ignore[override]
        """The length of every message in bytes."""
        return self.length

    def measure(self, buffer: Buffer) -> int:
        """The length of every message, in bytes, whatever the buffer holds."""
        return self.length

    def assembly(self, strategy: Strategy | None = None, batch: int = 1) -> str:
        """The delineation program; with a batch of 1 it is the same with every strategy."""
        from pykcm._offset import PROBE

        check_batch(batch)
        if batch == 1:
            return f"    r0 = {self.length}\n    exit\n"
        code = Code()
        code.add(*(strategy or PROBE).lines("r7").splitlines())
        code.add("r0 = *(u32 *)(r6 + 0)", "r0 -= r7", f"r0 /= {self.length}")  # __sk_buff.len
        most = min(batch, self.batch_bytes(batch) // self.length)
        code.compare("r0", "<=", most, "counted")
        code.add(f"r0 = {most}")
        code.place("counted")
        code.compare("r0", "!=", 0, "whole")
        code.add("r0 = 1")
        code.place("whole")
        code.add(f"r0 *= {self.length}", "exit")
        return code.text()

    def load(self, strategy: Strategy | None = None, batch: int = 1) -> bpf.Program:
        """As `Framing.load`; with a batch of 1 the kernel is not asked for a strategy."""
        from pykcm._offset import NONE

        return super().load(NONE if batch == 1 else strategy, batch)
