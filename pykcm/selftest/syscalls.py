"""System calls that the C library has no functions for."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
import sys
from typing import NamedTuple

_libc = ctypes.CDLL(None, use_errno=True)

# include/uapi/linux/bpf.h
BPF_PROG_LOAD, BPF_PROG_GET_FD_BY_ID, BPF_OBJ_GET_INFO_BY_FD = 5, 13, 15
BPF_PROG_TYPE_SOCKET_FILTER, BPF_PROG_TYPE_SCHED_CLS = 1, 3


class _Numbers(NamedTuple):
    bpf: int
    delete_module: int
    userfaultfd: int


# Each architecture's asm/unistd.h, by uname -m.
_NUMBERS = {
    "x86_64": _Numbers(321, 176, 323),
    "i686": _Numbers(357, 129, 374),
    "armv7l": _Numbers(386, 129, 388),
    "ppc64le": _Numbers(361, 129, 364),
    "s390x": _Numbers(351, 129, 355),
    "aarch64": _Numbers(280, 106, 282),
    "riscv64": _Numbers(280, 106, 282),
    "loongarch64": _Numbers(280, 106, 282),
}
# What a process of 32 bits has on a machine of 64.
_NARROW = {"x86_64": "i686", "aarch64": "armv7l", "armv8l": "armv7l", "i386": "i686"}


class Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("vectors", ctypes.POINTER(Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


def libc(name: str, *arguments: int | bytes | None) -> int:
    """A function of the C library; integers are passed as longs.

    Raises:
        OSError: it returned less than 0.
    """
    result: int = getattr(_libc, name)(
        *(ctypes.c_long(value) if isinstance(value, int) else value for value in arguments)
    )
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


def bpf(command: int, attributes: bytes | bytearray) -> int:
    """bpf(2); it may change attributes that are a bytearray.

    Raises:
        OSError: it failed, or its number is not known on this machine (ENOSYS).
    """
    room = (ctypes.c_char * len(attributes)).from_buffer_copy(attributes)
    result = libc("syscall", _numbers().bpf, command, ctypes.addressof(room), len(attributes))
    if isinstance(attributes, bytearray):
        attributes[:] = room.raw
    return result


def load(
    kind: int,
    code: bytes,
    name: bytes = b"",
    log: bytearray | None = None,
    license: bytes = b"Dual MIT/GPL",
) -> int:
    """The descriptor of a new BPF program, close-on-exec.

    Args:
        kind: a BPF_PROG_TYPE_*.
        code: its instructions.
        name: up to 15 letters, digits, '_' and '.'.
        log: where the verifier's words go, with a NUL after them.
        license: under which it is.

    Raises:
        OSError: it was refused.
    """
    instructions = ctypes.create_string_buffer(code, len(code))
    licence = ctypes.create_string_buffer(license)
    room = (ctypes.c_char * len(log)).from_buffer(log) if log else None
    attributes = struct.pack(
        "IIQQIIQII16s",
        kind,
        len(code) // 8,
        ctypes.addressof(instructions),
        ctypes.addressof(licence),
        1 if room else 0,
        len(room) if room else 0,
        ctypes.addressof(room) if room else 0,
        0,
        0,
        name,
    )
    return bpf(BPF_PROG_LOAD, attributes)


def remove_module(name: str) -> None:
    """delete_module(2), without waiting for anything.

    Raises:
        OSError: it is in use, or may not be removed.
    """
    libc("syscall", _numbers().delete_module, name.encode(), os.O_NONBLOCK)


def userfaultfd(flags: int) -> int:
    """The descriptor of a new userfaultfd(2).

    Raises:
        OSError: this kernel has none, or this process may not have one.
    """
    return libc("syscall", _numbers().userfaultfd, flags)


def _numbers() -> _Numbers:
    machine = os.uname().machine
    if sys.maxsize < 1 << 32:
        machine = _NARROW.get(machine, machine)
    if machine not in _NUMBERS:
        raise OSError(errno.ENOSYS, f"the numbers of system calls on {machine} are not known here")
    return _NUMBERS[machine]
