"""SIOCKCMCLONE."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import sys

from pykcm._binding import lib
from pykcm.selftest.check import Group, code, rst
from pykcm.selftest.lab import NUMBERED, SEQPACKET, Lab, framed

GROUP = Group("clone", "SIOCKCMCLONE makes another socket of a multiplexor")

_CLONES = rst(
    "Cloning KCM sockets",
    "additional sockets for the multiplexor can be created by cloning a KCM socket",
)


@GROUP.check(_CLONES)
def clone_receives(lab: Lab) -> None:
    """A clone gets messages of the multiplexor's connections."""
    kcm, _, far = lab.attached()
    clone = lab.clone(kcm)
    lab.set_receive_disabled(kcm, 1)
    lab.calls.tcp_send(far, framed(b"for the clone"))
    lab.received(clone, [framed(b"for the clone")])


@GROUP.check(_CLONES)
def clone_sends(lab: Lab) -> None:
    """A clone sends over the multiplexor's connections."""
    kcm, _, far = lab.attached()
    lab.calls.send(lab.clone(kcm).fileno(), [b"from the clone"])
    lab.streamed(far, b"from the clone")


@GROUP.check(_CLONES)
def clone_attaches(lab: Lab) -> None:
    """What is attached through a clone is the multiplexor's."""
    kcm = lab.kcm()
    clone = lab.clone(kcm)
    near, far = lab.tcp()
    lab.attach(clone, near, lab.documented())
    lab.calls.send(kcm.fileno(), [b"by the first socket"])
    lab.streamed(far, b"by the first socket")


@GROUP.check(code("kcm_clone"))
def clone_has_the_same_type(lab: Lab) -> None:
    """A clone's type is that of the socket it was made from."""
    fd = lab.calls.clone(lab.kcm(SEQPACKET).fileno())
    try:
        lab.expect("SO_TYPE of the clone", lab.calls.type_of(fd), int(SEQPACKET))
    finally:
        os.close(fd)


@GROUP.check(code("kcm_done"))
def multiplexor_outlives_its_first_socket(lab: Lab) -> None:
    """With the first socket closed, a clone goes on."""
    kcm, _, far = lab.attached()
    clone = lab.clone(kcm)
    lab.calls.close(kcm)
    lab.calls.tcp_send(far, framed(b"still there"))
    lab.received(clone, [framed(b"still there")])


@GROUP.check(code("kcm_done"))
def closing_hands_queued_messages_on(lab: Lab) -> None:
    """What a closed socket had not received yet goes to another one."""
    kcm, _, far = lab.attached()
    clone = lab.clone(kcm)
    lab.set_receive_disabled(clone, 1)
    lab.calls.tcp_send(far, framed(b"queued"))
    lab.expect("a peek at the first socket", lab.peek(kcm), framed(b"queued"))
    lab.set_receive_disabled(clone, 0)
    lab.calls.close(kcm)
    lab.received(clone, [framed(b"queued")])


@GROUP.check(code('kcm_done: "Cleanup in unreserve_rx_kcm"'))
def closing_while_a_connection_delivers(lab: Lab) -> None:
    """Messages that arrive while clones are made and closed are received once each."""
    kcm, _, far = lab.attached(lab.fixed(100))
    with lab.arriving(far, NUMBERED):
        received = []
        for _ in range(100):
            clone = lab.clone(kcm)
            received += lab.receive_all(kcm)
            lab.calls.close(clone)
    received += lab.receive_rest([kcm], len(NUMBERED) - len(received))
    lab.expect("the messages, sorted", sorted(received), NUMBERED)


@GROUP.check(code("kcm_ioctl, get_unused_fd_flags") + "; socket(2), SOCK_CLOEXEC")
def clone_is_close_on_exec(lab: Lab) -> None:
    """The clone of a close-on-exec socket does not survive exec either."""
    kcm = lab.kcm()
    request = bytearray(4)
    lab.calls.ioctl(kcm.fileno(), lib.SIOCKCMCLONE, request)
    fd = int.from_bytes(request, sys.byteorder)
    try:
        flags = fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        lab.expect("FD_CLOEXEC of the clone", flags, fcntl.FD_CLOEXEC)
    finally:
        os.close(fd)


@GROUP.check(code("kcm_ioctl"))
def bad_pointer_is_efault(lab: Lab) -> None:
    """SIOCKCMCLONE with an address that can't be written is EFAULT."""
    lab.refused("clone", errno.EFAULT, lab.calls.ioctl, lab.kcm().fileno(), lib.SIOCKCMCLONE, 0)


@GROUP.check(code("kcm_ioctl"))
def failed_clone_leaves_no_descriptor(lab: Lab) -> None:
    """A clone whose number could not be told is not left open."""
    kcm = lab.kcm()
    with lab.descriptors_unchanged():
        try:
            lab.calls.ioctl(kcm.fileno(), lib.SIOCKCMCLONE, 0)
        except OSError as error:
            lab.expect("errno of clone", error.errno, errno.EFAULT)


@GROUP.check(code("kcm_ioctl, get_unused_fd_flags"))
def no_descriptor_left_is_emfile(lab: Lab) -> None:
    """SIOCKCMCLONE obeys RLIMIT_NOFILE."""
    kcm = lab.kcm()
    free = os.dup(kcm.fileno())
    os.close(free)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    try:
        lab.refused("clone", errno.EMFILE, lab.calls.clone, kcm.fileno())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
