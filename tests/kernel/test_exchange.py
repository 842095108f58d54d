"""Requests and answers over real connections: each is answered once, or named unknown."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import multiprocessing
import random
import socket
import struct
import sys
import threading
import types
from collections.abc import Iterator

import pytest

from pykcm import Exchange, Multiplexor, OutcomeUnknown, Pool, StrayReason, _loopback
from tests.kernel.connections import FRAMING, PATIENCE, message, reset
from tests.kernel.spawned import work

REQUESTS = 1200
THREADS, TASKS = 4, 32

KEY = (4, 4)  # offset and size, behind the length


class Server:
    """Answers each request once, shuffled; and ends one connection in the middle."""

    def __init__(self, kill_at: int = 0, how: str = "close") -> None:
        self.came: collections.Counter[int] = collections.Counter()
        self.killed = 0
        self._kill_at, self._how = kill_at, how
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = self._listener.getsockname()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                tcp, _ = self._listener.accept()
                thread = threading.Thread(target=self._serve, args=[tcp], daemon=True)
                thread.start()
                self._threads.append(thread)

    def _serve(self, tcp: socket.socket) -> None:
        rng, buffer, held = random.Random(7), b"", list[bytes]()
        with tcp, contextlib.suppress(OSError):
            while data := tcp.recv(1 << 16):
                buffer += data
                while 0 < (length := FRAMING.measure(buffer)) <= len(buffer):
                    held.append(buffer[:length])
                    buffer = buffer[length:]
                    self.came[struct.unpack_from(">I", held[-1], 4)[0]] += 1
                    if self._kill_at and self.came.total() >= self._kill_at and not self.killed:
                        self.killed = len(held)
                        if self._how == "reset":
                            reset(tcp)
                        return
                rng.shuffle(held)
                tcp.sendall(b"".join(held))
                held.clear()


@contextlib.contextmanager
def joined(server: Server, connections: int = 4) -> Iterator[Multiplexor]:
    with contextlib.closing(server), Multiplexor(FRAMING) as mux:
        for _ in range(connections):
            mux.attach(socket.create_connection(server.address), hand_over=True)
        yield mux


def request(number: int) -> bytes:
    return message(struct.pack(">I", number) + b"x" * (number % 700))


@pytest.mark.parametrize("how", ["close", "reset"])
def test_one_of_four_connections_is_killed(how: str) -> None:
    """By threads and tasks at once; without `retry` the server sees no request twice."""
    server = Server(kill_at=REQUESTS // 2, how=how)
    numbers = iter(range(REQUESTS))
    answered: collections.Counter[int] = collections.Counter()
    unknown: set[int] = set()
    wrong: list[object] = []

    def note(number: int, answer: bytes) -> None:
        if answer != request(number):
            wrong.append(number)
        answered[number] += 1

    def in_thread() -> None:
        try:
            for number in numbers:
                try:
                    note(number, exchange.request(request(number), timeout=PATIENCE))
                except OutcomeUnknown:
                    unknown.add(number)
        except Exception as error:
            wrong.append(error)

    async def in_task() -> None:
        for number in numbers:
            try:
                note(number, await exchange.arequest(request(number)))
            except OutcomeUnknown:
                unknown.add(number)

    async def tasks() -> None:
        await asyncio.wait_for(asyncio.gather(*(in_task() for _ in range(TASKS))), 3 * PATIENCE)

    with joined(server) as mux:
        exchange = Exchange(mux, KEY, grace=1.0)
        threads = [threading.Thread(target=in_thread, daemon=True) for _ in range(THREADS)]
        for thread in threads:
            thread.start()
        asyncio.run(tasks())
        for thread in threads:
            thread.join(3 * PATIENCE)
            assert not thread.is_alive()
        assert len(mux.transports) == 3
    assert not wrong
    assert max(answered.values()) == max(server.came.values()) == 1
    assert answered.keys() | unknown == set(range(REQUESTS))
    # No more than could be in flight; and what the connection's server had taken is among them.
    assert server.killed <= len(unknown) <= THREADS + TASKS
    assert not answered.keys() & unknown
    assert not [stray for stray in exchange.strays if stray.why is not StrayReason.LATE]


def test_a_pool_comes_back() -> None:
    """What is unknown is asked again, since `retry` says so, over connections that came back."""
    server = Server(kill_at=REQUESTS // 2)
    numbers = iter(range(REQUESTS))
    done: list[int] = []

    async def in_task() -> None:
        for number in numbers:
            assert await exchange.arequest(request(number), retry=5) == request(number)
            done.append(number)

    async def main() -> None:
        async with pool:
            await asyncio.wait_for(asyncio.gather(*(in_task() for _ in range(TASKS))), 3 * PATIENCE)

    with joined(server, 0) as mux:
        pool = Pool(mux, lambda: socket.create_connection(server.address), 4)
        exchange = Exchange(mux, KEY, grace=0.5)
        asyncio.run(main())
        assert len(mux.transports) == 4
    assert sorted(done) == list(range(REQUESTS))
    assert server.killed


def test_a_clone_given_to_a_spawned_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """It receives, sends, and learns of the end of all transports."""
    # The process would import pytest's.
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    spawn = multiprocessing.get_context("spawn")
    near, far = _loopback.connection()
    ours, theirs = spawn.Pipe()
    with near, far, Multiplexor(FRAMING) as mux:
        mux.attach(near)
        with mux.clone() as clone:
            process = spawn.Process(target=work, args=(clone, theirs))
            process.start()
        mux.socket.recv_disabled = True
        far.settimeout(PATIENCE)
        for number in range(20):
            far.sendall(request(number))
            assert FRAMING.read_message(far, timeout=PATIENCE) == request(number)
        far.close()
        assert mux.wait_disconnection(PATIENCE).tcp is near
        assert ours.poll(PATIENCE)
        assert ours.recv() == 20
        process.join(PATIENCE)
        assert process.exitcode == 0
