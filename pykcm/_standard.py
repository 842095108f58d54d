"""The other calls of the standard library's sockets, made of `send` and of received messages."""

from __future__ import annotations

import errno
import socket as _socket
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pykcm import _kernel
from pykcm._messages import SocketCalls
from pykcm.errors import ArgumentError, KCMOSError, MessageTruncated

if TYPE_CHECKING:
    from typing import BinaryIO

    from typing_extensions import Buffer


class StandardCalls(SocketCalls, _socket.socket):
    """What KCMSocket has for the sake of `socket.socket`'s callers."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        from pykcm import _pickling

        return _pickling.reduce_argument(self)

    # ---- what the compiled receives make of a message; see _fastpath.c ----
    # They are called without a message first, so that what is wrong shows before one is taken.

    def _recv_into(
        self, message: bytes | None, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> int:
        with memoryview(buffer) as view, view.cast("B") as target:
            if target.readonly:
                raise TypeError("the buffer is read-only")
            if nbytes < 0 or nbytes > len(target):
                raise ArgumentError("nbytes", f"is {nbytes}, and the buffer has {len(target)}")
            room = nbytes or len(target)
            if message is None:
                return 0
            if len(message) > room:
                raise MessageTruncated(
                    errno.EMSGSIZE,
                    f"a message of {len(message)} bytes does not fit into {room}; it is whole in "
                    "this error's attribute `message`",
                    message,
                )
            target[: len(message)] = message
            return len(message)

    def _recvfrom(
        self, message: bytes | None, bufsize: int | None = None, flags: int = 0
    ) -> tuple[bytes, Any]:
        if bufsize is not None and bufsize < 0:
            raise ArgumentError("bufsize", f"must be 0 or more, not {bufsize}")
        return message or b"", None

    def _recvfrom_into(
        self, message: bytes | None, buffer: Buffer, nbytes: int = 0, flags: int = 0
    ) -> tuple[int, Any]:
        return self._recv_into(message, buffer, nbytes), None

    def _recvmsg(
        self, message: bytes | None, bufsize: int, ancbufsize: int = 0, flags: int = 0
    ) -> tuple[bytes, list[tuple[int, int, bytes]], int, Any]:
        if bufsize < 0:
            raise ArgumentError("bufsize", f"must be 0 or more, not {bufsize}")
        message = message or b""
        return message[:bufsize], [], self._message_flags(len(message) > bufsize), None

    def _recvmsg_into(
        self,
        message: bytes | None,
        buffers: Iterable[Buffer],
        ancbufsize: int = 0,
        flags: int = 0,
    ) -> tuple[int, list[tuple[int, int, bytes]], int, Any]:
        if message is None:  # the buffers may be of an iterator, which serves once
            return 0, [], 0, None
        taken = 0
        for buffer in buffers:
            with memoryview(buffer) as view, view.cast("B") as target:
                part = message[taken : taken + len(target)]
                target[: len(part)] = part
                taken += len(part)
        return taken, [], self._message_flags(len(message) > taken), None

    def _message_flags(self, cut: bool) -> int:
        """msg_flags as recvmsg(2) sets them."""
        if cut and self.type == _socket.SOCK_SEQPACKET:
            return int(_socket.MSG_TRUNC)
        return _socket.MSG_EOR | (_socket.MSG_TRUNC if cut else 0)

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
        return self.send(b"".join(_kernel.copy_of(buffer) for buffer in buffers), flags)

    def sendfile(self, file: BinaryIO, offset: int = 0, count: int | None = None) -> int:  # type: ignore[override]
        """Send what is in a file as one message; see `send`.

        It is read first: what the kernel's sendfile(2) sends has no end of a message.

        Args:
            file: a file opened in binary mode.
            offset: where to begin in it, in bytes.
            count: how many bytes to send; None for all that follow.

        Raises:
            ArgumentError: offset or count is negative, or the file has fewer bytes than count.
        """
        if offset < 0 or (count is not None and count < 1):
            raise ArgumentError("count", "must be 1 or more, and offset 0 or more")
        if offset:
            file.seek(offset)
        data = file.read() if count is None else file.read(count)
        if count is not None and len(data) < count:
            raise ArgumentError("count", f"is {count}, and the file has {len(data)} bytes there")
        return self.send(data)
