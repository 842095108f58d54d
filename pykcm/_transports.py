"""The connections of a multiplexor, from attach to their end.

What is written down is always true: each change is an order of steps of which every beginning is a
true state, and each step may be taken twice.  What the kernel did is written by the call that did
it.  So an exception between any two lines leaves nothing to repair, and the next look goes on.
"""

from __future__ import annotations

import contextlib
import enum
import errno
import select
import socket
from typing import TYPE_CHECKING, Any, NamedTuple

from pykcm import _kernel, _tcp

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pykcm.socket import KCMSocket


class Reason(enum.Enum):
    """Why a transport ended, as far as the kernel lets one tell.

    KCM posts every end of a connection as EPIPE, and so can hide an error that came before it.
    """

    PEER_CLOSED = "the peer closed the connection"
    RESET = "the connection was reset, or given up by TCP"
    OVERSIZE = "a message was longer than the framing's maximum or the receive buffer"
    BAD_HEADER = "the framing refused a header"
    ASSEMBLY_TIMEOUT = "the rest of a message did not come within SO_RCVTIMEO"
    URGENT = "urgent data came, at which the kernel's parser stops for ever"
    SENDING_FAILED = "the kernel gave up sending on the connection"
    PROGRAM = "the delineation program returned an error"
    UNATTACHED = "it was unattached"


class Disconnection(NamedTuple):
    """What is reported of a transport that ended.

    Nothing may be written to the TCP socket any more, unless the reason is UNATTACHED and errno 0:
    a message may have been cut where the kernel stopped sending.

    Attributes:
        tcp: the TCP socket, as it was given to `attach`.
        peer: the peer's address, as `socket.getpeername` gave it at the attach; None if unknown.
        reason: why it ended.
        errno: what the kernel posted on the TCP socket; 0 for nothing.
        cut: bytes that are left unread, of a message whose end did not come or behind the reason's
            cause.  0 does not prove that none was cut: a beginning that the kernel had taken off
            the TCP socket is not shown by anything.
    """

    tcp: socket.socket
    peer: Any
    reason: Reason
    errno: int
    cut: int

    def __str__(self) -> str:
        text = self.reason.value
        if self.cut:
            text += f"; {self.cut} bytes are left unread"
        if self.reason is Reason.UNATTACHED and self.errno:
            text += "; a message was being sent on it and is cut there, so nothing may be written"
        return text if self.peer is None else f"{_address(self.peer)}: {text}"


def _address(peer: Any) -> str:
    if isinstance(peer, tuple) and len(peer) >= 2:
        host = f"[{peer[0]}]" if ":" in str(peer[0]) else peer[0]
        return f"{host}:{peer[1]}"
    return str(peer)


class Transport:
    """One attached connection.

    Attributes:
        tcp: as it was given to `attach`.
        fd: our own descriptor of it, so that it can be taken off also when the caller has closed
            theirs: the kernel keeps an attached connection open.
        attached: an `int[1]`, 1 from when the kernel has it.
        error: an `int[1]`: what the kernel had posted on it; asking clears it.
        options: what was set on it before.
        target: bytes that have to be parsed before it can be taken off; None for all.
        left: bytes that TCP had and KCM had not taken, when last looked at.
        cut: as `Disconnection` has it.
        mark: how many messages had been received, and how often none was there, when all of its
            bytes were parsed; None while they are not.
        since: from when on its bytes have stayed what they were, though no message waited; 0 if
            they have not.
        stalls: how often the kernel was made to look at them since.
        kicked: how many they were when it was last, and how many messages had been received.
        urgent: whether urgent data is among them.
    """

    def __init__(self, tcp: socket.socket, fd: int, hand_over: bool) -> None:
        self.tcp = tcp
        self.hand_over = hand_over
        self.descriptor = _kernel.Descriptor.duplicate(fd)
        self.fd = self.descriptor.fileno()
        self.attached = _kernel.integer()
        self.error = _kernel.integer()
        self.options = _tcp.Options()
        self.peer: Any = None
        with contextlib.suppress(OSError):
            self.peer = tcp.getpeername()
        self.target: int | None = None
        self.left = -1
        self.cut = 0
        self.mark: tuple[int, int] | None = None
        self.stalls = 0
        self.kicked: tuple[int, int] | None = None
        self.since = 0.0
        self.urgent = False
        self.disconnection: Disconnection | None = None

    @property
    def stopped(self) -> bool:
        """Whether the kernel's parser is known to have stopped."""
        return self.urgent or self.error[0] not in (0, errno.EPIPE)


class Transports:
    """The transports of one multiplexor, and what watches them.

    Attributes:
        watch: an epoll of the connections; readable when one has ended.
        draining: those that have ended or are to be unattached, by our descriptor.
    """

    def __init__(self) -> None:
        self.watch = select.epoll()
        self._by_fd: dict[int, Transport] = {}
        # Only a short way to find them; what is in the other is true.
        self._by_tcp: dict[int, Transport] = {}
        self.draining: dict[int, Transport] = {}
        # Healthy ones whose error queue is not empty: each of its entries is told once.
        self._with_error_queue: set[int] = set()
        self._interrupted = False

    def __iter__(self) -> Iterator[Transport]:
        return iter(list(self._by_fd.values()))

    def __len__(self) -> int:
        return len(self._by_fd)

    def find(self, tcp: socket.socket) -> Transport | None:
        """The transport that a TCP socket was given for."""
        transport = self._by_tcp.get(id(tcp))
        if transport is not None and self._by_fd.get(transport.fd) is transport:
            return transport
        return next((transport for transport in self if transport.tcp is tcp), None)

    def attach(
        self,
        kcm: KCMSocket,
        transport: Transport,
        program_fd: int,
        max_length: int | None,
        allow_small_buffer: bool,
    ) -> None:
        """Have a connection watched and attached; once the kernel has it, it stays."""
        try:
            self._by_fd[transport.fd] = transport
            self._by_tcp[id(transport.tcp)] = transport
            # First, since a connection that could not be watched would have to be taken off, and
            # what the kernel has parsed would be lost to the caller.
            self.watch.register(transport.fd, select.EPOLLRDHUP)
            kcm._attach(
                transport.fd,
                program_fd,
                max_length,
                allow_small_buffer,
                transport.options,
                transport.attached,
            )
        except BaseException:
            if not transport.attached[0]:
                self._forget(transport)
            raise

    def look(self) -> None:
        """Note which transports have ended."""
        interrupted, self._interrupted = self._interrupted, True
        if interrupted:  # an edge may have been told to nobody
            for fd in self._with_error_queue:
                self.watch.modify(fd, select.EPOLLRDHUP | select.EPOLLET)
        for fd, events in self.watch.poll(0):
            transport = self._by_fd.get(fd)
            if transport is None:
                continue
            if not events & (select.EPOLLRDHUP | select.EPOLLHUP) and not self._has_failed(
                transport
            ):
                # What is in a socket's error queue (time stamps, zero-copy notices) looks like an
                # error, and stays until the caller takes it.
                self._with_error_queue.add(fd)
                self.watch.modify(fd, select.EPOLLRDHUP | select.EPOLLET)
                continue
            self.begin_draining(transport)
        self._interrupted = False

    def begin_draining(self, transport: Transport) -> None:
        """Have a transport be drained; it is not watched any more."""
        self.draining[transport.fd] = transport
        self._unwatch(transport)

    def end_draining(self, transport: Transport) -> None:
        """Have a transport that was to be unattached stay."""
        with contextlib.suppress(FileExistsError):
            self.watch.register(transport.fd, select.EPOLLRDHUP)
        self.draining.pop(transport.fd, None)

    def _has_failed(self, transport: Transport) -> bool:
        """Whether an error was posted on a connection that goes on.

        Asking clears the error, after which KCM would send on the connection again.  While it
        stands, that does no harm; once it has ended, KCM would send into the void, and so it is
        asked only when it is off.
        """
        if _tcp.has_ended(transport.fd):
            return True
        if not transport.error[0]:
            _kernel.get_integer(transport.fd, socket.SOL_SOCKET, socket.SO_ERROR, transport.error)
        return bool(transport.error[0])

    def take_off(self, kcm: KCMSocket, transport: Transport) -> Disconnection:
        """Unattach a connection and give it back; what is to be reported of it."""
        if transport.disconnection is None:
            fd = transport.fd
            # One that somebody else took off has nothing left to do.
            with contextlib.suppress(OSError):
                _kernel.unattach(kcm._fd(), fd, transport.attached)
            state = _tcp.CLOSE
            with contextlib.suppress(OSError):
                state = _tcp.state(fd)
                transport.cut = max(transport.cut, _tcp.unparsed(fd))
            if not transport.error[0]:
                with contextlib.suppress(OSError):
                    _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_ERROR, transport.error)
            transport.options.restore(fd)
            number = transport.error[0]
            transport.disconnection = Disconnection(
                transport.tcp,
                transport.peer,
                _reason(transport, number, state),
                number,
                transport.cut,
            )
        return transport.disconnection

    def forget(self, transport: Transport) -> None:
        """Let go of a transport that was taken off and reported."""
        self._unwatch(transport)
        if transport.hand_over:
            transport.tcp.close()
        self._forget(transport)

    def _forget(self, transport: Transport) -> None:
        self._unwatch(transport)
        self._by_tcp.pop(id(transport.tcp), None)
        self._by_fd.pop(transport.fd, None)
        # After that, so that whoever is still attached or listed is also looked at again.
        self.draining.pop(transport.fd, None)
        transport.descriptor.close()

    def _unwatch(self, transport: Transport) -> None:
        self._with_error_queue.discard(transport.fd)
        with contextlib.suppress(OSError, ValueError):
            self.watch.unregister(transport.fd)

    def close(self) -> None:
        """Let go of all; the kernel has taken them off, or clones go on with them."""
        self.watch.close()
        for transport in self:
            transport.descriptor.close()
        self._by_fd.clear()
        self._by_tcp.clear()


_REASONS = {
    errno.EMSGSIZE: Reason.OVERSIZE,
    errno.EBADMSG: Reason.BAD_HEADER,
    errno.EPROTO: Reason.BAD_HEADER,
    errno.ECONNRESET: Reason.RESET,
}


def _reason(transport: Transport, number: int, state: int) -> Reason:
    ended = state == _tcp.CLOSE
    if transport.target is not None:
        return Reason.UNATTACHED
    if transport.urgent:
        return Reason.URGENT
    if number == errno.ETIMEDOUT:
        return Reason.RESET if ended else Reason.ASSEMBLY_TIMEOUT
    if number in _REASONS:
        return _REASONS[number]
    if number not in (0, errno.EPIPE):
        return Reason.PROGRAM
    if ended:
        return Reason.RESET
    return Reason.SENDING_FAILED if state == _tcp.ESTABLISHED else Reason.PEER_CLOSED
