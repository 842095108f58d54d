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
    import socket
    from collections.abc import Iterable
    from typing import Any, TypeAlias, TypeVar

    from pykcm import bpf
    from pykcm._offset import Strategy
    from pykcm.framing.delineate import Delineator

    #: What `measure` takes.
    Buffer: TypeAlias = bytes | bytearray | memoryview

    _Self = TypeVar("_Self", bound="Framing")

#: The longest message, in bytes, of a framing that is given no other.
DEFAULT_MAX_LENGTH = 1 << 20

#: How many messages may make a super message, where the kernel's verifier takes so many.
LARGEST_BATCH = 256

# How long a super message may be, where no single message is longer.
_BATCH_BYTES = 1 << 16

# A first message that is longer comes alone: what it costs to take it out of a super message again,
# a copy, is more than what is saved.
_LARGE = 1 << 13


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

    def read_message(
        self, tcp: socket.socket, *, begun: bytes = b"", timeout: float | None = None
    ) -> bytes:
        """Take one message off a TCP socket that is not attached, and never a byte more.

        For what has to be read before a connection is attached: a greeting, a login's answers.
        Nothing is taken until the message is whole: if something is raised, the stream is as it
        was, and the call may be made again.

        Args:
            tcp: a connected TCP socket without TLS, in whatever blocking mode.
            begun: the beginning of the message, where somebody has read that already.
            timeout: seconds; None for no limit, whatever the socket's own time-out.

        Returns:
            The whole message, header and what was begun included.

        Raises:
            FramingError: the header is refused, as by `measure`.
            MessageCut: the connection ended in the middle of the message.
            Disconnected: it ended before the message.
            TimeoutError: the time is over; the text says how many bytes have come.
            ArgumentError: begun is longer than a message.
            KCMOSError: ENOBUFS (the message does not fit into the receive buffer), EPROTO (urgent
                data came), EOPNOTSUPP and others (not a TCP socket, or one with TLS).
        """
        from pykcm import _reading
        from pykcm._wait import run

        return run(_reading.steps(self, tcp, begun), timeout, "")

    async def aread_message(self, tcp: socket.socket, *, begun: bytes = b"") -> bytes:
        """As `read_message`, on asyncio or Trio, without a limit; use the event loop's own."""
        from pykcm import _reading
        from pykcm._wait import arun

        return await arun(_reading.steps(self, tcp, begun))

    @abc.abstractmethod
    def assembly(self, strategy: Strategy | None = None, batch: int = 1) -> str:
        """The same rule as a delineation program, in BPF assembly.

        Its result is the message's length, 0 for "not enough to tell", -EMSGSIZE or -EBADMSG;
        and -EFAULT should the kernel refuse to show bytes that it says are there.

        With a batch, the program goes on from message to message, while they lie whole in the
        data that has come, and its result is the sum of their lengths: KCM takes them for one, a
        super message, which `split` divides.  A first message that is not whole, or that is over
        8 KiB, is measured alone.

        The text is made without asking the kernel, so that it can be had on every machine.

        Args:
            strategy: how the program learns where in the skb the message begins; None for what
                is right on Linux 5.19 and later on 64-bit machines, `STRATEGIES["probe"]`.
                `load` asks the running kernel.
            batch: how many messages may make a super message, 1 to LARGEST_BATCH; together they
                are no longer than `batch_bytes` says.

        Raises:
            FramingDefinitionError: no such batch is possible.
        """

    def load(self, strategy: Strategy | None = None, batch: int = 1) -> bpf.Program:
        """The delineation program, loaded into the kernel; the caller closes it.

        Args:
            strategy: as of `assembly`; None for what is right on the running kernel.
            batch: as of `assembly`.

        Raises:
            FramingDefinitionError: the batch is too large for the kernel's verifier; the largest
                that is possible is named.
            UnavailableError, CapabilityError: from `find_strategy`, where strategy is None.
            VerifierError, BPFError: the kernel refuses the program.
        """
        from pykcm import _offset
        from pykcm.errors import BPFError

        if strategy is None:
            strategy = _offset.find_strategy()
        try:
            return self._load(strategy, batch)
        except BPFError as error:
            if batch == 1 or (largest := self.largest_batch(strategy)) >= batch:
                raise
            raise FramingDefinitionError(
                "batch",
                f"{batch} is more than this kernel takes for this framing, {largest}",
            ) from error

    def _load(self, strategy: Strategy, batch: int) -> bpf.Program:
        from pykcm import bpf

        return bpf.Program.load(
            _code(self, strategy, batch),
            name="pykcm_framing",
            functions_take=function_argument(strategy.far_loads),
        )

    def largest_batch(self, strategy: Strategy | None = None) -> int:
        """The largest batch that the running kernel's verifier takes, found by trying.

        Args:
            strategy: as of `load`.

        Raises:
            UnavailableError, CapabilityError, VerifierError, BPFError: as of `load`, if not even
                a batch of 1 can be loaded.
        """
        from pykcm import _offset
        from pykcm.errors import BPFError

        if strategy is None:
            strategy = _offset.find_strategy()
        self._load(strategy, 1).close()
        batch, low, high = LARGEST_BATCH, 1, LARGEST_BATCH
        while low < high:
            try:
                self._load(strategy, batch).close()
                low = batch
            except BPFError:
                high = batch - 1
            batch = (low + high + 1) // 2
        return low

    def batch_bytes(self, batch: int) -> int:
        """The longest super message of so many messages, in bytes: what a receiver needs room for.

        It is max_length, or 64 KiB where that is more, and never more than batch * max_length.
        """
        return max(self.max_length, min(check_batch(batch) * self.max_length, _BATCH_BYTES))

    def memory_program(self) -> bytes:
        """The delineation program for bytes in memory, which divides super messages."""
        from pykcm._offset import NONE

        return _code(self, NONE, 1)

    @abc.abstractmethod
    def replace(self: _Self, **changes: Any) -> _Self:
        """A copy with other arguments, as in `protocols.THRIFT_FRAMED.replace(max_length=4096)`.

        Raises:
            FramingDefinitionError: the new arguments do not fit together.
        """


@functools.lru_cache(maxsize=64, typed=True)  # True is no batch, though it equals 1
def _code(framing: Framing, strategy: Strategy, batch: int) -> bytes:
    """The instructions, kept: a program is loaded for every connection that is attached."""
    from pykcm import bpf

    return bpf.assemble(framing.assembly(strategy, batch))


def check_batch(batch: int, largest: int = LARGEST_BATCH) -> int:
    """The batch, if it is possible; else a FramingDefinitionError."""
    return check_integer("batch", batch, 1, largest)


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
        if self._delineator:
            length = self._delineator.measure(buffer)
            if length >= 0:
                return length
        return self._follow(buffer)  # which also says why a header is refused

    @functools.cached_property
    def _delineator(self) -> Delineator | None:
        from pykcm.errors import UnavailableError

        try:
            from pykcm.framing.delineate import Delineator

            return Delineator(self)
        except UnavailableError:
            return None  # a platform without the compiled part, where Python has to do

    def _follow(self, buffer: Buffer) -> int:
        """`measure` in Python, step by step."""
        try:
            return follow_all(self.steps, memoryview(buffer).cast("B"), 0)
        except IncompleteError:
            return 0

    def assembly(self, strategy: Strategy | None = None, batch: int = 1) -> str:
        from pykcm._offset import PROBE

        strategy = strategy or PROBE
        check_batch(batch)
        code = Code(strategy.far_loads, batch)
        code.comment("r6: the skb; r7: where in it the message begins")
        code.add(*strategy.lines("r7").splitlines())
        code.comment("r8: the length so far")
        code.add("r8 = 0")
        for step in self.steps:
            step.emit(code)
        if batch > 1:
            self._emit_following(code, batch)
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

    def _emit_following(self, code: Code, batch: int) -> None:
        """Adds to r8, the first message's length, those of the messages that follow it whole."""
        if self.max_length > _LARGE:
            code.jump("done", f"r8 s> {_LARGE}")
        code.comment("r10 - 8: where the first begins; r10 - 32: where the last may end")
        code.add("*(u64 *)(r10 - 8) = r7", f"r0 = {batch - 1}", "*(u64 *)(r10 - 16) = r0")
        code.add("r9 = *(u32 *)(r6 + 0)", "r9 -= r7")  # __sk_buff.len
        code.minimum("r9", self.batch_bytes(batch))
        code.add("r9 += r7", "*(u64 *)(r10 - 32) = r9")
        code.add("r7 += r8")
        code.jump("done", "r7 s>= r9")
        code.place("next")
        code.following = True
        code.bytes_there()
        code.add("r8 = 0")
        for step in self.steps:
            step.emit(code)
        code.following = False
        code.jump("stop", "r8 s> r9")
        code.add("r7 += r8")
        code.add("r0 = *(u64 *)(r10 - 16)", "r0 += -1", "*(u64 *)(r10 - 16) = r0")
        code.jump("next", "r0 != 0")
        code.place("stop")
        code.add("r0 = *(u64 *)(r10 - 8)", "r8 = r7", "r8 -= r0")
        code.place("done")
