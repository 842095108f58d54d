"""`Multiplexor`: KCM sockets and transports of one peer, and what happens when a transport dies."""

from __future__ import annotations

import errno
import socket as _socket
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NoReturn

from pykcm import _explain, _kernel
from pykcm._attaching import LARGEST_MESSAGE, Delineation, descriptor_of, longest_message
from pykcm._clones import Clones
from pykcm._disconnection import Disconnection
from pykcm._forking import lock
from pykcm._messages import DEFAULT_LINGER
from pykcm._transports import Transport, Transports
from pykcm._upkeep import AHEAD, Upkeep
from pykcm._wait import Readable, Steps, arun, deadline_after, explained, run
from pykcm.errors import AttachError, KCMOSError
from pykcm.socket import DEFAULT_MAX_MESSAGE_SIZE, KCMSocket

if TYPE_CHECKING:
    from typing_extensions import Self


class Multiplexor(Upkeep):
    """Kernel-framed messages over the TCP connections to one peer.

    Transports are watched in the same wait as messages.  One that dies is drained, taken off and
    reported; the others go on.  A Multiplexor belongs to the process that made it; others use a
    `clone`.  Threads may share it.  Of tasks, one at a time can wait to receive.

    Args:
        framing: a `Framing`, a loaded `bpf.Program`, or a program's descriptor.
        type: SOCK_DGRAM or SOCK_SEQPACKET.
        linger: how long closing waits for unsent bytes at most, in seconds.
        queue_unattached: what `send` does when no transport is attached: if False it raises
            `Disconnected`; if True the kernel keeps the message until one is attached.
        batch: how many messages the kernel may hand over as one, a super message, which is divided
            here; and how many `send_many` joins.  docs/performance.md says what that gains, and
            docs/messages.md what it costs.  1 is the kernel's own way.

    Attributes:
        socket: the KCM socket that this object receives and sends on.
        on_disconnect: called with a `Disconnection` when a transport has ended.  What it raises
            reaches the call that was made.

    Raises:
        UnavailableError, CapabilityError: see `KCMSocket`.
        ArgumentError: framing or linger cannot be; or a batch is asked for with a program.
        FramingDefinitionError: the framing has no such batch.
    """

    def __init__(
        self,
        framing: Delineation,
        *,
        type: int = _socket.SOCK_DGRAM,
        linger: float = DEFAULT_LINGER,
        queue_unattached: bool = False,
        batch: int = 1,
    ) -> None:
        deadline_after(linger)
        self.on_disconnect: Callable[[Disconnection], object] | None = None
        self._framing = framing
        self._batch = batch
        self._linger = linger
        self._closed = False
        # Room for the framing's longest message from the start: clones have it too.
        longest = longest_message(framing) or DEFAULT_MAX_MESSAGE_SIZE
        self.socket: KCMSocket = KCMSocket(type, max_message_size=min(longest, LARGEST_MESSAGE))
        self.socket.setblocking(False)
        self._attaching = self.socket._attaching
        try:
            self._attaching.divide(self.socket._port, framing, batch)
            with explained():
                self._transports = Transports(self.socket)
                self._clones = Clones(self.socket)
                # Readable while messages wait in this object.
                self._told = _kernel.Descriptor.event()
        except BaseException:
            self.socket.close()
            raise
        self._all: Readable | None = None
        self._untold: dict[int, Disconnection] = {}
        self.socket._watcher = weakref.WeakMethod(self._look)
        port = self._port = self.socket._port
        port.watch = self._transports.watch.fileno()
        port.told = self._told.fileno()
        port.ahead = AHEAD
        port.queueing = queue_unattached
        port.bound = port.watched = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.socket.fileno()}"
        return (
            f"<{type(self).__module__}.{type(self).__name__} {state} "
            f"framing={self._framing!r} transports={len(self._transports)}>"
        )

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            f"cannot pickle {type(self).__name__!r} object: it belongs to the process that made "
            "it; give others a clone"
        )

    # ---- transports ----

    @property
    def transports(self) -> list[_socket.socket]:
        """The attached TCP sockets, as they were given to `attach`."""
        return [transport.tcp for transport in self._transports]

    def attach(
        self,
        tcp: _socket.socket,
        *,
        hand_over: bool = False,
        allow_small_buffer: bool = False,
    ) -> None:
        """Add a connected TCP socket, also while traffic flows.

        Should an exception of a signal handler's end the call, the socket is attached if
        `transports` has it.

        Args:
            tcp: the socket.  It stays the caller's, who closes it after it was unattached or
                reported; nothing else may read or write it meanwhile.
            hand_over: close it with its end as a transport instead.
            allow_small_buffer: as for `KCMSocket.attach`.

        Raises:
            AttachError and others: see `KCMSocket.attach`; also EMFILE or ENFILE (too many
                descriptors), ENOSPC (fs.epoll.max_user_watches).  Nothing of the connection was
                read then, and it is the caller's.
        """
        self._check()
        if isinstance(tcp, int):
            raise AttachError(
                errno.ENOTSOCK,
                f"{tcp} is a number; a Multiplexor takes sockets, which socket.socket(fileno={tcp})"
                " makes of descriptors",
            )
        fd, program_fd = descriptor_of(tcp), -1
        self._attaching.get_ready(self.socket.type, self._framing, self._batch)
        try:
            with lock:
                self._check()  # again: another thread may have closed it
                program_fd, max_length = self._attaching.delineate(self._framing, self._batch)
                transport = Transport(tcp, fd, hand_over)
                self._transports.attach(transport, program_fd, max_length, allow_small_buffer)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise _explain.explain(error, _explain.ATTACH, tcp=fd, program=program_fd) from error
        finally:
            self._settle()

    def unattach(self, tcp: _socket.socket, *, timeout: float | None = None) -> Disconnection:
        """Take a transport off, after its messages were received and sent.

        Messages that have arrived stay to be received.  Of a live connection, bytes can arrive at
        any moment: the peer has to be silent, or the beginning of its next message is lost.  Bytes
        that the kernel has not taken within a second are left unread: `cut` says how many.

        Should an exception of a signal handler's or of `on_disconnect` end the call, the transport
        stays if `transports` has it.  If it has not, it was taken off just then; nothing tells of
        it any more.

        Args:
            tcp: as it was given to `attach`.
            timeout: seconds to wait at most; None for no limit.

        Returns:
            What there is to know.  If its errno is not 0, a clone was in the middle of sending a
            message on the connection, which is cut there; KCM sends it again, whole, on another.

        Raises:
            AttachError: ENOENT, it is not a transport of this multiplexor.
            TimeoutError: bytes are unsent (one peer that does not read is enough), messages come in
                for the clones faster than they take them, or the peer is in the middle of a message
                and the time-out is under a second; the transport stays.
        """
        return run(self._unattach_steps(tcp), timeout, "timed out: the transport stays attached")

    async def aunattach(self, tcp: _socket.socket) -> Disconnection:
        """As `unattach`, on asyncio or Trio.

        Cancelled, the transport stays, unless another call has taken it off just then: see
        `transports`.  Nothing tells of that any more.
        """
        return await arun(self._unattach_steps(tcp))

    def _unattach_steps(self, tcp: _socket.socket) -> Steps[Disconnection]:
        self._check()
        transport = self._transports.find(tcp)
        if transport is None:
            raise AttachError(errno.ENOENT, "the TCP socket is not attached to this multiplexor")
        try:
            if self._push():
                # Taking off a connection that the kernel is writing to aborts it.
                yield from self._flush_steps()
            return (yield from self._transports.unattach_steps(transport, self._look))
        except OSError as error:
            if isinstance(error, (KCMOSError, TimeoutError)):
                raise
            raise _explain.explain(error, _explain.UNATTACH, tcp=tcp.fileno()) from error

    def fileno(self) -> int:
        """A descriptor that is readable when `recv` would not wait, or a transport has ended.

        For `select` and event loops; it is not the KCM socket's own.  When the last transport has
        gone it is readable until `recv` has raised `Disconnected` or `disconnections` was called.
        """
        self._check()
        with lock:
            if self._all is None:
                self._all = Readable(self._fd(), self._port.watch, self._port.told)
        self._port.observed = True
        self._port.tell()
        return self._all.fileno()

    def clone(self) -> KCMSocket:
        """A KCM socket on the same multiplexor for another thread, task or process.

        Messages that arrive are shared out between all of them.  A clone does not watch the
        transports; with `socket.recv_disabled = True` this object does nothing else.  When the last
        transport has gone, receiving and sending on a clone raise `Disconnected`.
        """
        self._check()
        clone = self._clones.make()
        self._settle()
        return clone

    def disconnections(self) -> Iterator[Disconnection]:
        """The transports that ended and were not told of yet; does not wait.

        The newest 4,096 are kept.
        """
        self._check()
        try:
            self._look()
        finally:
            self._transports.let_clones_go()
        self._port.over = False
        self._port.tell()
        return iter(self._port)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
