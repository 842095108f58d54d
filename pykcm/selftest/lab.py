"""What a check works with: sockets, programs, and ways to look at them."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

from pykcm import _loopback, _offset, bpf
from pykcm._binding import lib
from pykcm.errors import CapabilityError, UnavailableError
from pykcm.selftest.calls import Calls, name_of
from pykcm.selftest.check import Failure, Skip
from pykcm.selftest.environment import Environment
from pykcm.selftest.looking import Looking

DGRAM, SEQPACKET = socket.SOCK_DGRAM, socket.SOCK_SEQPACKET

# The program that kcm.rst shows for Thrift: a length of 4 bytes that counts what follows.  It reads
# the segment's first bytes, so that it is right for the first message of a segment only.
DOCUMENTED = "r6 = r1\nr0 = *(u32 *)skb[0]\nr0 += 4\nexit"

#: Messages of 100 bytes, each another one, in their order.
NUMBERED = [struct.pack(">I", number) * 25 for number in range(1000)]

#: Patience for what is known not to happen on many kernels, in seconds.
SOON = 1.0

_CLONE_NEWNET = 0x40000000
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8913, 0x8914, 1


def framed(body: bytes) -> bytes:
    """A message that the documented program delineates."""
    return struct.pack(">I", len(body)) + body


#: What the fragments of one socket buffer hold, in bytes; more of a message goes into others.
FRAGMENTS = 17 * 32_768


def patterned(size: int) -> bytes:
    """Bytes in which a piece that is missing or in another place can be seen."""
    return b"".join(struct.pack(">I", number) for number in range(size // 4))


# asm/socket.h: of most architectures, MIPS, PowerPC, SPARC.
_RCVTIMEO_OLD = (20, 0x1006, 18, 0x2000)


def timeval(seconds: float) -> bytes:
    """What SO_RCVTIMEO and SO_SNDTIMEO take.

    They are other options, which take 64 bits twice, where only the C library's time_t has 64 bits.
    """
    whole, rest = divmod(round(seconds * 1e6), 1_000_000)
    return struct.pack("ll" if socket.SO_RCVTIMEO in _RCVTIMEO_OLD else "qq", whole, rest)


class Lab(Looking):
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
        super().__init__(calls, patience, quiet)
        self.environment = environment
        self.notes: list[str] = []
        self._open = contextlib.ExitStack()
        self._isolated = False

    def __enter__(self) -> Lab:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def another(self) -> Lab:
        """A lab like this one, whose sockets and programs can be closed before this one's."""
        other = Lab(self.calls, self.environment, self.patience, self.quiet)
        other._isolated = self._isolated
        return other

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
        self.sockets.append(self.keep(sock))
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

    def reserve(self, kcm: socket.socket, near: socket.socket) -> bytes:
        """Have a message half written to a connection whose peer does not read; returns it."""
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        # More than the buffers of both ends of a loopback connection take at first.
        message = framed(b"".join(NUMBERED) * 10)
        self.calls.send(kcm.fileno(), [message])
        self.expect("some of the message is unsent", self.unsent_bytes(kcm) > 0, True)
        return message

    @contextlib.contextmanager
    def arriving(self, far: socket.socket, messages: list[bytes]) -> Iterator[None]:
        """Have messages sent by another process while the block runs; it has ended after it."""
        pid = os.fork()
        if pid == 0:
            try:
                for start in range(0, len(messages), 10):
                    self.calls.tcp_send(far, b"".join(messages[start : start + 10]))
            finally:
                os._exit(0)
        try:
            yield
        finally:
            os.waitpid(pid, 0)

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
