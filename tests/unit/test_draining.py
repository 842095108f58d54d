"""An unattach waits for what the kernel has yet to hand over, however late that is.

A thread stands in for the kernel's worker, which takes bytes off TCP and makes messages of them.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pykcm import _draining
from tests.unit.stand_in import PATIENCE, World


@contextlib.contextmanager
def worker(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


def test_a_late_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a busy host it comes late; after 50 ms its messages were left to the caller."""
    assert _draining._SETTLED >= 1
    monkeypatch.setattr(_draining, "_SETTLED", PATIENCE)  # the test's host may be busy too
    world.far.sendall(bytes(216))

    def parse() -> None:
        time.sleep(0.4)
        assert len(world.near.recv(1000)) == 216
        world.wire.send(b"message")

    with worker(parse):
        end = world.mux.unattach(world.near, timeout=PATIENCE)
    assert end.cut == 0
    assert world.mux.recv(timeout=PATIENCE) == b"message"


def test_more_than_are_kept_for_an_owner_that_does_not_receive(world: World) -> None:
    """It may be the only thread: it waited for ever."""
    count = _draining._INBOX + 1000
    world.far.sendall(bytes(216))

    def parse() -> None:
        for number in range(count):
            world.wire.send(b"%d" % number)
            if number % 25 == 0:
                world.near.recv(1)
        world.near.recv(1000)

    world.wire.settimeout(PATIENCE)
    with worker(parse):
        end = world.mux.unattach(world.near, timeout=PATIENCE)
    assert end.cut == 0
    assert [world.mux.recv(timeout=0) for _ in range(count)] == [b"%d" % n for n in range(count)]


def test_the_beginning_of_a_message_is_the_callers(world: World) -> None:
    world.far.sendall(b"\0\0")
    end = world.mux.unattach(world.near, timeout=PATIENCE)
    assert end.cut == 2
    assert world.near.recv(10) == b"\0\0"


def test_what_an_unattach_that_was_given_up_saw_counts_no_more(world: World) -> None:
    world.far.sendall(b"\0\0")
    with pytest.raises(TimeoutError):
        world.mux.unattach(world.near, timeout=0.8)
    start = time.monotonic()
    assert world.mux.unattach(world.near, timeout=PATIENCE).cut == 2
    assert time.monotonic() - start > 0.9
