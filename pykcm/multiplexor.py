"""`Multiplexor`: KCM sockets and transports of one peer, and what happens when a transport dies."""

from __future__ import annotations

import collections
import contextlib
import errno
import select
import socket as _socket
import warnings
import weakref
from _thread import RLock
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from pykcm import _kernel, _tcp
from pykcm._draining import Drain
from pykcm._messages import DEFAULT_LINGER, Messages, MultiplexorCalls, Port, late_with
from pykcm._transports import Disconnection, Reason, Transport, Transports
from pykcm._wait import SendSpace, Steps, Wait, arun, deadline_after, explained, run
from pykcm.errors import AttachError, Disconnected, KCMOSError, UnreadWarning
from pykcm.socket import DEFAULT_MAX_MESSAGE_SIZE, Delineation, KCMSocket, descriptor_of

if TYPE_CHECKING:
    from typing_extensions import Self

# How many messages one system call brings; those that were not asked for wait here.
_AHEAD = 64

# When a look that an exception ended is made again, in seconds.
_AGAIN = 0.05


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
        self.socket = KCMSocket(type, max_message_size=_longest(framing))
        self.socket.setblocking(False)
        try:
            with explained():
                self._transports = Transports()
                # Expires when the transports have to be looked at though nothing happened.
                self._timer = _kernel.Descriptor.timer()
                self._transports.watch.register(self._timer.fileno(), select.EPOLLIN)
                # Readable while messages wait in this object; and for clones, while no transport
                # is left.
                self._told = _kernel.Descriptor.event()
                self._end = _kernel.Descriptor.event()
        except BaseException:
            self.socket.close()
            raise
        self._drain = Drain(self.socket, self._transports)
        self._all: select.epoll | None = None
        self._lock = RLock()
        self._clones: list[tuple[weakref.ref[KCMSocket], Port]] = []
        self._last: Disconnection | None = None
        self._untold: collections.deque[Disconnection] = collections.deque()
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
        program_fd, max_length = self.socket._delineate(self._framing)
        try:
            transport = Transport(tcp, fd, hand_over)
            self._transports.attach(
                self.socket, transport, program_fd, max_length, allow_small_buffer
            )
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
        if self._push():
            # Taking off a connection that the kernel is writing to aborts it.
            yield from self._flush_steps()
        if transport.disconnection is None:
            try:
                transport.target = _tcp.bytes_received(transport.fd)
                self._transports.begin_draining(transport)
                self._look()
                while transport.disconnection is None:
                    yield Wait(self._transports.watch.fileno())
                    self._look()
            except BaseException:
                if transport.attached[0]:  # else the next look goes on
                    transport.target = None
                    self._transports.end_draining(transport)
                raise
            finally:
                self._drain.close()
        return transport.disconnection

    def fileno(self) -> int:
        """A descriptor that is readable when `recv` would not wait, or a transport has ended.

        For `select` and event loops; it is not the KCM socket's own.  When the last transport has
        gone it is readable until `recv` has raised `Disconnected` or `disconnections` was called.
        """
        self._check()
        if self._all is None:
            with explained():
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
        clone = self.socket.clone()
        try:
            with explained():
                clone._port.watch = self._tell_end_to(clone)
        except BaseException:
            clone.close(0)
            raise
        clone._port.attached = True
        clone._port.watched = True
        self._clones.append((weakref.ref(clone), clone._port))
        self._settle()
        return clone

    def _tell_end_to(self, clone: KCMSocket) -> int:
        clone._end = _kernel.Descriptor.duplicate(self._end.fileno())
        return clone._end.fileno()

    def _is_shared(self) -> bool:
        """Whether another socket may receive some of the messages.

        A clone that was closed before any other process could have it does not count.
        """
        self._clones = [
            (clone, port)
            for clone, port in self._clones
            if (clone() is not None and port.fd >= 0) or port.forked or port.shared
        ]
        return bool(self._clones)

    def disconnections(self) -> Iterator[Disconnection]:
        """The transports that ended and were not told of yet; does not wait.

        The newest 4,096 are kept.
        """
        self._check()
        try:
            self._look()
        finally:
            self._drain.close()
        self._port.over = False
        self._port.tell()
        return iter(self._port)

    # ---- the life of a transport ----

    def _look(self) -> None:
        """Drain, take off and report the transports that have ended, as far as can be done now.

        Where something is raised on the way, the next look goes on.
        """
        try:
            # By `with`, which no signal's handler can leave with the lock held; for others it is
            # short, since a look never waits.
            with self._lock:
                self._look_alone()
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise KCMOSError(
                error.errno or errno.EIO,
                "transports that have ended could not be taken off; the next call goes on "
                f"({error.strerror or error})",
            ) from error
        while self._untold and self.on_disconnect is not None:
            # C alone lies between taking one and calling: so each is told of once.
            next(map(self.on_disconnect, iter(self._untold.popleft, None)))

    def _look_alone(self) -> None:
        if self._closed:
            return
        transports = self._transports
        transports.look()
        draining = list(transports.draining.values())
        if draining:
            # First, for what may be raised on the way.
            self._timer.set_timer(_AGAIN)
            by_clones = self._is_shared() or self.socket.recv_disabled
            ready, soon = self._drain.advance(draining, by_clones)
            for transport in ready:
                self._finish(transport)
            self._timer.set_timer(soon if transports.draining else 0)
            if not transports.draining:
                self._drain.close()
        self._settle()

    def _finish(self, transport: Transport) -> None:
        """Take a transport off and report it; each step may be taken twice."""
        disconnection = self._transports.take_off(self.socket, transport)
        if disconnection.reason is not Reason.UNATTACHED:
            self._last = disconnection
            if self.on_disconnect is not None and disconnection not in self._untold:
                self._untold.append(disconnection)
            self._port.report(disconnection)
        if len(self._transports) == 1:
            self._port.over = True
        self._transports.forget(transport)

    def _settle(self) -> None:
        """Have what depends on the transports and clones follow them."""
        port = self._port
        attached = len(self._transports) > 0
        if attached:
            port.over = False
        if port.attached != attached:
            self._end.set_event(not attached)
            port.attached = attached
        port.ahead = 1 if self._clones and self._is_shared() else _AHEAD
        port.tell()

    def _let_clones_go(self) -> None:
        self._drain.close()

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
        if self._last is None:
            return Disconnected(
                errno.ENOTCONN, "no transport is attached; attach a connected TCP socket first"
            )
        return Disconnected(
            self._last.errno or errno.EPIPE,
            f"the last transport is gone, and all its messages were read: {self._last}",
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
                self._drain.close()

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
            if not (self._closed or self._port.inherited):
                with contextlib.suppress(OSError):
                    run(self._flush_steps(), self._linger if linger is None else linger, "")
        finally:
            self._close()

    async def aclose(self, linger: float | None = None) -> None:
        """As `close`, on asyncio or Trio."""
        try:
            if not (self._closed or self._port.inherited):
                with contextlib.suppress(OSError):
                    await arun(self._flush_steps(), self._linger if linger is None else linger)
        finally:
            self._close()

    def _close(self) -> None:
        if self._closed:
            return
        own, described = not self._port.inherited, repr(self)
        unread = self._port.held if own and self._is_shared() else 0
        self._closed = True
        try:
            self._drain.close()
            if self._all is not None:
                self._all.close()
            for transport in self._transports:
                if own and not self._clones:
                    transport.options.restore(transport.fd)
                if own and transport.hand_over:
                    transport.tcp.close()
            self._transports.close()
            for descriptor in (self._timer, self._told, self._end):
                descriptor.close()
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


def _longest(framing: Delineation) -> int:
    from pykcm.framing import Framing

    if isinstance(framing, Framing):
        return min(framing.max_length, (1 << 31) - 2)
    return DEFAULT_MAX_MESSAGE_SIZE
