"""Threads that meet on one object: what one does must not be seen half done by another.

A Unix socket of packets stands in for the KCM socket; see tests/kernel/test_threads.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pykcm
from pykcm import Exchange, KCMSocket, LengthField, Multiplexor, OutcomeUnknown, Pool, _kernel
from pykcm._binding import lib
from pykcm._draining import Drain
from pykcm._requests import Request
from tests import turns
from tests.children import in_child
from tests.unit.stand_in import PATIENCE, World, stand_in


@pytest.fixture(autouse=True)
def _take_turns_often() -> Iterator[None]:
    with turns.often():
        yield


class Beside:
    """A thread that does something again and again, until the block ends or it raises."""

    def __init__(self, action: Callable[[], object], *passed: type[BaseException]) -> None:
        self._action = action
        self._passed: tuple[type[BaseException], ...] = (TimeoutError, *passed)
        self._stop = False
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop and self.error is None:
            try:
                self._action()
            except self._passed:
                pass
            except BaseException as error:
                self.error = error

    def __enter__(self) -> Beside:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop = True
        self._thread.join()


def result_of(action: Callable[[], Any]) -> Any:
    try:
        return action()
    except Exception as error:
        return error


def test_an_end_that_came_before_the_attach(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A look must not take for ended what is not attached yet."""

    def attach(kcm_fd: int, tcp_fd: int, program_fd: int, done: Any = None) -> None:
        os.fstat(tcp_fd)  # raises if it is closed
        time.sleep(0.001)  # as a system call does, without the interpreter's lock
        done[0] = 1

    monkeypatch.setattr(_kernel, "attach", attach)
    with Beside(lambda: world.mux.recv(timeout=0.01)) as receiver:
        for _ in range(50):
            near, far = world.connections.new()
            far.sendall(b"unread")
            far.shutdown(socket.SHUT_WR)
            world.mux.attach(near, hand_over=True)
            far.close()
    assert receiver.error is None
    end = time.monotonic() + PATIENCE
    while len(world.mux.transports) > 1 and time.monotonic() < end:
        with contextlib.suppress(TimeoutError):
            world.mux.recv(timeout=0.01)
    assert len(list(world.mux.disconnections())) == 50


def test_closing_beside_a_look(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    for number in range(100):
        world = World()
        clone = world.mux.clone()
        with Beside(lambda world=world: list(world.mux.disconnections())) as looker:  # type: ignore[misc]
            time.sleep(0.0003 * (number % 5))
            world.mux.close(0)
            while looker.error is None:
                time.sleep(0.0001)
        assert isinstance(looker.error, pykcm.KCMOSError), repr(looker.error)
        assert looker.error.errno == errno.EBADF
        with pytest.raises(TimeoutError):  # it is not told of an end
            clone.recv(timeout=0)
        clone.close(0)
        world.close()


def test_order_beside_a_look(world: World) -> None:
    count = 20_000

    def send() -> None:
        for number in range(count):
            world.wire.send(b"%d" % number)

    received: list[int] = []
    writer = threading.Thread(target=send)
    writer.start()
    with Beside(world.mux._port.pull) as looker:
        while len(received) < count:
            received += map(int, world.mux.recv_many(1, timeout=PATIENCE))
    writer.join()
    assert looker.error is None
    assert received == sorted(received)


def test_room_that_is_made_while_it_waits(world: World) -> None:
    kcm = world.mux.socket
    kcm.max_message_size = 100
    outcome: list[Any] = []
    threads = [
        threading.Thread(
            target=lambda: outcome.append(result_of(lambda: kcm.recv(timeout=PATIENCE)))
        )
    ]
    threads[0].start()
    while not kcm._port.begun:
        time.sleep(0.001)
    kcm._port.make_room(1001)  # as attaching does
    world.wire.send(b"y" * 500)
    threads[0].join()
    assert outcome == [b"y" * 500]


def test_an_end_that_a_send_has_noticed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    get_integer = _kernel.get_integer

    def get(fd: int, level: int, *arguments: Any) -> int:
        return int(level == lib.SOL_KCM) or get_integer(fd, level, *arguments)  # it is disabled

    monkeypatch.setattr(_kernel, "get_integer", get)
    near, far = world.connections.new()
    world.mux.attach(near, hand_over=True)

    async def main() -> pykcm.Disconnection:
        waiting = asyncio.create_task(world.mux.await_disconnection())
        await asyncio.sleep(0.05)
        far.close()  # and nobody has a turn until the send has looked
        while len(world.mux.transports) > 1:
            world.mux._port.patience = 0
            world.mux.send(b"m")
            world.wire.recv(10)
        return await asyncio.wait_for(waiting, PATIENCE)

    assert asyncio.run(main()).tcp is near


def test_two_first_attaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither closes the program that the other attaches with."""
    stand_in(monkeypatch)

    class Program:
        def __init__(self) -> None:
            self._descriptor = _kernel.Descriptor.event()

        @property
        def fd(self) -> int:
            return self._descriptor.fileno()

        def close(self) -> None:
            self._descriptor.close()

    def load(self: LengthField, **options: Any) -> Program:
        time.sleep(0.002)  # as the verifier does, without the interpreter's lock
        return Program()

    def attach(kcm_fd: int, tcp_fd: int, program_fd: int, done: Any = None) -> None:
        os.fstat(program_fd)
        done[0] = 1

    def attach_to(mux: Multiplexor, tcp: socket.socket, outcome: list[Any]) -> None:
        outcome.append(result_of(lambda: mux.attach(tcp)))

    monkeypatch.setattr(LengthField, "load", load)
    monkeypatch.setattr(_kernel, "attach", attach)
    for _ in range(50):
        outcome: list[Any] = []
        with contextlib.closing(World()) as world:
            mux = Multiplexor(LengthField(offset=0, size=4, adjustment=4))
            pairs = [world.connections.new() for _ in range(2)]
            threads = [
                threading.Thread(target=attach_to, args=(mux, near, outcome)) for near, _ in pairs
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            mux.close(0)
            for tcp in (tcp for pair in pairs for tcp in pair):
                tcp.close()
        assert outcome == [None, None]


def test_duplicates_beside_a_close() -> None:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        with KCMSocket() as kcm, Beside(lambda: kcm.dup().close(0)) as other:
            for _ in range(300):
                kcm.dup().close(0)
    assert other.error is None


def test_a_request_on_a_connection_that_nobody_saw(world: World) -> None:
    """It was attached, and lost, while whoever drives waited."""
    exchange = Exchange(world.mux, (0, 1), grace=0.1)
    outcome: dict[bytes, Any] = {}

    def ask(key: bytes) -> None:
        outcome[key] = result_of(lambda: exchange.request(key, timeout=PATIENCE))

    threads = [threading.Thread(target=ask, args=(key,)) for key in (b"A", b"B")]
    threads[0].start()
    assert world.wire.recv(10) == b"A"
    near, far = world.connections.new()
    world.mux.attach(near, hand_over=True)
    threads[1].start()
    assert world.wire.recv(10) == b"B"
    far.close()
    for thread in threads:
        thread.join()
    assert [type(each) for each in outcome.values()] == [OutcomeUnknown] * 2


def test_a_late_request_is_not_sent_after_that(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    exchange = Exchange(world.mux, (0, 1))
    has_room = threading.Event()
    sent: list[bytes] = []

    class Narrow:
        """The Multiplexor, which at first has no room to send."""

        def __getattr__(self, name: str) -> Any:
            return getattr(world.mux, name)

        def send(self, message: bytes, *, timeout: float | None = None) -> None:
            if not has_room.is_set():
                raise TimeoutError
            sent.append(message)

    exchange._driver._mux = Narrow()  # type: ignore[assignment]
    late = Request.late

    def slowly(request: Request) -> Exception:
        error = late(request)
        if request.message == b"L":
            has_room.set()
            exchange._driver._nudge.set_event(True)
            time.sleep(0.2)
        return error

    monkeypatch.setattr(Request, "late", slowly)
    outcome: list[Any] = []
    leader = threading.Thread(
        target=lambda: outcome.append(result_of(lambda: exchange.request(b"F", timeout=3)))
    )
    leader.start()
    with pytest.raises(TimeoutError, match="was not sent"):
        exchange.request(b"L", timeout=0.2)
    leader.join()
    assert sent == [b"F"]


def test_a_fork_while_a_drain_has_clones(world: World) -> None:
    """What they hold would wait for ever in the child, which knows nothing of them."""
    drain = world.mux._transports._drain
    drain._clones.append(_kernel.Descriptor.duplicate(world.mux.socket.fileno()))
    fd = drain._clones[0].fileno()

    def look() -> None:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(fd)

    in_child(look)
    os.fstat(fd)
    world.mux._transports.let_clones_go()


def test_a_fork_waits_for_a_look(world: World) -> None:
    """The child finds the lock free, also where another thread had it."""

    def take() -> None:
        assert world.mux._transports.lock.acquire(blocking=False)

    with world.mux._transports.lock:
        forked = Waiting(lambda: in_child(take))
        time.sleep(0.05)
        assert not forked.done
    assert forked.outcome is None


class Waiting:
    """A call in a thread, and what it returned or raised."""

    def __init__(self, action: Callable[[], Any]) -> None:
        self._outcome: list[Any] = []
        self._thread = threading.Thread(
            target=lambda: self._outcome.append(result_of(action)), daemon=True
        )
        self._thread.start()

    @property
    def done(self) -> bool:
        return bool(self._outcome)

    @property
    def outcome(self) -> Any:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it waits for ever"
        return self._outcome[0]


def test_an_unattach_whose_transport_another_look_takes_off(world: World) -> None:
    def look() -> None:
        list(world.mux.disconnections())
        time.sleep(0.0005)

    with Beside(look) as looker:
        for _ in range(10):
            near, far = world.connections.new()
            world.mux.attach(near)
            far.sendall(b"x")  # which the stand-in never takes
            waiting = Waiting(lambda near=near: world.mux.unattach(near, timeout=PATIENCE))  # type: ignore[misc]
            assert waiting.outcome.tcp is near
            far.close()
            near.close()
    assert looker.error is None


def test_two_unattach_one(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Drain.advance
    monkeypatch.setattr(Drain, "advance", lambda self, *arguments: ([], 0.01))
    patient = Waiting(lambda: world.mux.unattach(world.near))
    with pytest.raises(TimeoutError):
        world.mux.unattach(world.near, timeout=0.1)
    monkeypatch.setattr(Drain, "advance", advance)
    assert patient.outcome.tcp is world.near


def test_no_spin_after_an_unattach_that_was_late(world: World) -> None:
    world.far.sendall(b"x")
    with pytest.raises(TimeoutError):
        world.mux.unattach(world.near, timeout=0.02)
    before = time.thread_time()
    with pytest.raises(TimeoutError):
        world.mux.recv(timeout=0.5)
    assert time.thread_time() - before < 0.1


def test_closing_beside_waits(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    def send() -> None:
        while True:
            world.mux.send(b"x" * 1000)

    def flush() -> None:
        world.mux.flush()

    def unsent(fd: int) -> tuple[int, ...]:
        found = list(memory(fd))
        found[_kernel.WMEM_QUEUED] = 100
        return tuple(found)

    memory = _kernel.memory
    monkeypatch.setattr(Drain, "advance", lambda self, *arguments: ([], 0.01))
    calls = [Waiting(lambda: world.mux.unattach(world.near)), Waiting(world.mux.recv)]
    time.sleep(0.1)
    monkeypatch.setattr(_kernel, "memory", unsent)
    calls += [Waiting(send), Waiting(flush)]
    time.sleep(0.1)
    with pytest.warns(pykcm.UnsentWarning):
        world.mux.close(0)
    for call in calls:
        assert isinstance(call.outcome, pykcm.KCMOSError)
        assert call.outcome.errno == errno.EBADF


def test_a_pool_is_kept_by_one(world: World) -> None:
    def connect() -> socket.socket:
        near, far = world.connections.new()
        fars.append(far)
        return near

    fars: list[socket.socket] = []
    with Pool(world.mux, connect, 2) as pool, pytest.raises(pykcm.KCMOSError) as info:
        pool.fill(1)
    assert info.value.errno == errno.EBUSY
    pool.fill(PATIENCE)
    for far in fars:
        far.close()


def test_a_fork_beside_a_receive(world: World) -> None:
    """In the child the Multiplexor's own socket can be disabled: nobody has the Port's lock."""

    def disable() -> None:
        # Refused by the Unix socket, which is no KCM socket; but it does not wait.
        with contextlib.suppress(OSError):
            world.mux.socket.recv_disabled = True

    with Beside(world.mux._port.pull) as receiver:
        for _ in range(30):
            in_child(disable)
    assert receiver.error is None
