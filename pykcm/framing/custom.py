"""A framing whose delineation program is written by hand."""

from __future__ import annotations

from pykcm.errors import FramingDefinitionError
from pykcm.framing.base import DEFAULT_MAX_LENGTH, Framing, check_batch
from pykcm.framing.field import check_integer
from pykcm.framing.steps import LARGEST_LENGTH
from pykcm.framing.value import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pykcm import bpf
    from pykcm._offset import Strategy
    from pykcm.framing.base import Buffer


class CustomFraming(Value, Framing):
    """A delineation program in the caller's own assembly.

    The text is that of `pykcm.bpf.assemble`.  One line of it learns where in the skb the message
    begins, on every kernel, and keeps the context in r6; it clobbers r0 to r5 and r10-8 to r10-1:

        r7 = message_offset                  # r7, r8 or r9
        r0 = *(u16 *)skb[r7 + 2]             # big-endian; past the end: result 0, "wait"
        r0 += 4
        exit

    The result is the length of the message in bytes, header included; 0 for "not enough to tell";
    or a negative errno, with which the kernel ends the connection's reading.  The program must hold
    to max_length itself.

    Args:
        text: the assembly.
        max_length: the longest message that the program lets pass, in bytes.
        measure: the same rule in Python; see `Framing.measure`.
        symbols: numbers that the text names.

    Raises:
        FramingDefinitionError: an argument is of the wrong type or out of range, and named.
    """

    text: str
    max_length: int
    rule: Callable[[Buffer], int] | None
    symbols: tuple[tuple[str, int], ...]

    def __init__(
        self,
        text: str,
        *,
        max_length: int = DEFAULT_MAX_LENGTH,
        measure: Callable[[Buffer], int] | None = None,
        **symbols: int,
    ) -> None:
        if not isinstance(text, str) or not text.strip():
            raise FramingDefinitionError("text", f"must be assembly, not {text!r}")
        if measure is not None and not callable(measure):
            raise FramingDefinitionError("measure", f"must be callable, not {measure!r}")
        if "message_offset" in symbols:
            raise FramingDefinitionError("message_offset", "is not the caller's to give")
        check_integer("max_length", max_length, 1, LARGEST_LENGTH)
        for name, value in symbols.items():
            check_integer(name, value, -(1 << 63), (1 << 64) - 1)
        self.__dict__.update(
            text=text,
            max_length=max_length,
            rule=measure,
            symbols=tuple(sorted(symbols.items())),
        )

    def replace(self, **changes: Any) -> CustomFraming:
        """A copy with other arguments or symbols."""
        arguments: dict[str, Any] = {
            "text": self.text,
            "max_length": self.max_length,
            "measure": self.rule,
            **dict(self.symbols),
        }
        return CustomFraming(**{**arguments, **changes})

    def measure(self, buffer: Buffer) -> int:
        """What the caller's `measure` says of the buffer.

        Raises:
            NotImplementedError: none was given.
        """
        if self.rule is None:
            raise NotImplementedError("this CustomFraming was given no `measure`")
        return self.rule(buffer)

    def assembly(self, strategy: Strategy | None = None, batch: int = 1) -> str:
        """The whole program, with the line for the offset and the symbols put in.

        Args:
            strategy: as of `Framing.assembly`.
            batch: 1; a program by hand measures the messages that it measures.

        Raises:
            AssemblyError: the text is no assembly.
            FramingDefinitionError: the batch is not 1.
        """
        check_batch(batch, 1)
        from pykcm import bpf
        from pykcm._offset import PROBE

        return bpf.disassemble(bpf.assemble(self.text, **self._all_symbols(strategy or PROBE)))

    def load(self, strategy: Strategy | None = None, batch: int = 1) -> bpf.Program:
        """The program, loaded into the kernel; the caller closes it.

        Raises:
            AssemblyError: the text is no assembly; the place in the text is named.
            UnavailableError, CapabilityError: from `find_strategy`, where strategy is None.
            VerifierError, BPFError: the kernel refuses the program.
            FramingDefinitionError: the batch is not 1.
        """
        check_batch(batch, 1)
        from pykcm import _offset, bpf

        if strategy is None:
            strategy = _offset.find_strategy()
        return bpf.Program.load(self.text, name="pykcm_custom", **self._all_symbols(strategy))

    def largest_batch(self, strategy: Strategy | None = None) -> int:
        """1: a program by hand measures the messages that it measures."""
        return 1

    def batch_bytes(self, batch: int) -> int:
        """The longest message, in bytes; the batch must be 1."""
        check_batch(batch, 1)
        return self.max_length

    def _all_symbols(self, strategy: Strategy) -> dict[str, Any]:
        return {"message_offset": strategy.lines(), **dict(self.symbols)}
