"""`Multiplexor`: KCM sockets and transports of one peer, and what happens when a transport dies."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import errno
import os
import select
import socket as _socket
import sys
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Literal

from pykcm import _draining, bpf
from pykcm._wait import (
    Deadline,
    SendSpace,
    async_wait_readable,
    checkpoint,
    sleep,
    wait_readable,
)
from pykcm.errors import AttachError, Disconnected, KCMOSError, MessageTruncated
from pykcm.framing import Framing
from pykcm.socket import DEFAULT_LINGER, Delineation, KCMSocket, borrowed

if TYPE_CHECKING:
    from typing_extensions import Buffer

# How many messages are received before the transports are looked at, when messages never pause.
_PATIENCE = 256

# How many messages one system call brings; those that were not asked for wait here.
_AHEAD = 64

# How long to let the clones' owners receive before a transport is drained that could not be: at
# first, and at most, in seconds.
_RETRY = 0.01
_LONGEST_RETRY = 0.5

# include/net/tcp_states.h
_TCP_CLOSE = 7


class UnreadWarning(ResourceWarning):
    """A multiplexor was closed with messages that its clones would have received; they are lost."""


# Python hides ResourceWarning by default, and this one tells of lost data.
if not sys.warnoptions:
    warnings.filterwarnings("default", category=UnreadWarning)


class Reason(enum.Enum):
    """Why a transport ended, as far as the kernel lets one tell.

    KCM posts every end of a connection as EPIPE, and so can hide an error that came before it.
    """

    PEER_CLOSED = "the peer closed the connection"
    RESET = "the connection was reset, or given up by TCP"
    OVERSIZE = "a message was longer than the framing's maximum or the receive buffer"
    BAD_HEADER = "the framing refused a header"
    ASSEMBLY_TIMEOUT = "the rest of a message did not come within SO_RCVTIMEO"
    PROGRAM = "the delineation program returned an error"
    DETACHED = "it was detached"


class TransportError(Disconnected):
    """What is reported of a transport that ended.

    Attributes:
        reason: why.
        cut: bytes of a message whose end did not come.  0 does not prove that none was cut: a
            beginning that the kernel had taken off the TCP socket is not shown by anything.
    """

    def __init__(self, errno: int, message: str, reason: Reason, cut: int) -> None:
        super().__init__(errno, message)
        self.reason = reason
        self.cut = cut

    def __reduce__(self) -> tuple[type[KCMOSError], tuple[Any, ...]]:
        return type(self), (self.errno or 0, self.strerror or "", self.reason, self.cut)


@dataclasses.dataclass(eq=False)
class _Transport:
    tcp: _socket.socket | int
    # Our own descriptor, so that the transport can be taken off also when the caller has closed
    # his: the kernel keeps an attached connection open.
    fd: int
    handed_over: bool
    error: int = 0  # what the kernel posted on it; asking clears it


Event = tuple["_socket.socket | int", TransportError]


class Multiplexor:
    """Kernel-framed messages over the TCP connections to one peer.

    Transports are watched in the same wait as messages.  One that dies is drained, taken off and
    reported; the others go on.  A Multiplexor belongs to one thread, or one task, of the process
    that made it; others use a `clone`.

    Args:
        framing: a `Framing`, a loaded `bpf.Program`, or a program's descriptor.
        type: SOCK_DGRAM or SOCK_SEQPACKET.
        linger: how long leaving the block waits for unsent bytes at most, in seconds.
        without_transport: what `send` does when no transport is attached: "refuse" raises
            `Disconnected`; "queue" keeps the message in the kernel until one is attached.

    Attributes:
        socket: the KCM socket that this object receives and sends on.
        on_disconnect: called with the TCP socket, as it was given to `attach`, and a
            `TransportError`, when a transport has ended.

    Raises:
        UnavailableError, CapabilityError: see `KCMSocket`.
    """

    def __init__(
        self,
        framing: Delineation,
        *,
        type: int = _socket.SOCK_DGRAM,
        linger: float = DEFAULT_LINGER,
        without_transport: Literal["refuse", "queue"] = "refuse",
    ) -> None:
        if without_transport not in ("refuse", "queue"):
            raise ValueError(f'without_transport is "refuse" or "queue", not {without_transport!r}')
        self.on_disconnect: Callable[[_socket.socket | int, TransportError], None] | None = None
        self._framing = framing
        self._linger = linger
        self._queue_without_transport = without_transport == "queue"
        self._pid = os.getpid()
        self._transports: list[_Transport] = []
        # Those that have ended, and were not taken off yet.
        self._ended: collections.deque[_Transport] = collections.deque()
        self._retry = _RETRY
        self._next_try = 0.0
        self._events: collections.deque[Event] = collections.deque(maxlen=4096)
        self._last_error: TransportError | None = None
        self._inbox: collections.deque[bytes] = collections.deque()
        self._since_check = 0
        with contextlib.ExitStack() as stack:
            self.socket = stack.enter_context(KCMSocket(type))
            self.socket.setblocking(False)
            # The transports alone, for whoever waits for something else than a message.
            self._watch = select.epoll()
            stack.callback(self._watch.close)
            self._all = select.epoll()
            stack.callback(self._all.close)
            self._all.register(self.socket.fileno(), select.EPOLLIN)
            self._all.register(self._watch.fileno(), select.EPOLLIN)
            # For what the kernel does not know of.
            self._told = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            stack.callback(os.close, self._told)
            self._all.register(self._told, select.EPOLLIN)
            self._telling = False
            self._tell()
            stack.pop_all()

    # ---- transports ----

    @property
    def transports(self) -> list[_socket.socket | int]:
        """The attached TCP sockets, as they were given to `attach`."""
        return [transport.tcp for transport in self._transports]

    def attach(
        self,
        tcp: _socket.socket | int,
        *,
        hand_over: bool = False,
        any_buffer: bool = False,
    ) -> None:
        """Add a connected TCP socket, also while traffic flows.

        Args:
            tcp: the socket, or its descriptor.  It stays the caller's, who closes it after it was
                detached or reported; nothing else may read or write it meanwhile.
            hand_over: close it with its end as a transport instead.
            any_buffer: as for `KCMSocket.attach`.

        Raises:
            AttachError and others: see `KCMSocket.attach`; also EMFILE or ENFILE (too many
                descriptors).  The TCP socket is then still the caller's.
        """
        self._check_owner()
        with contextlib.ExitStack() as stack:
            # Its number now: once attached, the beginning of a message may be in the kernel, and
            # going back for want of a descriptor would lose it.
            try:
                fd = os.dup(self._told)
            except OSError as error:
                raise AttachError(
                    error.errno or errno.EMFILE,
                    "the TCP socket was not attached, for want of a descriptor of the "
                    "multiplexor's own; close some, or raise RLIMIT_NOFILE",
                ) from error
            stack.callback(os.close, fd)
            self.socket.attach(tcp, self._framing, any_buffer=any_buffer)
            tcp_fd = tcp if isinstance(tcp, int) else tcp.fileno()
            stack.callback(self.socket.unattach, tcp_fd)
            os.dup2(tcp_fd, fd, inheritable=False)
            # Once, since the condition lasts until the transport is taken off.
            self._watch.register(fd, select.EPOLLRDHUP | select.EPOLLONESHOT)
            stack.pop_all()
        self._transports.append(_Transport(tcp, fd, hand_over))
        self._tell()

    def detach(self, tcp: _socket.socket | int, timeout: float | None = None) -> None:
        """Take a transport off, after its messages were received and sent.

        Messages that have arrived stay to be received.  Of a live connection, bytes can arrive at
        any moment: the peer has to be silent, or the beginning of its next message is lost.

        Args:
            tcp: as it was given to `attach`.
            timeout: how long to wait for unsent bytes at most, in seconds.

        Raises:
            AttachError: ENOENT, it is no transport of this multiplexor.
            TimeoutError: bytes are unsent, or messages still come in for the clones faster than
                they take them; the transport stays.
        """
        self._check_owner()
        transport = next((t for t in self._transports if t.tcp == tcp), None)
        if transport is None:
            raise AttachError(errno.ENOENT, "the TCP socket is not attached to this multiplexor")
        if len(self._transports) == 1 or self.socket.unsent:
            # Taking off a connection that the kernel is writing to aborts it.
            self.flush(timeout)
        if transport not in self._transports:
            return  # it ended meanwhile, and was reported
        deadline = Deadline(timeout)
        while self._drain(transport) is None:
            if deadline.passed():
                raise TimeoutError("its messages could not be handed on in time; it stays")
            time.sleep(_RETRY)
        self._take_off(transport)
        self._tell()

    def fileno(self) -> int:
        """A descriptor that is readable when `recv` would not wait, or a transport has ended.

        For `select` and event loops; it is not the KCM socket's own.  Without a transport it is
        always readable, since `recv` then raises `Disconnected`.
        """
        self._check_owner()
        return self._all.fileno()

    def clone(self) -> KCMSocket:
        """A KCM socket on the same multiplexor for another thread, task or process.

        Messages that arrive are shared out between all of them.  A clone does not watch the
        transports; with `socket.recv_disabled = True` this object does nothing else.
        """
        return self.socket.clone()

    def disconnections(self) -> Iterator[Event]:
        """The transports that ended since the last call: each TCP socket and `TransportError`.

        Does not wait.  The newest 4,096 are kept.
        """
        self._check_owner()
        self._look_after_transports()
        while self._events:
            yield self._events.popleft()

    def wait_disconnection(self, timeout: float | None = None) -> Event:
        """Wait until a transport has ended, without receiving: for the parent of workers.

        Raises:
            TimeoutError: none did in time.
            KCMOSError: EBUSY, this socket receives messages itself; set `socket.recv_disabled`.
        """
        self._check_owner()
        if not self.socket.recv_disabled:
            raise KCMOSError(
                errno.EBUSY,
                "messages that are queued here would never be read; set socket.recv_disabled, and "
                "receive on clones",
            )
        if self._inbox:
            raise KCMOSError(
                errno.EBUSY,
                f"{len(self._inbox)} messages that have been received here would never be read; "
                "receive them first",
            )
        deadline = Deadline(timeout)
        while True:
            self._look_after_transports()
            if self._events:
                return self._events.popleft()
            if deadline.passed():
                raise TimeoutError("no transport ended in time")
            self._pause()
            wait_readable([self._watch.fileno()], Deadline(0) if self._ended else deadline)

    # ---- receiving ----

    def recv(self, timeout: float | None = None) -> bytes:
        """Receive one whole message.

        Args:
            timeout: seconds; None waits as long as it takes, 0 not at all.

        Raises:
            Disconnected: no transport is left, and all messages were read.
            TimeoutError: no message came in time.
            MessageTruncated: see `KCMSocket.recv`; not with a `Framing`, which has a maximum.
        """
        return self.recv_many(1, timeout)[0]

    def recv_many(self, limit: int = 64, timeout: float | None = None) -> list[bytes]:
        """Receive up to `limit` messages: wait for the first, then take what is there."""
        self._check_owner()
        deadline = Deadline(timeout)
        while True:
            if messages := self._take(limit):
                return messages
            if deadline.passed():
                raise TimeoutError("no message came in time")
            self._pause()
            wait_readable([self._all.fileno()], deadline)

    def __iter__(self) -> Iterator[bytes]:
        """All messages until the last transport is gone."""
        with contextlib.suppress(Disconnected):
            while True:
                yield self.recv()

    def _take(self, limit: int) -> list[bytes]:
        """Messages that are there; raises Disconnected when none will come."""
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        try:
            if self._since_check < _PATIENCE and (messages := self._take_queued(limit)):
                self._since_check += len(messages)
                return messages
            self._since_check = 0
            # This may raise what a caller's function does, so it holds no message meanwhile.
            self._look_after_transports()
            messages = self._take_queued(limit)
            if not messages and not self._transports:
                raise self._disconnected()
            return messages
        finally:
            self._tell()

    def _take_queued(self, limit: int) -> list[bytes]:
        if not self._inbox:
            # Not more than asked for where a clone could have the rest.
            self._receive(limit if self.socket.shared else max(limit, _AHEAD))
        return [self._inbox.popleft() for _ in range(min(limit, len(self._inbox)))]

    def _receive(self, limit: int) -> bool:
        """Receive messages into the inbox, without waiting; whether there were any."""
        try:
            self._inbox.extend(self.socket.recv_many(limit))
        except BlockingIOError:
            return False
        except MessageTruncated as error:
            self._inbox.extend(error.received)
            error.received = []
            raise
        return True

    def _tell(self) -> None:
        """Make `fileno` readable for what the kernel does not know of."""
        if self.socket.fileno() < 0:
            return  # closed meanwhile, by a caller's function
        wanted = bool(self._inbox or self._ended or not self._transports)
        if wanted and not self._telling:
            os.eventfd_write(self._told, 1)
        elif self._telling and not wanted:
            os.eventfd_read(self._told)
        self._telling = wanted

    def _disconnected(self) -> Disconnected:
        error = self._last_error
        if error is None:
            return Disconnected(
                errno.ENOTCONN, "no transport is attached; attach a connected TCP socket first"
            )
        return Disconnected(
            error.errno or errno.EPIPE,
            f"the last transport is gone, and all its messages were read: {error.strerror}",
        )

    # ---- sending ----

    def send(self, message: Buffer, flags: int = 0, *, timeout: float | None = None) -> int:
        """Send one whole message over one of the transports; see `KCMSocket.send`.

        Args:
            message: with its header.
            flags: as for `KCMSocket.send`.
            timeout: how long to wait for room in the queue, in seconds; None for ever.

        Returns:
            The message's length in bytes.

        Raises:
            Disconnected: no transport is attached, and without_transport is "refuse".
            TimeoutError: the queue stayed full; nothing of the message was queued.
        """
        return self._when_writable(lambda: self.socket.send(message, flags), Deadline(timeout))

    def send_many(
        self, messages: Iterable[Buffer], flags: int = 0, *, timeout: float | None = None
    ) -> int:
        """Send many whole messages; see `KCMSocket.send_many`.

        Returns:
            How many were queued: all, unless the timeout ended or the last transport after some.
        """
        rest = list(messages)
        total = len(rest)
        deadline = Deadline(timeout)
        while rest:
            try:
                del rest[
                    : self._when_writable(lambda: self.socket.send_many(rest, flags), deadline)
                ]
            except (TimeoutError, Disconnected):
                if len(rest) == total:
                    raise
                break
        return total - len(rest)

    @property
    def unsent(self) -> int:
        """Bytes sent and not yet handed to TCP."""
        return self.socket.unsent

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was sent has been handed to TCP.

        Raises:
            TimeoutError: the time is over; the text says how many bytes are left.
            Disconnected: bytes are left, and no transport.
        """
        self._check_owner()
        deadline = Deadline(timeout)
        with self.socket.send_space() as space:
            while self._left_to_flush(deadline):
                wait_readable([space.fileno(), self._watch.fileno()], deadline)
                space.clear()

    def _left_to_flush(self, deadline: Deadline) -> int:
        self.socket.push()
        left = self.socket.unsent
        if left:
            self._look_after_transports()
            if not self._transports and not self._queue_without_transport:
                raise Disconnected(
                    errno.EPIPE, f"{left} bytes were not sent, and no transport is left"
                )
            if deadline.passed():
                raise TimeoutError(f"{left} bytes are queued that no transport has taken yet")
        return left

    def _when_writable(self, call: Callable[[], int], deadline: Deadline) -> int:
        self._check_owner()
        with contextlib.ExitStack() as stack:
            space: SendSpace | None = None
            while True:
                self._check_transport()
                with contextlib.suppress(BlockingIOError):
                    return call()
                if deadline.passed():
                    raise TimeoutError("no transport took the message in time")
                if space is None:
                    space = stack.enter_context(self.socket.send_space())
                wait_readable([space.fileno(), self._watch.fileno()], deadline)
                space.clear()

    def _check_transport(self) -> None:
        self._look_after_transports()
        if not self._transports and not self._queue_without_transport:
            raise self._disconnected()

    # ---- asyncio and Trio ----

    async def arecv(self) -> bytes:
        """As `recv`, on asyncio or Trio; cancelling it loses no message."""
        return (await self.arecv_many(1))[0]

    async def arecv_many(self, limit: int = 64) -> list[bytes]:
        """As `recv_many`; cancelling it loses no message."""
        self._check_owner()
        await checkpoint()
        while True:
            if messages := self._take(limit):
                return messages
            if self._ended:
                await sleep(_RETRY)  # see _pause
            await async_wait_readable(self._all.fileno())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """All messages until the last transport is gone."""
        with contextlib.suppress(Disconnected):
            while True:
                yield await self.arecv()

    async def asend(self, message: Buffer, flags: int = 0) -> int:
        """As `send`; cancelled, either all of the message was queued or nothing."""
        return await self._async_when_writable(lambda: self.socket.send(message, flags))

    async def asend_many(self, messages: Iterable[Buffer], flags: int = 0) -> int:
        """As `send_many`; cancelled, some of the messages may have been queued."""
        rest = list(messages)
        total = len(rest)
        while rest:
            del rest[: await self._async_when_writable(lambda: self.socket.send_many(rest, flags))]
        return total

    async def aflush(self) -> None:
        """As `flush`, without a limit; use the event loop's own."""
        self._check_owner()
        await checkpoint()
        with self._send_or_end() as (space, both):
            while self._left_to_flush(Deadline(None)):
                await async_wait_readable(both)
                space.clear()

    async def _async_when_writable(self, call: Callable[[], int]) -> int:
        self._check_owner()
        await checkpoint()
        self._check_transport()
        with contextlib.suppress(BlockingIOError):
            return call()
        with self._send_or_end() as (space, both):
            while True:
                self._check_transport()
                with contextlib.suppress(BlockingIOError):
                    return call()
                await async_wait_readable(both)
                space.clear()

    @contextlib.contextmanager
    def _send_or_end(self) -> Iterator[tuple[SendSpace, int]]:
        """A descriptor that is readable when there may be room to send, or a transport ended."""
        with self.socket.send_space() as space, select.epoll() as both:
            both.register(space.fileno(), select.EPOLLIN)
            both.register(self._watch.fileno(), select.EPOLLIN)
            yield space, both.fileno()

    # ---- the life of a transport ----

    def _look_after_transports(self) -> None:
        """Drain, take off and report the transports that have ended.

        Where something is raised on the way, or one can't be drained now, the next call goes on.
        """
        for fd, _ in self._watch.poll(0):
            self._ended.append(next(t for t in self._transports if t.fd == fd))
        try:
            while self._ended and time.monotonic() >= self._next_try:
                transport = self._ended[0]
                transport.error = transport.error or _pending_error(transport.fd)
                cut = self._drain(transport)
                if cut is None:
                    self._next_try = time.monotonic() + self._retry
                    self._retry = min(2 * self._retry, _LONGEST_RETRY)
                    break
                self._retry = _RETRY
                error = _explain(transport.error, _tcp_state(transport.fd), cut)
                self._last_error = error
                self._take_off(transport)
                self._events.append((transport.tcp, error))
                if self.on_disconnect is not None:
                    self.on_disconnect(transport.tcp, error)
        finally:
            self._tell()

    def _pause(self) -> None:
        """Let the clones' owners receive, if a transport could not be drained before they do."""
        if self._ended:
            time.sleep(_RETRY)

    def _drain(self, transport: _Transport) -> int | None:
        """Have its complete messages in the inbox, or on the sockets that receive."""
        alone = not self.socket.shared and not self.socket.recv_disabled
        program = self._framing
        return _draining.drain(
            self.socket,
            transport.fd,
            others=[other.fd for other in self._transports if other is not transport],
            take=self._take_in if alone else None,
            program_fd=None
            if isinstance(program, Framing)
            else program.fd
            if isinstance(program, bpf.Program)
            else program,
        )

    def _take_in(self, limit: int) -> None:
        """Receive what is queued into the inbox, up to some `limit` messages."""
        enough = len(self._inbox) + limit
        while len(self._inbox) < enough and self._receive(_AHEAD):
            pass

    def _take_off(self, transport: _Transport) -> None:
        self._transports.remove(transport)
        with contextlib.suppress(ValueError):
            self._ended.remove(transport)
        # A transport that somebody else took off has nothing left to do.
        with contextlib.suppress(AttachError):
            self.socket.unattach(transport.fd)
        with contextlib.suppress(OSError):
            self._watch.unregister(transport.fd)
        os.close(transport.fd)
        if transport.handed_over:
            _close(transport.tcp)

    def _check_owner(self) -> None:
        if self.socket.fileno() < 0:
            raise KCMOSError(errno.EBADF, "the multiplexor is closed")
        if os.getpid() != self._pid:
            raise KCMOSError(
                errno.EPERM,
                f"this multiplexor belongs to process {self._pid}; receive and send on a clone "
                "made before the fork, and close this object",
            )

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
        if self.socket.fileno() < 0:
            return
        own = os.getpid() == self._pid
        if own and self.socket.shared and self._inbox:
            warnings.warn(
                f"{self!r} is closed with {len(self._inbox)} messages that were received and not "
                "read; they are lost",
                UnreadWarning,
                stacklevel=2,
            )
        try:
            wait = self._linger if linger is None else linger
            if own and self.socket.unsent:
                with contextlib.suppress(TimeoutError, Disconnected, KCMOSError):
                    self.flush(wait)
                wait = 0.0
            self.socket.close(wait if own else 0.0)
        finally:
            self._all.close()
            self._watch.close()
            os.close(self._told)
            for transport in self._transports:
                os.close(transport.fd)
                if transport.handed_over and own:
                    _close(transport.tcp)
            self._transports.clear()
            self._ended.clear()

    def __del__(self) -> None:
        if hasattr(self, "_telling") and self.socket.fileno() >= 0:
            warnings.warn(f"{self!r} was not closed", ResourceWarning, source=self, stacklevel=2)
            self.close(0)

    def __enter__(self) -> Multiplexor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _close(tcp: _socket.socket | int) -> None:
    if isinstance(tcp, int):
        os.close(tcp)
    else:
        tcp.close()


def _pending_error(fd: int) -> int:
    """What the kernel posted on a TCP socket (SO_ERROR); asking clears it."""
    with borrowed(fd) as tcp:
        return tcp.getsockopt(_socket.SOL_SOCKET, _socket.SO_ERROR)


def _tcp_state(fd: int) -> int:
    """The state by include/net/tcp_states.h, the first byte of struct tcp_info."""
    with borrowed(fd) as tcp:
        return tcp.getsockopt(_socket.IPPROTO_TCP, _socket.TCP_INFO, 1)[0]


def _explain(number: int, state: int, cut: int) -> TransportError:
    closed = state == _TCP_CLOSE
    number = number or errno.EPIPE
    if number == errno.EPIPE:
        reason = Reason.RESET if closed else Reason.PEER_CLOSED
    elif number == errno.ETIMEDOUT:
        reason = Reason.RESET if closed else Reason.ASSEMBLY_TIMEOUT
    else:
        reason = {
            errno.EMSGSIZE: Reason.OVERSIZE,
            errno.EBADMSG: Reason.BAD_HEADER,
            errno.EPROTO: Reason.BAD_HEADER,
            errno.ECONNRESET: Reason.RESET,
        }.get(number, Reason.PROGRAM)
    text = reason.value
    if cut:
        text += f"; {cut} bytes of a message whose end did not come are left unread"
    return TransportError(number, text, reason, cut)
