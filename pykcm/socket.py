"""`KCMSocket`: one AF_KCM descriptor, whole messages in and out, nothing lost in silence."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import socket as _socket
import struct
import sys
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from pykcm import _features, _kernel, bpf
from pykcm._binding import lib
from pykcm._wait import (
    Deadline,
    SendSpace,
    async_wait_readable,
    checkpoint,
    wait_readable,
)
from pykcm.errors import AttachError, KCMOSError, MessageTruncated
from pykcm.framing import Framing

if TYPE_CHECKING:
    from typing_extensions import Buffer, Self

T = TypeVar("T")

#: What `KCMSocket.attach` takes to find messages: a framing, a loaded program, or its descriptor.
Delineation: TypeAlias = Framing | bpf.Program | int

#: How long `KCMSocket.close` waits by default for queued messages to reach TCP, in seconds.
DEFAULT_LINGER = 5.0

DEFAULT_MAX_MESSAGE_SIZE = 1 << 20

# asm-generic/socket.h; include/uapi/linux/sock_diag.h.
_SO_MEMINFO = 55
_SK_MEMINFO_VARS = 9
_SK_MEMINFO_WMEM_QUEUED = 5

# A batch's buffer, in bytes of address space: memory is used only as far as messages reach.
_BATCH_BUFFER = 64 << 20


class UnsentWarning(ResourceWarning):
    """A KCM socket was closed with bytes that had not been handed to TCP; they are lost."""


# Python hides ResourceWarning by default, and this one tells of lost data.
if not sys.warnoptions:
    warnings.filterwarnings("default", category=UnsentWarning)


class KCMSocket(_socket.socket):
    """A KCM socket: a `socket.socket` on which every send and receive is one whole message.

    Timeouts, blocking mode, selectors, `fileno` and `with` work as for any socket.  One socket may
    be used by several threads: each message goes to one of them, whole.

    Args:
        type: SOCK_DGRAM or SOCK_SEQPACKET; with pykcm both carry whole messages.
        max_message_size: the longest message in bytes that a receive has room for.  Attaching
            raises it to the framing's maximum.

    Attributes:
        max_message_size: as above; may be set.
        shared: whether another socket or descriptor was made from this one, by `clone` or `dup`,
            which may receive some of the messages.

    Raises:
        UnavailableError: this kernel has no AF_KCM, or this platform is not Linux.
        KCMOSError: the type is another, or the kernel refused.

    Source: net/kcm/kcmsock.c, Documentation/networking/kcm.rst.
    """

    def __init__(
        self,
        type: int = _socket.SOCK_DGRAM,
        *,
        max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE,
        _fileno: int | None = None,
    ) -> None:
        if max_message_size < 1:
            raise ValueError(f"max_message_size must be at least 1, not {max_message_size}")
        self.max_message_size = max_message_size
        self._buffers: list[mmap.mmap] = []
        self._message_open = False
        self.shared = False
        try:
            super().__init__(lib.AF_KCM, type, lib.KCMPROTO_CONNECTED, _fileno)
        except OSError as error:
            if isinstance(error, KCMOSError):
                raise
            raise _features.explain_open(error) from error

    @classmethod
    def from_fd(cls, fd: int, *, max_message_size: int = DEFAULT_MAX_MESSAGE_SIZE) -> Self:
        """Take up a descriptor of a KCM socket, such as one received over a Unix socket.

        Args:
            fd: the descriptor; it belongs to the new object, unless this call raises.
            max_message_size: the longest message of the framings in use.

        Raises:
            KCMOSError: it is no descriptor (EBADF), or no KCM socket (ENOTSOCK, EAFNOSUPPORT).
        """
        try:
            probe = _socket.socket(lib.AF_KCM, _socket.SOCK_DGRAM, 0, fd)
            try:
                family = probe.getsockopt(_socket.SOL_SOCKET, _socket.SO_DOMAIN)
                type_ = probe.getsockopt(_socket.SOL_SOCKET, _socket.SO_TYPE)
            finally:
                probe.detach()
        except OSError as error:
            raise KCMOSError(
                error.errno or errno.EBADF, f"descriptor {fd} is no open socket"
            ) from error
        if family != lib.AF_KCM:
            raise KCMOSError(
                errno.EAFNOSUPPORT, f"descriptor {fd} is no KCM socket (its family is {family})"
            )
        return cls(type_, max_message_size=max_message_size, _fileno=fd)

    def __repr__(self) -> str:
        type_ = getattr(self.type, "name", self.type)
        state = "closed" if self.fileno() < 0 else f"fd={self.fileno()}"
        return f"<{type(self).__module__}.{type(self).__name__} {state} type={type_}>"

    # ---- the multiplexor ----

    def attach(
        self, tcp: _socket.socket | int, framing: Delineation, *, any_buffer: bool = False
    ) -> None:
        """Make a TCP connection a transport of this socket's multiplexor (SIOCKCMATTACH).

        The TCP socket stays open and the caller's; nothing else may read from or write to it
        while it is attached.  Its receive buffer is made large enough for the framing's longest
        message, since the kernel refuses a longer one than the buffer, and stalls on one that
        does not fit into the window.

        Args:
            tcp: a connected TCP socket, or its descriptor.
            framing: a `Framing`, a loaded `bpf.Program`, or a program's descriptor.
            any_buffer: attach also when the receive buffer cannot be made large enough.

        Raises:
            AttachError: ENOENT (no socket), EBADF or EINVAL (no socket filter program), EOPNOTSUPP
                (no connected TCP socket), EALREADY (attached already, to any multiplexor), ENOBUFS
                (the receive buffer is too small for the framing's maximum).
            CapabilityError, UnavailableError, VerifierError: the framing's program could not be
                loaded; see `Framing.load`.
        """
        fd = self._open_fd()
        tcp_fd = _fd_of(tcp)
        if isinstance(framing, Framing):
            with framing.load() as program:
                self._attach(fd, tcp_fd, program.fd, framing.max_length, any_buffer)
        else:
            program_fd = framing.fd if isinstance(framing, bpf.Program) else framing
            self._attach(fd, tcp_fd, program_fd, None, any_buffer)

    def _attach(
        self, fd: int, tcp_fd: int, program_fd: int, max_length: int | None, any_buffer: bool
    ) -> None:
        room = None if max_length is None else make_room(tcp_fd, max_length)
        if room is not None and max_length is not None and room < max_length and not any_buffer:
            raise AttachError(
                errno.ENOBUFS,
                f"the receive buffer of TCP socket {tcp_fd} cannot take the framing's longest "
                f"message, {max_length} bytes, but only {room}; lower the framing's max_length, "
                "raise net.ipv4.tcp_rmem or net.core.rmem_max, or pass any_buffer=True",
            )
        try:
            _kernel.attach(fd, tcp_fd, program_fd)
        except OSError as error:
            raise _explain_attach(error, tcp_fd, program_fd) from error
        # The kernel refuses a message longer than the buffer, so that this is a bound also for a
        # program that states none.
        self.max_message_size = max(
            self.max_message_size, _longest_message(tcp_fd) if max_length is None else max_length
        )

    def unattach(self, tcp: _socket.socket | int) -> None:
        """Take a TCP connection off the multiplexor (SIOCKCMUNATTACH).

        The kernel drops a message that is complete but waits for a KCM socket with room, and one
        that is partly received; `Multiplexor.detach` reads them first.

        Raises:
            AttachError: ENOENT (no socket, or not attached to this multiplexor), EALREADY (being
                unattached by somebody else).
        """
        tcp_fd = _fd_of(tcp)
        try:
            _kernel.unattach(self._open_fd(), tcp_fd)
        except OSError as error:
            raise AttachError(
                error.errno or errno.ENOENT,
                f"TCP socket {tcp_fd} cannot be unattached: "
                + (
                    "it is not attached to this multiplexor"
                    if error.errno == errno.ENOENT
                    else "it is being unattached already"
                    if error.errno == errno.EALREADY
                    else str(error.strerror)
                ),
            ) from error

    def clone(self) -> KCMSocket:
        """A new socket on the same multiplexor (SIOCKCMCLONE), close-on-exec.

        Messages that arrive are shared out between the multiplexor's sockets.

        Raises:
            KCMOSError: EMFILE or ENFILE (too many descriptors).
        """
        try:
            fd = _kernel.clone(self._open_fd())
        except OSError as error:
            raise KCMOSError(
                error.errno or errno.EMFILE, f"the KCM socket cannot be cloned ({error.strerror})"
            ) from error
        self.shared = True
        try:
            return KCMSocket(self.type, max_message_size=self.max_message_size, _fileno=fd)
        except BaseException:
            os.close(fd)
            raise

    def dup(self) -> Self:
        """The same socket through another descriptor, close-on-exec."""
        fd = os.dup(self._open_fd())
        self.shared = True
        try:
            other = type(self)(self.type, max_message_size=self.max_message_size, _fileno=fd)
        except BaseException:
            os.close(fd)
            raise
        other.settimeout(self.gettimeout())
        return other

    @property
    def recv_disabled(self) -> bool:
        """Whether the multiplexor gives this socket no messages (KCM_RECV_DISABLE).

        Setting it to True hands what is queued here to the multiplexor's other sockets.
        """
        return bool(self.getsockopt(lib.SOL_KCM, lib.KCM_RECV_DISABLE))

    @recv_disabled.setter
    def recv_disabled(self, value: bool) -> None:
        self.setsockopt(lib.SOL_KCM, lib.KCM_RECV_DISABLE, int(value))

    # ---- receiving ----

    def recv(self, bufsize: int | None = None, flags: int = 0, /) -> bytes:
        """Receive one whole message.

        Args:
            bufsize: accepted for the sake of `socket.socket`'s callers; a longer message is
                returned whole all the same, up to max_message_size.
            flags: MSG_PEEK, MSG_DONTWAIT.

        Raises:
            MessageTruncated: the message was longer than max_message_size.  Its beginning is in
                the error's `message`; its rest is lost.
            BlockingIOError, TimeoutError: no message is there, by the socket's blocking mode.
            ValueError: bufsize is negative.
        """
        if bufsize is not None and bufsize < 0:
            raise ValueError(f"bufsize must not be negative, but is {bufsize}")
        room = max(bufsize or 0, self.max_message_size) + 1
        return self._receive(room, 1, flags)[0]

    def recv_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> int:
        """Receive one whole message into a buffer; returns its length in bytes.

        Args:
            buffer: a writable buffer.
            nbytes: how much of it to use; 0 for all.
            flags: as for `recv`.

        Raises:
            MessageTruncated: the message does not fit; it is whole in the error's `message`.
        """
        with memoryview(buffer) as view, view.cast("B") as target:
            # Before a message is taken that could not be put anywhere.
            if target.readonly:
                raise TypeError("the buffer is read-only")
            if nbytes < 0 or nbytes > len(target):
                raise ValueError(f"nbytes is {nbytes}, and the buffer has {len(target)} bytes")
            room = nbytes or len(target)
            message = self.recv(None, flags)
            if len(message) > room:
                raise MessageTruncated(
                    errno.EMSGSIZE,
                    f"a message of {len(message)} bytes does not fit into {room}; it is whole in "
                    "this error's attribute `message`",
                    message,
                )
            target[: len(message)] = message
            return len(message)

    def recvmsg(
        self, bufsize: int, ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        """recvmsg(2) as the kernel does it, truncation included.

        Returns:
            The data, no ancillary data, msg_flags, and None for the address.  MSG_EOR in msg_flags
            says that the message is whole, MSG_TRUNC that its rest is lost; a SOCK_SEQPACKET
            message without MSG_EOR has lost its rest as well on Linux 6.1 and later.
        """
        buffer = bytearray(bufsize)
        length, _, message_flags, _ = self.recvmsg_into([buffer], ancbufsize, flags)
        return bytes(memoryview(buffer)[:length]), [], message_flags, None

    def recvmsg_into(
        self, buffers: Iterable[Buffer], ancbufsize: int = 0, flags: int = 0, /
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        """recvmsg(2) into several buffers, filled one after the other; see `recvmsg`."""
        targets = list(buffers)
        length, message_flags = self._when_readable(
            lambda: _kernel.receive_message(self._open_fd(), targets, flags), flags
        )
        return length, [], message_flags, None

    def recvfrom(self, bufsize: int | None = None, flags: int = 0, /) -> tuple[bytes, Any]:
        """As `recv`, with None for the address: a message does not tell its transport."""
        return self.recv(bufsize, flags), None

    def recvfrom_into(self, buffer: Buffer, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
        """As `recv_into`, with None for the address."""
        return self.recv_into(buffer, nbytes, flags), None

    def recv_many(self, limit: int = 64, flags: int = 0) -> list[bytes]:
        """Receive up to `limit` whole messages: wait for the first, then take what is there.

        Raises:
            MessageTruncated: as for `recv`; whole messages received in the same call are in the
                error's `received`, and what there is of others that were too long in its `others`.
            ValueError: limit is less than 1.
        """
        if limit < 1:
            raise ValueError(f"limit must be at least 1, not {limit}")
        messages: list[bytes] = []
        while len(messages) < limit:
            if messages:
                flags |= _socket.MSG_DONTWAIT
            try:
                received = self._receive(self.max_message_size + 1, limit - len(messages), flags)
            except MessageTruncated as error:
                error.received[:0] = messages
                raise
            except OSError:
                # An error after the first message is found again by the next call.
                if messages:
                    break
                raise
            messages += received
        return messages

    def _receive(self, room: int, limit: int, flags: int) -> list[bytes]:
        """One recvmmsg of up to `limit` messages of less than `room` bytes each."""
        count = max(1, min(limit, lib.PYKCM_BATCH, _BATCH_BUFFER // room))
        buffer = self._take_buffer(room * count)
        try:
            headers = self._when_readable(
                lambda: _kernel.receive_many(self._open_fd(), buffer, room, count, flags), flags
            )
            with memoryview(buffer) as view:
                parts = [
                    (bytes(view[index * room : index * room + length]), message_flags)
                    for index, (length, message_flags) in enumerate(headers)
                ]
        finally:
            self._buffers.append(buffer)
        whole: list[bytes] = []
        cut: list[bytes] = []
        while parts:
            message, message_flags = parts.pop(0)
            if flags & _socket.MSG_PEEK:
                ended = len(message) < room  # a peek does not show MSG_EOR for a whole message
            else:
                ended = bool(message_flags & _socket.MSG_EOR)
                if not ended and _features.seqpacket_keeps_the_rest():
                    parts = parts or self._receive_parts(room)
                    if parts:
                        parts[0] = (message + parts[0][0], parts[0][1])
                        continue
            (whole if ended and not message_flags & _socket.MSG_TRUNC else cut).append(message)
        if cut:
            raise MessageTruncated(
                errno.EMSGSIZE,
                f"a message is longer than the {room - 1} bytes that this socket has room for; "
                "set max_message_size to the longest message of its framings",
                cut[0],
                whole,
                cut[1:],
            )
        return whole

    def _receive_parts(self, room: int) -> list[tuple[bytes, int]]:
        """The next part of a message that the kernel hands out in parts, with its flags."""
        part = bytearray(room)
        try:
            length, flags = _kernel.receive_message(self._open_fd(), [part], _socket.MSG_DONTWAIT)
        except OSError:
            return []  # another thread has it
        return [(bytes(part[:length]), flags)]

    def _take_buffer(self, size: int) -> mmap.mmap:
        # Buffers are kept, since fresh ones cost page faults; a list's pop is atomic, so that two
        # threads never share one.
        with contextlib.suppress(IndexError):
            buffer = self._buffers.pop()
            if len(buffer) >= size:
                return buffer
        # A mapping, since nothing touches its pages before a message does; private, since a fork
        # would share it.
        return mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def _when_readable(self, call: Callable[[], T], flags: int) -> T:
        timeout = self.gettimeout()
        deadline = Deadline(timeout)
        while True:
            try:
                return call()
            except InterruptedError:
                continue
            except BlockingIOError:
                if flags & _socket.MSG_DONTWAIT or not timeout:
                    raise
                if deadline.passed():
                    raise TimeoutError("timed out") from None
            wait_readable([self._open_fd()], deadline)

    # ---- sending ----

    def send(self, data: Buffer, flags: int = 0, /) -> int:
        """Send one whole message; returns its length in bytes.

        The kernel queues the message and hands it to one of the transports; with none attached
        it is kept until one is.  `unsent` and `flush` tell when it has reached TCP.

        Args:
            data: the message, header included, as the framing of the transports has it.
            flags: MSG_DONTWAIT; MSG_BATCH: queue only, the next send without it hands all to TCP;
                MSG_MORE: the message goes on with the next send.

        Raises:
            KCMOSError: EINVAL, the message is empty: the kernel would drop it in silence.
            BlockingIOError, TimeoutError: the queue is full, by the socket's blocking mode; nothing
                of the message was queued.
        """
        return self.sendmsg([data], (), flags)

    def sendall(self, data: Buffer, flags: int = 0, /) -> None:
        """As `send`: a message is queued whole or not at all."""
        self.send(data, flags)

    def sendto(self, data: Buffer, *arguments: Any) -> int:
        """As `send`; the address, which may have flags before it, must be None."""
        *flags, address = arguments or (None,)
        if address is not None:
            raise KCMOSError(errno.EISCONN, "a message goes to a transport, not to an address")
        return self.send(data, *flags)

    def sendmsg(
        self,
        buffers: Iterable[Buffer],
        ancdata: Iterable[Any] = (),
        flags: int = 0,
        address: Any = None,
        /,
    ) -> int:
        """Send one message gathered from several buffers; see `send`.  ancdata must be empty."""
        if address is not None:
            raise KCMOSError(errno.EISCONN, "a message goes to a transport, not to an address")
        if list(ancdata):
            raise KCMOSError(errno.EINVAL, "a KCM socket carries no ancillary data")
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        size = sum(map(len, views))
        more = flags & _socket.MSG_MORE
        if size == 0 and (more or not self._message_open):
            raise _empty_message()
        if self.type == _socket.SOCK_SEQPACKET and not more:
            flags |= _socket.MSG_EOR
        sent = self._when_writable(
            lambda: _kernel.send_message(self._open_fd(), views, flags), flags
        )
        self._message_open = bool(more)
        while sent < size:
            # SOCK_SEQPACKET was out of memory in mid-message.  The message is open now, so that
            # only going on keeps it whole.
            self._message_open = True
            rest = memoryview(b"".join(views))[sent:]
            sent += self._when_writable(
                lambda r=rest: _kernel.send_message(self._open_fd(), [r], flags),  # type: ignore[misc]
                flags & ~_socket.MSG_DONTWAIT,
                must_finish=True,
            )
            self._message_open = bool(more)
        return sent

    def send_many(self, messages: Iterable[Buffer], flags: int = 0) -> int:
        """Queue many whole messages with few system calls (sendmmsg).

        Returns:
            How many were queued: all, unless the queue was full in non-blocking mode or when the
            timeout ended, or an error came after the first; the next call meets that error again.

        Raises:
            TypeError, KCMOSError: a message is no buffer, or empty; nothing was sent.
            BlockingIOError, TimeoutError: not even the first could be queued.
        """
        views = [memoryview(message).cast("B") for message in messages]
        if not all(map(len, views)):
            raise _empty_message()
        if self.type == _socket.SOCK_SEQPACKET:
            flags |= _socket.MSG_EOR
        deadline = Deadline(self.gettimeout())
        sent = 0
        while sent < len(views):
            batch = views[sent : sent + lib.PYKCM_BATCH]
            try:
                sent += self._when_writable(
                    lambda b=batch: _kernel.send_many(self._open_fd(), b, flags),  # type: ignore[misc]
                    flags,
                    deadline=deadline,
                )
            except OSError:
                if sent:
                    break
                raise
        return sent

    def _when_writable(
        self,
        call: Callable[[], T],
        flags: int,
        *,
        deadline: Deadline | None = None,
        must_finish: bool = False,
    ) -> T:
        timeout = None if must_finish else self.gettimeout()
        deadline = deadline or Deadline(timeout)
        with contextlib.ExitStack() as stack:
            space: SendSpace | None = None
            while True:
                try:
                    return call()
                except InterruptedError:
                    continue
                except BlockingIOError:
                    if flags & _socket.MSG_DONTWAIT or (not timeout and not must_finish):
                        raise
                    if deadline.passed():
                        raise TimeoutError("timed out") from None
                if space is None:
                    # One for each wait: an edge is seen by one waiter alone.
                    space = stack.enter_context(self.send_space())
                space.wait(deadline)

    @property
    def unsent(self) -> int:
        """Bytes accepted by `send` and not yet handed to TCP (SK_MEMINFO_WMEM_QUEUED)."""
        return self.memory()[_SK_MEMINFO_WMEM_QUEUED]

    def memory(self) -> tuple[int, ...]:
        """The socket's memory in bytes, by the SK_MEMINFO_ numbers of linux/sock_diag.h."""
        data = self.getsockopt(_socket.SOL_SOCKET, _SO_MEMINFO, 4 * _SK_MEMINFO_VARS)
        return struct.unpack(f"={_SK_MEMINFO_VARS}I", data)

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was sent has been handed to TCP.

        Args:
            timeout: seconds; None waits as long as it takes, whatever the socket's own timeout.

        Raises:
            TimeoutError: the time is over; the text says how many bytes are left.
            KCMOSError: EBUSY, a message was begun with MSG_MORE and not ended.
        """
        deadline = Deadline(timeout)
        with self.send_space() as space:
            self.push()
            while left := self.unsent:
                if deadline.passed():
                    raise TimeoutError(f"{left} bytes are queued that no transport has taken yet")
                space.wait(deadline)

    def send_space(self) -> SendSpace:
        """What tells that queued messages were handed to TCP; to be closed after use."""
        return SendSpace(self._open_fd())

    def push(self) -> None:
        """Hand what was queued with MSG_BATCH to TCP, as a send of nothing does.

        Raises:
            KCMOSError: EBUSY, a message was begun with MSG_MORE and not ended.
        """
        if self._message_open:
            raise KCMOSError(
                errno.EBUSY, "a message was begun with MSG_MORE; end it before flushing"
            )
        # A full queue is pushed too, before the error.
        with contextlib.suppress(BlockingIOError, InterruptedError):
            _kernel.send_message(self._open_fd(), [b""], _socket.MSG_DONTWAIT | _socket.MSG_EOR)

    # ---- asyncio and Trio ----

    async def arecv(self) -> bytes:
        """As `recv`, on asyncio or Trio, whatever the blocking mode.

        Cancelling it loses no message.  One task at a time can wait on a socket; others use a
        `clone`.
        """
        return (await self.arecv_many(1))[0]

    async def arecv_many(self, limit: int = 64) -> list[bytes]:
        """As `recv_many`; cancelling it loses no message."""
        await checkpoint()
        while True:
            try:
                return self.recv_many(limit, _socket.MSG_DONTWAIT)
            except BlockingIOError:
                await async_wait_readable(self._open_fd())

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Messages as they come; there is no end of file on a KCM socket."""
        while True:
            yield await self.arecv()

    async def asend(self, data: Buffer, flags: int = 0) -> int:
        """As `send`; cancelled, either all of the message was queued or nothing."""
        return await self._async_when_writable(
            lambda: self.send(data, flags | _socket.MSG_DONTWAIT)
        )

    async def asend_many(self, messages: Iterable[Buffer], flags: int = 0) -> int:
        """As `send_many`, until all are queued; cancelled, some may have been."""
        rest = list(messages)
        total = len(rest)
        while rest:
            del rest[
                : await self._async_when_writable(
                    lambda: self.send_many(rest, flags | _socket.MSG_DONTWAIT)
                )
            ]
        return total

    async def aflush(self) -> None:
        """As `flush`, without a limit; use the event loop's own."""
        await checkpoint()
        with self.send_space() as space:
            self.push()
            while self.unsent:
                await async_wait_readable(space.fileno())
                space.clear()

    async def _async_when_writable(self, call: Callable[[], int]) -> int:
        await checkpoint()
        with contextlib.suppress(BlockingIOError):
            return call()
        with self.send_space() as space:
            while True:
                with contextlib.suppress(BlockingIOError):
                    return call()
                await async_wait_readable(space.fileno())
                space.clear()

    # ---- closing ----

    def close(self, linger: float = DEFAULT_LINGER) -> None:
        """Close the socket, after what was sent has been handed to TCP.

        The kernel throws away what is still queued when the last descriptor of a KCM socket is
        closed, and aborts the connection that it was writing to.

        Args:
            linger: how long to wait for that at most, in seconds.

        Warns:
            UnsentWarning: bytes were left after that; they are lost unless another descriptor of
                this socket is open.
        """
        if self.fileno() >= 0:
            left = 0
            with contextlib.suppress(OSError):
                left = self.unsent
                if left and not self._message_open:
                    with contextlib.suppress(TimeoutError):
                        self.flush(linger)
                    left = self.unsent
            if left:
                warnings.warn(
                    f"{self!r} is closed with {left} bytes that no transport has taken; they "
                    "are lost",
                    UnsentWarning,
                    stacklevel=2,
                )
        super().close()

    def __del__(self) -> None:
        # The interpreter closes it, with a warning that it hides by default.
        with contextlib.suppress(OSError):
            if self.fileno() >= 0 and (left := self.unsent):
                warnings.warn(
                    f"{self!r} was not closed, and {left} bytes that no transport has taken are "
                    "lost",
                    UnsentWarning,
                    source=self,
                    stacklevel=2,
                )
        super().__del__()  # type: ignore[misc]

    def _open_fd(self) -> int:
        fd = self.fileno()
        if fd < 0:
            raise KCMOSError(errno.EBADF, "the KCM socket is closed")
        return fd


def _empty_message() -> KCMOSError:
    return KCMOSError(
        errno.EINVAL,
        "a message of 0 bytes does not exist for KCM: the kernel would drop it in silence; a "
        "framing's shortest message is its header",
    )


def make_room(tcp_fd: int, max_length: int) -> int:
    """Make a TCP socket's receive buffer take messages of max_length bytes.

    Returns:
        The length in bytes of the longest message that is sure to get through.
    """
    wanted = 2 * max_length
    with _borrowed_tcp(tcp_fd) as tcp:
        if tcp is None:
            return max_length  # no TCP socket: SIOCKCMATTACH says so in a moment
        size = tcp.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF)
        low = tcp.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT)
        # Setting the low-water mark grows the buffer for it, without ending the kernel's own
        # tuning (tcp_set_rcvlowat, net/ipv4/tcp.c): to twice the mark, or, since 6.6, to what the
        # traffic so far lets it think necessary, which may be little more than the mark.
        for mark in (max_length, wanted):
            if size >= wanted:
                break
            tcp.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT, mark)
            tcp.setsockopt(_socket.SOL_SOCKET, _socket.SO_RCVLOWAT, low)
            size = tcp.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF)
        return size // 2


def _longest_message(tcp_fd: int) -> int:
    """A bound for any message that the kernel lets through on this TCP socket, in bytes."""
    limit = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        limit = int(Path("/proc/sys/net/ipv4/tcp_rmem").read_text(encoding="ascii").split()[2])
    with _borrowed_tcp(tcp_fd) as tcp:
        size = 0 if tcp is None else tcp.getsockopt(_socket.SOL_SOCKET, _socket.SO_RCVBUF)
    return max(limit, size)


@contextlib.contextmanager
def borrowed(fd: int) -> Iterator[_socket.socket]:
    """A socket object on a descriptor that belongs to somebody else, and stays open."""
    sock = _socket.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


@contextlib.contextmanager
def _borrowed_tcp(fd: int) -> Iterator[_socket.socket | None]:
    """The same; None where the descriptor is no TCP socket."""
    with contextlib.ExitStack() as stack:
        try:
            sock = stack.enter_context(borrowed(fd))
        except OSError:
            yield None
            return
        yield sock if sock.proto == _socket.IPPROTO_TCP else None


def _fd_of(tcp: _socket.socket | int) -> int:
    fd = tcp if isinstance(tcp, int) else tcp.fileno()
    if fd < 0:
        raise AttachError(errno.ENOENT, "the TCP socket is closed")
    return fd


def _explain_attach(error: OSError, tcp_fd: int, program_fd: int) -> AttachError:
    number = error.errno or errno.EINVAL
    texts = {
        errno.ENOENT: f"descriptor {tcp_fd} is no open socket",
        errno.EBADF: f"descriptor {program_fd}, given for the program, is not open",
        errno.EINVAL: f"descriptor {program_fd} is no BPF program of type socket filter",
        errno.EOPNOTSUPP: f"socket {tcp_fd} is no connected TCP socket: KCM takes TCP over IPv4 "
        "or IPv6, neither listening nor closed, and no MPTCP",
        errno.EALREADY: f"TCP socket {tcp_fd} is attached to a multiplexor already, or used by "
        "another part of the kernel (TLS, sockmap); unattach it first",
        errno.EACCES: "a security policy forbids it; under SELinux a clone has no label: attach "
        "through the multiplexor's first socket",
    }
    return AttachError(number, texts.get(number, f"the TCP socket cannot be attached ({error})"))
