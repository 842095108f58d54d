"""The TCP connections of this network namespace.

They come from sock_diag(7), or from /proc/net/tcp where that is missing: both tell everybody
everything.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
import sys
from collections.abc import Iterator
from typing import NamedTuple

STATES = {
    1: "ESTABLISHED",
    2: "SYN_SENT",
    3: "SYN_RECV",
    4: "FIN_WAIT1",
    5: "FIN_WAIT2",
    6: "TIME_WAIT",
    7: "CLOSE",
    8: "CLOSE_WAIT",
    9: "LAST_ACK",
    10: "LISTEN",
    11: "CLOSING",
    12: "NEW_SYN_RECV",
}

# include/uapi/linux/netlink.h, sock_diag.h, inet_diag.h
_SOCK_DIAG_BY_FAMILY = 20
_DUMP_REQUEST = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_INFO = 2  # INET_DIAG_INFO
_HEADER = struct.Struct("=IHHII")
_REQUEST = struct.Struct("=BBBBI48s")
_MESSAGE = struct.Struct("=BBBB2s2s16s16sI8sIIIII")
_ATTRIBUTE = struct.Struct("=HH")
# All but those that nobody holds or that are not connected: TIME_WAIT, LISTEN, NEW_SYN_RECV.
_WANTED_STATES = 0xFFF & ~(1 << 6 | 1 << 10 | 1 << 12)

# Where members lie in struct tcp_info; include/uapi/linux/tcp.h.
_RTT, _RETRANSMITTED, _ACKED, _RECEIVED = 68, 100, 120, 128


class Connection(NamedTuple):
    """A TCP connection.

    Attributes:
        inode: the socket's inode number.
        local, peer: "address:port", an IPv6 address in brackets.
        state: by the names of RFC 9293, with underscores.
        uid: who made the socket.
        receive_queue: bytes received that nobody has taken; counts a FIN as one.
        send_queue: bytes that are not sent, or that the peer has not acknowledged.
        received, sent: bytes of the stream in all; a SYN or FIN may count as one.  None where the
            kernel does not say, as all of the following.
        retransmitted: segments that were sent again.
        rtt: the smoothed round-trip time in microseconds.
    """

    inode: int
    local: str
    peer: str
    state: str
    uid: int
    receive_queue: int
    send_queue: int
    received: int | None = None
    sent: int | None = None
    retransmitted: int | None = None
    rtt: int | None = None


def connections() -> dict[int, Connection]:
    """All connections, by their sockets' inode numbers.

    Raises:
        OSError: the kernel tells nothing.
    """
    try:
        found = [c for family in (socket.AF_INET, socket.AF_INET6) for c in _dump(family)]
    except OSError:
        # No inet_diag in this kernel, or a seccomp filter that forbids netlink.
        found = [connection for connection, _ in _table()]
    return {connection.inode: connection for connection in found if connection.inode}


def references() -> dict[int, int]:
    """How many references the kernel holds to each connection's socket, by inode numbers."""
    return {connection.inode: count for connection, count in _table()}


def _dump(family: int) -> Iterator[Connection]:
    request = _REQUEST.pack(family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, _WANTED_STATES, b"")
    size = _HEADER.size + len(request)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 4) as netlink:
        netlink.settimeout(5)  # the kernel answers at once, or never
        netlink.send(_HEADER.pack(size, _SOCK_DIAG_BY_FAMILY, _DUMP_REQUEST, 1, 0) + request)
        while True:
            data = netlink.recv(1 << 18)
            place = 0
            while place + _HEADER.size <= len(data):
                length, kind, *_ = _HEADER.unpack_from(data, place)
                body = data[place + _HEADER.size : place + length]
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    number = -struct.unpack_from("=i", body)[0]
                    raise OSError(number, os.strerror(number))
                yield parse(body)
                place += max(length + 3 & ~3, _HEADER.size)


def parse(message: bytes) -> Connection:
    """What a struct inet_diag_msg says, with the attributes behind it.

    Raises:
        OSError: it is cut short (EBADMSG).
    """
    if len(message) < _MESSAGE.size:
        raise OSError(errno.EBADMSG, "the kernel's answer about TCP connections is cut short")
    fields = _MESSAGE.unpack_from(message)
    family, state, _, _, local_port, peer_port, local, peer = fields[:8]
    unread, unsent, uid, inode = fields[11:]
    connection = Connection(
        inode,
        _address(family, local, int.from_bytes(local_port, "big")),
        _address(family, peer, int.from_bytes(peer_port, "big")),
        STATES.get(state, str(state)),
        uid,
        unread,
        unsent,
    )
    place = _MESSAGE.size
    while place + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, place)
        info = message[place + _ATTRIBUTE.size : place + length]
        if kind == _INFO:
            acked = _number(info, _ACKED, 8)
            connection = connection._replace(
                received=_number(info, _RECEIVED, 8),
                sent=None if acked is None else acked + unsent,
                retransmitted=_number(info, _RETRANSMITTED, 4),
                rtt=_number(info, _RTT, 4),
            )
        place += max(length + 3 & ~3, _ATTRIBUTE.size)
    return connection


def _number(info: bytes, place: int, size: int) -> int | None:
    """A member of struct tcp_info, None where the kernel's is shorter."""
    end = place + size
    return int.from_bytes(info[place:end], sys.byteorder) if end <= len(info) else None


def _table() -> Iterator[tuple[Connection, int]]:
    """The lines of /proc/net/tcp and tcp6, with their counts of references."""
    for name, family, size in (("tcp", socket.AF_INET, 8), ("tcp6", socket.AF_INET6, 32)):
        try:
            with open(f"/proc/net/{name}", encoding="ascii") as file:  # noqa: PTH123 - no pathlib
                lines = file.read().splitlines()[1:]
        except FileNotFoundError:
            continue  # IPv6 may be missing
        for line in lines:
            words = line.split()
            if len(words) < 11 or len(words[1]) != size + 5:
                continue  # TIME_WAIT's has less
            unsent, unread = (int(word, 16) for word in words[4].split(":"))
            local, peer = (
                _address(family, _binary(address), int(port, 16))
                for address, port in (word.split(":") for word in words[1:3])
            )
            state = STATES.get(int(words[3], 16), words[3])
            yield (
                Connection(int(words[9]), local, peer, state, int(words[7]), unread, unsent),
                int(words[10]),
            )


def _binary(text: str) -> bytes:
    """An address that the kernel wrote as numbers of 32 bits in the host's byte order."""
    groups = (text[place : place + 8] for place in range(0, len(text), 8))
    return b"".join(int(group, 16).to_bytes(4, sys.byteorder) for group in groups)


def _address(family: int, address: bytes, port: int) -> str:
    if family == socket.AF_INET:
        return f"{socket.inet_ntop(family, address[:4])}:{port}"
    return f"[{socket.inet_ntop(family, address)}]:{port}"
