"""What is left after use: nothing."""

from __future__ import annotations

import errno
import re
import socket
import statistics
import time

from pykcm import _module
from pykcm.selftest.check import Group, Skip, code
from pykcm.selftest.lab import SOON, Lab, framed, timeval

GROUP = Group("resources", "What is left after use: nothing")


def _use(lab: Lab) -> None:
    """Make multiplexors with clones and connections, send both ways, and leave them in each way."""
    for turn in range(16):
        with lab.another() as own:
            kcm, near, far = own.attached()
            clone = own.clone(kcm)
            own.calls.send(clone.fileno(), [b"sent"])
            own.streamed(far, b"sent")
            own.calls.tcp_send(far, framed(b"received") + framed(b"begun")[: turn % 5])
            own.receive_rest([kcm, clone], 1)
            if turn % 4 == 0:
                own.calls.unattach(clone.fileno(), near.fileno())
            elif turn % 4 == 1:
                far.close()
            elif turn % 4 == 2:
                own.reserve(clone, near)


@GROUP.check(code("kcm_ioctl, fd_install; kcm_attach_ioctl, sockfd_put"))
def no_descriptor_is_left(lab: Lab) -> None:
    """After use and closing, the process has the descriptors that it had."""
    with lab.descriptors_unchanged():
        _use(lab)


@GROUP.check(code("kcm_unattach, bpf_prog_put"))
def no_program_is_left(lab: Lab) -> None:
    """A program is gone when nobody holds it any more, however its connection was given up."""
    for unattach in (True, False):
        with lab.another() as own:
            program = own.documented()
            number = program.info.id
            kcm, near, _ = own.attached(program)
            if unattach:
                own.unattach(kcm, near)
        try:
            there = lab.calls.has_program(number)
        except OSError as error:
            raise Skip(f"programs can't be looked for by their number: {error}") from None
        if there:
            lab.eventually("a program", lambda: lab.calls.has_program(number), False)  # noqa: B023


@GROUP.check(code("kcm_unattach, fput; unreserve_psock, fput"))
def no_connection_is_left(lab: Lab) -> None:
    """A TCP connection is gone when nobody holds it any more, however it was given up."""
    lab.isolate()
    _use(lab)

    def in_use() -> int:
        found = re.search(r"^TCP: inuse (\d+)", lab.calls.proc("sockstat"), re.MULTILINE)
        return int(found[1]) if found else 0

    lab.eventually("TCP sockets in use", in_use, 0)


@GROUP.check(code("release_mux, count"))
def no_multiplexor_is_left(lab: Lab) -> None:
    """After use and closing, /proc/net/kcm lists none."""
    lab.isolate()
    _use(lab)
    wanted = "*** KCM statistics (0 MUX) ****"
    lab.eventually("the first line", lambda: lab.calls.proc("kcm").splitlines()[0], wanted)


_ABORTS = 30


@GROUP.check(code("strp_abort_strp, skb_head", "net/strparser/strparser.c"))
def aborted_message_is_freed(lab: Lab) -> None:
    """The beginning of a message whose assembly was given up is freed, each of many times."""
    program = lab.documented()
    kcm = lab.kcm()
    begun = framed(bytes(60_000))[:50_000]
    taken = []
    for _ in range(5):
        before = lab.calls.free_memory()
        for _ in range(_ABORTS):
            near, far = lab.tcp()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval(0.004))
            lab.attach(kcm, near, program)
            lab.calls.tcp_send(far, begun)
            lab.posted(near, errno.ETIMEDOUT)
            lab.unattach(kcm, near)
            near.close()
            far.close()
        taken.append(before - lab.calls.free_memory())
    # Others take memory and give it back, and the first time what is needed once is taken.
    lab.expect(
        "most times more than half of the bytes are gone",
        statistics.median(taken) > _ABORTS * len(begun) // 2,
        False,
    )


@GROUP.check(code("kcm_exit"), alone=True)
def module_can_be_removed(lab: Lab) -> None:
    """After use the module can be removed, if it is one, and the next socket loads it again."""
    try:
        # What other checks had is given back a little after their end.
        end = time.monotonic() + SOON
        while (users := lab.calls.module_users()) and time.monotonic() < end:
            time.sleep(0.01)
    except FileNotFoundError:
        raise Skip("kcm is not a module of this kernel, or can't be removed") from None
    if users:
        raise Skip(f"the module kcm is in use: {users} others hold it")
    if where := _module.forbidden():
        raise Skip(f"the module kcm would not be loaded again: it is blacklisted by {where}")
    lab.isolate()
    _use(lab)
    lab.eventually("what holds the module", lab.calls.module_users, 0)
    lab.calls.remove_module()
    lab.kcm()
