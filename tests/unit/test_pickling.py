"""KCM sockets given to other processes of multiprocessing; a Unix socket stands in for KCM."""

from __future__ import annotations

import copy
import errno
import gc
import os
import pickle
import sys
from collections.abc import Iterator
from multiprocessing import reduction, resource_sharer

import pytest

from pykcm import Disconnected, KCMOSError
from pykcm.socket import KCMSocket
from tests.children import in_child
from tests.strikes import descriptors
from tests.unit.stand_in import PATIENCE, World, eventually


@pytest.fixture
def world(world: World) -> Iterator[World]:
    yield world
    resource_sharer.stop()


def ticket(kcm: KCMSocket) -> bytes:
    return bytes(reduction.ForkingPickler.dumps(kcm))


def test_a_socket(world: World) -> None:
    kcm = world.mux.socket
    with pickle.loads(ticket(kcm)) as other:
        assert type(other) is KCMSocket
        assert other.max_message_size == kcm.max_message_size
        assert not os.get_inheritable(other.fileno())
        world.wire.send(b"hello")
        assert other.recv(timeout=PATIENCE) == b"hello"


def test_a_clone_learns_of_the_end(world: World) -> None:
    with world.mux.clone() as clone, pickle.loads(ticket(clone)) as other:
        world.wire.send(b"hello")
        assert other.recv(timeout=PATIENCE) == b"hello"
        world.mux.unattach(world.near)
        with pytest.raises(Disconnected):
            other.recv(timeout=PATIENCE)


def test_no_descriptor_is_left(world: World) -> None:
    with world.mux.clone() as clone:
        with pickle.loads(ticket(clone)):  # what the standard library starts for it
            pass
        gc.collect()  # what other tests have left may be closed meanwhile
        # One of the standard library's, which its thread closes when it has answered, may be among
        # them; so it takes several to see.
        before = len(descriptors())
        for _ in range(4):
            with pickle.loads(ticket(clone)):
                pass
        eventually(lambda: len(descriptors()) <= before)


def test_it_serves_once(world: World) -> None:
    data = ticket(world.mux.socket)
    with pickle.loads(data), pytest.raises(KCMOSError, match="serves once"):
        pickle.loads(data)


def test_what_cannot_be_pickled(world: World) -> None:
    for attempt in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match=r"cannot pickle 'KCMSocket'.*from_fd"):
            attempt(world.mux.socket)
    with pytest.raises(TypeError, match="give others a clone"):
        pickle.dumps(world.mux)


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root, to become another user")
def test_in_a_process_of_another_user(world: World) -> None:
    data = ticket(world.mux.socket)

    def unpickle() -> None:
        os.setuid(65534)
        with pytest.raises(KCMOSError, match="the KCM socket was not handed over") as info:
            pickle.loads(data)
        assert info.value.errno == errno.EACCES

    in_child(unpickle)


def test_nothing_is_imported_for_it() -> None:
    code = "import sys, pykcm.socket; assert 'multiprocessing' not in sys.modules"
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", code]) == 0


@pytest.mark.parametrize("step", ["pykcm._kernel.get_integer", "os.dup2"])
def test_one_that_cannot_be_made_anew_leaves_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """The number that had come belonged to nobody."""

    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError(step)

    pickle.loads(ticket(world.mux.socket)).close()  # what the standard library starts for it
    tickets = [ticket(world.mux.socket) for _ in range(4)]
    gc.collect()
    before = len(descriptors())  # with those of the tickets
    with monkeypatch.context() as patch:
        patch.setattr(step, fail)
        for data in tickets:
            with pytest.raises(RuntimeError):
                pickle.loads(data)
    eventually(lambda: len(descriptors()) <= before - len(tickets))
