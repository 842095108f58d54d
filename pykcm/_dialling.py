"""Doing what a Pool's keeping asks for: dialling and pausing, in a thread or a task."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeAlias

from pykcm._failures import failures
from pykcm._keeping import Full, Steps
from pykcm._wait import apause, checkpoint, pause
from pykcm.errors import ArgumentError

if TYPE_CHECKING:
    import socket

Connect: TypeAlias = "Callable[[], socket.socket | Awaitable[socket.socket]]"


def drive(steps: Steps, connect: Connect, deadline: float, *, forever: bool) -> None:
    """Go on until there are enough connections, or `forever`: until it is stopped.

    Raises:
        TimeoutError: the deadline has passed.
        ArgumentError: `connect` returns an awaitable.
    """
    with contextlib.suppress(StopIteration):
        wait = next(steps)
        while True:
            if isinstance(wait, Full) and not forever:
                return
            if wait is not None:
                wait = next(steps) if pause(wait, deadline) else steps.throw(_late())
                continue
            try:
                tcp = _dial(connect)
            except failures() as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(tcp)


def _late() -> TimeoutError:
    return TimeoutError("timed out: there are fewer connections than the pool's size")


def _call(connect: Connect) -> socket.socket | Awaitable[socket.socket]:
    try:
        return connect()
    except StopIteration as error:  # as of `next(hosts)`; it would be taken for the steps' end
        raise RuntimeError("connect raised StopIteration") from error


def _dial(connect: Connect) -> socket.socket:
    tcp = _call(connect)
    if isinstance(tcp, Awaitable):
        if inspect.iscoroutine(tcp):
            tcp.close()
        raise ArgumentError("connect", "returns an awaitable, which takes an asynchronous call")
    return tcp


async def adrive(steps: Steps, connect: Connect, *, forever: bool) -> None:
    """As `drive`, in a task."""
    await checkpoint()
    with contextlib.suppress(StopIteration):
        wait = next(steps)
        while True:
            if isinstance(wait, Full) and not forever:
                return
            if wait is not None:
                await apause(wait)
                wait = next(steps)
                continue
            try:
                tcp = await _adial(connect)
            except failures() as error:
                wait = steps.throw(error)
            else:
                wait = steps.send(tcp)


async def _adial(connect: Connect) -> socket.socket:
    import anyio.to_thread

    tcp: socket.socket | Awaitable[socket.socket]
    if inspect.iscoroutinefunction(connect):
        tcp = connect()
    else:
        # In a tuple, since Trio takes no function that returns a coroutine.
        (tcp,) = await anyio.to_thread.run_sync(lambda: (_call(connect),))
    return await tcp if isinstance(tcp, Awaitable) else tcp
