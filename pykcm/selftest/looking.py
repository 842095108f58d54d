"""Ways to look at what the kernel does, none of which waits for ever."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pykcm import statistics as stat
from pykcm._binding import lib
from pykcm.selftest.calls import Calls, name_of
from pykcm.selftest.check import Failure, Skip

T = TypeVar("T")

#: A length that the checks' messages stay under, in bytes.
ROOM = 1 << 18

_SO_MEMINFO, _WMEM_QUEUED = 55, 5  # include/uapi/asm-generic/socket.h, linux/sock_diag.h


class Looking:
    """What a check sees.

    Args:
        calls: how the kernel is called.
        patience: seconds to wait for what has to happen.
        quiet: seconds to look whether something happens that must not.
    """

    def __init__(self, calls: Calls, patience: float, quiet: float) -> None:
        self.calls = calls
        self.patience = patience
        self.quiet = quiet
        self._room = bytearray()
        #: The KCM sockets that were made, in that order.
        self.sockets: list[socket.socket] = []

    def expect(self, what: str, seen: T, wanted: T) -> None:
        """Fail unless what was seen is what was wanted."""
        if seen != wanted:
            raise Failure(f"{what}\nexpected: {_shown(wanted)}\nseen: {_shown(seen)}")

    def eventually(self, what: str, look: Callable[[], T], wanted: T) -> None:
        """Fail unless what `look` returns becomes what is wanted while patience lasts."""
        end = time.monotonic() + self.patience
        while (seen := look()) != wanted and time.monotonic() < end:
            time.sleep(0.005)
        self.expect(what, seen, wanted)

    def refused(self, what: str, wanted: int, call: Callable[..., object], *arguments: Any) -> None:
        """Fail unless a call raises the OSError of an errno."""
        number = None
        try:
            call(*arguments)
        except OSError as error:
            number = error.errno
        self.expect(f"errno of {what}", name_of(number), name_of(wanted))

    def refused_after(
        self, what: str, wanted: int, seconds: float, call: Callable[..., object], *arguments: Any
    ) -> None:
        """Fail unless a call raises the OSError of an errno, and not before its time."""
        waited = []
        # A busy machine makes one longer; and one shorter, in a guest whose tick comes late.
        for _ in range(3):
            start = time.monotonic()
            self.refused(what, wanted, call, *arguments)
            waited.append(time.monotonic() - start)
        self.expect(f"waited for {seconds:g} s", sorted(waited)[1] >= 0.95 * seconds, True)

    def receive(self, kcm: socket.socket, room: int = ROOM, flags: int = 0) -> bytes:
        """What one recvmsg gives; fails if nothing comes while patience lasts."""
        return self.receive_flags(kcm, room, flags)[0]

    def receive_flags(
        self, kcm: socket.socket, room: int = ROOM, flags: int = 0
    ) -> tuple[bytes, int]:
        """What one recvmsg gives, and its msg_flags."""
        if not self.calls.poll(kcm.fileno(), select.POLLIN, self.patience):
            raise Failure(
                f"a receive on the KCM socket\nexpected: a message\nseen: nothing in "
                f"{self.patience:g} s"
            )
        buffer = self._buffer(room)
        size, seen = self.calls.receive(kcm.fileno(), [buffer], flags | socket.MSG_DONTWAIT)
        return bytes(buffer[:size]), seen

    def _buffer(self, room: int) -> memoryview:
        """So many bytes; the same ones each time, since fresh memory costs time."""
        if len(self._room) < room:
            self._room = bytearray(max(room, ROOM))
        return memoryview(self._room)[:room]

    def receive_all(self, kcm: socket.socket) -> list[bytes]:
        """The messages that are there now."""
        found = []
        buffer = self._buffer(ROOM)
        with contextlib.suppress(BlockingIOError):
            while True:
                size, _ = self.calls.receive(kcm.fileno(), [buffer], socket.MSG_DONTWAIT)
                found.append(bytes(buffer[:size]))
        return found

    def receive_rest(self, sockets: list[socket.socket], count: int) -> list[bytes]:
        """So many messages of some sockets, fewer if no more come while patience lasts."""
        found: list[bytes] = []
        end = time.monotonic() + self.patience
        while len(found) < count and time.monotonic() < end:
            for kcm in sockets:
                found += self.receive_all(kcm)
            time.sleep(0.005)
        return found

    def peek(self, kcm: socket.socket) -> bytes:
        """The next message, which stays."""
        return self.receive(kcm, flags=socket.MSG_PEEK)

    def received(self, kcm: socket.socket, messages: list[bytes]) -> None:
        """Fail unless these messages are received, in this order."""
        for number, message in enumerate(messages):
            self.expect(f"message {number} on the KCM socket", self.receive(kcm), message)

    def silent(self, kcm: socket.socket, what: str = "the KCM socket") -> None:
        """Fail if anything can be received."""
        if self.calls.poll(kcm.fileno(), select.POLLIN, self.quiet):
            try:
                seen: object = self.receive(kcm)
            except OSError as error:
                seen = name_of(error.errno)
            raise Failure(f"a receive on {what}\nexpected: nothing\nseen: {_shown(seen)}")

    def stream(self, far: socket.socket, size: int) -> bytes:
        """So many bytes of a TCP stream, fewer if it ends or no more come."""
        data = bytearray()
        end = time.monotonic() + self.patience
        while len(data) < size and time.monotonic() < end:
            if not self.calls.poll(far.fileno(), select.POLLIN, self.patience):
                break
            piece = self.calls.tcp_receive(far, min(size - len(data), 1 << 16))
            if not piece:
                break
            data += piece
            end = time.monotonic() + self.patience
        return bytes(data)

    def streamed(self, far: socket.socket, data: bytes) -> None:
        """Fail unless these bytes arrive at the other end."""
        self.expect(
            "what the other end of the TCP connection read", self.stream(far, len(data)), data
        )

    def unsent(self, far: socket.socket, what: str = "the other end") -> None:
        """Fail if anything arrives at the other end."""
        if self.calls.poll(far.fileno(), select.POLLIN, self.quiet):
            seen = self.calls.tcp_receive(far, ROOM)
            raise Failure(f"what {what} read\nexpected: nothing\nseen: {_shown(seen)}")

    def either_end_has(self, kcm: socket.socket, tcp: socket.socket, message: bytes) -> None:
        """Fail unless a message can be read from the KCM socket or the TCP socket."""
        if self.calls.poll(kcm.fileno(), select.POLLIN, self.quiet):
            self.expect("a receive on the KCM socket", self.receive(kcm), message)
        elif self.calls.poll(tcp.fileno(), select.POLLIN, self.quiet):
            self.expect("a read of the TCP socket", self.stream(tcp, len(message)), message)
        else:
            raise Failure("the message\nexpected: on the KCM or the TCP socket\nseen: nowhere")

    def consumed(self, near: socket.socket, far: socket.socket) -> None:
        """Wait until KCM has taken all that was sent over a connection."""
        # Also on the loopback interface, what is sent may arrive later.
        not_acknowledged = functools.partial(self._under_way, far, termios.TIOCOUTQ)
        self.eventually("bytes not acknowledged", not_acknowledged, 0)
        self.eventually("bytes in the TCP socket", lambda: self.unread_bytes(near), 0)

    def unread_bytes(self, tcp: socket.socket) -> int:
        """How many bytes a TCP socket has received that nobody has taken."""
        return self._under_way(tcp, termios.FIONREAD)

    def _under_way(self, tcp: socket.socket, request: int) -> int:
        answer = bytearray(4)
        self.calls.ioctl(tcp.fileno(), request, answer)
        return int.from_bytes(answer, sys.byteorder)

    def posted(self, tcp: socket.socket, wanted: int) -> None:
        """Fail unless an error is posted on a TCP socket: POLLERR, then SO_ERROR."""
        events = self.calls.poll(tcp.fileno(), 0, self.patience)
        if not events & select.POLLERR:
            raise Failure(
                f"poll of the attached TCP socket\nexpected: POLLERR\nseen: {events:#x} in "
                f"{self.patience:g} s"
            )
        self.expect(
            "SO_ERROR of the attached TCP socket",
            name_of(self.calls.tcp_error(tcp)),
            name_of(wanted),
        )

    def unsent_bytes(self, kcm: socket.socket) -> int:
        """What a KCM socket holds that TCP has not taken, in bytes."""
        info = self.calls.get_option(kcm, socket.SOL_SOCKET, _SO_MEMINFO, 36)
        size: int = struct.unpack("9I", info)[_WMEM_QUEUED]
        return size

    def set_receive_disabled(self, kcm: socket.socket, value: int) -> None:
        self.calls.set_option(kcm, lib.SOL_KCM, lib.KCM_RECV_DISABLE, struct.pack("i", value))

    def receive_disabled(self, kcm: socket.socket) -> int:
        value: int = struct.unpack(
            "i", self.calls.get_option(kcm, lib.SOL_KCM, lib.KCM_RECV_DISABLE)
        )[0]
        return value

    # --- statistics

    def multiplexor(self) -> stat.MultiplexorStatistics:
        """The newest multiplexor of this namespace."""
        found = stat.parse_multiplexors(self.calls.proc("kcm"))
        if not found:
            raise Failure("/proc/net/kcm\nexpected: a multiplexor\nseen: none")
        return found[0]

    def queued(self, kcm: socket.socket) -> int:
        """How many messages wait in a socket of the only multiplexor of an isolated check."""
        # The kernel numbers a multiplexor's sockets in the order of their making (init_kcm_sock).
        number = self.sockets.index(kcm)
        sockets = self.multiplexor().sockets
        return self.shown(next(s.receive_queue for s in sockets if s.index == number))[0]

    def shown(self, *columns: int | None) -> tuple[int, ...]:
        """Columns of /proc/net/kcm; skips the check where the kernel lacks one."""
        there = tuple(column for column in columns if column is not None)
        if len(there) < len(columns):
            raise Skip("this kernel's /proc/net/kcm lacks a column that is looked at")
        return there

    def total(self, name: str) -> int:
        """A column of /proc/net/kcm_stats: "MUX" or "Psock", and the kernel's name."""
        section, column = name.split()
        columns = dict(stat.raw_totals(self.calls.proc("kcm_stats")))[section]
        if column not in columns:
            raise Skip(f"this kernel's /proc/net/kcm_stats has no column {name}")
        return columns[column]

    @contextlib.contextmanager
    def descriptors_unchanged(self) -> Iterator[None]:
        """Fail if the block leaves a descriptor open."""
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208 - names, not paths
        yield
        after = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208
        self.expect("open descriptors", after, before)


def _shown(value: object) -> str:
    """A value for a line of diagnostics."""
    if isinstance(value, bytes) and len(value) > 40:
        return f"{len(value)} bytes, {value[:20]!r}...{value[-12:]!r}"
    if isinstance(value, list) and len(value) > 12:
        return f"{len(value)} items, {value[:12]!r}..."
    return repr(value) if not isinstance(value, str) else value
