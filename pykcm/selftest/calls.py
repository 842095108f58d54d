"""Every call that the checks make of the kernel, in one object.

Each is as thin as it can be, so that a check sees what the kernel does and not what pykcm makes of
it.  That they are methods of one object lets a mutation break one of them (tests/mutations.py).
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pykcm import _kernel, bpf

if TYPE_CHECKING:
    from typing_extensions import Buffer

_libc = ctypes.CDLL(None, use_errno=True)

# The program "r0 = 0; exit", which the verifier takes as any type of program.
_RETURN_ZERO = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])
BPF_PROG_TYPE_SCHED_CLS = 3  # include/uapi/linux/bpf.h


class Calls:
    """The kernel's answers.  Every method raises the plain OSError that the call gave."""

    # --- AF_KCM, by pykcm's thin binding

    def open_socket(
        self, kind: int = socket.SOCK_DGRAM, protocol: int | None = None
    ) -> socket.socket:
        return _kernel.open_socket(kind, protocol)

    def attach(self, kcm: int, tcp: int, program: int) -> None:
        _kernel.attach(kcm, tcp, program)

    def unattach(self, kcm: int, tcp: int) -> None:
        _kernel.unattach(kcm, tcp)

    def clone(self, kcm: int) -> int:
        return _kernel.clone(kcm)

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        return _kernel.send_message(fd, buffers, flags)

    def send_many(self, fd: int, messages: Sequence[Buffer]) -> int:
        return _kernel.send_many(fd, messages)

    def receive(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
        """Size and msg_flags of what was received."""
        return _kernel.receive_message(fd, buffers, flags)

    def receive_many(self, fd: int, room: int, count: int) -> list[tuple[bytes, int]]:
        """Messages with their msg_flags."""
        buffer = bytearray(room * count)
        received = _kernel.receive_many(fd, buffer, room, count)
        return [
            (bytes(buffer[i * room : i * room + size]), flags)
            for i, (size, flags) in enumerate(received)
        ]

    # --- what the binding has no name for

    def ioctl(self, fd: int, request: int, argument: int | bytearray) -> int:
        """An ioctl with an address, or with a buffer that the kernel may change."""
        return fcntl.ioctl(fd, request, argument)

    def libc(self, name: str, *arguments: int | bytes | None) -> int:
        """A function of the C library; integers are passed as longs."""
        result: int = getattr(_libc, name)(
            *(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
        )
        if result < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        return result

    def map(self, fd: int, size: int) -> mmap.mmap:
        return mmap.mmap(fd, size)

    def type_of(self, fd: int) -> int:
        """SO_TYPE, without asking the descriptor for what Python wants to know."""
        value = ctypes.c_int()
        size = ctypes.c_int(4)
        self.libc(
            "getsockopt",
            fd,
            socket.SOL_SOCKET,
            socket.SO_TYPE,
            ctypes.addressof(value),
            ctypes.addressof(size),
        )
        return value.value

    def get_option(self, sock: socket.socket, level: int, option: int, size: int = 4) -> bytes:
        return sock.getsockopt(level, option, size)

    def set_option(self, sock: socket.socket, level: int, option: int, value: bytes) -> None:
        sock.setsockopt(level, option, value)

    def poll(self, fd: int, events: int, seconds: float) -> int:
        """poll(2) of one descriptor: the events that were seen, 0 if the time is over."""
        poll = select.poll()
        poll.register(fd, events)
        ready = poll.poll(max(0.0, seconds) * 1000)
        return ready[0][1] if ready else 0

    def epoll(self) -> Any:
        """A select.epoll, or what looks like one."""
        return select.epoll()

    def splice(self, source: int, target: int, count: int) -> int:
        return os.splice(source, target, count)

    def send_file(self, target: int, source: int, count: int) -> int:
        return os.sendfile(target, source, 0, count)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def close(self, sock: socket.socket) -> None:
        sock.close()

    def proc(self, name: str) -> str:
        """A file of /proc/net of this process's network namespace."""
        return (Path("/proc/net") / name).read_text(encoding="ascii")

    # --- the other end, and BPF

    def tcp_send(self, tcp: socket.socket, data: bytes) -> None:
        tcp.sendall(data)

    def tcp_receive(self, tcp: socket.socket, size: int) -> bytes:
        return tcp.recv(size, socket.MSG_DONTWAIT)

    def tcp_error(self, tcp: socket.socket) -> int:
        return tcp.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)

    def load(self, text: str) -> bpf.Program:
        """A delineation program."""
        return bpf.Program.load(text, name="kcm_selftest")

    def load_of_type(self, kind: int) -> bpf.Program:
        """A program of another type than KCM takes."""
        return bpf.Program(_kernel.bpf_load(_RETURN_ZERO, b"GPL", b"kcm_selftest", type=kind))


def name_of(number: int | None) -> str:
    """An errno's name; "no error" for 0."""
    return errno.errorcode.get(number, str(number)) if number else "no error"
