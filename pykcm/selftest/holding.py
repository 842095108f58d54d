"""Keep a call in the kernel just where it holds a socket's lock, and let it go on.

A page of memory that is missing makes whoever reads it wait until the page is given, and that may
be the kernel in the middle of a send (userfaultfd(2)).
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pykcm.selftest import syscalls
from pykcm.selftest.check import Failure, Skip

# include/uapi/linux/userfaultfd.h; ioctls have these numbers on all machines but a few (ppc, mips).
_API, _REGISTER, _ZEROPAGE = 0xC018AA3F, 0xC020AA00, 0xC020AA04
_UFFD_API, _MISSING = 0xAA, 1


class MissingPage:
    """A page of zeros that is not there yet.

    Raises:
        Skip: there is no userfaultfd here.
    """

    def __init__(self) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, mmap.PAGESIZE, flags)
        self.address: int = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._range = struct.pack("QQ", self.address, mmap.PAGESIZE)
        try:
            self._fd = syscalls.userfaultfd(os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise Skip(f"no call can be held here, as there is no userfaultfd: {error}") from None
        try:
            self._ioctl(_API, struct.pack("QQQ", _UFFD_API, 0, 0))
            self._ioctl(_REGISTER, self._range + struct.pack("QQ", _MISSING, 0))
        except OSError as error:
            os.close(self._fd)
            raise Skip(f"no call can be held here by userfaultfd: {error}") from None

    def _ioctl(self, request: int, argument: bytes) -> None:
        fcntl.ioctl(self._fd, request, bytearray(argument))

    def wait(self, seconds: float) -> bool:
        """Wait until somebody waits for the page; whether somebody does."""
        return bool(select.select([self._fd], [], [], seconds)[0])

    def give(self) -> None:
        """Let those go on who wait for it."""
        try:
            self._ioctl(_ZEROPAGE, self._range + struct.pack("Qq", 0, 0))
        finally:
            os.close(self._fd)  # which lets them go on, too


@contextmanager
def held(fd: int, size: int, flags: int, patience: float) -> Iterator[None]:
    """Have a socket's lock held while the block runs, by a send of so many zeros up to a page.

    Raises:
        Skip: that can't be done here.
        Failure: the send did not come so far, or failed afterwards.
    """
    page = MissingPage()
    sent: list[int | OSError] = []

    def send() -> None:
        try:
            sent.append(syscalls.libc("send", fd, page.address, size, flags))
        except OSError as error:
            sent.append(error)

    thread = threading.Thread(target=send, daemon=True)
    thread.start()
    there = page.wait(patience)
    try:
        if not there:
            raise Failure(f"a send\nexpected: it reads what is to be sent\nseen: {sent}")
        yield
    finally:
        page.give()
        thread.join(patience)
    if sent != [size]:
        raise Failure(f"a send that was held\nexpected: {size} bytes\nseen: {sent}")
