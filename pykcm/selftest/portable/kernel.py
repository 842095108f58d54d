"""The calls of pykcm._kernel, by ctypes."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pykcm._binding import lib
from pykcm.selftest import syscalls

if TYPE_CHECKING:
    from typing_extensions import Buffer

_libc = ctypes.CDLL(None, use_errno=True)


class _Many(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = [("message", syscalls.Message), ("size", ctypes.c_uint)]


def token_state() -> Any:
    return (ctypes.c_uint64 * 5)()


def open_socket(type: int = socket.SOCK_DGRAM, protocol: int | None = None) -> socket.socket:
    return socket.socket(lib.AF_KCM, type, lib.KCMPROTO_CONNECTED if protocol is None else protocol)


def attach(kcm_fd: int, tcp_fd: int, program_fd: int) -> None:
    fcntl.ioctl(kcm_fd, lib.SIOCKCMATTACH, struct.pack("ii", tcp_fd, program_fd))


def unattach(kcm_fd: int, tcp_fd: int) -> None:
    fcntl.ioctl(kcm_fd, lib.SIOCKCMUNATTACH, struct.pack("i", tcp_fd))


def clone(kcm_fd: int) -> int:
    room = bytearray(4)
    fcntl.ioctl(kcm_fd, lib.SIOCKCMCLONE, room)
    fd = int.from_bytes(room, sys.byteorder)
    os.set_inheritable(fd, False)
    return fd


def send_message(fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
    message, _kept = _gathered([bytes(buffer) for buffer in buffers])
    return _called("sendmsg", fd, ctypes.byref(message), flags)


def send_many(fd: int, messages: Sequence[Buffer], flags: int = 0) -> int:
    made = [_gathered([bytes(each)]) for each in messages]
    many = (_Many * len(made))(*(_Many(message) for message, _ in made))
    return _called("sendmmsg", fd, many, len(made), flags)


def receive_message(fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
    message, _kept = _gathered(buffers)
    size = _called("recvmsg", fd, ctypes.byref(message), flags)
    return size, message.flags


def receive_many(
    fd: int, buffer: Buffer, room: int, count: int, flags: int = 0
) -> list[tuple[int, int]]:
    view = memoryview(buffer)
    made = [_gathered([view[place * room : (place + 1) * room]]) for place in range(count)]
    many = (_Many * count)(*(_Many(message) for message, _ in made))
    received = _called("recvmmsg", fd, many, count, flags | lib.MSG_WAITFORONE, None)
    return [(many[place].size, many[place].message.flags) for place in range(received)]


class _Info(ctypes.Structure):
    """struct bpf_prog_info, of which older kernels have less."""

    _fields_ = [
        ("type", ctypes.c_uint32),
        ("id", ctypes.c_uint32),
        ("tag", ctypes.c_ubyte * 8),
        ("jited_prog_len", ctypes.c_uint32),
        ("xlated_prog_len", ctypes.c_uint32),
        ("jited_prog_insns", ctypes.c_uint64),
        ("xlated_prog_insns", ctypes.c_uint64),
        ("load_time", ctypes.c_uint64),
        ("created_by_uid", ctypes.c_uint32),
        ("nr_map_ids", ctypes.c_uint32),
        ("map_ids", ctypes.c_uint64),
        ("name", ctypes.c_char * 16),
        ("more", ctypes.c_uint32 * 38),
        ("verified_insns", ctypes.c_uint32),
    ]


def bpf_load(
    code: bytes,
    license: bytes,
    name: bytes,
    log: bytearray | None = None,
    type: int | None = None,
    btf: bytes = b"",
    functions: bytes = b"",
    token_path: bytes = b"",
    told: Any = None,
) -> int:
    if token_path:
        told[0] = errno.ENOSYS
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    kind = lib.BPF_PROG_TYPE_SOCKET_FILTER if type is None else type
    return syscalls.load(kind, code, name, log, license)


def bpf_info(fd: int, translated: int = 0) -> tuple[Any, bytes]:
    room = ctypes.create_string_buffer(max(translated, 1))
    info = _Info(xlated_prog_len=translated, xlated_prog_insns=ctypes.addressof(room))
    attributes = struct.pack("IIQ", fd, ctypes.sizeof(info), ctypes.addressof(info))
    syscalls.bpf(syscalls.BPF_OBJ_GET_INFO_BY_FD, attributes)
    return info, room.raw[:translated]


def _gathered(buffers: Sequence[Buffer]) -> tuple[syscalls.Message, Any]:
    """A message of some buffers, and what must be kept as long as it is used."""
    kept = [
        ctypes.create_string_buffer(buffer, max(len(buffer), 1))
        if isinstance(buffer, bytes)
        else (ctypes.c_char * memoryview(buffer).nbytes).from_buffer(buffer)
        for buffer in buffers
    ]
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    vectors = (syscalls.Vector * len(kept))(
        *(
            syscalls.Vector(ctypes.addressof(room), size)
            for room, size in zip(kept, sizes, strict=True)
        )
    )
    return syscalls.Message(vectors=vectors, count=len(kept)), (kept, vectors)


def _called(name: str, *arguments: Any) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
