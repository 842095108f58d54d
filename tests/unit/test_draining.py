"""An unattach waits for what the kernel has yet to hand over, however late that is.

A thread stands in for the kernel's worker, which takes bytes off TCP and makes messages of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from pykcm import Disconnected, Disconnection, Reason, _draining, _kernel
from tests.strikes import Strike
from tests.unit.stand_in import PATIENCE, World, eventually


@contextlib.contextmanager
def worker(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_late_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host it comes late; after 50 ms its messages were left to the caller."""
    assert _draining._SETTLED >= 1
    monkeypatch.setattr(_draining, "_SETTLED", PATIENCE)  # the test's host may be busy too
    world.far.sendall(bytes(216))

    def parse() -> None:
        time.sleep(0.4)
        assert len(world.near.recv(1000)) == 216
        world.wire.send(b"message")

    with worker(parse):
        end = world.mux.unattach(world.near, timeout=PATIENCE)
    assert end.cut == 0
    assert world.mux.recv(timeout=PATIENCE) == b"message"


def test_more_than_are_kept_for_an_owner_that_does_not_receive(world: World) -> None:
    """It may be the only thread: it waited for ever."""
    count = _draining._INBOX + 1000
    world.far.sendall(bytes(216))

    def parse() -> None:
        for number in range(count):
            world.wire.send(b"%d" % number)
            if number % 25 == 0:
                world.near.recv(1)
        world.near.recv(1000)

    world.wire.settimeout(PATIENCE)
    with worker(parse):
        end = world.mux.unattach(world.near, timeout=PATIENCE)
    assert end.cut == 0
    assert [world.mux.recv(timeout=0) for _ in range(count)] == [b"%d" % n for n in range(count)]


def test_the_beginning_of_a_message_is_the_callers(world: World) -> None:
    world.far.sendall(b"\0\0")
    end = world.mux.unattach(world.near, timeout=PATIENCE)
    assert end.cut == 2
    assert world.near.recv(10) == b"\0\0"


def test_what_an_unattach_that_was_given_up_saw_counts_no_more(world: World) -> None:
    world.far.sendall(b"\0\0")
    with pytest.raises(TimeoutError):
        world.mux.unattach(world.near, timeout=0.8)
    start = time.monotonic()
    assert world.mux.unattach(world.near, timeout=PATIENCE).cut == 2
    assert time.monotonic() - start > 0.9


# ---- who looks meanwhile takes it off ----


@pytest.fixture
def second(world: World) -> Iterator[Any]:
    """A second transport, and the peer's end of it."""
    near, far = world.connections.new()
    with near, far:
        world.mux.attach(near)
        yield near, far


def taken_off(world: World, near: object) -> Callable[[], bool]:
    """A look of another call's."""

    def look() -> bool:
        with contextlib.suppress(TimeoutError, Disconnected):
            world.mux.recv(timeout=0)
        return near not in world.mux.transports

    return look


def test_another_threads_look(world: World, second: Any) -> None:
    """The timer was left expired: from then on each wait ended at once."""
    near, far = second
    far.send(b"x")
    steps = world.mux._unattach_steps(near)
    next(steps)
    near.recv(1)
    eventually(taken_off(world, near))
    with pytest.raises(StopIteration) as end:
        steps.throw(TimeoutError())
    assert end.value.value[2:] == (Reason.UNATTACHED, 0, 0)
    world.true()


def test_cancelled_after_another_tasks_look(world: World, second: Any) -> None:
    """As above: an event loop called what reads, for ever."""
    near, far = second

    async def main() -> None:
        far.send(b"x")
        task = asyncio.create_task(world.mux.aunattach(near))
        await asyncio.sleep(0.05)
        near.recv(1)
        eventually(taken_off(world, near))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    world.true()


def test_a_callback_that_raises_in_an_unattach(world: World, second: Any) -> None:
    near, _ = second
    ended, far = world.connections.new()
    with ended:
        world.mux.attach(ended)

        def callback(disconnection: Disconnection) -> None:
            raise Strike

        world.mux.on_disconnect = callback
        far.close()
        time.sleep(0.02)
        with pytest.raises(Strike):
            world.mux.unattach(near, timeout=PATIENCE)
        world.mux.on_disconnect = None
        assert near not in world.mux.transports
        assert [end.tcp for end in world.mux.disconnections()] == [ended]
        world.true()


def test_struck_when_the_last_is_forgotten(
    world: World, second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    near, far = second
    transports = world.mux._transports
    forget = transports.forget

    def struck(transport: Any) -> None:
        forget(transport)
        raise Strike

    with monkeypatch.context() as patch:
        patch.setattr(transports, "forget", struck)
        far.close()
        with pytest.raises(Strike):
            world.mux.recv(timeout=PATIENCE)
    assert [end.tcp for end in world.mux.disconnections()] == [near]
    world.true()


def test_struck_when_an_error_was_asked_for(
    world: World, second: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Asking clears it, and nothing told of the end any more."""
    near, _ = second
    transports = world.mux._transports
    transport: Any = transports.find(near)
    get_integer = _kernel.get_integer

    class Failing:
        def __getattr__(self, name: str) -> Any:
            return getattr(watch, name)

        def poll(self, timeout: float) -> list[tuple[int, int]]:
            return [(transport.fd, select.EPOLLERR)]

    def struck(fd: int, level: int, option: int, *into: Any) -> int:
        if option == socket.SO_ERROR:
            into[0][0] = errno.EBADMSG
            raise Strike
        return get_integer(fd, level, option, *into)

    watch = transports.watch
    with monkeypatch.context() as patch:
        patch.setattr(transports, "watch", Failing())
        patch.setattr(_kernel, "get_integer", struck)
        with pytest.raises(Strike):
            list(world.mux.disconnections())
    eventually(lambda: _kernel.is_readable(watch.fileno()))
    eventually(taken_off(world, near))
    ends = list(world.mux.disconnections())
    assert [(end.tcp, end.reason) for end in ends] == [(near, Reason.BAD_HEADER)]
    world.true()


# ---- an unattach that is given up ----


class Refusing:
    """The watch, which cannot take any more or is struck when it has."""

    def __init__(self, watch: select.epoll, error: BaseException) -> None:
        self._watch = watch
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._watch, name)

    def register(self, fd: int, events: int) -> None:
        if not isinstance(self._error, OSError):
            self._watch.register(fd, events)
        raise self._error


@pytest.mark.parametrize(
    "error",
    [Strike(), OSError(errno.ENOSPC, "No space left on device")],
    ids=["struck", "max_user_watches"],
)
def test_it_goes_on_whatever_comes_between(
    world: World, second: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """It was taken for one that had ended."""
    near, far = second
    far.send(b"x")
    with monkeypatch.context() as patch:
        watch = world.mux._transports.watch
        patch.setattr(world.mux._transports, "watch", Refusing(watch, error))
        with pytest.raises((TimeoutError, Strike)):
            world.mux.unattach(near, timeout=0.1)
    near.recv(1)
    for _ in range(3):
        with contextlib.suppress(TimeoutError):
            world.mux.recv(timeout=0.05)
    assert list(world.mux.disconnections()) == []
    assert near in world.mux.transports
    far.close()
    assert_ended(world, near)


def test_one_that_ended_meanwhile_is_told_of(world: World, second: Any) -> None:
    near, far = second
    far.send(b"x")
    steps = world.mux._unattach_steps(near)
    next(steps)
    far.close()
    with contextlib.suppress(TimeoutError):
        world.mux.recv(timeout=0.05)
    assert near in world.mux.transports
    with pytest.raises(TimeoutError):
        steps.throw(TimeoutError())
    near.recv(1)
    assert_ended(world, near)


def assert_ended(world: World, near: object) -> None:
    eventually(taken_off(world, near))
    ends = list(world.mux.disconnections())
    assert [(end.tcp, end.reason) for end in ends] == [(near, Reason.PEER_CLOSED)]
    world.true()
