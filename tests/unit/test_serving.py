"""Sockets that Linux has passed by see to it that they are served; see Messages._serve_again."""

from __future__ import annotations

import asyncio
import os

import pytest

from pykcm import Disconnected
from pykcm._messages import Messages
from pykcm.socket import KCMSocket
from tests.unit.stand_in import PATIENCE, World


class Forgetful:
    """A kernel that hands a message over only where it is asked to serve again."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self._world = world
        self.waiting = [b"kept back"]
        monkeypatch.setattr(Messages, "_serve_again", lambda kcm: self._serve_again())

    def _serve_again(self) -> None:
        while self.waiting:
            self._world.wire.send(self.waiting.pop())


@pytest.fixture
def kernel(world: World, monkeypatch: pytest.MonkeyPatch) -> Forgetful:
    return Forgetful(world, monkeypatch)


def test_while_it_waits(world: World, kernel: Forgetful) -> None:
    assert world.mux.recv(timeout=PATIENCE) == b"kept back"


def test_while_a_clone_waits(world: World, kernel: Forgetful) -> None:
    with world.mux.clone() as clone:
        assert clone.recv(timeout=PATIENCE) == b"kept back"


def test_while_a_socket_waits_that_no_multiplexor_made(world: World, kernel: Forgetful) -> None:
    with KCMSocket.from_fd(os.dup(world.mux.socket.fileno())) as kcm:
        assert kcm.recv(timeout=PATIENCE) == b"kept back"


def test_while_a_task_waits(world: World, kernel: Forgetful) -> None:
    async def main() -> None:
        with world.mux.clone() as clone:
            assert await asyncio.wait_for(world.mux.arecv(), PATIENCE) == b"kept back"
            kernel.waiting.append(b"another")
            assert await asyncio.wait_for(clone.arecv(), PATIENCE) == b"another"

    asyncio.run(main())


def test_before_the_end_is_believed(world: World, kernel: Forgetful) -> None:
    world.far.close()
    assert world.mux.recv(timeout=PATIENCE) == b"kept back"
    with pytest.raises(Disconnected):
        world.mux.recv(timeout=PATIENCE)


def test_before_a_clone_believes_the_end(world: World, kernel: Forgetful) -> None:
    with world.mux.clone() as clone:
        world.mux._clones.tell(True)
        assert clone.recv(timeout=PATIENCE) == b"kept back"
        with pytest.raises(Disconnected):
            clone.recv(timeout=PATIENCE)
