"""What a check works with: sockets, programs, and ways to look that never wait for ever."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import socket
import struct
import sys
import termios
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from pykcm import _loopback, _offset, bpf
from pykcm import statistics as stat
from pykcm._binding import lib
from pykcm.errors import CapabilityError, UnavailableError
from pykcm.selftest.calls import Calls, name_of
from pykcm.selftest.check import Failure, Skip
from pykcm.selftest.environment import Environment

T = TypeVar("T")

DGRAM, SEQPACKET = socket.SOCK_DGRAM, socket.SOCK_SEQPACKET

# The program that kcm.rst shows for Thrift: a length of 4 bytes that counts what follows.  It reads
# the segment's first bytes, so that it is right for the first message of a segment only.
DOCUMENTED = "r6 = r1\nr0 = *(u32 *)skb[0]\nr0 += 4\nexit"

#: A length that DOCUMENTED's messages stay under, in bytes.
ROOM = 1 << 18

#: Patience for what is known not to happen on many kernels, in seconds.
SOON = 2.0

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1
_SO_MEMINFO, _WMEM_QUEUED = 55, 5  # include/uapi/asm-generic/socket.h, linux/sock_diag.h


def framed(body: bytes) -> bytes:
    """A message that the documented program delineates."""
    return struct.pack(">I", len(body)) + body


class Lab:
    """The sockets and programs of one check, closed when it ends.

    Args:
        calls: how the kernel is called.
        environment: what this process may do.
        patience: seconds to wait for what has to happen.
        quiet: seconds to look whether something happens that must not.

    Attributes:
        notes: what a check that passes has to say.
    """

    def __init__(
        self, calls: Calls, environment: Environment, patience: float = 10.0, quiet: float = 0.2
    ) -> None:
        self.calls = calls
        self.environment = environment
        self.patience = patience
        self.quiet = quiet
        self.notes: list[str] = []
        self._open = contextlib.ExitStack()
        self._sockets: list[socket.socket] = []
        self._isolated = False

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    # --- making things

    def keep(self, closable: Any) -> Any:
        """Have something closed at the end; returns it."""
        self._open.callback(closable.close)
        return closable

    def kcm(self, kind: int = DGRAM) -> socket.socket:
        """A KCM socket on a new multiplexor."""
        return self._made(self.calls.open_socket(kind))

    def clone(self, kcm: socket.socket) -> socket.socket:
        """A clone of a KCM socket."""
        fd = self.calls.clone(kcm.fileno())
        return self._made(socket.socket(lib.AF_KCM, kcm.type, 0, fileno=fd))

    def _made(self, sock: socket.socket) -> socket.socket:
        self._sockets.append(self.keep(sock))
        return sock

    def tcp(self) -> tuple[socket.socket, socket.socket]:
        """A TCP connection's two ends, neither of which delays what is written."""
        self.need_connections()
        near, far = _loopback.connection(self.patience)
        for sock in (near, far):
            self.keep(sock).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return near, far

    def need_connections(self) -> None:
        """Skip the check if there is no TCP here."""
        if self.environment.no_connections and not self._isolated:
            raise Skip(self.environment.no_connections)

    def program(self, text: str) -> bpf.Program:
        """A delineation program in the kernel."""
        if self.environment.no_programs:
            raise Skip(self.environment.no_programs)
        program: bpf.Program = self.keep(self.calls.load(text))
        return program

    def documented(self) -> bpf.Program:
        """The program of kcm.rst."""
        return self.program(DOCUMENTED)

    def fixed(self, size: int) -> bpf.Program:
        """A program for messages of one size, which works wherever they lie in a segment."""
        return self.program(f"r0 = {size}\nexit")

    def separating(self) -> bpf.Program:
        """A program for the documented one's messages, wherever they lie in a segment."""
        if self.environment.no_programs:
            raise Skip(self.environment.no_programs)
        try:
            strategy = _offset.find_strategy()
        except CapabilityError as error:
            raise Skip(str(error)) from None
        except UnavailableError as error:
            raise Failure(f"an offset\nexpected: a way to read it\nseen: {error}") from None
        return self.program(f"{strategy.lines('r7')}\nr0 = *(u32 *)skb[r7]\nr0 += 4\nexit")

    def attach(self, kcm: socket.socket, tcp: socket.socket, program: bpf.Program) -> None:
        self.calls.attach(kcm.fileno(), tcp.fileno(), program.fd)

    def unattach(self, kcm: socket.socket, tcp: socket.socket) -> None:
        self.calls.unattach(kcm.fileno(), tcp.fileno())

    def attached(
        self, program: bpf.Program | None = None, kind: int = DGRAM
    ) -> tuple[socket.socket, socket.socket, socket.socket]:
        """A KCM socket, a TCP socket attached to it, and that one's other end."""
        program = program or self.documented()
        kcm = self.kcm(kind)
        near, far = self.tcp()
        self.attach(kcm, near, program)
        return kcm, near, far

    def pipe(self) -> tuple[int, int]:
        """A pipe's reading and writing end."""
        ends = os.pipe()
        for end in ends:
            self._open.callback(os.close, end)
        return ends

    def isolate(self) -> None:
        """Put this process into a network namespace of its own, in which loopback is up."""
        if ctypes.CDLL(None, use_errno=True).unshare(_CLONE_NEWNET) < 0:
            number = ctypes.get_errno()
            raise Skip(f"no network namespace can be made ({name_of(number)}); it takes root")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = bytearray(struct.pack("16sH14x8x", b"lo", 0))
            self.calls.ioctl(control.fileno(), _SIOCGIFFLAGS, request)
            flags = struct.unpack_from("H", request, 16)[0] | _IFF_UP
            struct.pack_into("H", request, 16, flags)
            self.calls.ioctl(control.fileno(), _SIOCSIFFLAGS, request)
        self._isolated = True

    # --- looking

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
        for _ in range(3):  # a busy machine makes any one longer
            start = time.monotonic()
            self.refused(what, wanted, call, *arguments)
            waited.append(time.monotonic() - start)
        self.expect(f"waited for {seconds:g} s", min(waited) >= 0.95 * seconds, True)

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
        buffer = bytearray(room)
        size, seen = self.calls.receive(kcm.fileno(), [buffer], flags | socket.MSG_DONTWAIT)
        return bytes(buffer[:size]), seen

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
            piece = self.calls.tcp_receive(far, size - len(data))
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

        def under_way(tcp: socket.socket, request: int) -> int:
            answer = bytearray(4)
            self.calls.ioctl(tcp.fileno(), request, answer)
            return int.from_bytes(answer, sys.byteorder)

        # Also on the loopback interface, what is sent may arrive later.
        self.eventually("bytes not acknowledged", lambda: under_way(far, termios.TIOCOUTQ), 0)
        self.eventually("bytes in the TCP socket", lambda: under_way(near, termios.FIONREAD), 0)

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
        number = self._sockets.index(kcm)
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
