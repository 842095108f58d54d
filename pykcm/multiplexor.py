"""`Multiplexor`: KCM sockets and transports of one peer, and what happens when a transport dies."""

from __future__ import annotations

import contextlib
import errno
import select
import socket as _socket
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pykcm import _kernel
from pykcm._attaching import LARGEST_MESSAGE, Delineation, descriptor_of, longest_message
from pykcm._clones import Clones
from pykcm._disconnection import Disconnection, Reason
from pykcm._messages import DEFAULT_LINGER, Messages, MultiplexorCalls, late_with
from pykcm._transports import Transport, Transports
from pykcm._wait import SendSpace, Steps, Wait, arun, deadline_after, run
from pykcm.errors import AttachError, Disconnected, KCMOSError, UnreadWarning
from pykcm.socket import DEFAULT_MAX_MESSAGE_SIZE, KCMSocket

if TYPE_CHECKING:
    from typing_extensions import Self

# How many messages one system call brings; those that were not asked for wait here.
_AHEAD = 64


class Multiplexor(Messages, MultiplexorCalls):
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

    Attributes:
        socket: the KCM socket that this object receives and sends on.
        on_disconnect: called with a `Disconnection` when a transport has ended.  What it raises
            reaches the call that was made.

    Raises:
        UnavailableError, CapabilityError: see `KCMSocket`.
        ArgumentError: framing or linger cannot be.
    """

    def __init__(
        self,
        framing: Delineation,
        *,
        type: int = _socket.SOCK_DGRAM,
        linger: float = DEFAULT_LINGER,
        queue_unattached: bool = False,
    ) -> None:
        deadline_after(linger)
        self.on_disconnect: Callable[[Disconnection], object] | None = None
        self._framing = framing
        self._linger = linger
        self._closed = False
        # Room for the framing's longest message from the start: clones have it too.
        longest = longest_message(framing) or DEFAULT_MAX_MESSAGE_SIZE
        self.socket = KCMSocket(type, max_message_size=min(longest, LARGEST_MESSAGE))
        self.socket.setblocking(False)
        self._transports = Transports(self.socket)
        self._clones = Clones(self.socket)
        # Readable while messages wait in this object.
        self._told = _kernel.Descriptor.event()
        self._all: select.epoll | None = None
        self._untold: dict[Transport, Disconnection] = {}
        port = self._port = self.socket._port
        port.watch = self._transports.watch.fileno()
        port.told = self._told.fileno()
        port.ahead = _AHEAD
        port.queueing = queue_unattached
        port.bound = port.watched = True

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"fd={self.socket.fileno()}"
        return (
            f"<{type(self).__module__}.{type(self).__name__} {state} "
            f"framing={self._framing!r} transports={len(self._transports)}>"
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
        fd = descriptor_of(tcp)
        program_fd, max_length = self.socket._attaching.delineate(self._framing)
        try:
            transport = Transport(tcp, fd, hand_over)
            self._transports.attach(transport, program_fd, max_length, allow_small_buffer)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            from pykcm import _explain

            raise _explain.explain(error, _explain.ATTACH, tcp=fd, program=program_fd) from error
        finally:
            self._settle()

    def unattach(self, tcp: _socket.socket, *, timeout: float | None = None) -> Disconnection:
        """Take a transport off, after its messages were received and sent.

        Messages that have arrived stay to be received.  Of a live connection, bytes can arrive at
        any moment: the peer has to be silent, or the beginning of its next message is lost.

        Args:
            tcp: as it was given to `attach`.
            timeout: seconds to wait for unsent bytes and for clones at most; None for no limit.

        Returns:
            What there is to know.  If its errno is not 0, a clone was in the middle of sending a
            message on the connection, which is cut there; KCM sends it again, whole, on another.

        Raises:
            AttachError: ENOENT, it is not a transport of this multiplexor.
            TimeoutError: bytes are unsent (one peer that does not read is enough), or messages come
                in for the clones faster than they take them; the transport stays.
        """
        return run(self._unattach_steps(tcp), timeout, "timed out: the transport stays attached")

    async def aunattach(self, tcp: _socket.socket) -> Disconnection:
        """As `unattach`, on asyncio or Trio; cancelled, the transport stays."""
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
            from pykcm import _explain

            raise _explain.explain(error, _explain.UNATTACH, tcp=tcp.fileno()) from error

    def fileno(self) -> int:
        """A descriptor that is readable when `recv` would not wait, or a transport has ended.

        For `select` and event loops; it is not the KCM socket's own.  When the last transport has
        gone it is readable until `recv` has raised `Disconnected` or `disconnections` was called.
        """
        self._check()
        if self._all is None:
            every = select.epoll()
            for fd in (self._fd(), self._port.watch, self._port.told):
                every.register(fd, select.EPOLLIN)
            self._all = every
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

    # ---- the life of a transport ----

    def _look(self) -> None:
        """Drain, take off and report the transports that have ended, as far as can be done now.

        Where something is raised on the way, the next look goes on.
        """
        if self._closed:
            return
        try:
            self._transports.look(self._leaves_messages, self._told_of)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise KCMOSError(
                error.errno or errno.EIO,
                "transports that have ended could not be taken off; the next call goes on "
                f"({error.strerror or error})",
            ) from error
        finally:
            self._settle()
        while self._untold and self.on_disconnect is not None:
            transport, disconnection = next(iter(self._untold.items()))
            try:
                self.on_disconnect(disconnection)
            finally:
                self._untold.pop(transport, None)

    def _leaves_messages(self) -> bool:
        return self._clones.may_receive() or self.socket.recv_disabled

    def _told_of(self, transport: Transport, disconnection: Disconnection) -> None:
        if disconnection.reason is not Reason.UNATTACHED:
            if self.on_disconnect is not None:
                self._untold[transport] = disconnection
            self._port.report(disconnection)
        self._port.over = len(self._transports) == 1

    def _settle(self) -> None:
        """Have what depends on the transports and clones follow them."""
        port = self._port
        with self._transports.lock:
            attached = len(self._transports) > 0
            if attached:
                port.over = False
            if port.attached != attached:
                self._clones.tell(not attached)
                port.attached = attached
            port.ahead = 1 if self._clones.may_receive() else _AHEAD
            port.tell()

    def _let_clones_go(self) -> None:
        self._transports.let_clones_go()

    def _look_for_ends(self) -> None:
        if not self.socket.recv_disabled:
            raise KCMOSError(
                errno.EBUSY,
                "messages that are queued here would never be read; set socket.recv_disabled, and "
                "receive on clones",
            )
        if self._port.held:
            raise KCMOSError(
                errno.EBUSY,
                f"{self._port.held} messages that have been received here would never be read; "
                "receive them first",
            )
        self._look()

    def _unattached(self) -> Disconnected:
        self._port.over = False
        self._port.tell()
        if self._transports.last is None:
            return Disconnected(
                errno.ENOTCONN, "no transport is attached; attach a connected TCP socket first"
            )
        return Disconnected(
            self._transports.last.errno or errno.EPIPE,
            f"the last transport is gone, and all its messages were read: {self._transports.last}",
        )

    def _not_after_fork(self) -> KCMOSError:
        return KCMOSError(
            errno.EPERM,
            "this multiplexor belongs to the process that made it; receive and send on a clone "
            "that was made before the fork, and close this object",
        )

    def _check(self) -> None:
        if self._closed:
            raise KCMOSError(errno.EBADF, "the multiplexor is closed")
        if self._port.inherited:
            raise self._not_after_fork()

    # ---- waiting ----

    def _receive_steps(self) -> Steps[None]:
        while True:
            yield Wait(self.fileno())
            self._look()

    def _send_steps(self) -> Steps[None]:
        with SendSpace(self._fd(), self._port.watch) as space:
            while True:
                yield Wait(space.fileno())
                space.clear()
                self._look()

    def _event_steps(self) -> Steps[None]:
        while True:
            yield Wait(self._port.watch)

    def _flush_steps(self) -> Steps[None]:
        self._check()
        if not self._push():
            return
        with SendSpace(self._fd(), self._port.watch) as space:
            left = 0
            try:
                while left := self._push():
                    self._look()
                    if not (self._transports or self._port.queueing):
                        raise Disconnected(
                            errno.EPIPE, f"{left} bytes were not sent, and no transport is left"
                        )
                    yield Wait(space.fileno())
                    space.clear()
            except TimeoutError:
                raise late_with(left) from None
            finally:
                self._transports.let_clones_go()

    # ---- closing ----

    def close(self, linger: float | None = None) -> None:
        """Close the KCM socket, after what was sent has been handed to TCP.

        Clones go on with the transports.  With the last of them the kernel takes the transports
        off, and the TCP sockets are again the caller's alone.

        Args:
            linger: as for the constructor, whose value is the default.

        Warns:
            UnsentWarning: bytes were left, and are lost.
            UnreadWarning: messages were received and not read, while clones could have had them.
        """
        try:
            if self._flushes():
                with contextlib.suppress(OSError):
                    run(self._flush_steps(), self._linger if linger is None else linger, "")
        finally:
            self._close()

    async def aclose(self, linger: float | None = None) -> None:
        """As `close`, on asyncio or Trio."""
        try:
            if self._flushes():
                with contextlib.suppress(OSError):
                    await arun(self._flush_steps(), self._linger if linger is None else linger)
        finally:
            self._close()

    def _flushes(self) -> bool:
        return not (self._closed or self._port.inherited)

    def _close(self) -> None:
        if self._closed:
            return
        own, shared, described = not self._port.inherited, self._clones.may_receive(), repr(self)
        unread = self._port.held if own and shared else 0
        self._closed = True
        try:
            if self._all is not None:
                self._all.close()
            self._transports.close(restore=own and not shared, hand_over=own)
            self._told.close()
            self._clones.close()
        finally:
            self.socket._close()
        if unread:
            warnings.warn(
                f"{described} is closed with {unread} messages that were received and not read; "
                "they are lost",
                UnreadWarning,
                stacklevel=3,
            )

    def __del__(self) -> None:
        if hasattr(self, "_port") and not self._closed:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()
