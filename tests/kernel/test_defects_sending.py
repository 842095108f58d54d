"""What an earlier core got wrong when it sent, each seen on a running kernel then.

The numbers are those of the list by which they were fixed.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import struct
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator

import anyio
import pytest

import pykcm
from pykcm import KCMOSError, KCMSocket, Multiplexor, _loopback
from tests.children import in_child
from tests.strikes import no_descriptor_left

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    eventually,
    hold_up,
    message,
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


@contextlib.contextmanager
def cut_short(data: bytes) -> Iterator[memoryview]:
    """A buffer that the kernel can read the first page of, and no more."""
    with tempfile.TemporaryFile() as file:
        file.write(data.ljust(2 * mmap.PAGESIZE, b"."))
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            file.truncate(mmap.PAGESIZE)
            with memoryview(mapped) as view:
                yield view


@contextlib.contextmanager
def small_steps(kcm: KCMSocket) -> Iterator[socket.socket]:
    """Have a TCP connection stand in for the KCM socket: it takes of a message what has room.

    KCM does so when memory is short.
    """
    near, far = _loopback.connection()
    with near, far:
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        far.settimeout(PATIENCE)
        os.dup2(near.fileno(), kcm.fileno(), inheritable=False)
        near.close()
        yield far


def test_1_sending_while_an_ended_transport_waits_to_be_drained(
    mux: Multiplexor, connect: Connect
) -> None:
    """1. A message went into the void, although a live transport was there: 19 of 20 arrived."""
    dead, live = connect(), connect()
    mux.attach(dead[0])
    mux.attach(live[0])
    with hold_up(mux, dead):
        with pytest.raises(TimeoutError):
            mux.wait_disconnection(0.2)
        assert mux.transports == [dead[0], live[0]]
        sent = [message(struct.pack(">I", number)) for number in range(20)]
        for each in sent:
            mux.send(each, timeout=PATIENCE)
        assert read(live[1], 20 * 8) == b"".join(sent)
        assert dead[0] in mux.transports


@pytest.mark.parametrize("other", ["dup", "child"])
def test_4_a_message_that_another_object_began(connect: Connect, other: str) -> None:
    """4. A dup that flushed, or a forked child that only closed, cut it: 40 bytes and 64 bytes."""
    pairs = connect(), connect()
    with KCMSocket() as kcm:
        for near, _ in pairs:
            kcm.attach(near, FRAMING)
        sent = message(bytes(100))
        kcm.send(sent[:40], socket.MSG_MORE)
        if other == "dup":
            with kcm.dup() as duplicate:
                with pytest.raises(TimeoutError):
                    duplicate.flush(0.2)
        else:
            in_child(kcm.close)
        kcm.send(sent[40:])
        kcm.flush(PATIENCE)
        arrived = []
        for _, far in pairs:
            far.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                arrived.append(far.recv(1000))
        assert arrived == [sent]


@pytest.mark.parametrize("type", [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
def test_5_51_a_buffer_that_cannot_be_read_to_its_end(type: int, connect: Connect) -> None:
    """5. SOCK_SEQPACKET counted what was taken of it as a message, and appended the next one.

    51. With SOCK_DGRAM, Linux 6.12 and 7.2 count its first bytes for ever: `unsent` stayed wrong,
    and `flush` raised a false TimeoutError.
    """
    near, far = connect()
    good = message(b"good")
    with KCMSocket(type) as kcm, cut_short(message(bytes(2 * mmap.PAGESIZE - 4))) as bad:
        kcm.attach(near, FRAMING)
        calls: list[Callable[[], int]] = [
            lambda: kcm.send(bad),
            lambda: kcm.sendmsg([b"", bad]),
            lambda: kcm.send_many([good, bad, good]),
        ]
        for call in calls:
            for _ in range(10):  # the eighth time the kernel thought that the queue was full
                with pytest.raises(KCMOSError, match="EFAULT"):
                    call()
            kcm.send(good, timeout=PATIENCE)
            kcm.flush(PATIENCE)
            assert kcm.unsent == 0
        assert read(far, 3 * len(good)) == 3 * good


def test_5_41_what_the_kernel_took_in_part(connect: Connect) -> None:
    """5. sendmmsg's msg_len was ignored: a message taken in part was counted, and its rest lost.

    41. The rest of one waited for room also with MSG_DONTWAIT.
    """
    kcm = KCMSocket(socket.SOCK_SEQPACKET)
    with small_steps(kcm) as far:
        messages = [message(bytes([number]) * 1_000_000) for number in range(8)]
        start = time.monotonic()
        count = kcm.send_many(messages, socket.MSG_DONTWAIT)
        with pytest.raises(BlockingIOError):
            kcm.send(messages[-1], socket.MSG_DONTWAIT)
        assert time.monotonic() - start < PATIENCE / 3
        assert 0 < count < len(messages)
        assert kcm.unsent
        expected = b"".join(messages[:count])
        received = bytearray()

        def run() -> None:
            received.extend(read(far, len(expected) + len(messages[-1])))

        reader = threading.Thread(target=run)
        reader.start()
        kcm.send(messages[-1], timeout=PATIENCE)
        # Not flush: a TCP socket, unlike KCM's, does not tell when the last of it is gone.
        eventually(lambda: kcm._push() == 0)
        reader.join(PATIENCE)
        assert received == expected + messages[-1]
        kcm.close(0)


def test_9_sendfile_sends_a_whole_message(connect: Connect) -> None:
    """9. On SOCK_SEQPACKET it returned 150,004, sent nothing, and the next send was appended."""
    near, far = connect()
    sent = message(bytes(150_000))
    with KCMSocket(socket.SOCK_SEQPACKET) as kcm, tempfile.TemporaryFile() as file:
        kcm.attach(near, FRAMING)
        file.write(sent)
        file.seek(0)
        assert kcm.sendfile(file) == len(sent)
        assert read(far, len(sent)) == sent
        kcm.send(message(b"next"))
        assert far.recv(100) == message(b"next")


class TestAnOpenMessage:
    """12. send_many ended it, flush then raised EBUSY for ever, and close did not flush."""

    def test_12_is_not_ended_by_send_many(self, connect: Connect) -> None:
        near, far = connect()
        with KCMSocket() as kcm:
            kcm.attach(near, FRAMING)
            sent = message(b"in two parts")
            kcm.send(sent[:5], socket.MSG_MORE)
            with pytest.raises(KCMOSError, match="EBUSY"):
                kcm.send_many([message(b"another")])
            kcm.send(sent[5:])
            kcm.flush(PATIENCE)
            assert far.recv(100) == sent

    def test_12_is_not_made_of_many(self, connect: Connect) -> None:
        """`send_many` with MSG_MORE merged its messages."""
        near, far = connect()
        with KCMSocket() as kcm:
            kcm.attach(near, FRAMING)
            with pytest.raises(KCMOSError, match="EINVAL"):
                kcm.send_many([message(b"a"), message(b"b")], socket.MSG_MORE)
            kcm.send(message(b"alone"))
            assert far.recv(100) == message(b"alone")


@pytest.mark.parametrize(
    "make",
    [KCMSocket, lambda: Multiplexor(FRAMING, linger=0, queue_unattached=True)],
    ids=["socket", "multiplexor"],
)
def test_13_a_warning_that_is_an_error_closes_all_the_same(
    make: Callable[[], KCMSocket | Multiplexor],
) -> None:
    """13. Under `-W error` UnsentWarning came before the close, and left the socket open."""
    with no_descriptor_left():
        kcm = make()
        kcm.send(message(b"nowhere to go"))
        with pytest.raises(pykcm.UnsentWarning):
            kcm.close(0)


def test_33_a_forked_child_that_ends(connect: Connect) -> None:
    """33. It warned of lost bytes that were not lost."""
    near, far = connect()
    with KCMSocket() as kcm, Multiplexor(FRAMING, queue_unattached=True) as mux:
        kcm.send(message(b"still the parent's"))
        mux.send(message(b"and this"))

        def run() -> None:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                mux.close()
                kcm.close()

        in_child(run)
        kcm.attach(near, FRAMING)
        assert far.recv(100) == message(b"still the parent's")
        mux.attach(connect()[0])


@pytest.mark.filterwarnings("ignore::pykcm.UnsentWarning")
def test_41_the_count_of_an_asend_many_that_was_ended(connect: Connect, mux: Multiplexor) -> None:
    """41. It raised Disconnected, and how many messages had been queued was lost."""
    near, far = connect()
    mux.attach(near)
    messages = [message(bytes(50_000))] * 2_000

    async def main() -> int:
        async def end() -> None:
            await anyio.sleep(1)
            reset(far)

        async with anyio.create_task_group() as group:
            group.start_soon(end)
            count = await mux.asend_many(messages)
        with pytest.raises(pykcm.Disconnected):
            await mux.asend_many(messages)
        return count

    assert 0 < anyio.run(main) < len(messages)
    mux.close(0)
