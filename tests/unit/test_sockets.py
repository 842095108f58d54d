"""A KCM socket's descriptor is taken up, given away, duplicated and closed, without AF_KCM."""

from __future__ import annotations

import os
import socket

import pytest

import pykcm
from pykcm import KCMSocket
from tests.strikes import Case, Strike, strike_everywhere
from tests.unit.stand_in import World

FRAMING = pykcm.FixedLength(3)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("batch", [1, 4])
def test_from_fd_that_raises_leaves_the_descriptor_to_the_caller(world: World, batch: int) -> None:
    """It was closed with the half-made object, and then once more by the caller."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    framing = None if batch == 1 else FRAMING

    def case() -> Case:
        fd = os.dup(ours.fileno())
        outcome = yield lambda: KCMSocket.from_fd(fd, framing=framing, batch=batch)
        if isinstance(outcome, KCMSocket):
            assert outcome._fd() == fd
            outcome.close()
        else:
            assert isinstance(outcome, Strike)
            assert os.path.sameopenfile(fd, ours.fileno())
            os.close(fd)

    with ours, other:
        assert strike_everywhere(case, lines=True) > 20


def test_from_fd_that_refuses_leaves_the_descriptor_to_the_caller(world: World) -> None:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other:
        with pytest.raises(pykcm.ArgumentError):
            KCMSocket.from_fd(ours.fileno(), batch=2)
        other.send(b"still open")
        assert ours.recv(100) == b"still open"
