"""As test_interruptions.py: opening, closing, and a KCMSocket's own calls."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator

import pytest

import pykcm
from pykcm import Multiplexor
from tests.strikes import Case, Strike

from .connections import PATIENCE, eventually
from .interrupted import TYPES, World, passed, strike

# What strikes a __del__, Python itself can but report.
pytestmark = [
    pytest.mark.timeout(10 * PATIENCE),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=TYPES, ids=["dgram", "seqpacket"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with contextlib.closing(World(request.param)) as world:
        yield world


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_opening_and_closing(world: World) -> None:
    near, far = world.connections.new()

    def opening() -> Case:
        outcome = yield lambda: Multiplexor(world.program, type=world.type)
        passed(outcome)
        if isinstance(outcome, Multiplexor):
            outcome.close()

    def closing() -> Case:
        mux = Multiplexor(world.program, type=world.type)
        mux.attach(near)
        mux.fileno()
        outcome = yield mux.close
        passed(outcome)
        mux.close()
        # It is the caller's again: so it can be attached.
        world.mux.attach(near)
        world.mux.unattach(near, timeout=PATIENCE)
        world.true()

    with near, far:
        strike(opening, 25)
        strike(closing, 18)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_sockets_attach_clone_and_close(world: World) -> None:
    near, far = world.connections.new()

    def attaching() -> Case:
        kcm = pykcm.KCMSocket(world.type)
        outcome = yield lambda: kcm.attach(near, world.program)
        passed(outcome)
        with contextlib.suppress(pykcm.AttachError):
            kcm.attach(near, world.program)
        kcm.unattach(near)
        kcm.close()

    def unattaching() -> Case:
        with pykcm.KCMSocket(world.type) as kcm:
            kcm.attach(near, world.program)
            outcome = yield lambda: kcm.unattach(near)
            passed(outcome)
            with contextlib.suppress(pykcm.AttachError):
                kcm.unattach(near)
            kcm.attach(near, world.program)
            kcm.unattach(near)

    def cloning() -> Case:
        outcome = yield world.mux.socket.clone
        passed(outcome)
        if isinstance(outcome, pykcm.KCMSocket):
            outcome.close()
        del outcome

    def duplicating() -> Case:
        with pykcm.KCMSocket(world.type) as kcm:
            outcome = yield kcm.dup
            passed(outcome)
            if isinstance(outcome, pykcm.KCMSocket):
                outcome.close()
            del outcome

    def closing() -> Case:
        kcm = pykcm.KCMSocket(world.type)
        outcome = yield kcm.close
        passed(outcome)
        kcm.close()

    with near, far:
        for case in (attaching, unattaching, cloning, duplicating, closing):
            strike(case, 3)


def test_a_sockets_receives_and_send(world: World) -> None:
    near, far = world.connections.new()
    far.settimeout(PATIENCE)
    kcm = pykcm.KCMSocket(world.type)
    kcm.attach(near, world.program)
    kcm.settimeout(PATIENCE)
    room = bytearray(100)

    def receiving(receive: Callable[[], bytes]) -> Case:
        expected = world.messages(2)
        far.sendall(b"".join(expected))
        eventually(lambda: pykcm._kernel.is_readable(kcm.fileno()))
        got = []
        outcome = yield receive
        passed(outcome)
        if not isinstance(outcome, Strike):
            got.append(outcome)
        while len(got) < 2:
            got.append(kcm.recv())
        assert got == expected

    def into() -> bytes:
        return bytes(room[: kcm.recv_into(room)])

    def sending() -> Case:
        one = world.messages(1)[0]
        outcome = yield lambda: kcm.send(one)
        passed(outcome)
        if isinstance(outcome, Strike):
            kcm.send(one)
        assert far.recv(100) == one

    with near, far, kcm:
        strike(functools.partial(receiving, into), 2)
        strike(functools.partial(receiving, lambda: kcm.recvmsg(100)[0]), 2)
        strike(functools.partial(receiving, kcm.recv), 0)
        strike(sending, 0)
