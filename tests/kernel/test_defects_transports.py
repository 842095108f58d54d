"""What an earlier core got wrong with transports, each seen on a running kernel then.

The numbers are those of the list by which they were fixed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import pykcm
from pykcm import AttachError, KCMSocket, Multiplexor, Reason, _kernel, _loopback
from tests.strikes import no_descriptor_left

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    deliver,
    eventually,
    fill,
    hold_up,
    message,
    mostly_waiting,
    parsed,
    reset,
)

Connect = Callable[[], Pair]

# include/uapi/asm-generic/socket.h, linux/net_tstamp.h; Python's socket module lacks them.
SO_TIMESTAMPING, SO_ZEROCOPY, MSG_ZEROCOPY = 37, 60, 0x4000000
TX_SOFTWARE, SOFTWARE, OPT_ID, TX_ACK = 1 << 1, 1 << 4, 1 << 7, 1 << 9

MAX_WATCHES = Path("/proc/sys/fs/epoll/max_user_watches")


@pytest.fixture
def mux() -> Iterator[Multiplexor]:
    with Multiplexor(FRAMING, linger=0) as multiplexor:
        yield multiplexor


@pytest.fixture
def connect() -> Iterator[Connect]:
    with contextlib.ExitStack() as stack:

        def new() -> Pair:
            near, far = _loopback.connection()
            far.settimeout(PATIENCE)
            return stack.enter_context(near), stack.enter_context(far)

        yield new


def works(mux: Multiplexor, pair: Pair) -> None:
    """Messages come and go over a transport."""
    pair[1].sendall(message(b"in"))
    assert mux.recv(timeout=PATIENCE) == message(b"in")
    mux.send(message(b"out"), timeout=PATIENCE)
    assert pair[1].recv(100) == message(b"out")


class TestUnattachBesideASendingClone:
    """6. It handed back a connection that ended in the middle of a message, and did not say so."""

    def test_6_that_is_in_the_middle_of_a_message(self, mux: Multiplexor, connect: Connect) -> None:
        near, _ = connect()
        mux.attach(near)
        clone = mux.clone()
        fill(clone)
        report = mux.unattach(near, timeout=PATIENCE)
        assert report.reason is Reason.UNATTACHED
        assert report.errno
        assert "nothing may be written" in str(report)
        with pytest.warns(pykcm.UnsentWarning):
            clone.close(0)

    def test_6_that_is_not(self, mux: Multiplexor, connect: Connect) -> None:
        near, far = connect()
        mux.attach(near)
        with mux.clone() as clone:
            clone.send(message(b"whole"))
            clone.flush(PATIENCE)
            report = mux.unattach(near, timeout=PATIENCE)
            assert (report.reason, report.errno) == (Reason.UNATTACHED, 0)
            near.sendall(b"plain")
            eventually(lambda: pykcm._tcp.bytes_received(far.fileno()) == 14)
            assert far.recv(100) == message(b"whole") + b"plain"


@pytest.mark.timeout(300)
def test_21_a_thousand_connections_reset_at_once(mux: Multiplexor) -> None:
    """21. One recv(timeout=1) lasted 13.9 s: each drain asked all other transports."""
    count = 1000
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, max(8192, before[1])))
    with contextlib.ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
        live = _loopback.connection()
        for tcp in live:
            stack.enter_context(tcp)
        mux.attach(live[0])
        fars = []
        start = time.monotonic()
        for _ in range(count):
            near, far = _loopback.connection()
            mux.attach(near, hand_over=True)
            fars.append(far)
        print(f"{count} connected and attached in {time.monotonic() - start:.2f} s")
        start = time.monotonic()
        for far in fars:
            reset(far)
        print(f"reset in {time.monotonic() - start:.2f} s")
        first = start = time.monotonic()
        reports: list[pykcm.Disconnection] = []
        longest = 0.0
        while len(reports) < count:
            assert start - first < PATIENCE, f"{len(reports)} reports"
            with pytest.raises(TimeoutError):
                mux.recv(timeout=1)
            longest = max(longest, time.monotonic() - start)
            reports += mux.disconnections()
            start = time.monotonic()
        print(f"the longest recv(timeout=1) lasted {longest:.2f} s")
        assert {report.reason for report in reports} == {Reason.RESET}
        # Each report costs about 2 ms in an emulated guest, a tenth of it on its host.
        assert longest < 1 + 3
        assert mux.transports == [live[0]]
        works(mux, live)


def test_21_how_long_their_reports_take(mux: Multiplexor) -> None:
    """21. The same with a hundred, by the time until all are reported."""
    pairs = [_loopback.connection() for _ in range(100)]
    for near, _ in pairs:
        mux.attach(near, hand_over=True)
    for _, far in pairs:
        reset(far)
    start = time.monotonic()
    with pytest.raises(pykcm.Disconnected):
        mux.recv(timeout=PATIENCE)
    print(f"100 reports in {time.monotonic() - start:.3f} s")
    assert len(list(mux.disconnections())) == 100
    assert time.monotonic() - start < 3


class TestAnErrorQueue:
    """26. A healthy transport with something in it was reported PEER_CLOSED and taken off."""

    def stays(self, mux: Multiplexor, pair: Pair) -> None:
        with mostly_waiting(), pytest.raises(TimeoutError):
            mux.recv(timeout=1)
        assert mux.transports == [pair[0]]
        works(mux, pair)
        pair[1].close()
        with pytest.raises(pykcm.Disconnected):
            mux.recv(timeout=PATIENCE)
        assert [report.reason for report in mux.disconnections()] == [Reason.PEER_CLOSED]

    def test_26_time_stamps(self, mux: Multiplexor, connect: Connect) -> None:
        near, far = connect()
        near.setsockopt(
            socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | OPT_ID | TX_ACK
        )
        near.sendall(b"before")
        assert far.recv(100) == b"before"
        mux.attach(near)
        works(mux, (near, far))
        self.stays(mux, (near, far))
        # They are still the caller's to take.
        assert near.recvmsg(100, 1000, socket.MSG_ERRQUEUE)[1]

    def test_26_zero_copy(self, mux: Multiplexor, connect: Connect) -> None:
        near, far = connect()
        near.setsockopt(socket.SOL_SOCKET, SO_ZEROCOPY, 1)
        near.send(bytes(10_000), MSG_ZEROCOPY)
        mux.attach(near)
        with pytest.raises(TimeoutError):
            mux.recv(timeout=0.2)
        left = 10_000
        while left:
            left -= len(far.recv(left))
        self.stays(mux, (near, far))
        assert near.recvmsg(100, 1000, socket.MSG_ERRQUEUE)[1]

    def test_26_an_error_beside_it(self, mux: Multiplexor, connect: Connect) -> None:
        """A transport with something in its queue still ends when the framing refuses a header."""
        near, far = connect()
        near.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, TX_SOFTWARE | SOFTWARE | TX_ACK)
        mux.attach(near)
        works(mux, (near, far))
        with pytest.raises(TimeoutError):
            mux.recv(timeout=0.3)
        far.sendall(struct.pack(">I", 1 << 30))
        with pytest.raises(pykcm.Disconnected):
            mux.recv(timeout=PATIENCE)
        assert [report.reason for report in mux.disconnections()] == [Reason.OVERSIZE]


def test_27_a_socket_that_is_still_connecting(mux: Multiplexor) -> None:
    """27. It was attached, and reported PEER_CLOSED once it was connected."""
    with contextlib.ExitStack() as stack:
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        while True:  # until the backlog is full
            near = stack.enter_context(socket.socket())
            near.setblocking(False)
            assert near.connect_ex(listener.getsockname()) == errno.EINPROGRESS
            time.sleep(0.1)
            if near.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1:
                break
        with pytest.raises(AttachError, match="ENOTCONN"):
            mux.attach(near)
        assert mux.transports == []


@pytest.mark.parametrize("length", [1 << 30, (1 << 31) - 1])
def test_30_a_framing_with_a_very_large_maximum(connect: Connect, length: int) -> None:
    """30. Attaching was a bare TypeError: twice the maximum is no SO_RCVLOWAT."""
    pair = connect()
    with Multiplexor(FRAMING.replace(max_length=length)) as mux:
        with pytest.raises(AttachError, match="ENOBUFS"):
            mux.attach(pair[0])
        mux.attach(pair[0], allow_small_buffer=True)
        works(mux, pair)


def test_31_no_room_to_watch_one_more(mux: Multiplexor, connect: Connect) -> None:
    """31. It was a bare ENOSPC, and what KCM had read of the connection was gone."""
    near, far = connect()
    deliver(far, near, message(b"whole") + message(b"in two parts")[:7])
    before = MAX_WATCHES.read_text()
    try:
        MAX_WATCHES.write_text("1")
        with pytest.raises(AttachError, match="ENOSPC") as info:
            mux.attach(near)
        assert "max_user_watches" in str(info.value)
        time.sleep(0.2)
    finally:
        MAX_WATCHES.write_text(before)
    assert mux.transports == []
    mux.attach(near)
    far.sendall(message(b"in two parts")[7:])
    assert mux.recv(timeout=PATIENCE) == message(b"whole")
    assert mux.recv(timeout=PATIENCE) == message(b"in two parts")


def test_34_the_default_timeout(mux: Multiplexor, connect: Connect) -> None:
    """34. With socket.setdefaulttimeout the caller's TCP descriptor became non-blocking."""
    pair = connect()
    other, _far = connect()
    socket.setdefaulttimeout(5)
    try:
        with KCMSocket() as kcm:
            kcm.attach(other, FRAMING)
            kcm.unattach(other)
        mux.attach(pair[0])
        works(mux, pair)
        assert os.get_blocking(pair[0].fileno())
        mux.unattach(pair[0])
        assert os.get_blocking(pair[0].fileno())
        assert os.get_blocking(other.fileno())
    finally:
        socket.setdefaulttimeout(None)


@pytest.mark.parametrize("tcp", [None, 2**40, -1, "socket", 1.5])
def test_36_what_is_not_a_socket(mux: Multiplexor, tcp: Any) -> None:
    """36. attach(None) was an AttributeError, attach(2**40) an OverflowError."""
    with KCMSocket() as kcm:
        calls: list[Callable[[], object]] = [
            lambda: kcm.attach(tcp, FRAMING),
            lambda: kcm.unattach(tcp),
            lambda: mux.attach(tcp),
            lambda: mux.unattach(tcp),
        ]
        for call in calls:
            with pytest.raises(AttachError):
                call()


class TestReports:
    def test_41_a_transport_that_was_handed_over(self, mux: Multiplexor, connect: Connect) -> None:
        """41. The callback got a closed socket, and could not say which peer had gone."""
        near, far = connect()
        peer = near.getpeername()
        mux.attach(near, hand_over=True)
        seen: list[tuple[pykcm.Disconnection, Any]] = []
        mux.on_disconnect = lambda report: seen.append((report, report.peer))
        far.close()
        with pytest.raises(pykcm.Disconnected, match=f"127.0.0.1:{peer[1]}"):
            mux.recv(timeout=PATIENCE)
        assert [(report.tcp, address) for report, address in seen] == [(near, peer)]
        assert near.fileno() == -1

    def test_41_the_time_out_of_unattach_is_one(self, mux: Multiplexor, connect: Connect) -> None:
        """41. It waited for unsent bytes, and then for clones, each time so long."""
        pair = connect()
        mux.attach(pair[0])
        mux.send(message(b"sent"))
        with hold_up(mux, pair):
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                mux.unattach(pair[0], timeout=1)
            assert 1 <= time.monotonic() - start < 1.8


# What asks the kernel, and may be refused for want of memory.
CALLS = ("get_option", "get_integer", "set_option", "unread", "memory", "clone_onto")


class Failing:
    """Has the call with a number fail for want of memory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        for name in CALLS:
            monkeypatch.setattr(_kernel, name, self._wrapped(getattr(_kernel, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return call(*arguments, **named)

        return wrapped


def test_52_an_unattach_that_fails(
    mux: Multiplexor, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """52. In 5 of 11 places detach raised ENOMEM although the connection was given back."""
    pair = connect()
    failing = Failing(monkeypatch)
    raised = 0
    for number in range(1, 100):
        mux.attach(pair[0])
        deliver(pair[1], pair[0], message(b"kept"))
        eventually(lambda: parsed(pair[0]))
        failing.left = number
        try:
            mux.unattach(pair[0], timeout=PATIENCE)
        except OSError as error:
            raised += 1
            assert isinstance(error, pykcm.KCMOSError)
            # It stays, as it was said, and works.
            assert mux.transports == [pair[0]]
            works_not = failing.left
            failing.left = -1
            assert works_not <= 0
            assert mux.recv(timeout=PATIENCE) == message(b"kept")
            works(mux, pair)
            mux.unattach(pair[0], timeout=PATIENCE)
        else:
            assert mux.recv(timeout=PATIENCE) == message(b"kept")
        assert mux.transports == []
        pair[1].sendall(b"plain")
        pair[0].settimeout(PATIENCE)
        assert pair[0].recv(100) == b"plain"
        pair[0].settimeout(None)
        if failing.left > 0:
            break
    print(f"{number - 1} places, of which {raised} raised")
    assert 2 < number < 99


def test_52_a_close_that_fails(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> None:
    """52. In 3 places close raised a bare EFAULT."""
    failing = Failing(monkeypatch)
    for number in range(1, 100):
        near, far = connect()
        with no_descriptor_left():
            mux = Multiplexor(FRAMING)
            mux.attach(near)
            mux.send(message(b"sent"))
            failing.left = number
            with contextlib.suppress(pykcm.KCMOSError):
                mux.close()
        assert far.recv(100) == message(b"sent")
        if failing.left > 0:
            break
    print(f"{number - 1} places")
    assert 1 < number < 99
