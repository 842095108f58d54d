"""What an earlier core got wrong when it waited to send, each seen on a running kernel then.

The numbers are those of the list by which they were fixed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import anyio
import pytest

import pykcm
from pykcm import KCMSocket, Multiplexor, _loopback
from tests.children import in_child

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    ended,
    eventually,
    fill,
    hold_up,
    message,
    number_of_bytes,
    reset,
)

Connect = Callable[[], Pair]


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


def read(far: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = far.recv(1 << 20)
        assert piece, f"the connection ended after {len(data)} bytes"
        data += piece
    return bytes(data)


class TestASendThatBlocks:
    """15. It held the kernel's tx_mutex, for which others wait uninterruptibly."""

    @staticmethod
    def full() -> tuple[KCMSocket, threading.Thread, Pair]:
        """A full socket, and a thread that waits in send without a limit."""
        pair = _loopback.connection()
        kcm = KCMSocket()
        kcm.attach(pair[0], FRAMING)
        fill(kcm)

        def run() -> None:
            while True:
                kcm.send(message(bytes(50_000)))

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        time.sleep(0.3)
        return kcm, thread, pair

    def test_15_other_threads_go_on(self) -> None:
        """flush(1.0), send(MSG_DONTWAIT) and close(1.0) did not return in 12 s."""

        def run() -> None:
            kcm, thread, _pair = self.full()
            start = time.monotonic()
            with pytest.raises(TimeoutError):
                kcm.flush(1.0)
            with pytest.raises(BlockingIOError):
                while True:
                    kcm.send(message(bytes(50_000)), socket.MSG_DONTWAIT)
            assert thread.is_alive()
            with pytest.warns(pykcm.UnsentWarning):
                kcm.close(1.0)
            assert time.monotonic() - start < 8

        in_child(run)

    def test_15_another_process_can_be_killed(self) -> None:
        """One that shared the socket stayed in state D after SIGKILL."""

        def run() -> None:
            kcm, _thread, _pair = self.full()
            pid = os.fork()
            if pid == 0:
                while True:
                    kcm.send(message(bytes(50_000)))
            time.sleep(0.5)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid)

        in_child(run)


class TestWaitingBesideAHeldUpTransport:
    """16. flush, send and asend slept through the moment at which it could be taken off."""

    def full(self, mux: Multiplexor, connect: Connect) -> threading.Thread:
        """A full queue, and one transport, which can be taken off only after a while."""
        pair = connect()
        mux.attach(pair[0])
        fill(mux.socket)
        worker = hold_up(mux, pair)

        def run() -> None:
            time.sleep(1)
            with worker, contextlib.suppress(pykcm.Disconnected):
                while True:
                    worker.recv_many(timeout=PATIENCE)

        thread = threading.Thread(target=run)
        thread.start()
        return thread

    @pytest.mark.parametrize("call", ["flush", "send", "asend"])
    @pytest.mark.filterwarnings("ignore::pykcm.UnsentWarning")
    def test_16(self, mux: Multiplexor, connect: Connect, call: str) -> None:
        thread = self.full(mux, connect)
        start = time.monotonic()

        async def asend() -> None:
            with anyio.fail_after(PATIENCE):
                while True:
                    await mux.asend(message(bytes(50_000)))

        try:
            with pytest.raises(pykcm.Disconnected):
                if call == "flush":
                    mux.flush(PATIENCE)
                elif call == "send":
                    while True:
                        mux.send(message(bytes(50_000)), timeout=PATIENCE)
                else:
                    anyio.run(asend)
            assert time.monotonic() - start < PATIENCE / 2, "it was waited through"
        finally:
            thread.join(PATIENCE)
        mux.close(0)


def test_20_one_peer_that_does_not_read(mux: Multiplexor, connect: Connect) -> None:
    """20. It stops the sending of a KCM socket, in the kernel: that has to be said.

    unattach says why it does not end, and a clone has a queue of its own.
    """
    stuck, idle = connect(), connect()
    mux.attach(stuck[0])
    fill(mux.socket)
    mux.attach(idle[0])
    with pytest.raises(TimeoutError):
        mux.send(message(bytes(50_000)), timeout=0.3)
    with pytest.raises(TimeoutError) as info:
        mux.unattach(stuck[0], timeout=0.3)
    assert number_of_bytes(info.value) > 0
    assert mux.transports == [stuck[0], idle[0]]
    with mux.clone() as clone:
        clone.send(message(b"by the other"), timeout=PATIENCE)
        assert idle[1].recv(100) == message(b"by the other")
    assert "not read" in (Multiplexor.unattach.__doc__ or "")
    with pytest.warns(pykcm.UnsentWarning):
        mux.close(0)


def test_22_a_dead_transport_of_a_plain_socket_holds_the_queue(connect: Connect) -> None:
    """22. flush(None) never ended: it takes an unattach, which has to be said."""
    dead, live = connect(), connect()
    with KCMSocket() as kcm:
        kcm.attach(dead[0], FRAMING)
        fill(kcm)
        kcm.attach(live[0], FRAMING)
        reset(dead[1])
        eventually(lambda: ended(dead[0]))
        with pytest.raises(TimeoutError):
            kcm.flush(0.5)
        left = kcm.unsent
        kcm.unattach(dead[0])
        assert read(live[1], left) == message(bytes(50_000)) * (left // 50_004)
        kcm.flush(PATIENCE)
    assert "taken off" in (KCMSocket.flush.__doc__ or "")


@pytest.mark.parametrize("timeout", [float("inf"), 30 * 86_400, 1e10])
def test_29_long_time_outs_of_sends(connect: Connect, timeout: float) -> None:
    """29. inf, 30 days and 1e10 were an OverflowError from poll(2)."""
    near, far = connect()
    with KCMSocket() as kcm:
        kcm.attach(near, FRAMING)
        count = fill(kcm, 200_000)
        reader = threading.Timer(0.3, read, [far, count * 200_004 + 50_004])
        reader.start()
        kcm.send(message(bytes(50_000)), timeout=timeout)
        kcm.flush(timeout)
        reader.join(PATIENCE)
