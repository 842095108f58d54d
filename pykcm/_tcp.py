"""All that is asked of a TCP socket, or set on it, by its descriptor's number.

No Python object is made on a descriptor that is somebody else's: it would close it when it is
collected.
"""

from __future__ import annotations

import contextlib
import errno
import select
import socket

from pykcm import _kernel

# include/net/tcp_states.h
ESTABLISHED, CLOSE, CLOSE_WAIT = 1, 7, 8
_SYN_SENT, _SYN_RECV, _NEW_SYN_RECV = 2, 3, 12

# include/uapi/linux/tcp.h, include/uapi/asm-generic/socket.h; Python's socket module lacks them.
TCP_ULP = 31
_SO_COOKIE = 57
_ULP_NAME_MAX = 16

# Where tcpi_rcv_mss and tcpi_bytes_received lie in struct tcp_info; include/uapi/linux/tcp.h.
_RCV_MSS = 20
_BYTES_RECEIVED = 128

_LARGEST_INT = (1 << 31) - 1


def is_tcp(fd: int) -> bool:
    """Whether a descriptor is a socket of TCP over IPv4 or IPv6; not of MPTCP."""
    try:
        family = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_DOMAIN)
        protocol = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_PROTOCOL)
    except OSError:
        return False
    return family in (socket.AF_INET, socket.AF_INET6) and protocol == socket.IPPROTO_TCP


def state(fd: int) -> int:
    """The state by include/net/tcp_states.h, the first byte of struct tcp_info."""
    return _kernel.get_option(fd, socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]


def is_connecting(fd: int) -> bool:
    """Whether the connection is not established yet."""
    return state(fd) in (_SYN_SENT, _SYN_RECV, _NEW_SYN_RECV)


def has_ended(fd: int) -> bool:
    """Whether the peer's FIN or a RST has come, or the connection was given up."""
    return state(fd) not in (ESTABLISHED, _SYN_SENT, _SYN_RECV, _NEW_SYN_RECV, 4, 5)


def upper_protocol(fd: int) -> str:
    """The name of what is layered on it, such as "tls" (TCP_ULP); "" for nothing."""
    try:
        name = _kernel.get_option(fd, socket.IPPROTO_TCP, TCP_ULP, _ULP_NAME_MAX)
    except OSError:  # Linux before 4.13
        return ""
    return name.rstrip(b"\0").decode("ascii", "replace")


def unparsed(fd: int) -> int:
    """Bytes that TCP has received and KCM has not taken yet.

    The kernel answers with the socket locked, and takes messages off a socket with it locked: when
    this is 0, every complete message was given to a KCM socket or waits for one.  With
    SO_OOBINLINE, which `prepare` sets, it counts what lies behind urgent data too.
    """
    return _kernel.unread(fd)


def bytes_received(fd: int) -> int:
    """Bytes that TCP has received in all; the FIN counts as one."""
    info = _kernel.get_option(fd, socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED + 8)
    return int.from_bytes(info[_BYTES_RECEIVED:], _kernel.BYTE_ORDER)


def segment_received(fd: int) -> int:
    """How many bytes a segment from the peer has, as TCP estimates it."""
    info = _kernel.get_option(fd, socket.IPPROTO_TCP, socket.TCP_INFO, _RCV_MSS + 4)
    return int.from_bytes(info[_RCV_MSS:], _kernel.BYTE_ORDER)


def has_urgent_data(fd: int) -> bool:
    """Whether urgent data has come; the kernel's parser stops at it for ever."""
    poll = select.poll()
    poll.register(fd, select.POLLPRI)
    return any(events & select.POLLPRI for _, events in poll.poll(0))


def parse_again(fd: int) -> None:
    """Have the kernel's worker look at what has been received.

    Setting the low-water mark calls sk_data_ready with the socket locked, and so queues the
    parser's work (tcp_set_rcvlowat, net/ipv4/tcp.c; strp_data_ready, net/strparser/strparser.c),
    which takes off the socket also the beginning of a message whose rest has not come.
    """
    _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)


class Options:
    """What a transport needs set on its TCP socket, and what the caller had set.

    Its owner has it before anything is changed, so that no exception can come between.
    """

    def __init__(self) -> None:
        self._before: tuple[int, int] | None = None

    def prepare(self, fd: int) -> None:
        """Set what it needs: no message may lie in TCP because it is short, and what lies behind
        urgent data has to be counted."""
        self._before = (
            _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT),
            _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_OOBINLINE),
        )
        _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, 1)

    def restore(self, fd: int) -> None:
        """Set again what was set before."""
        if self._before is None:
            return
        low_water_mark, inline = self._before
        with contextlib.suppress(OSError):
            _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, low_water_mark)
            _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_OOBINLINE, inline)


def make_room(fd: int, max_length: int) -> int:
    """Make the receive buffer take messages of max_length bytes.

    Returns:
        The length in bytes of the longest message that is sure to get through.
    """
    wanted = 2 * max_length
    size = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_RCVBUF)
    if size < wanted:
        low = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT)
        # Setting the low-water mark grows the buffer for it, without ending the kernel's own
        # tuning (tcp_set_rcvlowat, net/ipv4/tcp.c): to twice the mark, or, since 6.6, to what the
        # traffic so far lets it think necessary, which may be little more than the mark.
        for mark in (max_length, wanted):
            if size >= wanted:
                break
            try:
                _kernel.set_option(
                    fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, min(mark, _LARGEST_INT)
                )
            finally:
                _kernel.set_option(fd, socket.SOL_SOCKET, socket.SO_RCVLOWAT, low)
            size = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_RCVBUF)
    return size // 2


def longest_message(fd: int) -> int:
    """A bound for any message that the kernel lets through on this TCP socket, in bytes."""
    limit = 0
    with contextlib.suppress(OSError, ValueError, IndexError):
        # Not by pathlib, which costs more to import than all of this module.
        with open("/proc/sys/net/ipv4/tcp_rmem", encoding="ascii") as file:  # noqa: PTH123
            limit = int(file.read().split()[2])
    return max(limit, _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_RCVBUF))


def cookie(fd: int) -> int:
    """A number that no other socket ever has (SO_COOKIE)."""
    return int.from_bytes(_kernel.get_option(fd, socket.SOL_SOCKET, _SO_COOKIE, 8), "little")


def is_unattachable(fd: int) -> int:
    """The errno by which SIOCKCMATTACH would refuse a descriptor as it is, or 0."""
    try:
        _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_TYPE)
    except OSError:
        return errno.ENOENT
    if not is_tcp(fd) or state(fd) in (CLOSE, 10):
        return errno.EOPNOTSUPP
    return 0
