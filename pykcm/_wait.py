"""How a call waits, written once: a generator yields what it waits for, and something drives it.

`run` drives it in a thread, by poll(2), and `arun` on asyncio and Trio.  The generator hands
nothing over while it waits, so that whatever ends the wait (a time-out, a signal handler's
exception, a cancellation) loses nothing.

`poll` calls a KCM socket writable always, also while `send` fails with EAGAIN: datagram_poll looks
at sk_wmem_alloc, and KCM accounts in sk_wmem_queued.  An edge-triggered epoll is right: KCM wakes
its waiters whenever it has handed messages to TCP (kcm_write_msgs, net/kcm/kcmsock.c).  `SendSpace`
is such a one.
"""

from __future__ import annotations

import errno
import math
import select
import time
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, NamedTuple, TypeAlias, TypeVar

from pykcm import _explain
from pykcm._tasks import closing, wait_readable
from pykcm.errors import ArgumentError, KCMOSError, UnavailableError

if TYPE_CHECKING:
    from types import ModuleType

T = TypeVar("T")

#: After how many seconds a call that waits looks again, though nothing was told: another call may
#: have been told, the object be closed, or Linux have passed a socket by.
IDLE = 1.0

# Seconds; longer waits are several.  A signal that comes just before poll(2) does not end it.
_LONGEST_POLL = 1.0

# After how many seconds to look again where no descriptor is left to wait by.
_BLIND = 0.01


class Wait(NamedTuple):
    """What a generator waits for.

    Attributes:
        fd: go on when this descriptor is readable; if it is negative, soon: none was left to wait
            by.
        again: or after so many seconds; None for never.
    """

    fd: int
    again: float | None = None


#: A call that may have to wait, and returns a T.
Steps: TypeAlias = Generator[Wait, None, T]


def deadline_after(timeout: float | None) -> float:
    """The monotonic time when a time-out ends, infinite for None.

    Raises:
        ArgumentError: it is not a number of seconds, 0 or more.
    """
    if timeout is None:
        return math.inf
    try:
        seconds = 0.0 + timeout  # which, unlike float(), takes no text
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not seconds >= 0:
        raise ArgumentError("timeout", f"must be seconds, 0 or more, or None, not {timeout!r}")
    return time.monotonic() + seconds


def pause(wait: Wait, deadline: float) -> bool:
    """Wait in a thread; False if the deadline has passed and nothing came."""
    poll = select.poll()
    seconds = math.inf if wait.again is None else wait.again
    if wait.fd >= 0:
        poll.register(wait.fd, select.POLLIN)
    else:
        seconds = min(seconds, _BLIND)
    again = time.monotonic() + seconds
    while True:
        left = min(again, deadline) - time.monotonic()
        if poll.poll(max(0, math.ceil(1000 * min(left, _LONGEST_POLL)))):
            return True
        if left <= _LONGEST_POLL:
            return again < deadline


def run(steps: Steps[T], timeout: float | None, late: str) -> T:
    """Drive a call in a thread.

    Args:
        timeout: seconds; None for no limit.
        late: the text of the TimeoutError when they have passed.  It is raised in the generator,
            which may say more.
    """
    deadline = deadline_after(timeout)
    try:
        wait = next(steps)
        while True:
            wait = next(steps) if pause(wait, deadline) else steps.throw(TimeoutError(late))
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()


async def apause(wait: Wait) -> None:
    """Wait in a task."""
    if wait.fd >= 0:
        await wait_readable(wait.fd, wait.again)
    else:
        await _anyio().sleep(_BLIND if wait.again is None else min(wait.again, _BLIND))


async def arun(steps: Steps[T], timeout: float | None = None) -> T:
    """Drive a call in a task; see `run`."""
    deadline = deadline_after(timeout)
    await checkpoint()
    try:
        wait = next(steps)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                wait = steps.throw(TimeoutError())
                continue
            if left < math.inf and (wait.again is None or wait.again > left):
                wait = Wait(wait.fd, left)
            await apause(wait)
            wait = next(steps)
    except StopIteration as end:
        result: T = end.value
        return result
    finally:
        steps.close()  # now, and not when nobody holds the exception any more


async def checkpoint() -> None:
    """Let other tasks run, and be cancelled here if that was asked for."""
    await _anyio().lowlevel.checkpoint()


def _anyio() -> ModuleType:
    try:
        import anyio
        import anyio.lowlevel
    except ImportError as error:
        raise UnavailableError(
            errno.ENOSYS, "the asynchronous calls need anyio; install pykcm with its extra: async"
        ) from error
    return anyio


class explained:  # noqa: N801
    """Make descriptors to wait by; what the kernel refuses is an error of pykcm's own.

    No generator: its frame, in the traceback, would keep the error and with it what was half
    made, until the garbage collector comes.
    """

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, KCMOSError):
            raise _explain.explain(error, _explain.WAIT) from error


class Readable:
    """A descriptor that is readable when one of others is; for `select` and event loops."""

    def __init__(self, *fds: int) -> None:
        with explained():
            self._epoll = select.epoll()
            for fd in fds:
                self._epoll.register(fd, select.EPOLLIN)

    def fileno(self) -> int:
        return self._epoll.fileno()

    def close(self) -> None:
        if not self._epoll.closed:
            closing(self._epoll.fileno())
        self._epoll.close()


class SendSpace:
    """Tells when a KCM socket has handed queued messages to TCP, so that sending may go on.

    Its descriptor is readable then, or when one of others is; also once at first, so that what
    happened before is not missed.  `clear` takes the event; after it, and before the wait, the
    socket has to be tried once more: what came before `clear` went with it.

    Where the descriptor table is full it has none until there is room, and who waits looks again
    in short pauses: what is queued must not be lost for want of a descriptor.

    Args:
        fd: the KCM socket's.
        others: further descriptors that end the wait when they are readable.
    """

    def __init__(self, fd: int, *others: int) -> None:
        self._watched = fd, *others
        self._epoll: select.epoll | None = None
        self._fd = -1
        self._make()

    def _make(self) -> None:
        with explained():
            try:
                self._epoll = select.epoll()
            except OSError as error:
                if error.errno not in (errno.EMFILE, errno.ENFILE):
                    raise
                return
            fd, *others = self._watched
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLET)
            for other in others:
                self._epoll.register(other, select.EPOLLIN)
            self._fd = self._epoll.fileno()

    def fileno(self) -> int:
        """The descriptor to wait for as readable; -1 while there is none."""
        return self._fd

    def waits(self) -> Iterator[Wait]:
        """What a call waits for that is tried after each: at once when the event was taken, so that
        nothing that came before is missed, and then until the next."""
        while True:
            self.clear()
            yield Wait(self._fd, 0.0)
            yield Wait(self._fd, IDLE)

    def clear(self) -> None:
        """Take the event, before trying the socket again."""
        if self._epoll is None:
            self._make()
        else:
            self._epoll.poll(0)

    def close(self) -> None:
        """Close the descriptor."""
        if self._epoll is not None:
            self._epoll.close()

    def __enter__(self) -> SendSpace:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()
