"""A framing's rule where no kernel is: its delineation program, run by pykcm's compiled part."""

from __future__ import annotations

from pykcm._binding import ffi, lib
from pykcm.bpf import _instructions as isa

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pykcm.framing.base import Buffer, Framing

# How many lengths `divide` asks for at a time.
_ROOM = 256


class Delineator:
    """Finds messages in bytes with the same program that finds them in the kernel.

    Args:
        framing: whose program, or the program; of instructions that framings are made of
            (pykcm/_delineate.c knows no others).

    Attributes:
        code: the program for `pykcm_delineate`, which was checked.

    Raises:
        UnavailableError: pykcm has no compiled part on this platform.
        ValueError: the program has other instructions, as one by hand may have.
    """

    def __init__(self, framing: Framing | bytes) -> None:
        self.code: bytes = framing if isinstance(framing, bytes) else framing.memory_program()
        self._program = ffi.cast("struct bpf_insn *", ffi.from_buffer("char[]", self.code))
        if lib.pykcm_delineate_check(self._program, len(self.code) // isa.SIZE) < 0:
            raise ValueError("the program has instructions that only the kernel can run")

    def measure(self, buffer: Buffer) -> int:
        """What the program returns for the message that the buffer begins with."""
        data = ffi.from_buffer("char[]", buffer)
        length: int = lib.pykcm_delineate(self._program, data, len(data))
        return length

    def divide(self, buffer: Buffer) -> list[int]:
        """The lengths of the whole messages that the buffer begins with, one after the other."""
        data = ffi.from_buffer("char[]", buffer)
        lengths, used = ffi.new("uint32_t[]", _ROOM), ffi.new("size_t *")
        found: list[int] = []
        at, count = 0, _ROOM
        while count == _ROOM:
            count = lib.pykcm_divide(self._program, data + at, len(data) - at, lengths, _ROOM, used)
            found += ffi.unpack(lengths, count)
            at += used[0]
        return found
