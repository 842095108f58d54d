"""What KCMSocket and Multiplexor share: how their calls wait, and what those raise.

The calls themselves are compiled (_fastpath.c) or, where that can't be, _slowpath.py's.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING

from pykcm import _explain, _kernel
from pykcm._wait import IDLE, Steps, Wait, apause, arun, checkpoint, pause, run
from pykcm.errors import ArgumentError, Disconnected, KCMOSError, MessageTruncated

if TYPE_CHECKING:
    from typing_extensions import Self

    from pykcm._fastpath import MultiplexorCalls, Port, SocketCalls, setup
else:
    try:
        from pykcm._fastpath import MultiplexorCalls, Port, SocketCalls, setup
    except ImportError:
        from pykcm._slowpath import MultiplexorCalls, Port, SocketCalls, setup

#: How long `close` waits by default for queued messages to reach TCP, in seconds.
DEFAULT_LINGER = 5.0

__all__ = ["DEFAULT_LINGER", "Messages", "MultiplexorCalls", "Port", "SocketCalls"]

_ARGUMENTS = {
    "timeout": "seconds, 0 or more, or None",
    "limit": "1 or more",
    "bufsize": "0 or more",
    "flags": "flags of the module socket",
}


def _make_error(operation: str, number: int) -> OSError:
    if number == errno.EAGAIN and operation != "continue":
        return BlockingIOError(number, os.strerror(number))
    tables = {
        "receive": _explain.RECEIVE,
        "send": _explain.SEND,
        "continue": _explain.CONTINUE,
        "empty": _explain.EMPTY,
        "more": _explain.MORE,
        "open": _explain.OPEN_MESSAGE,
        "held": _explain.HELD_BACK,
    }
    return _explain.explain(OSError(number, os.strerror(number)), tables[operation])


def _make_argument_error(name: str, value: object) -> ArgumentError:
    return ArgumentError(name, f"must be {_ARGUMENTS[name]}, not {value!r}")


setup(_make_error, _make_argument_error, _kernel.copy_of, MessageTruncated, Disconnected)


class Messages:
    """How the calls of a class with a Port wait."""

    _port: Port

    def _fd(self) -> int:
        """The KCM socket's descriptor.

        Raises:
            KCMOSError: EBADF, it is closed.
        """
        if self._port.fd < 0:
            raise _make_error("receive", errno.EBADF)
        return self._port.fd

    # What the compiled calls make use of.

    def _wait(self, steps: Steps[None], deadline: float) -> bool:
        return pause(next(steps), deadline)

    async def _await(self, steps: Steps[None]) -> None:
        await apause(next(steps))

    async def _checkpoint(self) -> None:
        await checkpoint()

    def _truncated(self, data: bytes) -> MessageTruncated:
        if len(data) < self._port.room:
            return MessageTruncated(
                errno.EBADMSG,
                f"{len(data)} bytes came that the framing does not divide into messages; another "
                "program delineates a transport of this multiplexor",
                data,
            )
        return MessageTruncated(
            errno.EMSGSIZE,
            f"a message is longer than the {self._port.room - 1} bytes that this socket has room "
            "for; set max_message_size to the longest message of its framings",
            data,
        )

    def _not_after_fork(self) -> KCMOSError:
        return KCMOSError(
            errno.EPERM,
            "this multiplexor belongs to the process that made it; receive and send on a clone "
            "that was made before the fork, and close this object",
        )

    def _let_clones_go(self) -> None:
        """A Multiplexor's clones are let go of by itself."""

    def _look(self) -> None:
        """Do what has become due."""
        raise NotImplementedError

    def _idle(self) -> None:
        """Nothing came for a while."""
        self._serve_again()
        self._look()

    def _serve_again(self) -> None:
        """Have what waits for a socket given to this one, which Linux may have passed by.

        requeue_rx_msgs (net/kcm/kcmsock.c) takes a socket that is full off the list of those that
        wait, and does not notice if it is emptied just then: it would get nothing any more.
        """
        self._port.serve()

    def _until_readable(self, fd: int) -> Steps[None]:
        """Wait on a descriptor for ever, and look whenever it is readable."""
        while True:
            since = time.monotonic()
            yield Wait(fd, IDLE)
            if time.monotonic() - since < IDLE:
                self._look()
            else:
                self._idle()

    def _receive_steps(self) -> Steps[None]:
        raise NotImplementedError

    def _flush_steps(self) -> Steps[None]:
        raise NotImplementedError

    @property
    def sent_many(self) -> int:
        """How many messages the last `send_many` or `asend_many` queued.

        It is true also when an exception or a cancellation ended the call.
        """
        return self._port.sent_many

    @property
    def unsent(self) -> int:
        """Bytes accepted by `send` and not yet handed to TCP (SK_MEMINFO_WMEM_QUEUED).

        Raises:
            KCMOSError: EBADF, the socket is closed.
        """
        return _kernel.memory(self._fd())[_kernel.WMEM_QUEUED] + self._port.rest

    def flush(self, timeout: float | None = None) -> None:
        """Wait until all that was sent has been handed to TCP.

        A transport that has ended with a message half written to it holds the queue until it is
        taken off; a `Multiplexor` does that, with a `KCMSocket` alone it is the caller's to do.

        Args:
            timeout: seconds; None waits as long as it takes, whatever the socket's own time-out.

        Raises:
            TimeoutError: the time is over; the text says how many bytes are left.
            KCMOSError: EBUSY, a message was begun with MSG_MORE and not ended.
            Disconnected: of a Multiplexor: bytes are left, and no transport.
        """
        run(self._flush_steps(), timeout, "")

    async def aflush(self) -> None:
        """As `flush`, on asyncio or Trio, without a limit; use the event loop's own."""
        await arun(self._flush_steps())

    # ---- closing ----

    _linger = DEFAULT_LINGER

    def close(self, linger: float | None = None) -> None:
        """Close the KCM socket, after what was sent has been handed to TCP.

        The kernel throws away what is still queued when the last descriptor of a KCM socket is
        closed, and aborts the connection that it was writing to.

        The clones of a Multiplexor go on with its transports, but it is the Multiplexor that
        watches these: once it is closed no clone learns of an end, and `recv` waits on.  So keep
        it as long as its clones.  With the last of them the kernel takes the transports off, and
        the TCP sockets are again the caller's alone.

        Args:
            linger: how long to wait at most, in seconds; by default 5, or what a Multiplexor was
                made with.

        Warns:
            UnsentWarning: bytes were left after that; they are lost, unless another process has
                the socket open.
            UnreadWarning: of a Multiplexor: messages were received and not read, while clones
                could have had them.
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

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    def _flushes(self) -> bool:
        """Whether closing has to wait for what is queued."""
        raise NotImplementedError

    def _close(self) -> None:
        raise NotImplementedError

    def _push(self) -> int:
        """Hand over what is held back; how many bytes are left."""
        port = self._port
        if port.bound and port.inherited:
            raise self._not_after_fork()
        port.push()  # which forgets what a parent had begun
        if port.open:
            raise _make_error("open", errno.EBUSY)
        left = self.unsent
        if left and port.batched and port.shared:
            raise _make_error("held", errno.EBUSY)
        return left


def unread_text(described: str, unread: int) -> str:
    """What an UnreadWarning says."""
    return f"{described} is closed with {unread} messages that were received and not read"


def late_with(left: int) -> TimeoutError:
    """The error of a flush that took too long."""
    return TimeoutError(f"timed out: {left} bytes are queued that no transport has taken yet")
