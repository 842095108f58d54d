"""SIOCKCMATTACH."""

from __future__ import annotations

import errno
import os
import socket
import struct

from pykcm._binding import lib
from pykcm.selftest.check import Group, Skip, code, rst
from pykcm.selftest.lab import Lab, framed
from pykcm.selftest.syscalls import BPF_PROG_TYPE_SCHED_CLS

GROUP = Group("attach", "SIOCKCMATTACH makes a TCP connection a transport")

_NO_DESCRIPTOR = 987_654


def _refused(lab: Lab, wanted: int, tcp: int) -> None:
    program = lab.documented()
    lab.refused("attach", wanted, lab.calls.attach, lab.kcm().fileno(), tcp, program.fd)


@GROUP.check(
    rst(
        "Attach transport sockets",
        "Attaching of transport sockets to a multiplexor is performed by calling an ioctl on a "
        "KCM socket for the multiplexor.",
    )
)
def attached_connection_delivers(lab: Lab) -> None:
    """What arrives on an attached connection arrives on the KCM socket."""
    kcm, _, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"hello"))
    lab.received(kcm, [framed(b"hello")])


@GROUP.check(code("kcm_attach, strp_check_rcv"))
def bytes_already_there_are_delivered(lab: Lab) -> None:
    """A message that arrived before the attaching is delivered."""
    kcm = lab.kcm()
    near, far = lab.tcp()
    lab.calls.tcp_send(far, framed(b"early"))
    lab.attach(kcm, near, lab.documented())
    lab.received(kcm, [framed(b"early")])


@GROUP.check(code("kcm_attach, AF_INET6"))
def ipv6_connection_delivers(lab: Lab) -> None:
    """TCP over IPv6 can be attached."""
    try:
        listener = lab.keep(socket.create_server(("::1", 0), family=socket.AF_INET6))
    except OSError as error:
        raise Skip(f"there is no IPv6 loopback: {error}") from None
    near = lab.keep(socket.create_connection(listener.getsockname()[:2], lab.patience))
    far = lab.keep(listener.accept()[0])
    kcm = lab.kcm()
    lab.attach(kcm, near, lab.documented())
    lab.calls.tcp_send(far, framed(b"over IPv6"))
    lab.received(kcm, [framed(b"over IPv6")])


@GROUP.check(code('kcm_attach_ioctl: "Keep reference on file also"'))
def descriptors_may_be_closed(lab: Lab) -> None:
    """The multiplexor keeps the connection and the program when their descriptors are closed."""
    program = lab.documented()
    kcm, near, far = lab.attached(program)
    near.close()
    program.close()
    lab.calls.tcp_send(far, framed(b"nobody else holds it"))
    lab.received(kcm, [framed(b"nobody else holds it")])


@GROUP.check(code("kcm_attach_ioctl, sockfd_lookup"))
def bad_descriptor_is_enoent(lab: Lab) -> None:
    """A descriptor that is not open is ENOENT."""
    _refused(lab, errno.ENOENT, _NO_DESCRIPTOR)


@GROUP.check(code("kcm_attach_ioctl, sockfd_lookup"))
def file_is_enoent(lab: Lab) -> None:
    """A descriptor of something else than a socket is ENOENT."""
    _refused(lab, errno.ENOENT, lab.pipe()[0])


@GROUP.check(code("kcm_attach_ioctl, bpf_prog_get_type"))
def bad_program_descriptor_is_ebadf(lab: Lab) -> None:
    """A program's descriptor that is not open is EBADF."""
    near, _ = lab.tcp()
    kcm = lab.kcm()
    arguments = kcm.fileno(), near.fileno(), _NO_DESCRIPTOR
    lab.refused("attach", errno.EBADF, lab.calls.attach, *arguments)


@GROUP.check(code("kcm_attach_ioctl, bpf_prog_get_type"))
def no_program_is_einval(lab: Lab) -> None:
    """A descriptor of something else than a BPF program is EINVAL."""
    near, far = lab.tcp()
    kcm = lab.kcm()
    arguments = kcm.fileno(), near.fileno(), far.fileno()
    lab.refused("attach", errno.EINVAL, lab.calls.attach, *arguments)


@GROUP.check(code("kcm_attach_ioctl, BPF_PROG_TYPE_SOCKET_FILTER"))
def program_of_another_type_is_einval(lab: Lab) -> None:
    """A BPF program that is not a socket filter is EINVAL."""
    if lab.environment.no_programs:
        raise Skip(lab.environment.no_programs)
    try:
        program = lab.keep(lab.calls.load_of_type(BPF_PROG_TYPE_SCHED_CLS))
    except OSError as error:
        raise Skip(f"no traffic classifier can be loaded: {error}") from None
    near, _ = lab.tcp()
    arguments = lab.kcm(), near, program
    lab.refused("attach", errno.EINVAL, lab.attach, *arguments)


@GROUP.check(code("kcm_ioctl, copy_from_user"))
def bad_pointer_is_efault(lab: Lab) -> None:
    """SIOCKCMATTACH with an address that can't be read is EFAULT."""
    lab.refused("attach", errno.EFAULT, lab.calls.ioctl, lab.kcm().fileno(), lib.SIOCKCMATTACH, 0)


@GROUP.check(code('kcm_attach: "Only allow TCP sockets to be attached for now"'))
def udp_is_eopnotsupp(lab: Lab) -> None:
    """A UDP socket is EOPNOTSUPP."""
    udp = lab.keep(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    _refused(lab, errno.EOPNOTSUPP, udp.fileno())


@GROUP.check(code('kcm_attach: "Only allow TCP sockets to be attached for now"'))
def unix_socket_is_eopnotsupp(lab: Lab) -> None:
    """A Unix socket is EOPNOTSUPP."""
    one, other = socket.socketpair()
    lab.keep(other)
    _refused(lab, errno.EOPNOTSUPP, lab.keep(one).fileno())


@GROUP.check(code('kcm_attach: "Only allow TCP sockets to be attached for now"'))
def kcm_socket_is_eopnotsupp(lab: Lab) -> None:
    """A KCM socket is EOPNOTSUPP."""
    _refused(lab, errno.EOPNOTSUPP, lab.kcm().fileno())


@GROUP.check(code("kcm_attach, IPPROTO_TCP"))
def mptcp_is_eopnotsupp(lab: Lab) -> None:
    """A Multipath TCP connection is EOPNOTSUPP."""
    lab.need_connections()
    try:
        listener = lab.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
        near = lab.keep(socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262))
    except OSError as error:
        raise Skip(f"there is no Multipath TCP: {error}") from None
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    near.connect(listener.getsockname())
    _refused(lab, errno.EOPNOTSUPP, near.fileno())


@GROUP.check(code('kcm_attach: "Don\'t allow listeners or closed sockets"'))
def listening_socket_is_eopnotsupp(lab: Lab) -> None:
    """A listening socket is EOPNOTSUPP."""
    listener = lab.keep(socket.create_server(("127.0.0.1", 0)))
    _refused(lab, errno.EOPNOTSUPP, listener.fileno())


@GROUP.check(code('kcm_attach: "Don\'t allow listeners or closed sockets"'))
def unconnected_socket_is_eopnotsupp(lab: Lab) -> None:
    """A TCP socket that was never connected is EOPNOTSUPP."""
    _refused(lab, errno.EOPNOTSUPP, lab.keep(socket.socket()).fileno())


@GROUP.check(code('kcm_attach: "Don\'t allow listeners or closed sockets"'))
def reset_connection_is_eopnotsupp(lab: Lab) -> None:
    """A connection that the peer has reset is EOPNOTSUPP."""
    near, far = lab.tcp()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    lab.eventually("TCP's state", lambda: near.getsockopt(6, socket.TCP_INFO, 1), b"\x07")
    _refused(lab, errno.EOPNOTSUPP, near.fileno())


@GROUP.check(code("kcm_attach, sk_user_data"))
def attached_already_is_ealready(lab: Lab) -> None:
    """A connection that this multiplexor has is EALREADY."""
    program = lab.documented()
    kcm, near, _ = lab.attached(program)
    lab.refused("attach", errno.EALREADY, lab.attach, kcm, near, program)


@GROUP.check(code("kcm_attach, sk_user_data"))
def attached_elsewhere_is_ealready(lab: Lab) -> None:
    """A connection that another multiplexor has is EALREADY."""
    program = lab.documented()
    _, near, _ = lab.attached(program)
    lab.refused("attach", errno.EALREADY, lab.attach, lab.kcm(), near, program)


@GROUP.check(code("kcm_attach_ioctl, sockfd_put"))
def failed_attach_keeps_nothing(lab: Lab) -> None:
    """A connection that was refused is closed when its descriptor is."""
    near, far = lab.tcp()
    kcm = lab.kcm()
    arguments = kcm.fileno(), near.fileno(), _NO_DESCRIPTOR
    lab.refused("attach", errno.EBADF, lab.calls.attach, *arguments)
    os.close(near.detach())
    lab.expect("poll of the other end", bool(lab.calls.poll(far.fileno(), 1, lab.patience)), True)
    lab.expect("a read by the other end", lab.calls.tcp_receive(far, 10), b"")


@GROUP.check(
    rst(
        "TCP socket management",
        "data ready (POLLIN) and write space available (POLLOUT) events are handled by the "
        "multiplexor",
    )
)
def transport_has_nothing_to_read(lab: Lab) -> None:
    """The multiplexor takes what arrives: reading the TCP socket finds nothing."""
    kcm, near, far = lab.attached()
    lab.calls.tcp_send(far, framed(b"for KCM"))
    lab.received(kcm, [framed(b"for KCM")])
    lab.refused("recv of the TCP socket", errno.EAGAIN, lab.calls.tcp_receive, near, 100)
