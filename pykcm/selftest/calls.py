"""Every call that the checks make of the kernel, in one object.

Each is as thin as it can be, so that a check sees what the kernel does and not what pykcm makes of
it.  That they are methods of one object lets a mutation break one of them (tests/mutations.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import itertools
import mmap
import os
import select
import socket
import struct
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pykcm import _kernel, bpf
from pykcm.selftest import syscalls
from pykcm.selftest.check import Skip

if TYPE_CHECKING:
    from typing_extensions import Buffer

# The program "r0 = 0; exit", which the verifier takes as any type of program.
_RETURN_ZERO = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])

# Nothing is mapped in a process's first page.
_BAD_ADDRESS = 8

_FAIL_NTH = "/proc/thread-self/fail-nth"
_FAULT_INJECTION = (Path("/sys/kernel/debug/failslab"), Path("/sys/kernel/debug/fail_page_alloc"))

T = TypeVar("T")


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
        return syscalls.libc(name, *arguments)

    def send_and_fault(self, fd: int, data: bytes, flags: int = 0) -> int:
        """sendmsg of some data, and ten bytes more at an address that can't be read."""
        good = ctypes.create_string_buffer(data, max(len(data), 1))
        vectors = (syscalls.Vector * 2)(
            syscalls.Vector(ctypes.addressof(good), len(data)), syscalls.Vector(_BAD_ADDRESS, 10)
        )
        message = syscalls.Message(vectors=vectors, count=2)
        return self.libc("sendmsg", fd, ctypes.addressof(message), flags)

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

    def splice_flags(self, source: int, target: int, count: int, flags: int) -> int:
        """A splice with flags, of which Python's had none at first."""
        return self.libc("splice", source, None, target, None, count, flags)

    def write(self, fd: int, data: bytes) -> int:
        return os.write(fd, data)

    def close(self, sock: socket.socket) -> None:
        sock.close()

    def proc(self, name: str) -> str:
        """A file of /proc/net of this process's network namespace."""
        return (Path("/proc/net") / name).read_text(encoding="ascii")

    @contextlib.contextmanager
    def fault_injection(self) -> Iterator[None]:
        """Have every allocation of `failing` able to fail, also those that might wait.

        Raises:
            Skip: this kernel has no fault injection, or this process may not set it.
        """
        # Otherwise each is told of in the kernel's log, with a trace.
        settings = [
            path / name for path in _FAULT_INJECTION for name in ("verbose", "ignore-gfp-wait")
        ]
        try:
            before = [path.read_text(encoding="ascii") for path in settings]
            os.close(os.open(_FAIL_NTH, os.O_RDWR))
            for path in settings:
                path.write_text("0", encoding="ascii")
        except OSError as error:
            raise Skip(f"there is no fault injection here: {error}") from None
        try:
            yield
        finally:
            for path, text in zip(settings, before, strict=True):
                path.write_text(text, encoding="ascii")

    def failing(
        self, nth: int, made: Callable[..., T], *arguments: object
    ) -> tuple[bool, T | OSError]:
        """Make a call of which the nth allocation fails.

        Returns:
            Whether it came to that allocation, and what it returned or raised.
        """
        result: T | OSError
        fd = os.open(_FAIL_NTH, os.O_RDWR)
        try:
            os.write(fd, b"%d" % nth)
            try:
                result = made(*arguments)
            except OSError as error:
                result = error
            left = int(os.pread(fd, 16, 0).split(b"\0")[0])
            os.pwrite(fd, b"0", 0)
        finally:
            os.close(fd)
        return left == 0, result

    @contextlib.contextmanager
    def failing_inside(
        self, function: str, times: int = 1, *, pages: bool = False
    ) -> Iterator[Callable[[], bool]]:
        """Have the next allocations fail that a function of the kernel makes, whoever calls it.

        Args:
            times: how many.
            pages: those of pages, not those of objects.

        Yields:
            What says whether they have failed.

        Raises:
            Skip: this kernel can't, or this process may not.
        """
        home = _FAULT_INJECTION[pages]
        if not (home / "require-start").exists():
            raise Skip("this kernel can't withhold memory from one of its functions")
        first, last = self._addresses(function)
        wanted = {
            "require-start": f"{first:#x}",
            "require-end": f"{last:#x}",
            "ignore-gfp-wait": "N",
            "interval": "1",
            "verbose": "0",
            "probability": "100",
            "times": str(times),
        }
        if pages:
            wanted["min-order"] = "0"
        settings = {home / name: value for name, value in wanted.items()}
        before: dict[Path, str] = {}
        try:
            try:
                for path, value in settings.items():
                    before[path] = path.read_text(encoding="ascii")
                    path.write_text(value, encoding="ascii")
            except OSError as error:
                raise Skip(f"no function's memory can be withheld here: {error}") from None
            yield lambda: (home / "times").read_text(encoding="ascii").strip() == "0"
        finally:
            for path, value in reversed(before.items()):
                path.write_text(value, encoding="ascii")

    def _addresses(self, function: str) -> tuple[int, int]:
        """Where a function of the kernel begins and ends."""
        lines = Path("/proc/kallsyms").read_text(encoding="ascii").splitlines()
        places = sorted((int(line.split()[0], 16), line.split()[2]) for line in lines)
        for (first, name), (last, _) in itertools.pairwise(places):
            if name.partition(".")[0] == function and 0 < first < last:
                return first, last
        raise Skip(f"/proc/kallsyms does not say where {function} is")

    def free_memory(self) -> int:
        """What the kernel could still give away, in bytes."""
        text = Path("/proc/meminfo").read_text(encoding="ascii")
        return int(text.partition("MemAvailable:")[2].split()[0]) * 1024

    def module_users(self) -> int:
        """How many hold the module kcm.

        Raises:
            FileNotFoundError: it is not a module that could be removed.
        """
        return int(Path("/sys/module/kcm/refcnt").read_text(encoding="ascii"))

    def remove_module(self) -> None:
        """delete_module(2) of kcm."""
        syscalls.remove_module("kcm")

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
        return bpf.Program(syscalls.load(kind, _RETURN_ZERO, b"kcm_selftest"))

    def has_program(self, number: int) -> bool:
        """Whether there is a BPF program of this number."""
        try:
            os.close(syscalls.bpf(syscalls.BPF_PROG_GET_FD_BY_ID, struct.pack("III", number, 0, 0)))
        except FileNotFoundError:
            return False
        return True


def name_of(number: int | None) -> str:
    """An errno's name; "no error" for 0."""
    return errno.errorcode.get(number, str(number)) if number else "no error"
