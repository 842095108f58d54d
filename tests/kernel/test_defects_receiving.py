"""What an earlier core got wrong when it received, each seen on a running kernel then.

The numbers are those of the list by which they were fixed.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import pykcm
from pykcm import KCMSocket, Multiplexor, Reason, _loopback
from tests.children import in_child

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    deliver,
    ended,
    eventually,
    hold_up,
    message,
    mostly_waiting,
    parsed,
)
from .test_draining import end_connection, flood

# include/uapi/linux/tls.h; what a TLS handshake would end in.
TCP_ULP, SOL_TLS, TLS_TX, TLS_RX = 31, 282, 1, 2
TLS_KEYS = struct.pack("=HH8s16s4s8s", 0x0303, 51, bytes(8), bytes(16), bytes(4), bytes(8))

THP = Path("/sys/kernel/mm/transparent_hugepage/enabled")


@pytest.fixture
def mux() -> Iterator[Multiplexor]:
    with Multiplexor(FRAMING) as multiplexor:
        yield multiplexor


@pytest.fixture
def pair() -> Iterator[Pair]:
    near, far = _loopback.connection()
    with near, far:
        yield near, far


def kernel() -> tuple[int, int]:
    major, minor = os.uname().release.split(".")[:2]
    return int(major), int(minor)


def receive_all(mux: Multiplexor) -> list[bytes]:
    received: list[bytes] = []
    with contextlib.suppress(pykcm.Disconnected):
        while True:
            received += mux.recv_many(timeout=PATIENCE)
    return received


def test_7_urgent_data(mux: Multiplexor, pair: Pair) -> None:
    """7. The kernel's parser stops at it for ever; `cut` was 0 though 70 bytes lay there."""
    near, far = pair
    mux.attach(near)
    before, behind = message(b"before"), [message(bytes([n]) * 10) for n in range(5)]
    deliver(far, near, before)
    assert mux.recv(timeout=PATIENCE) == before
    far.send(b"!", socket.MSG_OOB)
    deliver(far, near, b"".join(behind))
    with pytest.raises(TimeoutError):
        mux.recv(timeout=0.3)
    far.close()
    assert receive_all(mux) == []
    (report,) = mux.disconnections()
    print(report)
    assert report.reason is Reason.URGENT
    assert report.cut == len(b"!" + b"".join(behind))


def test_8_kernel_tls(mux: Multiplexor, pair: Pair) -> None:
    """8. Before Linux 6.6 it was attached, and stayed silent for ever: KCM saw ciphertext."""
    near, far = pair
    try:
        for tcp, direction in ((far, TLS_TX), (near, TLS_RX)):
            tcp.setsockopt(socket.IPPROTO_TCP, TCP_ULP, b"tls")
            tcp.setsockopt(SOL_TLS, direction, TLS_KEYS)
    except FileNotFoundError:
        pytest.skip("this kernel has no kernel TLS")
    if kernel() < (6, 6):
        with pytest.raises(pykcm.AttachError, match="ciphertext") as info:
            mux.attach(near)
        assert info.value.errno == errno.EOPNOTSUPP
        assert mux.transports == []
        return
    mux.attach(near)
    sent = [message(b"secret %d" % number) for number in range(5)]
    far.sendall(b"".join(sent))
    assert [mux.recv(timeout=PATIENCE) for _ in sent] == sent


def test_10_a_clone_made_before_the_first_attach(pair: Pair) -> None:
    """10. It had room for 1 MiB: a lawful longer message was cut, and its rest lost."""
    near, far = pair
    sent = message(bytes(1_500_000))
    with Multiplexor(FRAMING.replace(max_length=2_000_000)) as mux, mux.clone() as clone:
        mux.attach(near)
        mux.socket.recv_disabled = True
        writer = threading.Thread(target=far.sendall, args=(sent,))
        writer.start()
        assert clone.recv(timeout=PATIENCE) == sent
        writer.join(PATIENCE)


def test_24_event_loop_turns_while_a_transport_waits_to_be_drained(
    mux: Multiplexor, pair: Pair
) -> None:
    """24. `fileno` was readable though nothing could be done: 61,747 turns a second."""
    mux.attach(pair[0])
    with hold_up(mux, pair):
        turns, end = 0, time.monotonic() + 2
        while (left := end - time.monotonic()) > 0:
            if select.select([mux], [], [], left)[0]:
                assert list(mux.disconnections()) == []
                turns += 1
        print(f"{turns} turns in 2 s")
        assert turns < 1200
        assert mux.transports == [pair[0]]


def test_24_an_event_loop_without_a_transport(mux: Multiplexor) -> None:
    """24. examples/echo_server.py burnt a CPU until its first client."""
    with mostly_waiting():
        end = time.monotonic() + 1
        while (left := end - time.monotonic()) > 0:
            if select.select([mux], [], [], left)[0]:
                with pytest.raises(pykcm.Disconnected):
                    mux.recv(timeout=0)


@pytest.mark.parametrize("mark", [1000, 100_000])
def test_28_a_low_water_mark(mux: Multiplexor, pair: Pair, mark: int) -> None:
    """28. The caller's SO_RCVLOWAT was put back, and whole messages below it lay in TCP."""
    near, far = pair
    near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, mark)
    mux.attach(near)
    far.sendall(message(b"short"))
    assert mux.recv(timeout=PATIENCE) == message(b"short")
    mux.unattach(near)
    assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT) == mark


@pytest.mark.parametrize("timeout", [float("inf"), 30 * 86_400, 1e10])
def test_29_long_time_outs_of_receives(mux: Multiplexor, pair: Pair, timeout: float) -> None:
    """29. inf, 30 days and 1e10 were an OverflowError from poll(2)."""
    near, far = pair
    mux.attach(near)
    with mux.clone() as clone:
        for receive, other in ((mux.recv, clone), (clone.recv, mux.socket)):
            other.recv_disabled = True
            timer = threading.Timer(0.2, far.sendall, [message(b"late")])
            timer.start()
            assert receive(timeout=timeout) == message(b"late")
            timer.join()
            other.recv_disabled = False


@pytest.mark.parametrize("type", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_32_peeking_at_many(pair: Pair, type: int) -> None:
    """32. `recv_many(10, MSG_PEEK)` gave ten copies of one message."""
    near, far = pair
    with KCMSocket(type) as kcm:
        kcm.attach(near, FRAMING)
        sent = [message(bytes([number])) for number in range(3)]
        deliver(far, near, b"".join(sent))
        eventually(lambda: parsed(near))
        kcm.settimeout(PATIENCE)
        assert kcm.recv_many(10, socket.MSG_PEEK) == sent[:1]
        assert [kcm.recv() for _ in sent] == sent


def test_35_order_after_a_clone_was_closed(mux: Multiplexor) -> None:
    """35. Of 6,300 messages of a live connection, 120 to 951 came at a wrong place.

    Once a clone had been made, another transport was drained by clones, which take the messages
    of all; also when none was left that could receive.
    """
    mux.clone().close()
    with flood(0.002) as busy:
        mux.attach(busy)
        expected = rounds = 0
        deadline = time.monotonic() + 3
        while time.monotonic() < deadline or mux.transports != [busy]:
            if mux.transports == [busy]:
                end_connection(mux, cut=False)
                rounds += 1
            for received in mux.recv_many(timeout=PATIENCE):
                if received != message(b"short"):
                    assert received == message(struct.pack(">Q", expected))
                    expected += 1
    print(f"{expected} messages, {rounds} other connections")
    assert rounds > 1


def test_36_more_buffers_than_one_system_call_takes(pair: Pair) -> None:
    """36, 41. recvmsg_into of 65 buffers was EINVAL."""
    near, far = pair
    with KCMSocket() as kcm:
        kcm.attach(near, FRAMING)
        kcm.settimeout(PATIENCE)
        sent = message(bytes(range(200)))
        far.sendall(sent)
        buffers = [bytearray(1) for _ in range(len(sent) + 1)]
        assert kcm.recvmsg_into(buffers)[:3] == (len(sent), [], socket.MSG_EOR)
        assert b"".join(buffers) == sent + b"\0"


def test_54_the_first_batch_needs_little_memory(pair: Pair) -> None:
    """54. It grew the process by 61.5 MiB where huge pages are always given, and took 69 ms.

    With the default room, recv_many(64) gave 63 messages, and then one.
    """

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    near, far = pair
    before_thp = THP.read_text() if THP.exists() else ""
    sent = [message(bytes(60)) for _ in range(64)]
    kcm = KCMSocket()

    def run() -> None:
        kcm.attach(near, FRAMING)
        for each in sent:  # of a segment with many, few would fit into the KCM socket's buffer
            deliver(far, near, each)
            eventually(lambda: parsed(near))
        before, start = resident(), time.monotonic()
        assert kcm.recv_many(64, timeout=PATIENCE) == sent
        grown = resident() - before
        print(f"{grown >> 10} KiB in {1000 * (time.monotonic() - start):.1f} ms, {before_thp!r}")
        assert grown < 4 << 20

    try:
        if before_thp:
            THP.write_text("always")
        in_child(run)
    finally:
        if before_thp:
            THP.write_text(before_thp.split("[")[1].split("]")[0])
        kcm.close()


class TestAClone:
    """56. It never learnt of the end: recv waited for ever, and send queued into nothing."""

    def test_56_that_receives(self, mux: Multiplexor, pair: Pair) -> None:
        near, far = pair
        mux.attach(near)
        told: list[float] = []
        with mux.clone() as worker:
            mux.socket.recv_disabled = True

            def run() -> None:
                with contextlib.suppress(pykcm.Disconnected):
                    while True:
                        worker.recv(timeout=PATIENCE)
                told.append(time.monotonic())

            thread = threading.Thread(target=run)
            thread.start()
            far.sendall(message(b"last"))
            time.sleep(0.3)
            far.close()
            eventually(lambda: ended(near))
            end = time.monotonic()
            assert mux.wait_disconnection(PATIENCE).tcp is near
            thread.join(PATIENCE)
            assert told[0] - end < PATIENCE / 3

    def test_56_that_sends(self, mux: Multiplexor, pair: Pair) -> None:
        near, far = pair
        mux.attach(near)
        with mux.clone() as worker:
            mux.socket.recv_disabled = True
            far.close()
            mux.wait_disconnection(PATIENCE)
            with pytest.raises(pykcm.Disconnected):
                worker.send(message(b"into nothing"))
            assert worker.unsent == 0

    def test_56_in_another_process(self, mux: Multiplexor, pair: Pair) -> None:
        near, far = pair
        mux.attach(near)
        with mux.clone() as worker:
            mux.socket.recv_disabled = True
            watcher = threading.Timer(0.5, far.shutdown, [socket.SHUT_RDWR])
            watcher.start()
            looker = threading.Thread(target=mux.wait_disconnection, args=(PATIENCE,))
            looker.start()

            def run() -> None:
                with pytest.raises(pykcm.Disconnected):
                    worker.recv(timeout=PATIENCE / 3)

            in_child(run)
            watcher.join()
            looker.join(PATIENCE)

    def test_56_that_may_go_on_with_a_new_transport(self, mux: Multiplexor, pair: Pair) -> None:
        near, far = pair
        mux.attach(near)
        with mux.clone() as worker:
            mux.socket.recv_disabled = True
            far.close()
            mux.wait_disconnection(PATIENCE)
            other_near, other_far = _loopback.connection()
            with other_near, other_far:
                mux.attach(other_near)
                other_far.sendall(message(b"again"))
                assert worker.recv(timeout=PATIENCE) == message(b"again")
                mux.unattach(other_near)
