"""Super messages, divided and joined by either path; a Unix socket stands in for the KCM socket."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import os
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import ModuleType
from typing import Any
from unittest.mock import Mock

import pytest

import pykcm
from pykcm import FramingDefinitionError, KCMSocket, _kernel, _loopback
from pykcm._attaching import Attaching
from pykcm.framing import Delimiter, FixedLength, Framing, LengthField
from tests.children import in_child
from tests.strikes import alarms
from tests.unit.port_owner import PATHS, own
from tests.unit.stand_in import PATIENCE, stand_in
from tests.unit.starving import Case, each_allocation_fails

FRAMING = LengthField(size=2, max_length=70_000)
LONGEST = 70_003
SEED = 20261126
PATH = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.__name__.rpartition("_")[2])
BATCHES = pytest.mark.parametrize("batch", [1, 7, 64])


def message(size: int, byte: bytes = b"x") -> bytes:
    return size.to_bytes(2, "big") + byte * size


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seqpacket"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, request.param)
    with ours, theirs:
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
            end.settimeout(5)
        yield ours, theirs


def divider(path: ModuleType, ours: socket.socket, batch: int, framing: Framing = FRAMING) -> Any:
    owner = own(path, ours, LONGEST)
    owner._port.set_rule(framing.memory_program(), batch)
    return owner


@PATH
@BATCHES
def test_what_comes_joined_is_divided(path: ModuleType, pair: Any, batch: int) -> None:
    owner = divider(path, pair[0], batch)
    rng = random.Random(f"{SEED} {batch}")
    for _ in range(60):
        sent = []
        for _ in range(rng.randint(1, 3)):
            joined = [
                message(rng.choice([0, 1, 9, 300, 9000]), rng.randbytes(1))
                for _ in range(rng.randint(1, batch) if batch < 64 else rng.choice([1, 64]))
            ]
            while sum(map(len, joined)) > LONGEST - 3:
                joined.pop()
            pair[1].send(b"".join(joined))
            sent += joined
        got: list[bytes] = []
        while len(got) < len(sent):
            if rng.random() < 0.5:
                got.append(owner.recv(timeout=1))
            else:
                got += owner.recv_many(rng.randint(1, 70), timeout=1)
        assert got == sent, SEED
        assert owner._port.held == 0


@PATH
def test_long_messages_come_alone_and_then_do_not(path: ModuleType, pair: Any) -> None:
    """Of a length that has come twice an object is made beforehand; it may have to be divided."""
    owner = divider(path, pair[0], 7)
    long = [message(8998, b"%d" % n) for n in range(5)]
    for each in long[:4]:
        pair[1].send(each)
        assert owner.recv(timeout=1) == each
    parts = [message(2998, b"%d" % n) for n in range(3)]
    for several in (parts, [message(0)] * 4500, long[4:]):
        pair[1].send(b"".join(several))
        got = owner.recv_many(10, timeout=1)
        while len(got) < len(several):
            got += owner.recv_many(timeout=0)
        assert got == several
        pair[1].send(long[0])
        assert owner.recv(timeout=1) == long[0]
        pair[1].send(long[1])
        assert owner.recv(timeout=1) == long[1]


@PATH
def test_each_way_to_receive(path: ModuleType, pair: Any) -> None:
    owner = divider(path, pair[0], 64)
    sent = [message(n) for n in range(9)]
    pair[1].send(b"".join(sent))
    buffer = bytearray(10)
    assert owner.recv(None, socket.MSG_PEEK) == sent[0]
    assert owner.recv() == sent[0]
    assert owner.recv_into(buffer) == 3
    assert owner.recvfrom(1)[0] == sent[2]
    assert owner.recv_many(2) == sent[3:5]

    async def main() -> Any:
        return [await owner.arecv(), *await owner.arecv_many(2), *[m async for m in _two(owner)]]

    assert asyncio.run(main()) == sent[5:]


async def _two(owner: Any) -> Any:
    yield await owner.arecv()
    # nothing is left after it
    with pytest.raises(BlockingIOError):
        owner.recv(None, socket.MSG_DONTWAIT)


@PATH
def test_what_the_rule_does_not_divide_is_named(path: ModuleType, pair: Any) -> None:
    owner = divider(path, pair[0], 7)
    pair[1].send(message(3) + b"\xff\xffno")
    pair[1].send(message(1))
    assert owner.recv() == message(3)
    with pytest.raises(pykcm.MessageTruncated) as caught:
        owner.recv()
    assert caught.value.errno == errno.EBADMSG
    assert caught.value.message == b"\xff\xffno"
    assert owner.recv() == message(1)


@PATH
@BATCHES
def test_send_many_joins(path: ModuleType, pair: Any, batch: int) -> None:
    owner = divider(path, pair[0], batch)
    sent = [message(n % 50) for n in range(150)] + [message(60_000), message(9), message(4096)]
    joined: list[bytes] = []
    for first in range(0, len(sent), 5):  # a Unix socket takes few at a time
        some = sent[first : first + 5]
        assert owner.send_many(some) == owner._port.sent_many == len(some)
        while sum(map(len, joined)) < sum(map(len, sent[: first + 5])):
            joined.append(pair[1].recv(1 << 17))
    assert b"".join(joined) == b"".join(sent)
    assert all(one in sent for one in joined if len(one) > 4096)
    assert len(joined) == len(sent) if batch == 1 else len(joined) < len(sent) // 4


@PATH
def test_send_many_counts_messages_when_there_is_no_room(path: ModuleType, pair: Any) -> None:
    owner = divider(path, pair[0], 7)
    sent = [b"\0\1%c" % (n % 256) for n in range(20_000)]
    count = owner.send_many(sent, timeout=0)
    assert 0 < count < len(sent)
    assert count == owner._port.sent_many
    pair[1].settimeout(0)
    came = bytearray()
    while True:
        try:
            came += pair[1].recv(1 << 17)
        except BlockingIOError:
            break
    assert came == b"".join(sent[:count])


@PATH
def test_want_of_memory_loses_nothing(path: ModuleType, pair: Any) -> None:
    if path.__name__.endswith("_slowpath"):
        pytest.skip("the slow path has lines of Python between a message and its caller")

    def case() -> Case:
        owner = divider(path, pair[0], 64)
        sent = [message(500, b"%d" % (n % 10)) for n in range(80)]
        pair[1].send(b"".join(sent[:40]))
        pair[1].send(b"".join(sent[40:]))
        got = (yield owner.recv_many) or []
        while len(got) < len(sent):
            got += owner.recv_many(timeout=0)
        assert got == sent
        assert not owner._port.held

    each_allocation_fails(120, case)


def test_what_came_under_a_rule_is_divided_by_it(pair: Any) -> None:
    """A MemoryError leaves the middle of a super message, and then an attach fails."""
    if PATHS[0].__name__.endswith("_slowpath"):
        pytest.skip("the fast path is not here")

    def case() -> Case:
        owner = divider(PATHS[0], pair[0], 64)
        sent = [message(500, b"%d" % (n % 10)) for n in range(9)]
        pair[1].send(b"".join(sent))
        got = (yield owner.recv_many) or []
        owner._port.set_rule(None, 0)
        while len(got) < len(sent) and owner._port.held:
            got += owner.recv_many(timeout=0)
        owner._port.set_rule(FRAMING.memory_program(), 64)
        while len(got) < len(sent):
            got += owner.recv_many(timeout=0)
        assert got == sent
        assert not owner._port.held

    each_allocation_fails(60, case)


def test_a_rule_has_to_be_one() -> None:
    for path in PATHS:
        port = path.Port(-1, False, 10)
        for rule in (b"", b"x", b"\xff" * 16):
            with pytest.raises(ValueError, match=r"not a rule|instructions"):
                port.set_rule(rule, 7)
        assert port.rule is None
        for framing in (FixedLength(3), Delimiter(b"\n")):
            port.set_rule(framing.memory_program(), 7)
            assert port.rule == framing.memory_program()


# ---- KCMSocket, on the stand-in ----


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[KCMSocket, socket.socket]]:
    """A KCM socket that divides, and the far end of what stands in for its descriptor."""
    stand_in(monkeypatch)
    ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, wire, KCMSocket() as kcm:
        os.dup2(ours.fileno(), kcm.fileno(), inheritable=False)
        kcm._divide_by(FRAMING.memory_program(), 64)
        yield kcm, wire


def readable(kcm: KCMSocket) -> bool:
    return bool(select.select([kcm], [], [], 0)[0])


def test_select_sees_what_waits_in_the_object(wired: Any) -> None:
    kcm, wire = wired
    assert not readable(kcm)
    wire.send(message(1) * 3)
    assert readable(kcm)
    assert kcm.recv() == message(1)
    assert readable(kcm)
    assert kcm.recv_many() == [message(1)] * 2
    assert not readable(kcm)


# What strikes the __del__ of garbage, Python itself can but report.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_select_sees_what_an_exception_left(wired: Any) -> None:
    """A handler's exception strikes when messages are in the object and none was returned."""
    kcm, wire = wired
    assert not readable(kcm)

    def strike(*_: object) -> None:
        raise RuntimeError

    def receive() -> None:  # a loop of its own: see test_jumps.py
        while kcm.recv_many(1, timeout=9):
            pass  # a signal just before poll(2) waits for a second

    with alarms(strike):
        for i in range(100):
            wire.send(message(1) * 2)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i % 40))
                receive()
            except RuntimeError:
                pass
            assert readable(kcm) == bool(kcm._port.held or _waits(kcm)), i
            while kcm._port.held or _waits(kcm):
                kcm.recv_many()


def _waits(kcm: KCMSocket) -> bool:
    return bool(select.select([kcm._fd()], [], [], 0)[0])


def test_a_dropped_socket_is_closed(wired: Any) -> None:
    kcm, wire = wired
    with kcm.dup() as other:
        wire.send(message(1) * 3)
        assert other.recv() == message(1)
        fd = other._fd()
        with pytest.warns(pykcm.UnreadWarning, match="2 messages"):
            other.close()
        assert other.fileno() == -1
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)
    with pytest.raises(pykcm.KCMOSError, match="EBADF"):
        other.recv(timeout=0)
    other = kcm.dup()
    wire.send(message(1) * 3)
    assert other.recv() == message(1)
    fd = other._fd()
    with pytest.warns((pykcm.UnreadWarning, ResourceWarning)):
        del other
        gc.collect()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(fd)


def test_a_descriptor_that_was_closed_is_not_told(wired: Any) -> None:
    kcm, wire = wired
    other = kcm.dup()
    assert not readable(other)
    wire.send(message(1) * 3)
    assert other.recv() == message(1)
    with pytest.warns(pykcm.UnreadWarning):
        fd = other.detach()
    assert other._port.told == -1
    os.close(fd)


def test_a_fork_shares_no_telling(wired: Any) -> None:
    kcm, wire = wired
    assert not readable(kcm)
    wire.send(message(1) * 3)
    assert kcm.recv() == message(1)

    def look() -> None:
        assert not readable(kcm)
        with contextlib.suppress(TimeoutError):
            kcm.recv(timeout=0)
        wire.send(message(2) * 2)  # to the parent's end as well; one of the two takes it
        assert kcm.recv(timeout=5) == message(2)
        assert readable(kcm)

    in_child(look)
    assert readable(kcm)
    assert kcm.recv_many() == [message(1)] * 2
    assert not readable(kcm)


def test_a_batch_after_a_fork_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    near, far = _loopback.connection()
    with near, far, KCMSocket() as kcm:
        in_child(lambda: None)
        with pytest.raises(pykcm.ArgumentError, match="fork"):
            kcm._attaching.divide(kcm._port, FRAMING, 7)


def test_a_failed_attach_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)

    def refuse(*_: object) -> None:
        raise OSError(errno.EALREADY, "attached already")

    monkeypatch.setattr(_kernel, "attach", refuse)
    monkeypatch.setattr("pykcm._attaching.Attaching.delineate", lambda *_: (-1, 1000))
    near, far = _loopback.connection()
    with near, far, KCMSocket() as kcm:
        for framing, batch in ((FRAMING, 7), (FixedLength(3), 9), (FixedLength(4), 1)):
            with pytest.raises(pykcm.AttachError):
                kcm.attach(near, framing, batch=batch)
            assert kcm._port.rule is None
            assert not kcm._attaching._delineations


@pytest.mark.parametrize("batch", [True, 1.0])
def test_a_batch_that_equals_one_but_is_none(batch: int) -> None:
    framing = LengthField()
    attaching = Attaching()
    attaching._program = framing, 1, Mock()  # as of a connection that was attached with 1
    with pytest.raises(FramingDefinitionError):
        attaching.delineate(framing, batch)


def test_two_threads_and_a_task_find_what_another_left(wired: Any) -> None:
    kcm, wire = wired

    async def main() -> bytes:
        waiting = asyncio.create_task(_receive(kcm))
        await asyncio.sleep(0.05)
        wire.send(message(1) + message(2) + message(3))
        assert kcm.recv(timeout=1) == message(1)
        return await asyncio.wait_for(waiting, PATIENCE)

    assert asyncio.run(main()) == message(2)
    got: list[bytes] = []
    # Without a time-out, at the end of which it would find it anyhow.
    thread = threading.Thread(target=lambda: got.append(kcm.recv()), daemon=True)
    assert kcm.recv() == message(3)
    thread.start()
    time.sleep(0.2)
    wire.send(message(4) * 64)
    kcm.recv_many(63, timeout=PATIENCE)
    thread.join(PATIENCE)
    assert got == [message(4)]


async def _receive(kcm: KCMSocket) -> bytes:
    return await kcm.arecv()
