"""Tasks of asyncio and Trio that wait, are cancelled, and find what they wait for closed.

A Unix socket of packets stands in for the KCM socket.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from typing import Any

import pytest
import trio

import pykcm
from pykcm import Disconnected, Exchange, KCMOSError, _kernel, _tcp
from pykcm._binding import lib
from tests.unit.stand_in import PATIENCE, World

SPUN = 0.5  # seconds of CPU: more than who waits takes


@pytest.fixture
def _nobody_looks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is not woken waits."""
    for module in ("_messages", "_transports", "_upkeep", "_wait"):
        monkeypatch.setattr(f"pykcm.{module}.IDLE", 1000.0)


@pytest.mark.usefixtures("_nobody_looks_again")
@pytest.mark.parametrize("by_another_thread", [False, True])
def test_a_close_wakes_who_waits(world: World, by_another_thread: bool) -> None:
    async def main() -> None:
        kcm = world.mux.socket.dup()
        for waiting in (kcm, world.mux):
            task = asyncio.ensure_future(waiting.arecv())
            await asyncio.sleep(0.05)
            if by_another_thread:
                await asyncio.to_thread(waiting.close, 0)
            else:
                waiting.close(0)
            with pytest.raises(KCMOSError, match="EBADF"):
                await asyncio.wait_for(task, PATIENCE)

    asyncio.run(main())


@pytest.mark.usefixtures("_nobody_looks_again")
def test_a_close_wakes_who_waits_on_trio(world: World) -> None:
    async def receive() -> None:
        with pytest.raises(KCMOSError, match="EBADF"):
            await world.mux.arecv()

    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(receive)
                await trio.sleep(0.05)
                world.mux.close(0)

    trio.run(main)


@pytest.mark.usefixtures("_nobody_looks_again")
def test_its_number_is_another_descriptors_then(world: World) -> None:
    async def main() -> None:
        with contextlib.closing(World()) as other:
            number = world.mux.fileno()
            task = asyncio.ensure_future(world.mux.arecv())
            await asyncio.sleep(0.05)
            world.mux.close(0)
            taken = [socket.socketpair() for _ in range(8)]
            receiving = asyncio.ensure_future(other.mux.arecv())
            with pytest.raises(KCMOSError):
                await asyncio.wait_for(task, PATIENCE)
            await asyncio.sleep(0.05)
            other.wire.send(b"hello")
            assert await asyncio.wait_for(receiving, PATIENCE) == b"hello"
            assert number in {end.fileno() for pair in taken for end in pair} | {other.mux.fileno()}
            for end in (end for pair in taken for end in pair):
                end.close()

    asyncio.run(main())


def test_a_cancelled_unattach_leaves_the_transport(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    unparsed = _tcp.unparsed

    async def main() -> None:
        monkeypatch.setattr(_tcp, "unparsed", lambda fd: 5)
        try:
            await asyncio.wait_for(world.mux.aunattach(world.near), 0.02)
        except asyncio.TimeoutError:
            # The exception is alive, and with its traceback what was called.
            assert not world.mux._transports.draining
            monkeypatch.setattr(_tcp, "unparsed", unparsed)
            with pytest.raises(TimeoutError):
                world.mux.recv(timeout=0.05)
        assert world.mux.transports == [world.near]

    asyncio.run(main())


def test_more_tasks_than_the_kernel_lets_watch(world: World) -> None:
    world.mux.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    sent = 0
    with contextlib.suppress(TimeoutError):
        while True:
            world.mux.send(b"0", timeout=0)
            sent += 1

    async def main() -> None:
        tasks = [asyncio.ensure_future(world.mux.asend(b"1")) for _ in range(150)]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in tasks)
        world.wire.settimeout(PATIENCE)
        for _ in range(sent + 150):
            assert await asyncio.to_thread(world.wire.recv, 10)
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    asyncio.run(main())


def test_the_multiplexors_own_socket_learns_of_an_end(world: World) -> None:
    world.far.close()
    before = time.thread_time()
    with pytest.raises(Disconnected):
        world.mux.socket.recv(timeout=PATIENCE)
    assert time.thread_time() - before < SPUN
    assert len(list(world.mux.disconnections())) == 1


def test_an_unattach_beside_who_waits_for_an_end(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    get_integer = _kernel.get_integer

    def get(fd: int, level: int, *arguments: Any) -> int:
        return int(level == lib.SOL_KCM) or get_integer(fd, level, *arguments)  # it is disabled

    monkeypatch.setattr(_kernel, "get_integer", get)
    monkeypatch.setattr(_tcp, "unparsed", lambda fd: 5)

    async def main() -> None:
        waiting = asyncio.ensure_future(world.mux.await_disconnection())
        await asyncio.sleep(0.05)
        end = await asyncio.wait_for(world.mux.aunattach(world.near), PATIENCE)
        assert end.reason is pykcm.Reason.UNATTACHED
        waiting.cancel()

    asyncio.run(main())


def test_a_time_out_is_not_lost_beside_a_look(world: World) -> None:
    """Where a task can't be un-cancelled, a time-out of the wait's own hid it (Python 3.10)."""

    async def main() -> None:
        with world.mux.clone() as clone:
            for kcm in (clone, world.mux):
                with pytest.raises(asyncio.TimeoutError):
                    await asyncio.wait_for(kcm.arecv(), 1.0)

    started = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - started < PATIENCE


@pytest.mark.parametrize("leads", [False, True])
def test_a_loop_that_stands_still(world: World, leads: bool) -> None:
    """Whoever else waits goes on, whether its task drives or was woken to drive."""
    exchange = Exchange(world.mux, (0, 1))
    outcome: list[bytes] = []

    def ask(key: bytes) -> None:
        outcome.append(exchange.request(key, timeout=PATIENCE))

    threads = [threading.Thread(target=ask, args=(key,)) for key in (b"A", b"C")]
    loop = asyncio.new_event_loop()

    async def begin() -> asyncio.Task[bytes]:
        task = asyncio.ensure_future(exchange.arequest(b"B"))
        await asyncio.sleep(0.05)
        return task

    if not leads:
        threads[0].start()
        while exchange._leader is None:
            time.sleep(0.001)
    task = loop.run_until_complete(begin())
    assert exchange._leader is not None
    assert (exchange._leader.message == b"B") == leads
    if leads:
        threads[0].start()
    threads[1].start()
    for _ in range(3):
        world.wire.recv(10)
    world.wire.send(b"A")
    threads[0].join()
    world.wire.send(b"C")
    threads[1].join()
    assert outcome == [b"A", b"C"]
    world.wire.send(b"B")
    assert loop.run_until_complete(asyncio.wait_for(task, PATIENCE)) == b"B"
    loop.close()
