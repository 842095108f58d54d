"""An exception may strike at any line, and nothing is lost, doubled, leaked or reported twice.

Each case is struck at every line of pykcm's that its call runs through, and goes on after it;
tests/unit/test_interruptions.py has the same at every bytecode, which takes long on a slow kernel.
"""

from __future__ import annotations

import collections
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest

import pykcm
from pykcm import Reason
from tests.strikes import Case, Strike

from .connections import PATIENCE, deliver, message
from .interrupted import TYPES, Full, World, passed, strike

# What strikes a __del__, Python itself can but report.
pytestmark = [
    pytest.mark.timeout(10 * PATIENCE),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=TYPES, ids=["dgram", "seqpacket"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with contextlib.closing(World(request.param)) as world:
        yield world


@pytest.fixture
def dgram() -> Iterator[World]:
    with contextlib.closing(World()) as world:
        yield world


def test_recv(dgram: World) -> None:
    def case() -> Case:
        expected = dgram.arrive(3)
        dgram.look()
        got: list[bytes] = []
        outcome = yield lambda: got.append(dgram.mux.recv(timeout=PATIENCE))
        passed(outcome)
        dgram.rest(got, expected)

    strike(case, 0)  # no line of Python: see tests/unit/test_interruptions.py


def test_recv_many(dgram: World) -> None:
    def case() -> Case:
        expected = dgram.arrive(3)
        dgram.look()
        got: list[bytes] = []
        outcome = yield lambda: got.extend(dgram.mux.recv_many(timeout=PATIENCE))
        passed(outcome)
        dgram.rest(got, expected)

    strike(case, 0)  # no line of Python: see tests/unit/test_interruptions.py


def test_recv_without_a_message(dgram: World) -> None:
    def case() -> Case:
        dgram.look()
        outcome = yield lambda: dgram.mux.recv(timeout=0.001)
        passed(outcome, TimeoutError)
        dgram.rest([], [])
        dgram.rest([], dgram.arrive(1))

    strike(case, 0)  # no line of Python: see tests/unit/test_interruptions.py


@pytest.mark.parametrize("callback", [False, True], ids=["reported", "called back"])
@pytest.mark.parametrize("hand_over", [False, True], ids=["kept", "handed over"])
def test_a_transports_end(dgram: World, callback: bool, hand_over: bool) -> None:
    def case() -> Case:
        told: list[pykcm.Disconnection] = []
        dgram.mux.on_disconnect = told.append if callback else None
        near, far = dgram.connections.new()
        dgram.mux.attach(near, hand_over=hand_over)
        expected = dgram.arrive(3, far)
        far.close()
        got: list[bytes] = []

        def receive() -> None:
            while True:
                got.extend(dgram.mux.recv_many(timeout=0.01))

        outcome = yield receive
        passed(outcome, TimeoutError)
        assert not dgram.mux._transports.lock._is_owned()  # type: ignore[attr-defined]
        reports: list[pykcm.Disconnection] = []
        end = time.monotonic() + PATIENCE
        while not reports:
            assert time.monotonic() < end, "no end was reported"
            with contextlib.suppress(TimeoutError):
                got += dgram.mux.recv_many(timeout=0.02)
            reports += dgram.mux.disconnections()
        assert [(r.tcp, r.reason, r.cut) for r in reports] == [(near, Reason.PEER_CLOSED, 0)]
        if callback:
            assert told == reports
        assert (near.fileno() < 0) == hand_over
        dgram.rest(got, expected)
        near.close()
        dgram.mux.on_disconnect = None

    strike(case, 50)


def test_wait_disconnection(dgram: World) -> None:
    def case() -> Case:
        near, far = dgram.connections.new()
        dgram.mux.attach(near)
        dgram.mux.socket.recv_disabled = True
        far.close()
        outcome = yield lambda: dgram.mux.wait_disconnection(timeout=PATIENCE)
        passed(outcome)
        reports = [outcome] if isinstance(outcome, pykcm.Disconnection) else []
        end = time.monotonic() + PATIENCE
        while not reports and time.monotonic() < end:
            reports.append(dgram.mux.wait_disconnection(timeout=PATIENCE))
        assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
        dgram.true()
        near.close()
        dgram.mux.socket.recv_disabled = False

    strike(case, 50)


def test_disconnections(dgram: World) -> None:
    def case() -> Case:
        near, far = dgram.connections.new()
        dgram.mux.attach(near)
        far.close()
        reports: collections.deque[pykcm.Disconnection] = collections.deque()
        outcome = yield lambda: reports.extend(dgram.mux.disconnections())
        passed(outcome)
        end = time.monotonic() + PATIENCE
        while not reports and time.monotonic() < end:
            reports.extend(dgram.mux.disconnections())
        assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
        dgram.rest([], [])
        near.close()

    strike(case, 37)


def test_attach(world: World) -> None:
    near, far = world.connections.new()
    far.settimeout(PATIENCE)
    before = [near.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_OOBINLINE, 18)]

    def case() -> Case:
        expected = world.messages(2)
        far.sendall(b"".join(expected))
        outcome = yield lambda: world.mux.attach(near)
        passed(outcome)
        got: list[bytes] = []
        if near not in world.mux.transports:
            assert isinstance(outcome, Strike)
            assert [
                near.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_OOBINLINE, 18)
            ] == before
            world.mux.attach(near)
        while len(got) < 2:
            got += world.mux.recv_many(timeout=PATIENCE)
        world.mux.send(message(b"hither"))
        world.mux.flush(PATIENCE)
        world.mux.unattach(near, timeout=PATIENCE)
        assert [near.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_OOBINLINE, 18)] == before
        world.rest(got, expected)

    with near, far:
        strike(case, 37)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a clone"])
def test_unattach(dgram: World, beside: bool) -> None:
    near, far = dgram.connections.new()
    clone = dgram.mux.clone() if beside else None

    def case() -> Case:
        dgram.mux.attach(near)
        expected = dgram.messages(2)
        deliver(far, near, b"".join(expected))
        outcome = yield lambda: dgram.mux.unattach(near, timeout=PATIENCE)
        passed(outcome)
        assert not dgram.mux._transports.lock._is_owned()  # type: ignore[attr-defined]
        if near in dgram.mux.transports:
            dgram.mux.unattach(near, timeout=PATIENCE)
        got: list[bytes] = []
        end = time.monotonic() + PATIENCE
        while len(got) < 2 and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                got += dgram.mux.recv_many(timeout=0.001)
            if clone:
                with contextlib.suppress(TimeoutError):
                    got += clone.recv_many(timeout=0.001)
        assert sorted(got) == sorted(expected)
        dgram.true()

    with near, far:
        strike(case, 50)
        if clone:
            clone.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clone(world: World) -> None:
    def case() -> Case:
        outcome = yield world.mux.clone
        passed(outcome)
        if isinstance(outcome, pykcm.KCMSocket):
            outcome.close()
        del outcome
        with contextlib.closing(world.mux.clone()):
            pass
        assert not world.mux._clones.may_receive()
        world.rest([], world.arrive(2))

    strike(case, 12)


@pytest.mark.parametrize("many", [False, True], ids=["send", "send_many"])
def test_send(world: World, many: bool) -> None:
    def case() -> Case:
        world.look()
        messages = world.messages(3)

        def send() -> None:
            if many:
                world.mux.send_many(messages)
            else:
                world.mux.send(messages[0])

        outcome = yield send
        passed(outcome)
        if isinstance(outcome, Strike):
            done = world.mux.sent_many if many else 0
        else:
            done = len(messages) if many else 1
        world.mux.send_many(messages[done:])
        data = b"".join(messages)
        came = b""
        while len(came) < len(data):
            came += world.far.recv(len(data) - len(came))
        assert came == data
        world.true()

    strike(case, 0)  # no line of Python


def test_send_that_has_to_wait(world: World) -> None:
    full = Full(world)
    one = message(b"once" + bytes(20_000))

    def case() -> Case:
        outcome = yield lambda: world.mux.send(one, timeout=0.001)
        passed(outcome, TimeoutError)
        assert isinstance(outcome, (Strike, TimeoutError))
        world.true()

    strike(case, 12)
    thread = threading.Thread(target=full.read, args=([one],))
    thread.start()
    world.mux.send(one, timeout=PATIENCE)
    thread.join()


def test_flush(world: World) -> None:
    full = Full(world)

    def case() -> Case:
        outcome = yield lambda: world.mux.flush(timeout=0.001)
        passed(outcome, TimeoutError)
        world.true()

    strike(case, 18)
    thread = threading.Thread(target=full.read, args=([],))
    thread.start()
    world.mux.flush(timeout=PATIENCE)
    thread.join()
