"""Giving a KCM socket to another process of multiprocessing, as its argument or over its pipes.

What is pickled is a ticket, for which the other process gets a descriptor of the same socket; the
standard library's sockets are given so too (multiprocessing.reduction).
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import TYPE_CHECKING, Any

from pykcm import _kernel, _trials
from pykcm._wait import explained
from pykcm.errors import KCMOSError

if TYPE_CHECKING:
    from pykcm.socket import KCMSocket


def register(kind: type[KCMSocket]) -> None:
    """Have multiprocessing's pipes and queues take a class, if they are in use."""
    reduction = sys.modules.get("multiprocessing.reduction")
    if reduction is not None:
        reduction.ForkingPickler.register(kind, reduce)


def reduce_argument(kcm: Any) -> tuple[Any, ...]:
    """What a process is given that is being spawned.

    Raises:
        TypeError: none is.
    """
    context = sys.modules.get("multiprocessing.context")
    if context is None or context.get_spawning_popen() is None:
        raise TypeError(
            f"cannot pickle {type(kcm).__name__!r} object: a descriptor cannot be stored; give it "
            "to a process of multiprocessing, or send what dup().detach() returns by "
            "socket.send_fds and make an object of it by KCMSocket.from_fd"
        )
    return reduce(kcm)


def reduce(kcm: KCMSocket) -> tuple[Any, ...]:
    """The call that makes it anew, and its arguments."""
    from multiprocessing import reduction

    kcm._port.shared = True
    kcm._attaching.has_siblings = True
    ticket = reduction.DupFd(kcm._fd())
    end = None if kcm._end is None else reduction.DupFd(kcm._end.fileno())
    dividing = kcm._port.rule, kcm._port.most
    return rebuild, (type(kcm), ticket, kcm.max_message_size, end, dividing)


def rebuild(
    kind: type[KCMSocket],
    ticket: Any,
    max_message_size: int,
    end: Any,
    dividing: tuple[bytes | None, int],
) -> KCMSocket:
    """Make one of a ticket for its descriptor, and of one for the event of its clone's end."""
    given = _redeem(ticket)
    fd = given.fileno()
    type_ = _kernel.get_integer(fd, socket.SOL_SOCKET, socket.SO_TYPE)
    kcm = kind(type_, max_message_size=max_message_size)
    try:
        # In the place of a descriptor that has its owner already, as `dup` does it.
        os.dup2(fd, kcm.fileno(), inheritable=False)
        given.close()
        kcm._port.keeps_rest = type_ == socket.SOCK_SEQPACKET and _trials.seqpacket_keeps_the_rest()
        kcm._port.shared = True
        kcm._divide_by(*dividing)
        if end is not None:
            kcm._follow(_redeem(end))
        return kcm
    except BaseException:
        kcm.close(0)
        raise


def _redeem(ticket: Any) -> _kernel.Descriptor:
    """What a ticket stands for; close-on-exec, which what has come is not."""
    from multiprocessing import AuthenticationError

    fd = -1
    try:
        fd = ticket.detach()
        with explained():
            return _kernel.Descriptor.duplicate(fd)
    except (OSError, EOFError, AuthenticationError) as error:
        if isinstance(error, KCMOSError):
            raise
        raise KCMOSError(
            getattr(error, "errno", None) or errno.EPERM,
            "the KCM socket was not handed over: the process that pickled it must run on, and be "
            f"of the same user and with the same authkey, and each pickle serves once ({error!r})",
        ) from error
    finally:
        if fd >= 0:
            os.close(fd)
