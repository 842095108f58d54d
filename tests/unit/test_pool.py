"""Connections that come back: real TCP, with a Unix socket in the place of the KCM socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import itertools
import operator
import os
import pickle
import resource
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import trio

from pykcm import (
    ArgumentError,
    AttachError,
    ConnectFailed,
    Disconnected,
    Disconnection,
    KCMOSError,
    LengthField,
    MessageCut,
    Multiplexor,
    Pool,
    _tcp,
)
from tests.strikes import descriptors, no_descriptor_left
from tests.unit.stand_in import PATIENCE, World, eventually

QUICK = (0.01, 0.05)


class Server:
    """Accepts, and does with each connection what it is told to."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.accepted: list[socket.socket] = []
        self.greet: Callable[[socket.socket], object] = lambda tcp: None
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                tcp, _ = self.listener.accept()
                self.accepted.append(tcp)
                self.greet(tcp)

    def connect(self) -> socket.socket:
        return socket.create_connection(self.listener.getsockname(), PATIENCE)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        self.listener.close()
        for tcp in self.accepted:
            tcp.close()


@pytest.fixture
def server() -> Iterator[Server]:
    with contextlib.closing(Server()) as server:
        yield server


@pytest.fixture
def mux(world: World) -> Multiplexor:
    """One that has no transport."""
    world.mux.unattach(world.near)
    return world.mux


def test_it_is_kept_full(mux: Multiplexor, server: Server) -> None:
    told: list[Disconnection] = []
    mux.on_disconnect = told.append
    with Pool(mux, server.connect, 3, backoff=QUICK):
        assert len(mux.transports) == 3
        eventually(lambda: len(server.accepted) == 3)
        for number in range(5):
            server.accepted[number].close()
            eventually(lambda n=number: len(server.accepted) == 4 + n)  # type: ignore[misc]
            eventually(lambda: len(mux.transports) == 3)
    assert len(mux.transports) == 3  # they stay
    assert len(told) == 5  # and the caller's own callback is called
    # Nothing of the pool's keeps a connection open that is closed.
    last = server.accepted[-1]
    last.settimeout(PATIENCE)
    mux.close(0)
    assert last.recv(1) == b""


def test_it_is_told_of_an_unattach(mux: Multiplexor, server: Server) -> None:
    with Pool(mux, server.connect, 2):
        gone = mux.transports[0]
        mux.unattach(gone)
        eventually(lambda: len(mux.transports) == 2)
        gone.close()


@pytest.mark.usefixtures("no_resolver")
@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1"])
def test_nobody_there(mux: Multiplexor, server: Server, host: str) -> None:
    """A name that does not resolve, a port that refuses: an end that is named."""
    port = server.listener.getsockname()[1]
    server.close()
    before = mux.on_disconnect
    pool = Pool(
        mux, lambda: socket.create_connection((host, port), 1), 2, attempts=4, backoff=QUICK
    )
    with pytest.raises(ConnectFailed, match="4 attempts to connect have failed") as caught:
        pool.fill()
    assert caught.value.attempts == 4
    assert isinstance(caught.value.__cause__, OSError)
    expected = errno.ECONNREFUSED if host == "127.0.0.1" else errno.EHOSTUNREACH
    assert caught.value.errno == expected
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (str(copy), copy.attempts) == (str(caught.value), 4)
    assert before is None


@pytest.mark.usefixtures("no_resolver")
def test_a_name_that_stops_resolving(mux: Multiplexor, server: Server) -> None:
    """While reconnecting: the block's end raises it, and meanwhile receiving says Disconnected."""
    port = server.listener.getsockname()[1]
    hosts = iter(["127.0.0.1"])

    def connect() -> socket.socket:
        return socket.create_connection((next(hosts, "no-such-host.invalid"), port), 1)

    with pytest.raises(ConnectFailed, match="3 attempts") as caught:
        with Pool(mux, connect, 1, attempts=3, backoff=QUICK) as pool:
            eventually(lambda: len(server.accepted) == 1)
            server.accepted[0].close()
            with pytest.raises(Disconnected):
                mux.recv(timeout=PATIENCE)
            eventually(lambda: pool.failure is not None)
            with pytest.raises(Disconnected):
                mux.send(b"x", timeout=PATIENCE)
    assert isinstance(caught.value.__cause__, socket.gaierror)


@pytest.mark.usefixtures("no_resolver")
def test_a_name_that_resolves_again(mux: Multiplexor, server: Server) -> None:
    port = server.listener.getsockname()[1]
    hosts = iter(["127.0.0.1", "no-such-host.invalid", "no-such-host.invalid"])

    def connect() -> socket.socket:
        return socket.create_connection((next(hosts, "127.0.0.1"), port), 1)

    with Pool(mux, connect, 1, attempts=4, backoff=QUICK):
        eventually(lambda: len(server.accepted) == 1)
        server.accepted[0].close()
        eventually(lambda: len(server.accepted) == 2)


def test_a_server_that_closes_at_once(
    mux: Multiplexor, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not dialled without end, nor without a pause."""
    # Or a connection that it closes late would be one that has lived.
    monkeypatch.setattr("pykcm._keeping._LOOK", PATIENCE)
    server.greet = lambda tcp: tcp.close()
    start = time.monotonic()
    with pytest.raises(ConnectFailed, match="ended before anything was received") as caught:
        with Pool(mux, server.connect, 1, attempts=5, backoff=(0.05, 0.05)) as pool:
            eventually(lambda: pool.failure is not None)
    assert caught.value.attempts == 5
    assert time.monotonic() - start > 0.1
    assert len(server.accepted) == 5


@pytest.mark.parametrize(
    ("brief", "backoff", "least"), [(PATIENCE, (0.2, 30), 0.1), (0.0, (30, 30), 0.0)]
)
def test_a_server_that_closes_after_serving(
    mux: Multiplexor,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
    brief: float,
    backoff: tuple[float, float],
    least: float,
) -> None:
    """It is dialled again without counting failures, but not without end: one that lived for less
    than a second has no successor at once."""
    monkeypatch.setattr("pykcm._keeping._BRIEF", brief, raising=False)

    def serve(tcp: socket.socket) -> None:
        eventually(lambda: len(mux.transports) == 1)  # what comes before was not received by it
        tcp.sendall(b"served")
        assert mux.transports[0].recv(100) == b"served"  # in the place of the kernel
        tcp.close()

    server.greet = serve
    start = time.monotonic()
    with Pool(mux, server.connect, 1, attempts=2, backoff=backoff):
        eventually(lambda: len(server.accepted) >= 4)
    assert time.monotonic() - start > 3 * least


def test_a_pool_is_used_again(mux: Multiplexor, server: Server) -> None:
    """Neither a failure nor a stop outlives what it has ended."""
    refusing = [True]

    def connect() -> socket.socket:
        calls.append(None)
        if refusing:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "no")
        made.append(None)
        return server.connect()

    calls: list[None] = []
    made: list[None] = []
    pool = Pool(mux, connect, 1, attempts=3, backoff=QUICK)
    for _ in range(2):
        with pytest.raises(ConnectFailed, match=r"^3 attempts"):
            pool.fill()
    assert len(calls) == 6
    for enter in (enter_block, lambda pool: asyncio.run(enter_async_block(pool))):
        refusing.clear()
        with pytest.raises(ConnectFailed, match=r"^3 attempts"), pool:
            eventually(lambda: len(server.accepted) == len(made))
            refusing.append(True)
            server.accepted[-1].close()
            eventually(lambda: pool.failure is not None)
        refusing.clear()
        run_and_stop(pool, mux)
        enter(pool)
        mux.unattach(mux.transports[0])
        for _ in range(2):
            run_and_stop(pool, mux)
            mux.unattach(mux.transports[0])
    pool.stop()  # with none under way: it is the next one's
    pool.run()
    assert not mux.transports


def run_and_stop(pool: Pool, mux: Multiplexor) -> None:
    thread = threading.Thread(target=pool.run)
    thread.start()
    eventually(lambda: len(mux.transports) == 1)
    pool.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()


def enter_block(pool: Pool) -> None:
    with pool:
        assert pool.failure is None


async def enter_async_block(pool: Pool) -> None:
    async with pool:
        assert pool.failure is None


def test_a_handshake_that_is_cut(mux: Multiplexor, server: Server) -> None:
    framing = LengthField(size=4)

    def cut(tcp: socket.socket) -> None:
        tcp.sendall(b"\0\0\0\7hel" if len(server.accepted) < 3 else b"\0\0\0\5hello")
        tcp.shutdown(socket.SHUT_WR) if len(server.accepted) < 3 else None

    def connect() -> socket.socket:
        tcp = server.connect()
        try:
            framing.read_message(tcp, timeout=PATIENCE)
        except BaseException:
            tcp.close()
            raise
        return tcp

    server.greet = cut
    Pool(mux, connect, 1, attempts=3, backoff=QUICK).fill()
    assert len(mux.transports) == 1
    assert len(server.accepted) == 3
    for tcp in server.accepted:
        tcp.close()
    server.accepted.clear()
    with pytest.raises(ConnectFailed) as caught:
        Pool(mux, connect, 2, attempts=2, backoff=QUICK).fill()
    assert isinstance(caught.value.__cause__, MessageCut)


def test_what_is_not_tried_again(mux: Multiplexor, server: Server) -> None:
    def connect() -> socket.socket:
        raise KeyError("a mistake")

    with pytest.raises(KeyError):
        Pool(mux, connect, 1).fill()
    ours, theirs = socket.socketpair()
    with theirs, pytest.raises(AttachError):
        Pool(mux, lambda: ours, 1).fill()
    with pytest.raises(AttachError, match="None is not an open socket"):
        Pool(mux, lambda: None, 1).fill()  # type: ignore[arg-type,return-value]

    hosts: Iterator[socket.socket] = iter(())
    with pytest.raises(RuntimeError, match="StopIteration"):  # not taken for the end of the work
        Pool(mux, lambda: next(hosts), 1).fill()
    with pytest.raises(RuntimeError, match="StopIteration"):
        asyncio.run(Pool(mux, lambda: next(hosts), 1).afill())

    async def asynchronous() -> socket.socket:
        return server.connect()

    with pytest.raises(ArgumentError, match="connect: returns an awaitable"):
        Pool(mux, asynchronous, 1).fill()
    with pytest.raises(ArgumentError):
        Pool(mux, connect, 0)
    with pytest.raises(ArgumentError):
        Pool(mux, connect, 1, backoff=(2, 1))


def test_pauses_and_a_time_out(mux: Multiplexor, server: Server) -> None:
    address = server.listener.getsockname()
    server.close()
    calls: list[float] = []

    def connect() -> socket.socket:
        calls.append(time.monotonic())
        if len(calls) == 20:
            raise KeyError("enough")
        return socket.create_connection(address)

    pool = Pool(mux, connect, 1, attempts=None, backoff=(0.02, 0.08))
    with pytest.raises(KeyError, match="enough"):
        pool.fill(PATIENCE)
    pauses = [after - before for before, after in itertools.pairwise(calls)]
    assert len(pauses) == 19
    assert all(map(operator.ge, pauses, [0.01, 0.02] + [0.04] * 17))
    with pytest.raises(TimeoutError, match="fewer connections"):
        pool.fill(0.1)


def test_no_descriptor_is_left(mux: Multiplexor, server: Server) -> None:
    def reset(tcp: socket.socket) -> None:
        if len(server.accepted) > 1:
            tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            tcp.close()

    gc.collect()
    before = descriptors()
    server.greet = reset
    pool = Pool(mux, server.connect, 1, attempts=6, backoff=QUICK)
    with pytest.raises(ConnectFailed), pool:
        eventually(lambda: len(server.accepted) == 1)
        server.accepted[0].close()
        eventually(lambda: pool.failure is not None)
    # The pool has three of its own; nothing is left of the connections.
    eventually(lambda: len(descriptors()) <= len(before) + 3)


def test_a_refused_connection_is_not_kept_with_the_failure(mux: Multiplexor, world: World) -> None:
    def connect() -> socket.socket:
        near, far = world.connections.new()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        eventually(lambda: _tcp.has_ended(near.fileno()))
        return near

    pool = Pool(mux, connect, 1, attempts=3, backoff=QUICK)
    with no_descriptor_left(), pytest.raises(ConnectFailed) as kept:
        pool.fill()
    assert isinstance(kept.value.__cause__, AttachError)


def test_no_descriptor_is_left_for_a_second_one_of_a_connection(
    mux: Multiplexor, world: World
) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    near, far = world.connections.new()

    def connect() -> socket.socket:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
        return near

    pool = Pool(mux, connect, 1)
    try:
        with pytest.raises(KCMOSError, match="descriptor") as caught:
            pool.fill()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        far.close()
    assert caught.value.errno == errno.EMFILE
    assert near.fileno() == -1


# ---- in tasks ----


@pytest.mark.parametrize("coroutine", [True, False])
def test_asyncio(mux: Multiplexor, server: Server, coroutine: bool) -> None:
    async def connect() -> socket.socket:
        tcp = socket.socket()
        tcp.setblocking(False)
        await asyncio.get_running_loop().sock_connect(tcp, server.listener.getsockname())
        return tcp

    async def main() -> None:
        async with Pool(mux, connect if coroutine else server.connect, 2, backoff=QUICK):
            assert len(mux.transports) == 2
            while not server.accepted:
                await asyncio.sleep(0.01)
            server.accepted[0].close()
            while len(server.accepted) < 3 or len(mux.transports) < 2:
                list(mux.disconnections())
                await asyncio.sleep(0.01)

    asyncio.run(asyncio.wait_for(main(), PATIENCE))


@pytest.mark.parametrize("run", [asyncio.run, lambda main: trio.run(lambda: main)])
def test_a_function_that_returns_an_awaitable(
    mux: Multiplexor, server: Server, run: Callable[[Any], None]
) -> None:
    async def connect(server: Server) -> socket.socket:
        return server.connect()

    run(Pool(mux, lambda: connect(server), 2, attempts=1).afill())
    assert len(mux.transports) == 2


async def cut_asyncio() -> socket.socket:
    raise asyncio.IncompleteReadError(b"", 4)


async def late_asyncio() -> socket.socket:
    await asyncio.wait_for(asyncio.sleep(PATIENCE), 0)
    raise AssertionError


async def late_trio() -> socket.socket:
    with trio.fail_after(0):
        await trio.sleep(PATIENCE)
    raise AssertionError


async def cut_trio() -> socket.socket:
    raise trio.BrokenResourceError


async def cut_anyio() -> socket.socket:
    raise anyio.EndOfStream


async def broken_anyio() -> socket.socket:
    raise anyio.BrokenResourceError


@pytest.mark.parametrize(
    "connect", [cut_asyncio, late_asyncio, cut_trio, late_trio, cut_anyio, broken_anyio]
)
def test_a_handshake_that_fails_with_streams(
    mux: Multiplexor, connect: Callable[[], Awaitable[socket.socket]]
) -> None:
    """Its errors, which are no OSErrors, are failures too."""

    async def main() -> None:
        await Pool(mux, connect, 1, attempts=3, backoff=QUICK).afill()

    with pytest.raises(ConnectFailed, match=r"^3 attempts.*with: ."):
        trio.run(main) if connect.__name__.endswith("trio") else asyncio.run(main())


def test_asyncio_gives_up(mux: Multiplexor, server: Server) -> None:
    async def main() -> None:
        async with Pool(mux, server.connect, 1, attempts=2, backoff=QUICK) as pool:
            server.close()
            with pytest.raises(Disconnected):
                await mux.arecv()
            while pool.failure is None:
                await asyncio.sleep(0.01)

    with pytest.raises(ConnectFailed, match="2 attempts"):
        asyncio.run(asyncio.wait_for(main(), PATIENCE))


def test_trio(mux: Multiplexor, server: Server) -> None:
    async def main() -> None:
        with trio.fail_after(PATIENCE):
            async with Pool(mux, server.connect, 2, backoff=QUICK):
                while not server.accepted:
                    await trio.sleep(0.01)
                server.accepted[0].close()
                while len(server.accepted) < 3 or len(mux.transports) < 2:
                    list(mux.disconnections())
                    await trio.sleep(0.01)
            with trio.move_on_after(0.05) as scope:
                await Pool(mux, server.connect, 2).arun()
            assert scope.cancelled_caught

    trio.run(main)


def test_run_until_stopped(mux: Multiplexor, server: Server) -> None:
    pool = Pool(mux, server.connect, 2)
    thread = threading.Thread(target=pool.run)
    thread.start()
    eventually(lambda: len(mux.transports) == 2)
    pool.stop()
    thread.join(PATIENCE)
    assert not thread.is_alive()
