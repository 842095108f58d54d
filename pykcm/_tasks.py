"""How a task waits until a descriptor is readable, on asyncio and Trio.

On asyncio by that alone: a time-out of anyio's loses a cancellation that comes with it where a task
can't be un-cancelled (Python 3.10), and costs more than the wait.
"""

from __future__ import annotations

import contextlib
import errno
import math
import sys
from typing import TYPE_CHECKING, Any

from pykcm.errors import KCMOSError

if TYPE_CHECKING:
    import asyncio

# By descriptor and loop: what a task waits for.
_waiting: dict[tuple[int, asyncio.AbstractEventLoop], asyncio.Future[None]] = {}

# The kernel refuses to watch a descriptor by too many others (100 or 500, by how they are nested;
# reverse_path_check in fs/eventpoll.c).  One more looks after so many seconds.
_CROWDED = 0.05


async def wait_readable(fd: int, seconds: float | None) -> None:
    """Wait until a descriptor is readable, is about to be closed, or so many seconds have passed.

    Raises:
        KCMOSError: EBUSY, another task of the same loop waits for it.
    """
    trio = _trio()
    if trio is None:
        await _on_asyncio(fd, seconds)
        return
    try:
        with trio.move_on_after(math.inf if seconds is None else seconds):
            await trio.lowlevel.wait_readable(fd)
    except trio.BusyResourceError as error:
        raise _busy() from error
    except trio.ClosedResourceError:
        pass  # the call goes on, and finds it closed
    except OSError as error:
        await _crowded(error, trio.sleep)


async def _on_asyncio(fd: int, seconds: float | None) -> None:
    asyncio = sys.modules["asyncio"]
    loop = asyncio.get_running_loop()
    key = fd, loop
    if key in _waiting:
        raise _busy()
    future = loop.create_future()
    timer = None
    try:
        _waiting[key] = future
        if seconds is not None:
            timer = loop.call_later(seconds, _settle, future)
        loop.add_reader(fd, _settle, future)
        await future
    except OSError as error:
        await _crowded(error, asyncio.sleep)
    finally:
        if timer is not None:
            timer.cancel()
        _end(fd, loop, future)


async def _crowded(error: OSError, sleep: Any) -> None:
    if error.errno != errno.EINVAL:
        raise error
    await sleep(_CROWDED)


def _settle(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _end(fd: int, loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    """Watch a descriptor no more; once only, since its number may be another's by then."""
    if _waiting.get((fd, loop)) is future:
        del _waiting[fd, loop]
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.remove_reader(fd)
    _settle(future)


def closing(fd: int) -> None:
    """Before a descriptor is closed: wake those who wait for it."""
    for key in list(_waiting):
        future = _waiting.get(key)
        if fd < 0 or key[0] != fd or future is None:
            continue
        loop = key[1]
        if sys.modules["asyncio"]._get_running_loop() is loop:
            _end(fd, loop, future)
        else:
            with contextlib.suppress(RuntimeError):  # it is closed: nobody waits
                loop.call_soon_threadsafe(_end, fd, loop, future)
    if fd >= 0 and (trio := _trio()) is not None:
        trio.lowlevel.notify_closing(fd)


def _trio() -> Any:
    """The module, in one of its tasks."""
    trio = sys.modules.get("trio")
    return trio if trio is not None and trio.lowlevel.in_trio_task() else None


def _busy() -> KCMOSError:
    return KCMOSError(
        errno.EBUSY,
        "another task waits on this object already; one at a time can, others need a clone",
    )
