"""Transports that end while others are busy: nothing lost, nothing out of order, and no hang."""

from __future__ import annotations

import contextlib
import itertools
import os
import resource
import select
import signal
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

import pykcm
from pykcm import Multiplexor, Reason, _kernel, _loopback, bpf
from pykcm._draining import Drain

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    deliver,
    ended,
    eventually,
    message,
    mostly_waiting,
    parsed,
)
from .test_privileges import as_nobody


@pytest.fixture
def mux() -> Iterator[Multiplexor]:
    with Multiplexor(FRAMING) as multiplexor:
        yield multiplexor


@contextlib.contextmanager
def flood(pause: float = 0.0) -> Iterator[socket.socket]:
    """A connection over which another process sends numbered messages without end."""
    near, far = _loopback.connection()
    with near:
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(100)  # should nobody end it
                near.close()
                for first in itertools.count(0, 20):
                    numbers = range(first, first + 20)
                    far.sendall(b"".join(message(struct.pack(">Q", n)) for n in numbers))
                    time.sleep(pause)
            finally:
                os._exit(0)
        far.close()
        try:
            yield near
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def end_connection(mux: Multiplexor, *, cut: bool) -> None:
    """Attach a connection that brings one message, or half of one too, and ends."""
    near, far = _loopback.connection()
    mux.attach(near, hand_over=True)
    with far:
        far.sendall(message(b"short"))
        if cut:
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            far.sendall(message(bytes(1000))[:500])
            time.sleep(0.02)
            far.sendall(b"more")


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
@pytest.mark.parametrize("pause", [0.0, 0.002], ids=["full", "busy"])
def test_a_busy_transport_keeps_its_order_while_others_end(
    mux: Multiplexor, pause: float, cut: bool
) -> None:
    with flood(pause) as busy:
        mux.attach(busy)
        expected = ended = short = 0
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline or mux.transports != [busy]:
            if mux.transports == [busy]:
                end_connection(mux, cut=cut)
                ended += 1
            for received in mux.recv_many(timeout=PATIENCE):
                if received == message(b"short"):
                    short += 1
                else:
                    assert received == message(struct.pack(">Q", expected))
                    expected += 1
        assert time.monotonic() < deadline + PATIENCE
        while short < ended:
            short += mux.recv_many(timeout=PATIENCE).count(message(b"short"))
        assert short == ended >= 2
        assert [report.reason for report in mux.disconnections()] == [Reason.PEER_CLOSED] * ended


def test_detaching_a_transport_that_never_pauses(mux: Multiplexor) -> None:
    with flood() as busy:
        mux.attach(busy)
        before = [mux.recv(timeout=PATIENCE) for _ in range(100)]
        mux.unattach(busy)
        assert mux.transports == []
        after = []
        with contextlib.suppress(pykcm.Disconnected):
            while True:
                after.append(mux.recv(timeout=PATIENCE))
        # What came before the call is there, without a gap.
        assert before + after == [
            message(struct.pack(">Q", n)) for n in range(len(before) + len(after))
        ]


@pytest.fixture
def pair(mux: Multiplexor) -> Iterator[Pair]:
    near, far = _loopback.connection()
    with near, far:
        mux.attach(near)
        yield near, far


def readable(mux: Multiplexor, timeout: float) -> bool:
    return bool(select.select([mux], [], [], timeout)[0])


class TestFileno:
    """What an event loop sees that calls `recv` once each time that the multiplexor is readable."""

    def test_messages_that_came_together(self, mux: Multiplexor, pair: Pair) -> None:
        sent = [message(bytes([n])) for n in range(10)]
        pair[1].sendall(b"".join(sent))
        received = []
        for _ in sent:
            assert readable(mux, PATIENCE)
            received.append(mux.recv(timeout=0))
        assert received == sent
        assert not readable(mux, 0.2)
        pair[1].sendall(sent[0])
        assert readable(mux, PATIENCE)

    def test_what_an_ended_transport_left(self, mux: Multiplexor, pair: Pair) -> None:
        sent = [message(bytes([n])) for n in range(10)]
        pair[1].sendall(b"".join(sent))
        pair[1].close()
        eventually(lambda: ended(pair[0]))
        received = []
        with pytest.raises(pykcm.Disconnected):
            while True:
                assert readable(mux, PATIENCE)
                with contextlib.suppress(TimeoutError):
                    received.append(mux.recv(timeout=0))
        assert received == sent
        # Once it was told, an event loop that goes on would spin.
        assert not readable(mux, 0.2)
        new_near, new_far = _loopback.connection()
        with new_near, new_far:
            mux.attach(new_near)
            assert not readable(mux, 0.2)
            mux.unattach(new_near)


class TestWhatIsRaisedOnTheWay:
    def test_by_the_callers_function(self, mux: Multiplexor) -> None:
        """Neither messages nor the ends of other transports are lost by it."""
        sent = []
        for number in range(3):
            near, far = _loopback.connection()
            mux.attach(near, hand_over=True)
            with far:
                sent += [message(bytes([number, n])) for n in range(200)]
                far.sendall(b"".join(sent[-200:]))
            eventually(lambda near=near: ended(near))  # type: ignore[misc]
        told = []

        def refuse(report: pykcm.Disconnection) -> None:
            told.append(report)
            raise LookupError("not today")

        mux.on_disconnect = refuse
        received = []
        raised = 0
        while True:
            try:
                received += mux.recv_many(timeout=PATIENCE)
            except LookupError:
                raised += 1
            except pykcm.Disconnected:
                break
        assert sorted(received) == sent
        assert raised == len(told) == len(list(mux.disconnections())) == 3

    def test_by_the_kernel(
        self, mux: Multiplexor, pair: Pair, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A transport that could not be drained is still there to be."""
        pair[1].sendall(message(b"last"))
        pair[1].close()
        eventually(lambda: ended(pair[0]))
        real = Drain.advance
        failures = iter([OSError(24, "too many open files")])

        def advance(*arguments: Any) -> Any:
            for failure in failures:
                raise failure
            return real(*arguments)

        monkeypatch.setattr(Drain, "advance", advance)
        received = []
        with pytest.raises(OSError, match="too many"):
            received.append(mux.recv(timeout=PATIENCE))
            mux.recv(timeout=PATIENCE)
        assert mux.transports == [pair[0]]
        assert readable(mux, PATIENCE)
        with pytest.raises(pykcm.Disconnected):
            received.append(mux.recv(timeout=PATIENCE))
            mux.recv(timeout=PATIENCE)
        assert received == [message(b"last")]


def test_attaching_without_a_descriptor_left_takes_nothing() -> None:
    near, far = _loopback.connection()
    with near, far, FRAMING.load() as program, Multiplexor(program) as mux:
        far.sendall(message(bytes(1000))[:500])
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        highest = max(int(entry.name) for entry in Path("/proc/self/fd").iterdir())
        fillers = []
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 1, limits[1]))
        try:
            with contextlib.suppress(OSError):
                while True:
                    fillers.append(os.dup(near.fileno()))
            with pytest.raises(pykcm.AttachError, match=r"RLIMIT_NOFILE.*Too many open files"):
                mux.attach(near)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for filler in fillers:
                os.close(filler)
        assert mux.transports == []
        mux.attach(near)
        far.sendall(message(bytes(1000))[500:])
        assert mux.recv(timeout=PATIENCE) == message(bytes(1000))


class TestClones:
    def test_what_was_not_asked_for_is_left_to_them(self, pair: Pair, mux: Multiplexor) -> None:
        sent = [message(bytes([n])) for n in range(10)]
        with mux.clone() as clone:
            clone.recv_disabled = True
            pair[1].sendall(b"".join(sent))
            assert mux.recv(timeout=PATIENCE) == sent[0]
            clone.recv_disabled = False
            mux.close()
            clone.settimeout(PATIENCE)
            assert [clone.recv() for _ in sent[1:]] == sent[1:]

    def test_what_they_can_no_longer_have_is_told(self, pair: Pair, mux: Multiplexor) -> None:
        deliver(pair[1], pair[0], b"".join(message(bytes([n])) for n in range(10)))
        eventually(lambda: parsed(pair[0]))
        mux.recv(timeout=PATIENCE)
        with mux.clone(), pytest.warns(pykcm.UnreadWarning, match="9 messages"):
            mux.close()

    def test_a_watching_parent_is_told_of_unread_messages(
        self, pair: Pair, mux: Multiplexor
    ) -> None:
        deliver(pair[1], pair[0], b"".join(message(bytes([n])) for n in range(3)))
        eventually(lambda: parsed(pair[0]))
        mux.recv(timeout=PATIENCE)
        mux.socket.recv_disabled = True
        with pytest.raises(pykcm.KCMOSError, match="2 messages"):
            mux.wait_disconnection(0)
        mux.recv_many(timeout=PATIENCE)
        with pytest.raises(TimeoutError):
            mux.wait_disconnection(0)

    def test_a_transport_whose_messages_nobody_takes_is_kept(
        self, mux: Multiplexor, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        clone = Mock(wraps=_kernel.Descriptor.clone)
        monkeypatch.setattr(_kernel.Descriptor, "clone", clone)
        near, far = _loopback.connection()
        mux.attach(near)
        sent = [message(struct.pack(">I", n)) for n in range(40_000)]
        with near, mux.clone() as worker:
            mux.socket.recv_disabled = True
            with far:
                far.sendall(b"".join(sent))
            with pytest.raises(TimeoutError):
                mux.wait_disconnection(3)
            # Each try makes hundreds of clones, so that they have to become rare.
            assert 1 < clone.call_count < 20 * 256
            assert mux.transports == [near]
            worker.settimeout(PATIENCE)
            received: list[bytes] = []
            while len(received) < len(sent):
                received += worker.recv_many()
            assert sorted(received) == sent
            assert mux.wait_disconnection(PATIENCE).cut == 0

    def test_under_load_the_watching_parent_reports_in_time(self) -> None:
        with flood() as busy, Multiplexor(FRAMING) as mux:
            mux.attach(busy)
            with mux.clone() as worker:
                mux.socket.recv_disabled = True
                worker.settimeout(PATIENCE)
                pid = os.fork()
                if pid == 0:
                    signal.alarm(100)
                    while True:
                        worker.recv_many()
                try:
                    for _ in range(3):
                        end_connection(mux, cut=True)
                        report = mux.wait_disconnection(PATIENCE / 3)
                        assert report.reason is Reason.PEER_CLOSED
                        assert mux.transports == [busy]
                finally:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


def test_waiting_for_room_beside_a_dead_transport_uses_no_cpu() -> None:
    near, far = _loopback.connection()
    other, other_far = _loopback.connection()
    with near, far, other, other_far, Multiplexor(FRAMING, queue_unattached=True) as mux:
        mux.attach(near)
        mux.attach(other)
        with pytest.raises(TimeoutError):
            while True:
                mux.send(message(bytes(50_000)), timeout=0.2)
        other_far.close()
        eventually(lambda: ended(other))
        with mostly_waiting(), pytest.raises(TimeoutError):
            while True:  # the dead one's messages may have made room for some
                mux.send(message(bytes(50_000)), timeout=3)
        assert mux.transports == [near]
        with pytest.warns(pykcm.UnsentWarning):
            mux.close(0)


def test_without_the_right_to_load_a_program() -> None:
    """A process that attached by a pinned program drains all the same."""
    if int(os.uname().release.split(".")[0]) < 6:
        pytest.skip("before Linux 5.19 opening a pin needs what loading needs")
    path = Path("/sys/fs/bpf/pykcm_test_draining")
    with FRAMING.load() as program:
        program.pin(path)
    near, far = _loopback.connection()
    try:
        os.chown(path, 65534, 65534)

        def run() -> None:
            with bpf.Program.from_pin(path) as pinned, Multiplexor(pinned) as mux:
                mux.attach(near)
                far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                far.sendall(message(b"whole") + message(bytes(1000))[:500])
                assert mux.recv(timeout=PATIENCE) == message(b"whole")
                eventually(lambda: pykcm._tcp.unparsed(near.fileno()) == 0)
                far.sendall(b"more")
                far.shutdown(socket.SHUT_RDWR)
                with pytest.raises(pykcm.Disconnected):
                    mux.recv(timeout=PATIENCE)
                assert [report.cut for report in mux.disconnections()] == [4]

        with near, far:
            as_nobody(run)
    finally:
        path.unlink()
