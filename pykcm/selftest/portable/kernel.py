"""The calls of pykcm._kernel, by ctypes."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pykcm._binding import lib

if TYPE_CHECKING:
    from typing_extensions import Buffer

_libc = ctypes.CDLL(None, use_errno=True)


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = [("start", ctypes.c_void_p), ("size", ctypes.c_size_t)]


class _Message(ctypes.Structure):
    """struct msghdr."""

    _fields_ = [
        ("name", ctypes.c_void_p),
        ("name_size", ctypes.c_uint),
        ("vectors", ctypes.POINTER(_Vector)),
        ("count", ctypes.c_size_t),
        ("control", ctypes.c_void_p),
        ("control_size", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    ]


class _Many(ctypes.Structure):
    """struct mmsghdr."""

    _fields_ = [("message", _Message), ("size", ctypes.c_uint)]


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
    message, _kept = _message([bytes(buffer) for buffer in buffers])
    return _called("sendmsg", fd, ctypes.byref(message), flags)


def send_many(fd: int, messages: Sequence[Buffer], flags: int = 0) -> int:
    made = [_message([bytes(each)]) for each in messages]
    many = (_Many * len(made))(*(_Many(message) for message, _ in made))
    return _called("sendmmsg", fd, many, len(made), flags)


def receive_message(fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
    message, _kept = _message(buffers)
    size = _called("recvmsg", fd, ctypes.byref(message), flags)
    return size, message.flags


def receive_many(
    fd: int, buffer: Buffer, room: int, count: int, flags: int = 0
) -> list[tuple[int, int]]:
    view = memoryview(buffer)
    made = [_message([view[place * room : (place + 1) * room]]) for place in range(count)]
    many = (_Many * count)(*(_Many(message) for message, _ in made))
    received = _called("recvmmsg", fd, many, count, flags | lib.MSG_WAITFORONE, None)
    return [(many[place].size, many[place].message.flags) for place in range(received)]


def _message(buffers: Sequence[Buffer]) -> tuple[_Message, Any]:
    """A message of some buffers, and what must be kept as long as it is used."""
    kept = [
        ctypes.create_string_buffer(buffer, max(len(buffer), 1))
        if isinstance(buffer, bytes)
        else (ctypes.c_char * memoryview(buffer).nbytes).from_buffer(buffer)
        for buffer in buffers
    ]
    sizes = [memoryview(buffer).nbytes for buffer in buffers]
    vectors = (_Vector * len(kept))(
        *(_Vector(ctypes.addressof(room), size) for room, size in zip(kept, sizes, strict=True))
    )
    return _Message(vectors=vectors, count=len(kept)), (kept, vectors)


def _called(name: str, *arguments: Any) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
