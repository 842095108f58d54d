"""Kernels that are broken on purpose: each check is seen to fail on one of them.

A mutation stands between a check and the kernel, and makes one thing of it wrong.  A repair makes
one thing right that the known deviations say is wrong: the check is then seen to pass.
"""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import re
import select
import socket
import struct
import sys
import termios
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from pykcm import _kernel, _offset, bpf
from pykcm._binding import lib
from pykcm.selftest.calls import Calls
from pykcm.selftest.lab import DOCUMENTED

if TYPE_CHECKING:
    from typing_extensions import Buffer

_LARGE = 1 << 18
_SIOCGSKNS = 0x894C  # include/uapi/linux/sockios.h
_SO_RCVBUFFORCE = 33  # include/uapi/asm-generic/socket.h


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One thing that is changed.

    Attributes:
        what: what the kernel does then.
        calls: that kernel.
        checks: those that show it.
    """

    what: str
    calls: Callable[[], Calls]
    checks: tuple[str, ...]


def _mutant(**methods: Callable[..., Any]) -> Callable[[], Calls]:
    return type("Mutant", (Calls,), dict(methods))


def _other_errno(name: str) -> Callable[[], Calls]:
    """Where a call fails, it fails with EIO."""

    def method(self: Calls, *arguments: Any) -> Any:
        try:
            return getattr(Calls, name)(self, *arguments)
        except OSError as error:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error

    return _mutant(**{name: method})


def _always(name: str, result: Any) -> Callable[[], Calls]:
    """A call that does nothing and returns always the same."""
    return _mutant(**{name: lambda self, *arguments: result})


def _scrap(fd: int) -> None:
    """Take a message off a KCM socket and forget it."""
    try:
        _kernel.receive_message(fd, [bytearray(_LARGE)], socket.MSG_DONTWAIT)
    except BlockingIOError:
        return


# --- sockets and clones


def _open_other_type(
    self: Calls, kind: int = socket.SOCK_DGRAM, protocol: int | None = None
) -> socket.socket:
    other = {socket.SOCK_DGRAM: socket.SOCK_SEQPACKET, socket.SOCK_SEQPACKET: socket.SOCK_DGRAM}
    return Calls.open_socket(self, other.get(socket.SocketKind(kind), kind), protocol)


def _poll_hangup(self: Calls, fd: int, events: int, seconds: float) -> int:
    return Calls.poll(self, fd, events, seconds) | select.POLLHUP


def _clone_alone(self: Calls, kcm: int) -> int:
    return _kernel.open_socket().detach()


def _clone_disabled(self: Calls, kcm: int) -> int:
    fd = _kernel.clone(kcm)
    with socket.socket(lib.AF_KCM, socket.SOCK_DGRAM, 0, fileno=os.dup(fd)) as clone:
        clone.setsockopt(lib.SOL_KCM, lib.KCM_RECV_DISABLE, 1)
    return fd


class _DeafAfterClose(Calls):
    closed = False

    def close(self, sock: socket.socket) -> None:
        self.closed = True
        super().close(sock)

    def tcp_send(self, tcp: socket.socket, data: bytes) -> None:
        if not self.closed:
            super().tcp_send(tcp, data)


def _close_scrapping(self: Calls, sock: socket.socket) -> None:
    _scrap(sock.fileno())
    sock.close()


def _ioctl_leaking(self: Calls, fd: int, request: int, argument: int | bytearray) -> int:
    try:
        return Calls.ioctl(self, fd, request, argument)
    except OSError:
        os.dup(fd)
        raise


# --- attach and unattach


def _ioctl_homeless(self: Calls, fd: int, request: int, argument: int | bytearray) -> int:
    if request == _SIOCGSKNS:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
    return Calls.ioctl(self, fd, request, argument)


def _attach_scrapping(self: Calls, kcm: int, tcp: int, program: int) -> None:
    with socket.socket(fileno=os.dup(tcp)) as copy:
        copy.recv(_LARGE, socket.MSG_DONTWAIT)
    _kernel.attach(kcm, tcp, program)


def _attach_leaking(self: Calls, kcm: int, tcp: int, program: int) -> None:
    try:
        _kernel.attach(kcm, tcp, program)
    except OSError:
        os.dup(tcp)
        raise


class _AttachOnce(Calls):
    attached = False

    def attach(self, kcm: int, tcp: int, program: int) -> None:
        if not self.attached:
            super().attach(kcm, tcp, program)
        self.attached = True


def _unattach_scrapping(self: Calls, kcm: int, tcp: int) -> None:
    _scrap(kcm)
    _kernel.unattach(kcm, tcp)


def _unattach_failing(self: Calls, kcm: int, tcp: int) -> None:
    raise OSError(errno.EALREADY, os.strerror(errno.EALREADY))


# --- programs and what they post


def _loading(text: str) -> Callable[[], Calls]:
    return _mutant(load=lambda self, _: Calls.load(self, text))


def _posting(number: int) -> Callable[[], Calls]:
    return _always("tcp_error", number)


def _poll_no_error(self: Calls, fd: int, events: int, seconds: float) -> int:
    return Calls.poll(self, fd, events, seconds) & events


def _poll_error(self: Calls, fd: int, events: int, seconds: float) -> int:
    return Calls.poll(self, fd, events, seconds) | select.POLLERR


class _Ghost(Calls):
    """Where nothing is to be read, something is."""

    def poll(self, fd: int, events: int, seconds: float) -> int:
        return super().poll(fd, events, seconds) or events & select.POLLIN

    def receive(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
        try:
            return super().receive(fd, buffers, flags | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 5, int(socket.MSG_EOR)

    def tcp_receive(self, tcp: socket.socket, size: int) -> bytes:
        try:
            return super().tcp_receive(tcp, size)
        except BlockingIOError:
            return b"ghost"


# --- receiving


def _receive_torn(
    self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0
) -> tuple[int, int]:
    size, seen = _kernel.receive_message(fd, buffers, flags)
    return size - 1, seen


def _receive_glued(self: Calls, fd: int, buffers: Sequence[Any], flags: int = 0) -> tuple[int, int]:
    size, seen = _kernel.receive_message(fd, buffers, flags)
    try:
        more, seen = _kernel.receive_message(fd, [memoryview(buffers[0])[size:]], flags)
    except BlockingIOError:
        more = 0
    return size + more, seen


def _flags(change: Callable[[int], int]) -> Callable[[], Calls]:
    def receive(self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> tuple[int, int]:
        size, seen = _kernel.receive_message(fd, buffers, flags)
        return size, change(seen)

    return _mutant(receive=receive)


def _receive_scrapping(
    self: Calls, fd: int, buffers: Sequence[Any], flags: int = 0
) -> tuple[int, int]:
    """Drop the rest of a message, also on a kernel that keeps it."""
    whole = bytearray(_LARGE)
    size, seen = _kernel.receive_message(fd, [whole], flags)
    room = len(buffers[0])
    buffers[0][: min(size, room)] = whole[: min(size, room)]
    return min(size, room), 0 if size > room else seen


def _receive_taking(
    self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0
) -> tuple[int, int]:
    return _kernel.receive_message(fd, buffers, flags & ~socket.MSG_PEEK)


def _receive_one_buffer(
    self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0
) -> tuple[int, int]:
    return _kernel.receive_message(fd, buffers[:1], flags)


def _receive_hasty(
    self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0
) -> tuple[int, int]:
    return _kernel.receive_message(fd, buffers, flags | socket.MSG_DONTWAIT)


def _receive_many_one(self: Calls, fd: int, room: int, count: int) -> list[tuple[bytes, int]]:
    return Calls.receive_many(self, fd, room, 1)


def _poll_ready(self: Calls, fd: int, events: int, seconds: float) -> int:
    return events


class _KeepsRest(Calls):
    """What did not fit of a message comes next."""

    def __init__(self) -> None:
        self.rest: bytes | None = None

    def poll(self, fd: int, events: int, seconds: float) -> int:
        return events if self.rest is not None else super().poll(fd, events, seconds)

    def receive(self, fd: int, buffers: Sequence[Any], flags: int = 0) -> tuple[int, int]:
        data = self._take(fd, flags)
        room = len(buffers[0])
        buffers[0][: min(room, len(data))] = data[:room]
        self.rest = data[room:] or None
        return min(room, len(data)), 0 if self.rest else int(socket.MSG_EOR)

    def splice(self, source: int, target: int, count: int) -> int:
        data = self._take(source, 0)
        self.rest = data[count:]
        return os.write(target, data[:count])

    def _take(self, fd: int, flags: int) -> bytes:
        if self.rest is not None:
            return self.rest
        whole = bytearray(_LARGE)
        size, _ = _kernel.receive_message(fd, [whole], flags)
        return bytes(whole[:size])


# --- the other end


def _tcp_send_nothing(self: Calls, tcp: socket.socket, data: bytes) -> None:
    pass


def _tcp_send_swapped(self: Calls, tcp: socket.socket, data: bytes) -> None:
    tcp.sendall(data[4:8] + data[:4] + data[8:])


def _tcp_send_paced(self: Calls, tcp: socket.socket, data: bytes) -> None:
    for start in range(0, len(data), 10):
        tcp.sendall(data[start : start + 10])
        time.sleep(0.1)


def _tcp_send_doubled(self: Calls, tcp: socket.socket, data: bytes) -> None:
    tcp.sendall(data + data[-8:])


# --- sending


def _sending(change: Callable[[bytes, int], tuple[bytes, int]]) -> Callable[[], Calls]:
    def send(self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        data = b"".join(buffers)
        changed, flags = change(data, flags)
        _kernel.send_message(fd, [changed], flags)
        return len(data)

    return _mutant(send=send)


def _mixed(data: bytes, flags: int) -> tuple[bytes, int]:
    half = len(data) // 2
    return data[:half] + bytes(byte ^ 3 for byte in data[half:]), flags


class _SendsOnePart(Calls):
    """A second part that is to be continued is taken, and goes nowhere."""

    begun = False

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        if flags & socket.MSG_MORE:
            if self.begun:
                return len(b"".join(buffers))
            self.begun = True
        return super().send(fd, buffers, flags)


class _SendsInTurn(Calls):
    """A send begins when the one before it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self._turn = threading.Lock()

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        with self._turn:
            return super().send(fd, buffers, flags)


def _send_first_buffer(self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
    return _kernel.send_message(fd, buffers[:1], flags)


def _send_no_batch(self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
    if flags & lib.MSG_BATCH:
        return len(b"".join(buffers))
    return _kernel.send_message(fd, buffers, flags)


def _send_many_reversed(self: Calls, fd: int, messages: Sequence[Buffer]) -> int:
    return _kernel.send_many(fd, messages[::-1])


def _write_open(self: Calls, fd: int, data: bytes) -> int:
    return _kernel.send_message(fd, [data])


class _SendsToNobody(Calls):
    """What is sent before a connection is attached is lost."""

    attached = False

    def attach(self, kcm: int, tcp: int, program: int) -> None:
        self.attached = True
        super().attach(kcm, tcp, program)

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        if not self.attached:
            return len(b"".join(buffers))
        return super().send(fd, buffers, flags)


class _LosesFirst(Calls):
    """The first message is lost."""

    lost = False

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        if not self.lost:
            self.lost = True
            return len(b"".join(buffers))
        return super().send(fd, buffers, flags)


def _send_hasty(self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
    return _kernel.send_message(fd, buffers, flags | socket.MSG_DONTWAIT)


class _LevelTriggered:
    def __init__(self) -> None:
        self._epoll = select.epoll()

    def __enter__(self) -> _LevelTriggered:
        return self

    def __exit__(self, *_: object) -> None:
        self._epoll.close()

    def register(self, fd: int, events: int) -> None:
        self._epoll.register(fd, events & ~select.EPOLLET)

    def poll(self, seconds: float) -> list[tuple[int, int]]:
        return self._epoll.poll(seconds)


# --- options


def _ignore_set(self: Calls, sock: socket.socket, level: int, option: int, value: bytes) -> None:
    pass


def _option_is(value: int) -> Callable[[], Calls]:
    return _always("get_option", struct.pack("i", value))


class _RawOption(Calls):
    """What was set is read, unchanged."""

    value = bytes(4)

    def set_option(self, sock: socket.socket, level: int, option: int, value: bytes) -> None:
        self.value = value
        super().set_option(sock, level, option, value)

    def get_option(self, sock: socket.socket, level: int, option: int, size: int = 4) -> bytes:
        return self.value


# --- splice


def _splice_short(self: Calls, source: int, target: int, count: int) -> int:
    return os.splice(source, target, count - 1)


def _splice_glued(self: Calls, source: int, target: int, count: int) -> int:
    data = b""
    while len(data) < count:
        message = bytearray(_LARGE)
        size, _ = _kernel.receive_message(source, [message])
        data += message[:size]
    return os.write(target, data[:count])


def _splice_scrapping(self: Calls, source: int, target: int, count: int) -> int:
    """Drop the rest of a message, also on a kernel that keeps it."""
    whole = bytearray(_LARGE)
    size, _ = _kernel.receive_message(source, [whole])
    return os.write(target, whole[: min(size, count)])


def _copying(flags: int) -> Callable[[], Calls]:
    """splice and sendfile that read and send, with these flags."""

    def splice(self: Calls, source: int, target: int, count: int) -> int:
        return _kernel.send_message(target, [os.read(source, count)], flags)

    def send_file(self: Calls, target: int, source: int, count: int) -> int:
        return _kernel.send_message(target, [os.pread(source, count, 0)], flags)

    return _mutant(splice=splice, send_file=send_file)


def _splice_peeking(self: Calls, source: int, target: int, count: int, flags: int) -> int:
    whole = bytearray(_LARGE)
    size, _ = _kernel.receive_message(source, [whole], socket.MSG_PEEK | socket.MSG_DONTWAIT)
    return os.write(target, whole[: min(size, count)])


# --- faults


def _fault(self: Calls, fd: int, data: bytes, flags: int = 0) -> int:
    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def _send_before_the_fault(self: Calls, fd: int, data: bytes, flags: int = 0) -> int:
    _kernel.send_message(fd, [data], flags)
    return _fault(self, fd, data)


def _send_full(self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


def _libc_scrapping(self: Calls, name: str, *arguments: Any) -> int:
    try:
        return Calls.libc(self, name, *arguments)
    except OSError:
        _scrap(arguments[0])
        raise


# --- resources


def _clone_leaking(self: Calls, kcm: int) -> int:
    os.dup(kcm)
    return _kernel.clone(kcm)


def _attach_duplicating(self: Calls, kcm: int, tcp: int, program: int) -> None:
    os.dup(tcp)
    _kernel.attach(kcm, tcp, program)


class _LosesMemory(Calls):
    free = 1 << 40

    def free_memory(self) -> int:
        self.free -= 1 << 30
        return self.free


def _still_in_use(self: Calls) -> None:
    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))


# --- statistics


def _proc(pattern: str, replacement: str) -> Callable[[], Calls]:
    def proc(self: Calls, name: str) -> str:
        return re.sub(pattern, replacement, Calls.proc(self, name))

    return _mutant(proc=proc)


def _proc_shorter(self: Calls, name: str) -> str:
    return "".join(Calls.proc(self, name).splitlines(keepends=True)[:-1])


def _column(name: str, value: int) -> Callable[[], Calls]:
    """A column of kcm_stats that has always the same value."""
    kind, column = name.split()

    def proc(self: Calls, file: str) -> str:
        lines = Calls.proc(self, file).splitlines()
        row = next(number for number, line in enumerate(lines) if line.startswith(kind))
        values = lines[row + 1].split()
        values[lines[row].split().index(column) - 1] = str(value)
        lines[row + 1] = " ".join(values)
        return "\n".join(lines) + "\n"

    return _mutant(proc=proc)


_ZEROS = _proc(r"(?<=\s)\d+(?=\s)", "0")
_NO_STATUS = _proc(r"(WMore|TxWait|RxPause|RdyRx|RxStop|Psck-\d+)", "")
_NO_MULTIPLEXORS = _proc(r"\(\d+ MUX\)", "(7 MUX)")


def _of(group: str, *names: str) -> tuple[str, ...]:
    return tuple(f"{group}.{name}" for name in names)


#: Every check is in one of these at least.
MUTATIONS: tuple[Mutation, ...] = (
    Mutation(
        "socket fails with EIO where it fails",
        _other_errno("open_socket"),
        (
            *_of("sockets", "stream_is_esocktnosupport", "raw_is_esocktnosupport"),
            "sockets.other_protocol_is_eprotonosupport",
            "faults.socket_without_memory",
        ),
    ),
    Mutation(
        "socket opens a socket of the other type",
        _mutant(open_socket=_open_other_type),
        _of("sockets", "dgram_opens", "seqpacket_opens"),
    ),
    Mutation(
        "calls that a KCM socket lacks, setsockopt and getsockopt fail with EIO where they fail",
        _other_errno("libc"),
        (
            *_of(
                "sockets",
                "bind_is_eopnotsupp",
                "connect_is_eopnotsupp",
                "listen_is_eopnotsupp",
                "accept_is_eopnotsupp",
                "getsockname_is_eopnotsupp",
                "getpeername_is_eopnotsupp",
                "shutdown_is_eopnotsupp",
                "socketpair_is_eopnotsupp",
            ),
            *_of(
                "options",
                "set_unknown_option_is_enoprotoopt",
                "set_other_level_is_enoprotoopt",
                "set_short_value_is_einval",
                "set_bad_pointer_is_efault",
                "get_unknown_option_is_enoprotoopt",
                "get_other_level_is_enoprotoopt",
                "get_bad_length_pointer_is_efault",
                "get_bad_pointer_is_efault",
                "get_length_that_is_read_only_is_efault",
            ),
            "receive.bad_buffer_is_efault",
            "transmit.bad_buffer_is_efault",
        ),
    ),
    Mutation(
        "getsockopt succeeds always",
        _always("libc", 0),
        _of("options", "get_negative_length_is_einval"),
    ),
    Mutation("mmap fails with EIO", _other_errno("map"), _of("sockets", "mmap_is_enodev")),
    Mutation(
        "an ioctl fails with EIO where it fails",
        _other_errno("ioctl"),
        (
            "sockets.unknown_ioctl_is_enotty",
            "clone.bad_pointer_is_efault",
            "attach.bad_pointer_is_efault",
            "unattach.bad_pointer_is_efault",
        ),
    ),
    Mutation(
        "poll reports a hangup",
        _mutant(poll=_poll_hangup),
        _of("sockets", "new_socket_has_no_hangup"),
    ),
    Mutation(
        "SIOCKCMCLONE gives a socket of a multiplexor of its own, of type SOCK_DGRAM",
        _mutant(clone=_clone_alone),
        (
            *_of("clone", "clone_receives", "clone_sends", "clone_attaches"),
            "clone.clone_has_the_same_type",
            "transmit.several_sockets_share_a_connection",
            "namespace.clone_belongs_to_the_multiplexors",
        ),
    ),
    Mutation(
        "SIOCKCMCLONE gives a socket on which receiving is disabled",
        _mutant(clone=_clone_disabled),
        (
            *_of("receive", "next_burst_goes_to_the_next_socket"),
            *_of("receive", "full_socket_passes_on_to_another"),
            "disable.is_of_one_socket",
        ),
    ),
    Mutation(
        "SIOCKCMCLONE fails with EIO where it fails",
        _other_errno("clone"),
        ("clone.no_descriptor_left_is_emfile", "faults.clone_without_memory"),
    ),
    Mutation(
        "SIOCKCMCLONE does nothing",
        _always("ioctl", 0),
        _of("clone", "clone_is_close_on_exec"),
    ),
    Mutation(
        "an ioctl that fails leaves a descriptor open",
        _mutant(ioctl=_ioctl_leaking),
        _of("clone", "failed_clone_leaves_no_descriptor"),
    ),
    Mutation(
        "a socket's namespace is gone",
        _mutant(ioctl=_ioctl_homeless),
        _of("namespace", "clone_keeps_its_namespace"),
    ),
    Mutation(
        "after one KCM socket is closed, nothing more arrives",
        _DeafAfterClose,
        _of("clone", "multiplexor_outlives_its_first_socket"),
    ),
    Mutation(
        "closing a KCM socket drops what it had queued",
        _mutant(close=_close_scrapping),
        _of("clone", "closing_hands_queued_messages_on"),
    ),
    Mutation(
        "SIOCKCMATTACH does nothing",
        _always("attach", None),
        (
            "delineation.beginning_of_a_message_makes_room",
            "delineation.rest_of_a_message_behind_another_is_waited_for",
            "delineation.segments_of_messages_are_not_chained",
            *_of("attach", "attached_connection_delivers", "ipv6_connection_delivers"),
            *_of("attach", "descriptors_may_be_closed"),
        ),
    ),
    Mutation(
        "SIOCKCMATTACH drops the bytes that are there",
        _mutant(attach=_attach_scrapping),
        _of("attach", "bytes_already_there_are_delivered"),
    ),
    Mutation(
        "SIOCKCMATTACH fails with EIO where it fails",
        _other_errno("attach"),
        (
            "faults.attach_without_memory",
            *_of(
                "attach",
                "bad_descriptor_is_enoent",
                "file_is_enoent",
                "bad_program_descriptor_is_ebadf",
                "no_program_is_einval",
                "program_of_another_type_is_einval",
                "udp_is_eopnotsupp",
                "unix_socket_is_eopnotsupp",
                "kcm_socket_is_eopnotsupp",
                "mptcp_is_eopnotsupp",
                "listening_socket_is_eopnotsupp",
                "unconnected_socket_is_eopnotsupp",
                "reset_connection_is_eopnotsupp",
                "attached_already_is_ealready",
                "attached_elsewhere_is_ealready",
            ),
        ),
    ),
    Mutation(
        "SIOCKCMATTACH keeps a connection that it refuses",
        _mutant(attach=_attach_leaking),
        _of("attach", "failed_attach_keeps_nothing"),
    ),
    Mutation(
        "only the first connection is attached",
        _AttachOnce,
        _of("transmit", "connections_take_turns", "blocked_connection_is_passed_by"),
    ),
    Mutation(
        "a message appears where there is none",
        _Ghost,
        (
            "attach.transport_has_nothing_to_read",
            "delineation.nothing_is_delivered_after_an_error",
            "delineation.nothing_is_sent_after_an_error",
            "disconnect.nothing_is_sent_after_the_end",
        ),
    ),
    Mutation(
        "SIOCKCMUNATTACH does nothing",
        _always("unattach", None),
        (
            "sockets.each_socket_has_its_own_multiplexor",
            *_of(
                "unattach",
                "connection_is_given_back",
                "nothing_more_is_delivered",
                "connection_can_be_attached_again",
                "other_connections_go_on",
            ),
            *_of("statistics", "dropped_message_is_counted", "free_number_is_taken_again"),
        ),
    ),
    Mutation(
        "SIOCKCMUNATTACH drops what a KCM socket has queued",
        _mutant(unattach=_unattach_scrapping),
        _of("unattach", "delivered_messages_stay"),
    ),
    Mutation(
        "SIOCKCMUNATTACH fails always",
        _mutant(unattach=_unattach_failing),
        (
            "disconnect.broken_connection_can_be_unattached",
            "unattach.reserved_connection_can_be_unattached",
            "together.connection_can_be_unattached_while_its_socket_is_closed",
        ),
    ),
    Mutation(
        "SIOCKCMUNATTACH fails with EIO where it fails",
        _other_errno("unattach"),
        (
            *_of("unattach", "bad_descriptor_is_enoent", "not_attached_is_enoent"),
            "unattach.second_time_is_enoent",
            "unattach.second_at_the_same_time_is_ealready",
            "faults.unattach_without_memory",
        ),
    ),
    Mutation(
        "the program is another one: every message has 4 bytes",
        _loading("r0 = 4\nexit"),
        (
            "unattach.complete_message_is_kept",
            "unattach.partial_message_is_kept",
            *_of("delineation", "program_gives_the_length", "body_in_pieces_is_assembled"),
            "delineation.header_in_pieces_is_waited_for",
            "delineation.message_of_the_limit_is_delivered",
        ),
    ),
    Mutation(
        "the program is another one: every message has 20 bytes",
        _loading("r0 = 20\nexit"),
        _of("delineation", "coalesced_messages_are_separated"),
    ),
    Mutation(
        "the program takes every message to begin where the segment does",
        _loading(DOCUMENTED),
        _of("delineation", "message_offset_can_be_read", "documented_program_separates_messages"),
    ),
    Mutation(
        "the error posted is EIO",
        _posting(errno.EIO),
        (
            *_of(
                "delineation",
                "negative_result_is_posted",
                "estrpipe_in_a_message_is_enodata",
                "program_may_limit_the_size",
                "length_over_the_receive_buffer_is_emsgsize",
                "length_below_the_header_is_eproto",
            ),
            *_of("disconnect", "close_is_epipe", "reset_is_epipe"),
        ),
    ),
    Mutation(
        "poll does not report POLLERR",
        _mutant(poll=_poll_no_error),
        (
            "delineation.limit_is_set_by_so_rcvbuf",
            "delineation.assembly_timeout_is_etimedout",
            "disconnect.half_close_is_epipe",
        ),
    ),
    Mutation(
        "poll reports POLLERR always",
        _mutant(poll=_poll_error),
        _of("delineation", "no_timeout_between_messages"),
    ),
    Mutation(
        "a received message lacks its last byte",
        _mutant(receive=_receive_torn),
        (
            *_of(
                "delineation", "many_segments_make_one_message", "bytes_sent_again_are_taken_once"
            ),
            *_of("receive", "long_message_is_received", "full_socket_holds_the_stream_back"),
            "together.messages_can_be_moved_while_they_are_received",
            "faults.message_without_parser_memory",
            *_of("faults", "early_message_without_parser_memory"),
            *_of("faults", "rest_of_a_message_without_parser_memory"),
            *_of("faults", "bytes_sent_again_without_parser_memory"),
            *_of("faults", "bytes_sent_again_without_memory_to_move"),
        ),
    ),
    Mutation(
        "a receive gives two messages at once",
        _mutant(receive=_receive_glued),
        _of("receive", "each_call_gives_one_message"),
    ),
    Mutation(
        "two messages change places",
        _mutant(tcp_send=_tcp_send_swapped),
        _of("receive", "order_is_that_of_the_stream"),
    ),
    Mutation(
        "msg_flags is 0 always",
        _flags(lambda flags: 0),
        _of(
            "receive",
            "whole_dgram_has_msg_eor",
            "whole_seqpacket_has_msg_eor",
            "short_dgram_has_msg_trunc",
        ),
    ),
    Mutation(
        "msg_flags has MSG_EOR always",
        _flags(lambda flags: flags | socket.MSG_EOR),
        _of("receive", "short_seqpacket_has_no_msg_eor"),
    ),
    Mutation(
        "the rest of a message that did not fit comes next",
        _KeepsRest,
        _of("receive", "short_dgram_drops_the_rest"),
    ),
    Mutation(
        "the rest of a message that did not fit is dropped",
        _mutant(receive=_receive_scrapping),
        _of("receive", "short_seqpacket_keeps_the_rest", "msg_trunc_tells_the_real_length"),
    ),
    Mutation(
        "MSG_PEEK takes the message",
        _mutant(receive=_receive_taking),
        _of("receive", "peek_leaves_the_message"),
    ),
    Mutation(
        "FIONREAD tells nothing", _always("ioctl", 0), _of("receive", "fionread_tells_the_length")
    ),
    Mutation(
        "recvmsg fills its first buffer only",
        _mutant(receive=_receive_one_buffer),
        _of("receive", "several_buffers_are_filled"),
    ),
    Mutation(
        "recvmmsg gives one message",
        _mutant(receive_many=_receive_many_one),
        _of("receive", "recvmmsg_gives_several_messages"),
    ),
    Mutation(
        "recvmsg fails with EIO where it fails",
        _other_errno("receive"),
        _of("receive", "empty_is_eagain"),
    ),
    Mutation(
        "a receive does not wait",
        _mutant(receive=_receive_hasty),
        _of("receive", "timeout_is_eagain", "interrupted_is_eintr"),
    ),
    Mutation(
        "poll reports what it is asked for always",
        _mutant(poll=_poll_ready),
        ("receive.poll_tells_of_a_message", "transmit.poll_tells_of_a_full_buffer"),
    ),
    Mutation(
        "poll reports nothing",
        _always("poll", 0),
        _of("disconnect", "reader_learns_of_the_end"),
    ),
    Mutation(
        "messages arrive one by one",
        _mutant(tcp_send=_tcp_send_paced),
        _of("receive", "burst_goes_to_one_socket"),
    ),
    Mutation(
        "a message arrives twice",
        _mutant(tcp_send=_tcp_send_doubled),
        (
            "receive.several_connections_to_several_sockets",
            "disable.disabling_while_a_connection_delivers",
            "clone.closing_while_a_connection_delivers",
        ),
    ),
    Mutation(
        "nothing that the peer sends arrives",
        _mutant(tcp_send=_tcp_send_nothing),
        (
            "disconnect.messages_before_the_end_arrive",
            "disconnect.other_connections_go_on",
            "namespace.messages_flow_in_a_new_one",
        ),
    ),
    Mutation(
        "a sent message lacks its last byte",
        _sending(lambda data, flags: (data[:-1], flags)),
        (
            *_of("transmit", "message_is_written", "super_message_arrives_as_its_messages"),
            *_of("transmit", "long_messages_are_written", "message_goes_on_when_there_is_room"),
            *_of("faults", "send_that_waits_for_memory", "long_send_without_memory"),
            "faults.send_without_pages",
            "errors.first_part_that_faults_opens_no_seqpacket",
        ),
    ),
    Mutation(
        "sendmsg sends its first buffer only",
        _mutant(send=_send_first_buffer),
        _of("transmit", "several_buffers_are_gathered"),
    ),
    Mutation(
        "sendmmsg sends its messages in reverse",
        _mutant(send_many=_send_many_reversed),
        _of("transmit", "sendmmsg_sends_several"),
    ),
    Mutation(
        "sendmsg knows no flags",
        _sending(lambda data, flags: (data, flags & socket.MSG_DONTWAIT)),
        (
            *_of("transmit", "msg_batch_holds_messages_back", "msg_more_continues_a_dgram"),
            "transmit.msg_eor_ends_a_seqpacket",
            "statistics.batch_is_shown",
        ),
    ),
    Mutation(
        "messages with MSG_BATCH are lost",
        _mutant(send=_send_no_batch),
        (
            "transmit.last_of_a_batch_sends_all",
            "errors.message_that_faults_sends_those_held_back",
            "splice.end_of_a_file_sends_those_held_back",
        ),
    ),
    Mutation(
        "write leaves a message open",
        _mutant(write=_write_open),
        _of("transmit", "write_ends_a_seqpacket"),
    ),
    Mutation(
        "a message of no bytes is sent as one byte",
        _sending(lambda data, flags: (data or b"\0", flags)),
        _of("transmit", "empty_message_is_nothing"),
    ),
    Mutation(
        "a sent message lacks its first byte",
        _sending(lambda data, flags: (data[1:], flags)),
        _of("together", "socket_can_be_closed_while_it_writes"),
    ),
    Mutation(
        "of two parts that are to be continued, one is lost",
        _SendsOnePart,
        _of("together", "parts_that_wait_for_room_are_joined"),
    ),
    Mutation(
        "the second half of a message is that of another one",
        _sending(_mixed),
        _of("transmit", "messages_are_atomic"),
    ),
    Mutation(
        "what is sent with no connection attached is lost",
        _SendsToNobody,
        (
            "transmit.message_waits_for_a_connection",
            "transmit.batch_waits_for_a_connection",
            "transmit.unsent_bytes_can_be_asked_for",
            "statistics.unsent_messages_are_counted",
        ),
    ),
    Mutation(
        "the first message is lost",
        _LosesFirst,
        (
            "transmit.message_is_sent_again_over_another_connection",
            "unattach.half_written_message_goes_over_another_connection",
            "transmit.closing_sends_the_rest",
            "statistics.sent_messages_are_counted",
            "statistics.connection_counts_what_is_sent",
        ),
    ),
    Mutation(
        "sendmsg fails with EIO where it fails",
        _other_errno("send"),
        ("transmit.full_is_eagain", "faults.send_without_memory"),
    ),
    Mutation(
        "a send does not wait",
        _mutant(send=_send_hasty),
        _of("transmit", "timeout_is_eagain", "interrupted_is_eintr"),
    ),
    Mutation(
        "epoll is level-triggered",
        _mutant(epoll=lambda self: _LevelTriggered()),
        _of("transmit", "epoll_tells_of_new_room"),
    ),
    Mutation(
        "setsockopt does nothing",
        _mutant(set_option=_ignore_set),
        _of(
            "disable",
            "can_be_set_and_read",
            "disabled_socket_gets_nothing",
            "pending_messages_are_moved",
            "pending_messages_wait_for_a_socket",
            "enabling_delivers_what_came_meanwhile",
            "pending_messages_fill_another_socket",
            "held_messages_fill_a_socket",
            "ready_connections_fill_a_socket",
        ),
    ),
    Mutation(
        "getsockopt gives a 1 of four bytes always",
        _option_is(1),
        (
            "disable.is_off_at_first",
            "options.get_short_length_gives_so_much",
            "disconnect.tcp_info_tells_close_from_reset",
        ),
    ),
    Mutation(
        "getsockopt gives the number that was set",
        _RawOption,
        _of("disable", "any_other_value_is_1"),
    ),
    Mutation(
        "closing a KCM socket does nothing",
        _always("close", None),
        _of("disconnect", "closing_the_last_socket_gives_connections_back"),
    ),
    Mutation(
        "splice moves one byte less",
        _mutant(splice=_splice_short),
        _of("splice", "message_goes_into_a_pipe"),
    ),
    Mutation(
        "splice moves two messages",
        _mutant(splice=_splice_glued),
        _of("splice", "splice_ends_at_the_message"),
    ),
    Mutation(
        "splice drops the rest of a message",
        _mutant(splice=_splice_scrapping),
        _of("splice", "short_splice_keeps_the_rest", "receive_after_splice_tells_the_end"),
    ),
    Mutation(
        "splice and sendfile to a KCM socket leave a SOCK_DGRAM message open",
        _copying(socket.MSG_MORE),
        _of(
            "splice",
            "pipe_goes_out_of_a_dgram_socket",
            "file_goes_out_of_a_dgram_socket",
            "long_file_goes_out",
            "splice_goes_on_with_a_full_buffer",
            "file_goes_out_whose_end_comes_early",
        ),
    ),
    Mutation(
        "splice and sendfile to a KCM socket leave a SOCK_SEQPACKET message open",
        _copying(0),
        _of("splice", "pipe_goes_out_of_a_seqpacket_socket", "file_goes_out_of_a_seqpacket_socket"),
    ),
    Mutation(
        "/proc/net/kcm tells of seven multiplexors",
        _NO_MULTIPLEXORS,
        (
            "statistics.multiplexors_are_counted",
            "namespace.each_has_its_own_statistics",
            "namespace.socket_belongs_to_the_one_it_was_opened_in",
            "resources.no_multiplexor_is_left",
        ),
    ),
    Mutation(
        "/proc/net/kcm lacks its last line",
        _mutant(proc=_proc_shorter),
        _of("statistics", "sockets_and_connections_are_listed"),
    ),
    Mutation(
        "the statistics are all 0",
        _ZEROS,
        _of(
            "statistics",
            "received_messages_are_counted",
            "queued_messages_are_counted",
            "connection_counts_what_arrives",
            "attach_is_counted",
            "unattach_is_counted",
            "incomplete_header_is_counted",
            "bad_length_is_counted",
            "too_big_message_is_counted",
            "timeout_is_counted",
            "abort_is_counted",
            "refused_header_is_counted",
            "failed_sending_is_counted",
            "sending_again_is_counted",
            "totals_outlive_the_multiplexor",
        ),
    ),
    Mutation(
        "UnattchRsvd is 5 always",
        _column("MUX UnattchRsvd", 5),
        _of("statistics", "unattach_of_a_reserved_connection_is_counted"),
    ),
    Mutation(
        "what can be read of a message that faults is sent",
        _mutant(send_and_fault=_send_before_the_fault),
        _of(
            "errors",
            "message_that_faults_is_not_sent",
            "long_message_that_faults_is_not_sent",
            "part_that_faults_drops_a_dgram",
        ),
    ),
    Mutation(
        "nothing is taken of a message that faults",
        _mutant(send_and_fault=_fault),
        _of(
            "errors",
            "part_that_faults_leaves_a_seqpacket_open",
            "message_that_faulted_at_its_last_fragment_can_be_ended",
        ),
    ),
    Mutation(
        "SO_MEMINFO is 5 everywhere",
        _always("get_option", struct.pack("9I", *[5] * 9)),
        _of("errors", "message_that_faults_is_not_counted"),
    ),
    Mutation(
        "send is EAGAIN always",
        _mutant(send=_send_full),
        _of("errors", "messages_that_fault_leave_room"),
    ),
    Mutation(
        "a receive that faults takes the message",
        _mutant(libc=_libc_scrapping),
        _of("errors", "failed_receive_leaves_the_message"),
    ),
    Mutation(
        "splice leaves the message",
        _mutant(splice_flags=_splice_peeking),
        _of("splice", "splice_that_may_not_wait_takes_the_message"),
    ),
    Mutation(
        "splice with flags fails with EIO where it fails",
        _other_errno("splice_flags"),
        _of("splice", "splice_that_may_not_wait_is_eagain"),
    ),
    Mutation(
        "SIOCKCMCLONE makes another descriptor, of which it does not tell",
        _mutant(clone=_clone_leaking),
        _of("resources", "no_descriptor_is_left"),
    ),
    Mutation(
        "SIOCKCMATTACH makes another descriptor of the connection",
        _mutant(attach=_attach_duplicating),
        (
            "resources.no_connection_is_left",
            "unattach.reserved_connection_is_let_go_by_a_closed_socket",
        ),
    ),
    Mutation(
        "a program never goes",
        _always("has_program", True),
        _of("resources", "no_program_is_left"),
    ),
    Mutation(
        "memory becomes less",
        _LosesMemory,
        _of("resources", "aborted_message_is_freed"),
    ),
    Mutation(
        "the module can't be removed",
        _mutant(remove_module=_still_in_use),
        _of("resources", "module_can_be_removed"),
    ),
    Mutation(
        "/proc/net/kcm shows no status",
        _NO_STATUS,
        (
            *_of("statistics", "held_message_is_shown", "stopped_connection_is_shown"),
            "statistics.waiting_sender_is_shown",
            "transmit.second_socket_waits_for_the_connection",
        ),
    ),
)


# --- repairs


def _ioctl_close_on_exec(self: Calls, fd: int, request: int, argument: int | bytearray) -> int:
    result = Calls.ioctl(self, fd, request, argument)
    if request == lib.SIOCKCMCLONE and isinstance(argument, bytearray):
        fcntl.fcntl(int.from_bytes(argument, sys.byteorder), fcntl.F_SETFD, fcntl.FD_CLOEXEC)
    return result


class _GivesBack(Calls):
    """Unattaching gives what was parsed back to the TCP socket."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.parsed = b""
        self.given = b""

    def tcp_send(self, tcp: socket.socket, data: bytes) -> None:
        self.parsed = data[-self.size :]
        super().tcp_send(tcp, data)

    def unattach(self, kcm: int, tcp: int) -> None:
        super().unattach(kcm, tcp)
        self.given, self.tcp = self.parsed, tcp

    def poll(self, fd: int, events: int, seconds: float) -> int:
        return events if self.given and fd == self.tcp else super().poll(fd, events, seconds)

    def tcp_receive(self, tcp: socket.socket, size: int) -> bytes:
        given, self.given = self.given, b""
        return given or super().tcp_receive(tcp, size)


def _load_with_offset(self: Calls, text: str) -> bpf.Program:
    lines = _offset.find_strategy().lines("r7")
    return Calls.load(self, f"{lines}\nr0 = *(u32 *)skb[r7]\nr0 += 4\nexit")


def _attach_with_room(self: Calls, kcm: int, tcp: int, program: int) -> None:
    with socket.socket(fileno=os.dup(tcp)) as copy:
        copy.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 20)
    _kernel.attach(kcm, tcp, program)


class _StopsSending(Calls):
    """Nothing is sent once an error was read."""

    broken = False

    def tcp_error(self, tcp: socket.socket) -> int:
        self.broken = True
        return super().tcp_error(tcp)

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        return len(b"".join(buffers)) if self.broken else super().send(fd, buffers, flags)


def _next_length(fd: int) -> int:
    flags = socket.MSG_PEEK | socket.MSG_DONTWAIT
    return _kernel.receive_message(fd, [bytearray(_LARGE)], flags)[0]


def _receive_real_length(
    self: Calls, fd: int, buffers: Sequence[Buffer], flags: int = 0
) -> tuple[int, int]:
    length = _next_length(fd)
    size, seen = _kernel.receive_message(fd, buffers, flags)
    return length if flags & socket.MSG_TRUNC else size, seen


def _ioctl_fionread(self: Calls, fd: int, request: int, argument: int | bytearray) -> int:
    if request == termios.FIONREAD and isinstance(argument, bytearray):
        argument[:] = _next_length(fd).to_bytes(4, sys.byteorder)
        return 0
    return Calls.ioctl(self, fd, request, argument)


class _HonestPoll(Calls):
    """poll reports no POLLOUT after EAGAIN."""

    full = False

    def send(self, fd: int, buffers: Sequence[Buffer], flags: int = 0) -> int:
        try:
            return super().send(fd, buffers, flags)
        except BlockingIOError:
            self.full = True
            raise

    def poll(self, fd: int, events: int, seconds: float) -> int:
        return super().poll(fd, events, seconds) & (~select.POLLOUT if self.full else -1)


def _libc_faulting(self: Calls, name: str, *arguments: Any) -> int:
    raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))


def _splice_reading(self: Calls, source: int, target: int, count: int, flags: int) -> int:
    data = bytearray(count)
    size, _ = _kernel.receive_message(source, [data], socket.MSG_DONTWAIT)
    return os.write(target, data[:size])


def _poll_ready_or_error(self: Calls, fd: int, events: int, seconds: float) -> int:
    return events or Calls.poll(self, fd, events, seconds)


#: Every known deviation is in one of these.
REPAIRS: tuple[Mutation, ...] = (
    Mutation(
        "a clone is close-on-exec",
        _mutant(ioctl=_ioctl_close_on_exec),
        _of("clone", "clone_is_close_on_exec"),
    ),
    Mutation(
        "unattaching gives a complete message back",
        lambda: _GivesBack(9),
        _of("unattach", "complete_message_is_kept"),
    ),
    Mutation(
        "unattaching gives the first two bytes of a message back",
        lambda: _GivesBack(2),
        _of("unattach", "partial_message_is_kept"),
    ),
    Mutation(
        "the program knows where its message begins",
        _mutant(load=_load_with_offset),
        _of("delineation", "documented_program_separates_messages"),
    ),
    Mutation(
        "the TCP window lets a message of the limit in",
        _mutant(attach=_attach_with_room),
        _of("delineation", "message_of_the_limit_is_delivered"),
    ),
    Mutation(
        "nothing is sent after an error",
        _StopsSending,
        ("delineation.nothing_is_sent_after_an_error", "disconnect.nothing_is_sent_after_the_end"),
    ),
    Mutation(
        "the rest of a message that did not fit comes next",
        _KeepsRest,
        (
            "receive.short_seqpacket_keeps_the_rest",
            "splice.short_splice_keeps_the_rest",
            "splice.receive_after_splice_tells_the_end",
        ),
    ),
    Mutation(
        "MSG_TRUNC gives the real length",
        _mutant(receive=_receive_real_length),
        _of("receive", "msg_trunc_tells_the_real_length"),
    ),
    Mutation(
        "FIONREAD gives the next message's length",
        _mutant(ioctl=_ioctl_fionread),
        _of("receive", "fionread_tells_the_length"),
    ),
    Mutation(
        "poll reports no POLLOUT after EAGAIN",
        _HonestPoll,
        _of("transmit", "poll_tells_of_a_full_buffer"),
    ),
    Mutation(
        "the KCM socket lives until all is sent",
        _always("close", None),
        _of("transmit", "closing_sends_the_rest"),
    ),
    Mutation(
        "a negative length is EINVAL",
        _mutant(libc=lambda self, *_: (_ for _ in ()).throw(OSError(errno.EINVAL, ""))),
        _of("options", "get_negative_length_is_einval"),
    ),
    Mutation(
        "sends wait for each other",
        _SendsInTurn,
        _of("together", "parts_that_wait_for_room_are_joined"),
    ),
    Mutation(
        "poll of the KCM socket reports the end",
        _mutant(poll=_poll_ready_or_error),
        _of("disconnect", "reader_learns_of_the_end"),
    ),
    Mutation(
        "a receive that faults does nothing else",
        _mutant(libc=_libc_faulting),
        _of("errors", "failed_receive_leaves_the_message"),
    ),
    Mutation(
        "nothing is taken of a message that faults",
        _mutant(send_and_fault=_fault),
        _of("errors", "message_that_faults_is_not_counted", "messages_that_fault_leave_room"),
    ),
    Mutation(
        "splice with SPLICE_F_NONBLOCK takes a message, and does not wait",
        _mutant(splice_flags=_splice_reading),
        _of(
            "splice",
            "splice_that_may_not_wait_takes_the_message",
            "splice_that_may_not_wait_is_eagain",
        ),
    ),
    Mutation(
        "sendfile ends a SOCK_DGRAM message",
        _copying(0),
        _of("splice", "file_goes_out_whose_end_comes_early", "splice_goes_on_with_a_full_buffer"),
    ),
    Mutation(
        "splice and sendfile end a SOCK_SEQPACKET message",
        _copying(socket.MSG_EOR),
        _of("splice", "pipe_goes_out_of_a_seqpacket_socket", "file_goes_out_of_a_seqpacket_socket"),
    ),
    Mutation(
        "Unattach is 1",
        _column("MUX Unattach", 1),
        _of("statistics", "unattach_is_counted"),
    ),
    Mutation(
        "UnattchRsvd is 1",
        _column("MUX UnattchRsvd", 1),
        _of("statistics", "unattach_of_a_reserved_connection_is_counted"),
    ),
    Mutation(
        "RX-Aborts is 1", _column("Psock RX-Aborts", 1), _of("statistics", "abort_is_counted")
    ),
    Mutation(
        "TX-Retries is 1",
        _column("MUX TX-Retries", 1),
        _of("statistics", "sending_again_is_counted"),
    ),
)


def table(mutations: Sequence[Mutation] = MUTATIONS) -> str:
    """Mutations or repairs as a table in Markdown."""
    lines = ["| what is changed | checks that show it |", "|---|---|"]
    for mutation in mutations:
        checks = ", ".join(f"`{check}`" for check in mutation.checks)
        lines.append(f"| {mutation.what} | {checks} |")
    return "\n".join(lines) + "\n"
