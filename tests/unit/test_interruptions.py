"""As tests/kernel/test_interruptions.py, where there is no AF_KCM: all that is Python's.

A Unix socket of packets stands in for the KCM socket, and the calls of KCM's own do nothing.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import functools
import gc
import os
import resource
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import pykcm
from pykcm import Multiplexor, Reason, _kernel
from pykcm._wait import SendSpace
from pykcm.socket import KCMSocket
from tests.strikes import Case, Storm, Strike, descriptors, strike_everywhere
from tests.unit.stand_in import PATIENCE, World, stand_in

# What a storm of signals does to a __del__, Python itself can but report.
pytestmark = [
    pytest.mark.timeout(300),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)


@pytest.fixture
def world() -> Iterator[World]:
    with contextlib.closing(World()) as world:
        yield world


def strike(case: Callable[[], Case], at_least: int) -> None:
    start = time.monotonic()
    count = strike_everywhere(case)
    print(f"{count} strikes in {time.monotonic() - start:.1f} s")
    assert count >= at_least, "was the call traced?"


def passed(outcome: object, *allowed: type[BaseException]) -> None:
    """The call returned, was struck, or raised what it may."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, (Strike, *allowed)):
        raise outcome


def test_recv(world: World) -> None:
    def case() -> Case:
        expected = world.arrive(3)
        got: list[bytes] = []
        passed((yield lambda: got.append(world.mux.recv(timeout=PATIENCE))))
        world.rest(got, expected)

    assert strike_everywhere(case) == 0, "a receive of what waits runs a line of Python"


@pytest.mark.parametrize("callback", [False, True], ids=["reported", "called back"])
@pytest.mark.parametrize("hand_over", [False, True], ids=["kept", "handed over"])
def test_a_transports_end(world: World, callback: bool, hand_over: bool) -> None:
    def case() -> Case:
        told: list[pykcm.Disconnection] = []
        world.mux.on_disconnect = told.append if callback else None
        near, far = world.connections.new()
        world.mux.attach(near, hand_over=hand_over)
        expected = world.arrive(3)
        far.close()
        got: list[bytes] = []

        def receive() -> None:
            while True:
                got.extend(world.mux.recv_many(timeout=0.001))

        passed((yield receive), TimeoutError)
        assert not world.mux._transports.lock._is_owned(), "held"  # type: ignore[attr-defined]
        reports: list[pykcm.Disconnection] = []
        rounds = 0  # of a millisecond each, or more on a busy host
        while not reports:
            rounds += 1
            assert rounds < 2000, "no end was reported"
            with contextlib.suppress(TimeoutError):
                got += world.mux.recv_many(timeout=0.001)
            reports += world.mux.disconnections()
        assert [(r.tcp, r.reason, r.cut) for r in reports] == [(near, Reason.PEER_CLOSED, 0)]
        if callback:
            assert told == reports
        assert (near.fileno() < 0) == hand_over
        world.rest(got, expected)
        near.close()
        world.mux.on_disconnect = None

    strike(case, 400)


@pytest.mark.parametrize("watched", [False, True], ids=["asked", "waited for"])
def test_reports_of_ends(world: World, watched: bool) -> None:
    def ask() -> list[pykcm.Disconnection]:
        if watched:
            return [world.mux.wait_disconnection(timeout=PATIENCE)]
        return list(world.mux.disconnections())

    def case() -> Case:
        near, far = world.connections.new()
        world.mux.attach(near)
        far.close()
        outcome = yield ask
        passed(outcome)
        reports = [] if isinstance(outcome, Strike) else outcome
        rounds = 0
        while not reports and rounds < 2000:
            reports = ask()
            rounds += 1
            time.sleep(0.001)
        assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
        world.true()
        near.close()

    if watched:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KCMSocket, "recv_disabled", True)
            strike(case, 300)
    else:
        strike(case, 300)


def test_attach_and_unattach(world: World) -> None:
    near, far = world.connections.new()
    options = (socket.SO_OOBINLINE, socket.SO_RCVLOWAT)
    before = [near.getsockopt(socket.SOL_SOCKET, option) for option in options]

    def as_before() -> bool:
        return before == [near.getsockopt(socket.SOL_SOCKET, option) for option in options]

    def attaching() -> Case:
        outcome = yield lambda: world.mux.attach(near)
        passed(outcome)
        if near not in world.mux.transports:
            assert isinstance(outcome, Strike)
            assert as_before()
            world.mux.attach(near)
        world.mux.unattach(near, timeout=PATIENCE)
        assert as_before()
        world.rest([], world.arrive(1))

    def unattaching() -> Case:
        world.mux.attach(near)
        passed((yield lambda: world.mux.unattach(near, timeout=PATIENCE)))
        assert not world.mux._transports.lock._is_owned(), "held"  # type: ignore[attr-defined]
        if near in world.mux.transports:
            world.mux.unattach(near, timeout=PATIENCE)
        assert as_before()
        world.rest([], world.arrive(1))

    with near, far:
        strike(attaching, 300)
        strike(unattaching, 300)
        clone = world.mux.clone()
        strike(unattaching, 300)
        clone.close()


def test_an_unattach_that_is_given_up(world: World) -> None:
    """What goes on was reported as ended, or taken off."""

    def case() -> Case:
        near, far = world.connections.new()
        with near, far:
            world.mux.attach(near)
            far.send(b"x")
            passed((yield lambda: world.mux.unattach(near, timeout=0)), TimeoutError)
            near.recv(1)
            assert list(world.mux.disconnections()) == []
            if near in world.mux.transports:  # or it was struck before it was given up
                far.close()
                reports = [world.mux.wait_disconnection(timeout=PATIENCE)]
                assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
        world.true()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(KCMSocket, "recv_disabled", True)
        strike(case, 300)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clone(world: World) -> None:
    def case() -> Case:
        outcome = yield world.mux.clone
        passed(outcome)
        if isinstance(outcome, KCMSocket):
            outcome.close()
        del outcome
        with contextlib.closing(world.mux.clone()):
            pass
        assert not world.mux._clones.may_receive()
        world.rest([], world.arrive(2))

    strike(case, 60)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_opening_and_closing(world: World) -> None:
    near, far = world.connections.new()

    def closing() -> Case:
        mux = Multiplexor(0)
        mux.attach(near)
        given, peer = world.connections.new()
        mux.attach(given, hand_over=True)
        mux.fileno()
        passed((yield mux.close))
        mux.close()
        assert not mux.transports
        assert mux._transports.watch.closed
        assert given.fileno() < 0
        with peer:
            peer.settimeout(PATIENCE)
            assert peer.recv(1) == b""
        world.mux.attach(near)
        world.mux.unattach(near, timeout=PATIENCE)
        world.true()

    with near, far:
        strike(closing, 100)


def test_a_close_that_was_struck_leaves_others_descriptors_alone(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next close set options on a number that was another's by then."""
    mux = Multiplexor(0)
    near, far = world.connections.new()
    other, peer = world.connections.new()
    with near, far:
        mux.attach(near)
        transport = mux._transports.find(near)
        assert transport
        close = _kernel.Descriptor.close

        def struck(descriptor: _kernel.Descriptor) -> None:
            close(descriptor)
            if descriptor is transport.descriptor:
                raise Strike

        with monkeypatch.context() as patch:
            patch.setattr(_kernel.Descriptor, "close", struck)
            with pytest.raises(Strike):
                mux.close()
        with other, peer:
            os.dup2(other.fileno(), transport.fd)
            other.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
            mux.close()
            os.close(transport.fd)
            assert other.getsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE) == 1


@pytest.mark.parametrize("struck", [False, True])
def test_one_that_was_not_closed_where_warnings_are_errors(world: World, struck: bool) -> None:
    """The warning came before the closing, and left the descriptors open for ever."""
    gc.collect()  # what others left, whose descriptors would go meanwhile
    before = descriptors()
    mux = Multiplexor(0)
    near, far = world.connections.new()
    with near, far:
        mux.attach(near)
        watch = mux._transports.watch
        if struck:
            mux._closed = True
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            del mux
            gc.collect()
        assert watch.closed
    assert descriptors().keys() <= before.keys()


@contextlib.contextmanager
def room_for(descriptors: int) -> Iterator[None]:
    """A descriptor table with room for so many more."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    fillers = [os.open("/dev/null", os.O_RDONLY) for _ in range(descriptors + 8)]
    top = max(fillers) + 1
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, limits[1]))
    holes = []
    while True:
        try:
            holes.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            break
    for fd in fillers[:descriptors]:
        os.close(fd)
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        for fd in fillers[descriptors:] + holes:
            os.close(fd)


@pytest.mark.parametrize(
    "step", ["attach", "unattach beside a clone", "clone", "end", "fileno", "open"]
)
def test_a_full_descriptor_table(world: World, step: str) -> None:
    """The call for which the k-th descriptor fails is refused by name, and works later."""
    near, far = world.connections.new()
    clone = world.mux.clone() if "clone" in step else None
    refused = 0
    gc.collect()  # what others left, whose descriptors would go meanwhile
    for k in range(12):
        before = descriptors()
        if step == "unattach beside a clone":
            world.mux.attach(near)
        elif step == "end":
            near, far = world.connections.new()
            world.mux.attach(near)
            far.close()
            before = descriptors()

        def call(near: socket.socket = near) -> object:
            if step == "attach":
                world.mux.attach(near)
            elif step == "clone":
                world.mux.clone().close()
            elif step == "fileno":
                world.mux.fileno()
            elif step == "open":
                Multiplexor(0).close()
            elif step == "end":
                return list(world.mux.disconnections())
            else:
                world.mux.unattach(near, timeout=PATIENCE)
            return None

        reports: Any = []
        with room_for(k):
            try:
                reports = call()
                done = True
            except pykcm.KCMOSError as error:
                assert error.errno in (errno.EMFILE, errno.ENFILE), error
                done = False
        refused += not done
        if not done:
            reports = call()
        if step == "end":
            assert [report.tcp for report in reports] == [near]
            near.close()
        elif step == "attach":
            world.mux.unattach(near, timeout=PATIENCE)
        if step == "end":
            before = {fd: what for fd, what in before.items() if fd in descriptors()}
        if step != "fileno":
            assert descriptors() == before
        if clone is None:
            world.rest([], world.arrive(1))
        world.true()
    print(f"{refused} times refused")
    near.close()
    far.close()
    if clone:
        clone.close()


@pytest.mark.parametrize("by_task", [False, True], ids=["close", "aclose"])
@pytest.mark.parametrize("multiplexor", [False, True], ids=["KCMSocket", "Multiplexor"])
def test_what_is_queued_is_not_lost_for_want_of_a_descriptor(
    world: World, monkeypatch: pytest.MonkeyPatch, multiplexor: bool, by_task: bool
) -> None:
    """To close waited for nothing then, and threw it away."""
    kcm = Multiplexor(0, queue_unattached=True) if multiplexor else KCMSocket()
    queued = [5000]
    monkeypatch.setattr(_kernel, "memory", lambda fd: (0,) * 5 + (queued[0],) + (0,) * 3)

    async def close() -> None:
        with room_for(0):
            await kcm.aclose(PATIENCE)

    taken = threading.Timer(0.2, lambda: queued.__setitem__(0, 0))
    taken.start()
    if by_task:
        asyncio.run(close())
    else:
        with room_for(0):
            kcm.close(PATIENCE)  # which would warn
    assert queued == [0]
    taken.join()


def test_waiting_to_send_with_a_full_descriptor_table(world: World) -> None:
    with contextlib.suppress(TimeoutError):
        while True:
            world.mux.send(bytes(1000), timeout=0)
    with room_for(0), pytest.raises(TimeoutError):
        world.mux.send(bytes(1000), timeout=0.05)
    with room_for(0):
        space = SendSpace(world.wire.fileno())
        assert space.fileno() < 0
    with space:
        space.clear()  # there is room by now
        assert _kernel.is_readable(space.fileno())


def test_a_request_that_has_to_wait_with_a_full_descriptor_table(world: World) -> None:
    exchange = pykcm.Exchange(world.mux, (0, 4))
    with contextlib.suppress(TimeoutError):
        while True:
            world.mux.send(bytes(1000), timeout=0)
    with room_for(0), pytest.raises(TimeoutError):
        exchange.request(b"1234", timeout=0.05)


def test_closing_twice_when_the_callback_raises(world: World) -> None:
    def callback(disconnection: pykcm.Disconnection) -> None:
        raise Strike

    mux = Multiplexor(0)
    near, far = world.connections.new()
    gc.collect()  # as above
    before = descriptors()
    with near, far:
        mux.attach(near)
        mux.on_disconnect = callback
        far.close()
        with pytest.raises(Strike):
            mux.recv(timeout=1)
        ours = [os.memfd_create("ours") for _ in range(3)]
        inodes = [os.fstat(fd).st_ino for fd in ours]
        mux.close()
        mux.close()
        more = [os.memfd_create("ours") for _ in range(6)]
        inodes += [os.fstat(fd).st_ino for fd in more]
        mux.close()
        mux.socket.close()
        del mux
        gc.collect()
        assert [os.fstat(fd).st_ino for fd in ours + more] == inodes
        for fd in ours + more:
            os.close(fd)
    assert descriptors().keys() <= before.keys()


@pytest.mark.parametrize("interval", [1e-6, 0.005])
def test_two_threads(world: World, interval: float) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        for _ in range(8):
            receive_in_two_threads(world)
    finally:
        sys.setswitchinterval(before)


def receive_in_two_threads(world: World) -> None:
    got: list[list[bytes]] = [[], []]
    count = 4000

    def receive(mine: list[bytes]) -> None:
        while sum(map(len, got)) < count:
            with contextlib.suppress(TimeoutError):
                mine += world.mux.recv_many(7, timeout=0.02)

    threads = [threading.Thread(target=receive, args=(mine,)) for mine in got]
    for thread in threads:
        thread.start()
    expected = []
    ends = []
    for i in range(count // 10):
        expected += world.arrive(10)
        if i % 20 == 0:
            near, far = world.connections.new()
            world.mux.attach(near)
            far.close()
            ends.append(near)
    for thread in threads:
        thread.join()
    assert sorted(got[0] + got[1]) == sorted(expected)
    reports: list[pykcm.Disconnection] = []
    end = time.monotonic() + PATIENCE
    while len(reports) < len(ends) and time.monotonic() < end:
        reports += world.mux.disconnections()
    assert sorted(id(report.tcp) for report in reports) == sorted(map(id, ends))
    world.true()
    for near in ends:
        near.close()


def test_two_tasks_and_cancellations(world: World) -> None:
    async def main() -> None:
        first = asyncio.create_task(world.mux.arecv())
        await asyncio.sleep(0.01)
        with pytest.raises(pykcm.KCMOSError) as info:
            await world.mux.arecv()
        assert info.value.errno == errno.EBUSY
        expected = world.arrive(1)
        assert await first == expected[0]
        got: list[bytes] = []
        expected = []
        for i in range(300):
            task = asyncio.create_task(world.mux.arecv())
            for _ in range(i % 7):
                await asyncio.sleep(0)
            expected += world.arrive(1)
            for _ in range(i % 5):
                await asyncio.sleep(0)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                got.append(await task)
        while len(got) < 300:
            got.append(await world.mux.arecv())
        assert got == expected

    asyncio.run(main())
    world.true()


def test_receiving_in_a_storm(world: World) -> None:
    count = 6000
    expected = [b"%d" % number for number in range(count)]

    def write() -> None:
        for number in range(count):
            world.wire.send(expected[number])

    got: collections.deque[bytes] = collections.deque()
    thread = threading.Thread(target=write)
    with Storm(0.0003) as storm:
        thread.start()
        end = time.monotonic() + PATIENCE
        while len(got) < count and time.monotonic() < end:
            before = len(got)
            # Extended by C alone, so that nothing can come between a call and its result.
            receive = iter(functools.partial(world.mux.recv, timeout=0.05), None)
            try:
                try:
                    storm.armed = True
                    got.extend(receive)
                    storm.armed = False
                except (Strike, TimeoutError):
                    storm.armed = False
            except Strike:  # one more, before the storm was over
                storm.armed = False
            if len(got) > before:
                end = time.monotonic() + PATIENCE
    thread.join()
    print(f"{storm.strikes} strikes")
    assert list(got) == expected
    assert storm.strikes > 10
    world.true()
