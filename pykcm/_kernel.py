"""The kernel's interface to KCM as it is, without any help: what pykcm and its tests build on.

Each call is one system call, and raises the plain `OSError` of the errno that the kernel gave.
Source: include/uapi/linux/kcm.h and net/kcm/kcmsock.c.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pykcm._binding import ffi, lib

if TYPE_CHECKING:
    from typing_extensions import Buffer


def _result(value: int) -> int:
    if value < 0:
        raise OSError(-value, os.strerror(-value))
    return value


def open_socket(type: int = socket.SOCK_DGRAM, protocol: int | None = None) -> socket.socket:
    """A KCM socket on a new multiplexor, close-on-exec."""
    return socket.socket(lib.AF_KCM, type, lib.KCMPROTO_CONNECTED if protocol is None else protocol)


def attach(kcm_fd: int, tcp_fd: int, program_fd: int) -> None:
    """SIOCKCMATTACH: make a TCP socket a transport, its messages found by a BPF program."""
    _result(lib.pykcm_attach(kcm_fd, tcp_fd, program_fd))


def unattach(kcm_fd: int, tcp_fd: int) -> None:
    """SIOCKCMUNATTACH."""
    _result(lib.pykcm_unattach(kcm_fd, tcp_fd))


def clone(kcm_fd: int) -> int:
    """SIOCKCMCLONE: the descriptor of a new socket on the same multiplexor, close-on-exec."""
    return _result(lib.pykcm_clone(kcm_fd))


def send_message(fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
    """One sendmsg of one message gathered from up to lib.PYKCM_BATCH buffers.

    Returns:
        The number of bytes that the kernel took.
    """
    if len(buffers) > lib.PYKCM_BATCH:
        buffers = [b"".join(buffers)]
    with _vectors(buffers) as (pointers, lengths):
        return _result(lib.pykcm_sendmsg(fd, pointers, lengths, len(buffers), flags))


def send_many(fd: int, messages: Sequence[Buffer], flags: int = 0) -> int:
    """One sendmmsg of at most lib.PYKCM_BATCH messages; returns how many were queued."""
    with _vectors(messages) as (pointers, lengths):
        return _result(lib.pykcm_sendmmsg(fd, pointers, lengths, len(messages), flags))


def receive_message(fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
    """One recvmsg into up to lib.PYKCM_BATCH buffers, filled one after the other.

    Returns:
        The number of bytes received, and msg_flags.
    """
    message_flags = ffi.new("int[1]")
    with _vectors(buffers, writable=True) as (pointers, lengths):
        size = _result(lib.pykcm_recvmsg(fd, pointers, lengths, len(buffers), flags, message_flags))
    return size, message_flags[0]


def receive_many(
    fd: int, buffer: Buffer, room: int, count: int, flags: int = 0
) -> list[tuple[int, int]]:
    """One recvmmsg of at most lib.PYKCM_BATCH messages; it waits for the first alone.

    Args:
        buffer: message i is written at i * room.
        room: bytes for each message.
        count: how many messages at most.

    Returns:
        The length and msg_flags of each message received.
    """
    lengths = ffi.new("unsigned int[]", count)
    message_flags = ffi.new("int[]", count)
    with ffi.from_buffer("char[]", buffer, require_writable=True) as memory:
        received = _result(
            lib.pykcm_recvmmsg(
                fd,
                memory,
                len(memory),
                room,
                count,
                flags | lib.MSG_WAITFORONE,
                lengths,
                message_flags,
            )
        )
    return [(lengths[i], message_flags[i]) for i in range(received)]


@contextlib.contextmanager
def _vectors(buffers: Sequence[Buffer], *, writable: bool = False) -> Iterator[tuple[Any, Any]]:
    with contextlib.ExitStack() as stack:
        views = [
            stack.enter_context(ffi.from_buffer("char[]", buffer, require_writable=writable))
            for buffer in buffers
        ]
        yield ffi.new("void *[]", views), ffi.new("size_t[]", [len(view) for view in views])


# ---- bpf(2) ----
# Source: include/uapi/linux/bpf.h and kernel/bpf/syscall.c.
# No line lies between a call that makes a descriptor and its return: an exception there, a signal
# handler's, would leave the descriptor to nobody.


def bpf_load(
    code: bytes, license: bytes, name: bytes, log: bytearray | None = None, type: int | None = None
) -> int:
    """BPF_PROG_LOAD: the descriptor of a new program, close-on-exec.

    Args:
        code: instructions of eight bytes.
        log: what the verifier's log is written to, with a NUL after it; None for no log.
        type: BPF_PROG_TYPE_*; a socket filter by default.
    """
    kind = lib.BPF_PROG_TYPE_SOCKET_FILTER if type is None else type
    room = ffi.from_buffer("char[]", log, require_writable=True) if log else ffi.NULL
    size = len(log) if log else 0
    level = 1 if log else 0
    arguments = kind, code, len(code) // 8, license, name, room, size, level
    return fd if (fd := lib.pykcm_bpf_load(*arguments)) >= 0 else _result(fd)


def bpf_run(fd: int, data: bytes, repeat: int) -> tuple[int, int]:
    """BPF_PROG_TEST_RUN: the return value, unsigned, and the mean duration in nanoseconds."""
    result, duration = ffi.new("uint32_t *"), ffi.new("uint32_t *")
    _result(lib.pykcm_bpf_run(fd, data, len(data), repeat, result, duration))
    return result[0], duration[0]


def bpf_info(fd: int, translated: int = 0) -> tuple[Any, bytes]:
    """BPF_OBJ_GET_INFO_BY_FD of a program.

    Returns:
        struct bpf_prog_info, and so many bytes of the translated instructions.
    """
    info, room = ffi.new("struct bpf_prog_info *"), ffi.new("char[]", translated)
    info.xlated_prog_insns = int(ffi.cast("uintptr_t", room))
    info.xlated_prog_len = translated
    _result(lib.pykcm_bpf_info(fd, info))
    return info, bytes(ffi.buffer(room))


def bpf_pin(fd: int, path: bytes) -> None:
    """BPF_OBJ_PIN."""
    _result(lib.pykcm_bpf_pin(fd, path))


def bpf_get(path: bytes) -> int:
    """BPF_OBJ_GET: the descriptor of what is pinned there, close-on-exec."""
    return fd if (fd := lib.pykcm_bpf_get(path)) >= 0 else _result(fd)
