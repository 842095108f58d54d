"""socket(AF_KCM), and the calls that a KCM socket does not have."""

from __future__ import annotations

import ctypes
import errno
import mmap
import socket

from pykcm._binding import lib
from pykcm.selftest.check import Group, code, rst
from pykcm.selftest.lab import DGRAM, SEQPACKET, Lab

GROUP = Group("sockets", "socket(AF_KCM), and the calls that a KCM socket does not have")

_TYPES = rst("Socket types", "KCM supports SOCK_DGRAM and SOCK_SEQPACKET socket types.")


@GROUP.check(_TYPES)
def dgram_opens(lab: Lab) -> None:
    """A SOCK_DGRAM socket can be opened."""
    lab.expect("the type", lab.kcm(DGRAM).type, DGRAM)


@GROUP.check(_TYPES)
def seqpacket_opens(lab: Lab) -> None:
    """A SOCK_SEQPACKET socket can be opened."""
    lab.expect("the type", lab.kcm(SEQPACKET).type, SEQPACKET)


@GROUP.check(code("kcm_create"))
def stream_is_esocktnosupport(lab: Lab) -> None:
    """There is no SOCK_STREAM."""
    lab.refused("socket", errno.ESOCKTNOSUPPORT, lab.calls.open_socket, socket.SOCK_STREAM)


@GROUP.check(code("kcm_create"))
def raw_is_esocktnosupport(lab: Lab) -> None:
    """There is no SOCK_RAW."""
    lab.refused("socket", errno.ESOCKTNOSUPPORT, lab.calls.open_socket, socket.SOCK_RAW)


@GROUP.check(rst("Creating a multiplexor", "protocol is KCMPROTO_CONNECTED"))
def other_protocol_is_eprotonosupport(lab: Lab) -> None:
    """There is no other protocol than KCMPROTO_CONNECTED."""
    lab.refused("socket", errno.EPROTONOSUPPORT, lab.calls.open_socket, DGRAM, 1)


@GROUP.check(
    rst(
        "Creating a multiplexor",
        "A new multiplexor and initial KCM socket is created by a socket call",
    )
)
def each_socket_has_its_own_multiplexor(lab: Lab) -> None:
    """What is attached to one socket is not attached to another one."""
    _, near, _ = lab.attached()
    other = lab.kcm()
    lab.refused("unattach by another socket", errno.ENOENT, lab.unattach, other, near)


def _refused(lab: Lab, name: str, *arguments: int | bytes | None) -> None:
    lab.refused(name, errno.EOPNOTSUPP, lab.calls.libc, name, lab.kcm().fileno(), *arguments)


_NO_ADDRESS = bytes([lib.AF_KCM, 0]) + bytes(14)


@GROUP.check("net/core/sock.c, sock_no_bind()")
def bind_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket has no address to bind."""
    _refused(lab, "bind", _NO_ADDRESS, 16)


@GROUP.check("net/core/sock.c, sock_no_connect()")
def connect_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket is not connected by connect."""
    _refused(lab, "connect", _NO_ADDRESS, 16)


@GROUP.check("net/core/sock.c, sock_no_listen()")
def listen_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket does not listen."""
    _refused(lab, "listen", 1)


@GROUP.check("net/core/sock.c, sock_no_accept()")
def accept_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket does not accept."""
    _refused(lab, "accept", None, None)


@GROUP.check("net/core/sock.c, sock_no_getname()")
def getsockname_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket has no name."""
    _refused(lab, "getsockname", bytes(16), (16).to_bytes(4, "little"))


@GROUP.check("net/core/sock.c, sock_no_getname()")
def getpeername_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket has no peer's name."""
    _refused(lab, "getpeername", bytes(16), (16).to_bytes(4, "little"))


@GROUP.check("net/core/sock.c, sock_no_shutdown()")
def shutdown_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket can't be shut down."""
    _refused(lab, "shutdown", socket.SHUT_RDWR)


@GROUP.check("net/core/sock.c, sock_no_socketpair()")
def socketpair_is_eopnotsupp(lab: Lab) -> None:
    """There are no pairs of KCM sockets."""
    lab.refused(
        "socketpair",
        errno.EOPNOTSUPP,
        lab.calls.libc,
        "socketpair",
        lib.AF_KCM,
        DGRAM,
        0,
        ctypes.addressof(ctypes.create_string_buffer(8)),
    )


@GROUP.check("net/core/sock.c, sock_no_mmap()")
def mmap_is_enodev(lab: Lab) -> None:
    """A KCM socket can't be mapped."""
    lab.refused("mmap", errno.ENODEV, lab.calls.map, lab.kcm().fileno(), mmap.PAGESIZE)


@GROUP.check(code("kcm_ioctl"))
def unknown_ioctl_is_enotty(lab: Lab) -> None:
    """An ioctl that KCM does not have is ENOTTY."""
    unknown = lib.SIOCKCMCLONE + 1
    lab.refused("ioctl", errno.ENOTTY, lab.calls.ioctl, lab.kcm().fileno(), unknown, bytearray(64))


@GROUP.check(code("init_kcm_sock"))
def new_socket_has_no_hangup(lab: Lab) -> None:
    """poll does not report a hangup of a socket without transports."""
    kcm = lab.kcm(SEQPACKET)
    events = lab.calls.poll(kcm.fileno(), 0, 0)
    lab.expect("poll of a new socket", events, 0)
