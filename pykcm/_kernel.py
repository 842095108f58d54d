"""The kernel's interface to KCM as it is, without any help: what pykcm and its tests build on.

Each call is one system call, and raises the plain `OSError` of the errno that the kernel gave.
Source: include/uapi/linux/kcm.h and net/kcm/kcmsock.c.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pykcm._binding import ffi, lib
from pykcm.errors import KCMOSError

if TYPE_CHECKING:
    from typing_extensions import Buffer


# asm-generic/socket.h; include/uapi/linux/sock_diag.h.
#: linux/eventpoll.h; PyPy's select lacks it.
EPOLLRDHUP = 0x2000

_SO_MEMINFO = 55
_SK_MEMINFO_VARS = 9
RMEM_ALLOC, RCVBUF, WMEM_QUEUED = 0, 1, 5

BYTE_ORDER = sys.byteorder


def _result(value: int) -> int:
    if value < 0:
        raise OSError(-value, os.strerror(-value))
    return value


class Descriptor:
    """A descriptor that is closed with its object, close-on-exec."""

    __slots__ = ("_number",)

    def __init__(self) -> None:
        # Where the call that makes the descriptor writes its number.
        self._number = ffi.gc(ffi.new("int *", -1), lib.pykcm_close)

    @classmethod
    def duplicate(cls, fd: int) -> Descriptor:
        """Another number for what a descriptor stands for (F_DUPFD_CLOEXEC)."""
        self = cls()
        _result(lib.pykcm_dup(self._number, fd))
        return self

    @classmethod
    def event(cls) -> Descriptor:
        """An eventfd(2)."""
        self = cls()
        _result(lib.pykcm_eventfd(self._number))
        return self

    @classmethod
    def timer(cls) -> Descriptor:
        """A timerfd(2)."""
        self = cls()
        _result(lib.pykcm_timerfd(self._number))
        return self

    @classmethod
    def clone(cls, kcm_fd: int) -> Descriptor:
        """SIOCKCMCLONE: a new socket on the same multiplexor."""
        self = cls()
        _result(lib.pykcm_clone_owned(self._number, kcm_fd))
        return self

    def fileno(self) -> int:
        """Its number, -1 when it is closed."""
        number: int = self._number[0]
        return number

    def set_event(self, readable: bool) -> None:
        """Make an event readable, or not."""
        set_event(self.fileno(), readable)

    def set_timer(self, seconds: float) -> None:
        """Have a timer expire in so many seconds; 0 for never."""
        _result(lib.pykcm_set_timer(self.fileno(), int(seconds * 1e9)))

    def close(self) -> None:
        """Close it, once."""
        lib.pykcm_close(self._number)


def set_event(fd: int, readable: bool) -> None:
    """Make an eventfd readable, or not."""
    _result(lib.pykcm_set_event(fd, readable))


def open_socket(type: int = socket.SOCK_DGRAM, protocol: int | None = None) -> socket.socket:
    """A KCM socket on a new multiplexor, close-on-exec."""
    return socket.socket(lib.AF_KCM, type, lib.KCMPROTO_CONNECTED if protocol is None else protocol)


def attach(kcm_fd: int, tcp_fd: int, program_fd: int, done: Any = None) -> None:
    """SIOCKCMATTACH: make a TCP socket a transport, its messages found by a BPF program.

    Args:
        done: an `int[1]`, set to 1 when it is attached, whatever exception comes then.
    """
    _result(lib.pykcm_attach(kcm_fd, tcp_fd, program_fd, ffi.NULL if done is None else done))


def unattach(kcm_fd: int, tcp_fd: int, attached: Any = None) -> None:
    """SIOCKCMUNATTACH.

    Args:
        attached: an `int[1]`, set to 0 when it is not attached any more, whatever comes then.
    """
    _result(lib.pykcm_unattach(kcm_fd, tcp_fd, ffi.NULL if attached is None else attached))


def clone(kcm_fd: int) -> int:
    """SIOCKCMCLONE: the descriptor of a new socket on the same multiplexor, close-on-exec."""
    return _result(lib.pykcm_clone(kcm_fd))


def clone_onto(kcm_fd: int, fd: int) -> None:
    """SIOCKCMCLONE, with the clone in the place of what a descriptor was."""
    _result(lib.pykcm_clone_onto(kcm_fd, fd))


def integer() -> Any:
    """An `int[1]` for `attach` and `get_option` to write to."""
    return ffi.new("int[1]")


def get_option(fd: int, level: int, option: int, size: int) -> bytes:
    """getsockopt(2) of up to `size` bytes, on a descriptor that is somebody else's."""
    value, length = ffi.new("char[]", size), ffi.new("unsigned int *", size)
    _result(lib.pykcm_getsockopt(fd, level, option, value, length))
    return bytes(ffi.buffer(value, length[0]))


def get_integer(fd: int, level: int, option: int, into: Any = None) -> int:
    """getsockopt(2) of an int; it is in `into`, an `int[1]`, whatever exception comes then."""
    value = integer() if into is None else into
    _result(lib.pykcm_getsockopt(fd, level, option, value, ffi.new("unsigned int *", 4)))
    number: int = value[0]
    return number


def set_option(fd: int, level: int, option: int, value: int | bytes) -> None:
    """setsockopt(2) of an int or bytes, on a descriptor that is somebody else's."""
    data = value if isinstance(value, bytes) else bytes(ffi.buffer(ffi.new("int *", value)))
    _result(lib.pykcm_setsockopt(fd, level, option, data, len(data)))


def serve_again(kcm_fd: int) -> None:
    """Have a KCM socket without a message given those that wait for any; _serving.h says why."""
    _result(lib.pykcm_serve_again(kcm_fd))


def set_disabled(kcm_fd: int, disabled: bool) -> None:
    """Disable receiving, or enable it."""
    _result(lib.pykcm_set_disabled(kcm_fd, disabled))


def is_readable(fd: int) -> bool:
    """Whether a descriptor is readable now."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(0))


def memory(kcm_fd: int) -> tuple[int, ...]:
    """SO_MEMINFO: a socket's memory in bytes, by the SK_MEMINFO_ numbers of linux/sock_diag.h."""
    data = get_option(kcm_fd, socket.SOL_SOCKET, _SO_MEMINFO, 4 * _SK_MEMINFO_VARS)
    return tuple(memoryview(data).cast("I"))


def unread(tcp_fd: int) -> int:
    """SIOCINQ: bytes that TCP has received and nobody has taken, up to urgent data only."""
    return _result(lib.pykcm_unread(tcp_fd))


def copy_of(buffer: Buffer) -> bytes:
    """A copy of a buffer's bytes; EFAULT if it can't be read, as a mapping that was cut short."""
    with memoryview(buffer) as view:
        if not (view.nbytes and view.c_contiguous) or isinstance(view.obj, (bytes, bytearray)):
            return view.tobytes()
        with view.cast("B") as flat, ffi.from_buffer("char[]", flat) as memory:
            copy = bytearray(len(flat))
            with ffi.from_buffer("char[]", copy, require_writable=True) as target:
                copied = lib.pykcm_copy(target, memory, len(flat))
            if copied < 0:  # this kernel or sandbox can't tell
                return flat.tobytes()
            if copied < len(flat):
                raise KCMOSError(
                    errno.EFAULT,
                    "the buffer cannot be read to its end, as a mapping of a file that was cut "
                    "short; nothing of it was sent",
                )
            return bytes(copy)


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
    """BPF_PROG_LOAD: the descriptor of a new program, close-on-exec.

    Args:
        code: instructions of eight bytes.
        log: what the verifier's log is written to, with a NUL after it; None for no log.
        type: BPF_PROG_TYPE_*; a socket filter by default.
        btf: the types of the program's functions (BPF_BTF_LOAD); empty for none.
        functions: an array of struct bpf_func_info: where each begins, and its type.
        token_path: where the BPF file system is mounted of which a token (Linux 6.9) is taken
            for it; empty for none.
        told: what `token_state` made, for what there is to say of the token.
    """
    kind = lib.BPF_PROG_TYPE_SOCKET_FILTER if type is None else type
    room = ffi.from_buffer("char[]", log, require_writable=True) if log else ffi.NULL
    size = len(log) if log else 0
    level = 1 if log else 0
    program = kind, code, len(code) // 8, license, name, room, size, level
    arguments = *program, btf, len(btf), functions, len(functions) // 8
    token = (token_path, told) if token_path else (ffi.NULL, ffi.NULL)
    return fd if (fd := lib.pykcm_bpf_load(*arguments, *token)) >= 0 else _result(fd)


def token_state() -> Any:
    """For `bpf_load` to write to: the errno for which there is no token; whether the kernel tells
    what it allows; and that: masks of commands, types of programs, types of attachments."""
    return ffi.new("uint64_t[5]")


def is_bpf_file_system(path: bytes) -> bool:
    """Whether a path lies in a BPF file system (statfs(2))."""
    return bool(_result(lib.pykcm_is_bpf_file_system(path)))


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
    info, room = ffi.new("struct pykcm_program_info *"), ffi.new("char[]", translated)
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


def bpf_by_id(id: int) -> int:
    """BPF_PROG_GET_FD_BY_ID: the descriptor of a program, close-on-exec."""
    return fd if (fd := lib.pykcm_bpf_by_id(id)) >= 0 else _result(fd)


def bpf_next_id(id: int) -> int:
    """BPF_PROG_GET_NEXT_ID: the first program's id after this one; ENOENT if there is none."""
    following = ffi.new("uint32_t *")
    _result(lib.pykcm_bpf_next_id(id, following))
    number: int = following[0]
    return number
