"""Waiting for a KCM socket without burning CPU.

`poll` calls a KCM socket writable always, also while `send` fails with EAGAIN: datagram_poll looks
at sk_wmem_alloc, and KCM accounts in sk_wmem_queued.  An edge-triggered epoll is right: KCM wakes
its waiters whenever it has handed messages to TCP (kcm_write_msgs, net/kcm/kcmsock.c).
"""

from __future__ import annotations

import errno
import math
import select
import time
from collections.abc import Iterable
from types import ModuleType

from pykcm.errors import UnavailableError


class Deadline:
    """A point in time by which a call has to be done.

    Args:
        timeout: seconds from now; None for no limit.
    """

    def __init__(self, timeout: float | None) -> None:
        self._end = None if timeout is None else time.monotonic() + timeout

    def remaining(self) -> float | None:
        """Seconds left, 0 when it has passed, None for no limit."""
        if self._end is None:
            return None
        return max(0.0, self._end - time.monotonic())

    def passed(self) -> bool:
        """Whether no time is left."""
        return self.remaining() == 0.0

    def milliseconds(self) -> int | None:
        """The same for `poll`, rounded up so that a wait never ends early and spins."""
        remaining = self.remaining()
        return None if remaining is None else math.ceil(remaining * 1000)


def wait_readable(fds: Iterable[int], deadline: Deadline) -> None:
    """Wait until one of the descriptors is readable, or the deadline has passed."""
    poll = select.poll()
    for fd in fds:
        poll.register(fd, select.POLLIN)
    poll.poll(deadline.milliseconds())


async def async_wait_readable(fd: int) -> None:
    """Wait until a descriptor is readable, on asyncio or Trio."""
    await _anyio().wait_readable(fd)


async def checkpoint() -> None:
    """Let other tasks run, and be cancelled here if that was asked for."""
    await _anyio().lowlevel.checkpoint()


async def sleep(seconds: float) -> None:
    """Let other tasks run for some time."""
    await _anyio().sleep(seconds)


def _anyio() -> ModuleType:
    try:
        import anyio
        import anyio.lowlevel
    except ImportError as error:
        raise UnavailableError(
            errno.ENOSYS, "the asynchronous calls need anyio; install pykcm with its extra: async"
        ) from error
    return anyio


class SendSpace:
    """Tells when a KCM socket has handed queued messages to TCP, so that sending may go on.

    Its descriptor is readable then, for any event loop; `clear` has to follow each time.
    """

    def __init__(self, fd: int) -> None:
        self._epoll = select.epoll()
        try:
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
        except BaseException:
            self._epoll.close()
            raise
        self._fd = self._epoll.fileno()

    def fileno(self) -> int:
        """The descriptor to wait for as readable."""
        return self._fd

    def clear(self) -> None:
        """Take the event, before looking at the socket again."""
        self._epoll.poll(0)

    def wait(self, deadline: Deadline) -> None:
        """Wait until messages were handed to TCP since the last wait, or the deadline."""
        self._epoll.poll(deadline.remaining())

    def close(self) -> None:
        """Close the descriptor."""
        self._epoll.close()

    def __enter__(self) -> SendSpace:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
