"""What every framing is, and the framing that is made of steps."""

from __future__ import annotations

import abc
import errno
import functools

from pykcm.errors import FramingDefinitionError
from pykcm.framing.code import Code
from pykcm.framing.field import IncompleteError, check_integer
from pykcm.framing.search import function_argument
from pykcm.framing.steps import LARGEST_LENGTH, Path, Step, Within, explore_all, follow_all

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any, TypeAlias, TypeVar

    from pykcm import bpf
    from pykcm._offset import Strategy

    #: What `measure` takes.
    Buffer: TypeAlias = bytes | bytearray | memoryview

    _Self = TypeVar("_Self", bound="Framing")

#: The longest message, in bytes, of a framing that is given no other.
DEFAULT_MAX_LENGTH = 1 << 20


class Framing(abc.ABC):
    """A rule that tells where a message of a byte stream ends, from the message's first bytes.

    Framings are immutable, hashable and can be pickled.

    Attributes:
        max_length: the longest message, header included, in bytes; a longer one is refused.
    """

    max_length: int

    @abc.abstractmethod
    def measure(self, buffer: Buffer) -> int:
        """The length of the message that the buffer begins with, header included, in bytes.

        The message itself need not be there, only enough of it to tell.

        Returns:
            The length, or 0 while the buffer holds too little to tell.

        Raises:
            FramingError: the header is refused: errno EMSGSIZE for a message over max_length,
                EBADMSG for bytes that are no header of this framing.
        """

    @abc.abstractmethod
    def assembly(self, strategy: Strategy | None = None) -> str:
        """The same rule as a delineation program, in BPF assembly.

        Its result is the message's length, 0 for "not enough to tell", -EMSGSIZE or -EBADMSG;
        and -EFAULT should the kernel refuse to show bytes that it says are there.

        The text is made without asking the kernel, so that it can be had on every machine.

        Args:
            strategy: how the program learns where in the skb the message begins; None for what
                is right on Linux 5.19 and later on 64-bit machines, `STRATEGIES["probe"]`.
                `load` asks the running kernel.
        """

    def load(self, strategy: Strategy | None = None) -> bpf.Program:
        """The delineation program, loaded into the kernel; the caller closes it.

        Args:
            strategy: as of `assembly`; None for what is right on the running kernel.

        Raises:
            UnavailableError, CapabilityError: from `find_strategy`, where strategy is None.
            VerifierError, BPFError: the kernel refuses the program.
        """
        from pykcm import _offset, bpf

        if strategy is None:
            strategy = _offset.find_strategy()
        return bpf.Program.load(
            _code(self, strategy),
            name="pykcm_framing",
            functions_take=function_argument(strategy.far_loads),
        )

    @abc.abstractmethod
    def replace(self: _Self, **changes: Any) -> _Self:
        """A copy with other arguments, as in `protocols.THRIFT_FRAMED.replace(max_length=4096)`.

        Raises:
            FramingDefinitionError: the new arguments do not fit together.
        """


@functools.lru_cache(maxsize=64)
def _code(framing: Framing, strategy: Strategy) -> bytes:
    """The instructions, kept: a program is loaded for every connection that is attached."""
    from pykcm import bpf

    return bpf.assemble(framing.assembly(strategy))


class SteppedFraming(Framing):
    """A framing that is made of steps (pykcm.framing.steps).

    The result of the steps is held to min_length and max_length.  Subclasses are also a
    `Value`, give the steps, and end their `__post_init__` with `_check`.
    """

    min_length: int

    @abc.abstractmethod
    def _make_steps(self) -> Iterable[Step]:
        """The steps, from the subclass's arguments."""

    def _make_checks(self) -> Iterable[Step]:
        """What more is asked of a length once it is within the limits."""
        return ()

    @functools.cached_property
    def steps(self) -> tuple[Step, ...]:
        """The rule."""
        rule = tuple(step.limited(self.max_length) for step in self._make_steps())
        within = Within(self.min_length, self.max_length)
        if not all(within.holds(path) for path in explore_all(rule, Path())):
            rule += (within,)
        return (*rule, *self._make_checks())

    def _check(self) -> None:
        """Checks the limits, and that the rule can yield a length and never a wrong one."""
        check_integer("max_length", self.max_length, 1, LARGEST_LENGTH)
        check_integer("min_length", self.min_length, 1, LARGEST_LENGTH)
        if self.min_length > self.max_length:
            raise FramingDefinitionError(
                "min_length", f"{self.min_length} is over max_length, {self.max_length}"
            )
        paths = explore_all(self.steps, Path())
        if not paths:
            raise FramingDefinitionError(
                "min_length",
                f"no header can tell a length from {self.min_length} to max_length, "
                f"{self.max_length}",
            )
        for path in paths:
            # A length inside the bytes that were needed to tell it is an error to KCM ("length
            # must be into new skb", __strp_recv), and no message.
            if path.low < path.extent:
                raise FramingDefinitionError(
                    "min_length",
                    f"a message of {path.low} bytes would be shorter than its header of "
                    f"{path.extent}",
                )

    def measure(self, buffer: Buffer) -> int:
        try:
            return follow_all(self.steps, memoryview(buffer).cast("B"), 0)
        except IncompleteError:
            return 0

    def assembly(self, strategy: Strategy | None = None) -> str:
        from pykcm._offset import PROBE

        strategy = strategy or PROBE
        code = Code(strategy.far_loads)
        code.comment("r6: the skb; r7: where in it the message begins")
        code.add(*strategy.lines("r7").splitlines())
        code.comment("r8: the length so far")
        code.add("r8 = 0")
        for step in self.steps:
            step.emit(code)
        code.add("r0 = r8", "exit")
        for label, error in (
            (code.bad(), errno.EBADMSG),
            (code.oversize(), errno.EMSGSIZE),
            (code.unreadable(), errno.EFAULT),
        ):
            if code.wants(label):
                code.place(label)
                code.add(f"r0 = -{error}  # {errno.errorcode[error]}", "exit")
        return code.text()
