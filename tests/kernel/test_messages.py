"""Message I/O on a real kernel: each work-around next to the raw behaviour that it mends."""

from __future__ import annotations

import array
import asyncio
import errno
import os
import pickle
import resource
import select
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import anyio
import pytest
import trio

import pykcm
from pykcm import _kernel, _loopback, _trials, statistics
from pykcm._binding import lib
from pykcm.errors import KCMOSError, MessageTruncated
from tests.strikes import alarms

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    deliver,
    eventually,
    fill,
    message,
    mostly_waiting,
    number_of_bytes,
    parsed,
)

MSG_BATCH = lib.MSG_BATCH


@pytest.fixture
def tcp() -> Iterator[Pair]:
    near, far = _loopback.connection()
    with near, far:
        far.settimeout(PATIENCE)
        yield near, far


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seqpacket"])
def kcm(request: pytest.FixtureRequest, tcp: Pair) -> Iterator[pykcm.KCMSocket]:
    sock = pykcm.KCMSocket(request.param)
    sock.settimeout(PATIENCE)
    sock.attach(tcp[0], FRAMING)
    try:
        yield sock
    finally:
        # What a test leaves unsent is not the next one's business.
        os.close(sock.detach())


@pytest.fixture
def raw(tcp: Pair) -> Iterator[socket.socket]:
    """A KCM socket without pykcm's help."""
    with _kernel.open_socket() as sock, FRAMING.load() as program:
        _kernel.attach(sock.fileno(), tcp[0].fileno(), program.fd)
        sock.settimeout(PATIENCE)
        yield sock


def read(far: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        data += far.recv(1 << 20)
    return bytes(data)


class TestRawBehaviour:
    """What the kernel and the standard library do; each is mended by a class below."""

    def test_the_standard_library_fails_on_the_family(self, raw: socket.socket, tcp: Pair) -> None:
        with pytest.raises(OSError, match="bad family"):
            raw.getsockname()
        tcp[1].sendall(message(b"x") * 2)
        with pytest.raises(OSError, match="bad family"):
            raw.recvmsg(100)
        with pytest.raises(OSError, match="bad family"):
            raw.recvfrom(100)
        with pytest.raises(OSError) as info:
            socket.socket(fileno=raw.fileno())
        assert info.value.errno == errno.ENOTSUP

    def test_recv_truncates_in_silence(self, raw: socket.socket, tcp: Pair) -> None:
        tcp[1].sendall(message(b"0123456789") + message(b"next"))
        assert raw.recv(10) == message(b"0123456789")[:10]
        assert raw.recv(100) == message(b"next")

    def test_the_length_cannot_be_asked_for(self, raw: socket.socket, tcp: Pair) -> None:
        import fcntl
        import termios

        tcp[1].sendall(message(b"0123456789"))
        assert len(raw.recv(100, socket.MSG_PEEK)) == 14
        assert raw.recv(10, socket.MSG_PEEK | socket.MSG_TRUNC) == message(b"0123456789")[:10]
        with pytest.raises(OSError):
            fcntl.ioctl(raw.fileno(), termios.FIONREAD, b"\0\0\0\0")

    def test_an_empty_message_is_dropped(self, raw: socket.socket, tcp: Pair) -> None:
        assert raw.send(b"") == 0
        assert raw.send(message(b"the next")) == 12
        assert tcp[1].recv(100) == message(b"the next")

    def test_seqpacket_without_eor_sends_nothing(self, tcp: Pair) -> None:
        with _kernel.open_socket(socket.SOCK_SEQPACKET) as raw, FRAMING.load() as program:
            _kernel.attach(raw.fileno(), tcp[0].fileno(), program.fd)
            raw.send(message(b"open"))
            tcp[1].settimeout(0.5)
            with pytest.raises(TimeoutError):
                tcp[1].recv(100)
            raw.send(b"", socket.MSG_EOR)
            tcp[1].settimeout(PATIENCE)
            assert tcp[1].recv(100) == message(b"open")

    def test_poll_calls_a_full_socket_writable(self, raw: socket.socket) -> None:
        raw.setblocking(False)
        fill(raw)
        poll = select.poll()
        poll.register(raw, select.POLLOUT)
        assert poll.poll(0) == [(raw.fileno(), select.POLLOUT)]
        with select.epoll() as edge:
            edge.register(raw, select.EPOLLOUT | select.EPOLLET)
            edge.poll(0)
            assert edge.poll(0.2) == []

    def test_sent_without_transport_and_lost(self) -> None:
        with _kernel.open_socket() as raw:
            assert raw.send(message(b"lost")) == 8


class TestReceiving:
    def test_the_standard_calls(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        sent = message(b"0123456789")
        tcp[1].sendall(sent * 6)
        assert kcm.recvfrom() == (sent, None)
        assert kcm.recvmsg(100) == (sent, [], socket.MSG_EOR, None)
        parts = [bytearray(4), bytearray(8), bytearray(8)]
        assert kcm.recvmsg_into(parts) == (14, [], socket.MSG_EOR, None)
        assert b"".join(parts)[:14] == sent
        buffer = bytearray(20)
        assert kcm.recv_into(buffer) == 14
        assert buffer[:14] == sent
        assert kcm.recvfrom_into(buffer) == (14, None)
        assert kcm.recv(5) == sent

    def test_recvmsg_shows_truncation(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        tcp[1].sendall(message(b"0123456789"))
        data, _, flags, _ = kcm.recvmsg(10)
        assert data == message(b"0123456789")[:10]
        if kcm.type == socket.SOCK_DGRAM:
            assert flags == socket.MSG_TRUNC | socket.MSG_EOR
        else:
            assert not flags & socket.MSG_EOR

    def test_peek(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        tcp[1].sendall(message(b"again"))
        assert kcm.recv(None, socket.MSG_PEEK) == message(b"again")
        assert kcm.recv() == message(b"again")

    def test_recv_many(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        messages = [message(bytes([number]) * number) for number in range(200)]
        tcp[1].sendall(b"".join(messages))
        received: list[bytes] = []
        while len(received) < 200:
            batch = kcm.recv_many(70)
            assert len(batch) <= 70
            received += batch
        assert received == messages
        with pytest.raises(BlockingIOError):
            kcm.recv_many(1, socket.MSG_DONTWAIT)

    def test_truncation_in_a_batch_loses_no_other(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        kcm.max_message_size = 50
        sent = [message(bytes(size)) for size in (1, 100, 2, 200, 3)]
        deliver(tcp[1], tcp[0], b"".join(sent))
        eventually(lambda: parsed(tcp[0]))
        if kcm.type == socket.SOCK_SEQPACKET and _trials.seqpacket_keeps_the_rest():
            assert kcm.recv_many() == sent
            return
        received: list[bytes] = []
        cut: list[bytes] = []
        while len(received) + len(cut) < len(sent):
            try:
                received += kcm.recv_many()
            except MessageTruncated as error:
                cut.append(error.message)
        assert received == sent[::2]
        assert cut == [sent[1][:51], sent[3][:51]]

    def test_a_message_in_parts_is_one(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        """Where the kernel keeps the rest of a message, none of it passes for another message."""
        if kcm.type != socket.SOCK_SEQPACKET or not _trials.seqpacket_keeps_the_rest():
            pytest.skip("this kernel does not keep the rest of a message, or not for SOCK_DGRAM")
        kcm.max_message_size = 50
        tcp[1].sendall(message(bytes(500)) + message(b"next"))
        assert kcm.recv() == message(bytes(500))
        assert kcm.recv() == message(b"next")

    def test_exactly_the_maximum(self, tcp: Pair) -> None:
        framing = FRAMING.replace(max_length=5000)
        with pykcm.Multiplexor(framing) as mux:
            mux.attach(tcp[0])
            tcp[1].sendall(message(bytes(4996)) + message(bytes(4997)))
            assert mux.recv(timeout=PATIENCE) == message(bytes(4996))
            with pytest.raises(pykcm.Disconnected) as info:
                mux.recv(timeout=PATIENCE)
            assert info.value.errno == errno.EMSGSIZE

    def test_timeouts(self, kcm: pykcm.KCMSocket) -> None:
        kcm.settimeout(0.2)
        start = time.monotonic()
        with pytest.raises(TimeoutError):
            kcm.recv()
        assert time.monotonic() - start >= 0.2
        kcm.setblocking(False)
        with pytest.raises(BlockingIOError):
            kcm.recv()

    @pytest.mark.parametrize("timeout", [None, PATIENCE])
    def test_signals_are_handled_and_the_call_goes_on(
        self, kcm: pykcm.KCMSocket, tcp: Pair, timeout: float | None
    ) -> None:
        kcm.settimeout(timeout)
        handled = []

        def handle(number: int, frame: object) -> None:
            handled.append(number)
            if len(handled) == 3:
                tcp[1].sendall(message(b"after the signals"))

        with alarms(handle, 0.1, 0.1):
            assert kcm.recv() == message(b"after the signals")
        assert len(handled) >= 3

    def test_bad_arguments(self, kcm: pykcm.KCMSocket) -> None:
        with pytest.raises(ValueError):
            kcm.recv_many(0)
        with pytest.raises(ValueError):
            kcm.recv(-1)
        with pytest.raises(ValueError):
            kcm.recv_into(bytearray(5), 6)
        with pytest.raises(TypeError):
            kcm.recv_into(b"read-only")
        with pytest.raises(ValueError):
            pykcm.KCMSocket(max_message_size=0)

    def test_several_threads_share_a_socket(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        messages = [message(struct.pack(">I", i) * 100) for i in range(400)]
        received: list[bytes] = []

        def run() -> None:
            while True:
                got = kcm.recv()
                if got == message(b"stop"):
                    return
                received.append(got)

        threads = [threading.Thread(target=run) for _ in range(4)]
        for thread in threads:
            thread.start()
        tcp[1].sendall(b"".join(messages) + message(b"stop") * 4)
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(received) == messages


class TestSending:
    def test_the_standard_calls(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        sent = message(b"0123456789")
        assert kcm.send(sent) == 14
        kcm.sendall(sent)
        assert kcm.sendmsg([sent[:3], b"", sent[3:]]) == 14
        assert kcm.sendto(sent, None) == 14
        assert kcm.sendto(sent, 0, None) == 14
        assert read(tcp[1], 70) == sent * 5
        with pytest.raises(KCMOSError):
            kcm.sendto(sent, ("127.0.0.1", 1))

    def test_more_than_64_buffers(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        sent = message(bytes(range(200)))
        assert kcm.sendmsg([sent[i : i + 1] for i in range(len(sent))]) == len(sent)
        assert read(tcp[1], len(sent)) == sent

    def test_an_empty_message_is_refused(self, kcm: pykcm.KCMSocket) -> None:
        with pytest.raises(KCMOSError) as info:
            kcm.send(b"")
        assert info.value.errno == errno.EINVAL
        with pytest.raises(KCMOSError):
            kcm.send_many([message(b"x"), b""])
        assert kcm.unsent == 0

    def test_more(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        sent = message(b"in two parts")
        kcm.send(sent[:7], socket.MSG_MORE)
        with pytest.raises(KCMOSError) as info:
            kcm.flush(0)
        assert info.value.errno == errno.EBUSY
        kcm.send(sent[7:])
        assert read(tcp[1], len(sent)) == sent

    def test_a_batch_is_held_back_until_pushed(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        sent = message(b"held back")
        kcm.send(sent, MSG_BATCH)
        kcm.send(sent, MSG_BATCH)
        assert kcm.unsent == 2 * len(sent)
        kcm.flush(PATIENCE)
        assert read(tcp[1], 2 * len(sent)) == 2 * sent

    def test_send_many(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        messages = [message(bytes([number])) for number in range(150)]
        assert kcm.send_many(messages) == 150
        assert read(tcp[1], 150 * 5) == b"".join(messages)
        assert kcm.send_many([]) == 0

    def test_a_wrong_element_sends_nothing(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        with pytest.raises(TypeError):
            kcm.send_many([message(b"good"), "text"])  # type: ignore[list-item]
        kcm.send(message(b"first"))
        assert tcp[1].recv(100) == message(b"first")

    def test_send_many_says_how_many(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        kcm.setblocking(False)
        messages = [message(struct.pack(">I", i) + bytes(20_000)) for i in range(2000)]
        count = kcm.send_many(messages)
        assert 0 < count < len(messages)
        # The peer's kernel makes room for some more at first.
        with pytest.raises(BlockingIOError):
            while count < len(messages):
                count += kcm.send_many(messages[count:])
        size = sum(map(len, messages[:count]))
        assert read(tcp[1], size) == b"".join(messages[:count])

    def test_a_full_queue_wakes_the_sender(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        count = fill(kcm)
        reader = threading.Timer(0.5, read, [tcp[1], (count + 1) * 50_004])
        reader.start()
        with mostly_waiting(0.5):  # it sends, too
            assert kcm.send(message(bytes(50_000))) == 50_004
            kcm.flush(PATIENCE)
            reader.join(PATIENCE)
        assert kcm.unsent == 0

    def test_waiting_with_a_timeout_burns_no_cpu(self, kcm: pykcm.KCMSocket) -> None:
        fill(kcm)
        kcm.settimeout(2)
        with mostly_waiting(), pytest.raises(TimeoutError):
            while True:  # TCP may take some after all
                kcm.send(message(bytes(50_000)))

    def test_flush_says_what_is_left(self, kcm: pykcm.KCMSocket) -> None:
        fill(kcm)
        before = kcm.unsent
        with pytest.raises(TimeoutError) as info:
            kcm.flush(0.1)
        # TCP may have taken a message meanwhile.
        assert kcm.unsent <= number_of_bytes(info.value) <= before


class TestDescriptors:
    def test_not_pickled(self, kcm: pykcm.KCMSocket) -> None:
        with pytest.raises(TypeError):
            pickle.dumps(kcm)

    def test_handed_to_another_process(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        one, other = socket.socketpair()
        with one, other:
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    _, ancillary, _, _ = other.recvmsg(1, 100)
                    fd = array.array("i", ancillary[0][2])[0]
                    with pykcm.KCMSocket.from_fd(fd) as taken:
                        taken.settimeout(PATIENCE)
                        taken.send(taken.recv())
                        status = int(taken.type != kcm.type)
                finally:
                    os._exit(status)
            with kcm.clone() as clone:
                kcm.recv_disabled = True
                fds = array.array("i", [clone.fileno()])
                one.sendmsg([b"!"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, fds)])
                tcp[1].sendall(message(b"there and back"))
                assert read(tcp[1], 18) == message(b"there and back")
            assert os.waitpid(pid, 0)[1] == 0

    def test_from_fd_takes_only_kcm_sockets(self, tcp: Pair) -> None:
        with pytest.raises(KCMOSError) as info:
            pykcm.KCMSocket.from_fd(tcp[0].fileno())
        assert info.value.errno == errno.EAFNOSUPPORT
        tcp[0].getpeername()
        with pytest.raises(KCMOSError) as info:
            pykcm.KCMSocket.from_fd(987_654)
        assert info.value.errno == errno.EBADF

    def test_out_of_descriptors(self, kcm: pykcm.KCMSocket) -> None:
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        lowest_free = os.dup(0)
        os.close(lowest_free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
        try:
            with pytest.raises(KCMOSError) as info:
                kcm.clone()
            assert info.value.errno == errno.EMFILE
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        kcm.clone().close()

    def test_closed(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        other = kcm.clone()
        other.close()
        calls: list[Callable[[], object]] = [
            other.recv,
            lambda: other.send(message(b"x")),
            other.clone,
            other.flush,
            other.recv_many,
        ]
        for call in calls:
            with pytest.raises(KCMOSError) as info:
                call()
            assert info.value.errno == errno.EBADF
        assert "closed" in repr(other)

    def test_splice(self, tcp: Pair) -> None:
        with pykcm.KCMSocket(socket.SOCK_SEQPACKET) as kcm:
            kcm.attach(tcp[0], FRAMING)
            kcm.settimeout(PATIENCE)
            tcp[1].sendall(message(b"through a pipe"))
            assert kcm.recv(None, socket.MSG_PEEK) == message(b"through a pipe")
            kcm.setblocking(True)
            reading, writing = os.pipe()
            try:
                assert os.splice(kcm.fileno(), writing, 100) == 18
                assert os.read(reading, 100) == message(b"through a pipe")
            finally:
                os.close(reading)
                os.close(writing)


Backend = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]


@pytest.fixture(params=["asyncio", "trio"])
def run(request: pytest.FixtureRequest) -> Backend:
    return lambda main: anyio.run(main, backend=request.param)


class TestAsync:
    def test_send_and_receive(self, kcm: pykcm.KCMSocket, tcp: Pair, run: Backend) -> None:
        async def main() -> None:
            await kcm.asend(message(b"question"))
            assert read(tcp[1], 12) == message(b"question")

            async def answer() -> None:
                await anyio.sleep(0.1)
                tcp[1].sendall(message(b"answer") * 3)

            async with anyio.create_task_group() as group:
                group.start_soon(answer)
                assert await kcm.arecv() == message(b"answer")
                rest: list[bytes] = []
                while len(rest) < 2:
                    rest += await kcm.arecv_many()
                assert rest == [message(b"answer")] * 2

        run(main)

    def test_iteration(self, tcp: Pair, run: Backend) -> None:
        async def main() -> None:
            with pykcm.Multiplexor(FRAMING) as mux:
                mux.attach(tcp[0])
                sent = [message(struct.pack(">I", i)) for i in range(300)]
                tcp[1].sendall(b"".join(sent))
                tcp[1].close()
                assert [received async for received in mux] == sent

        run(main)

    def test_cancelling_a_receive_loses_nothing(
        self, kcm: pykcm.KCMSocket, tcp: Pair, run: Backend
    ) -> None:
        sent = [message(struct.pack(">I", i)) for i in range(200)]

        async def main() -> None:
            received: list[bytes] = []

            async def write() -> None:
                for each in sent:
                    tcp[1].sendall(each)
                    await anyio.sleep(0.001)

            async with anyio.create_task_group() as group:
                group.start_soon(write)
                end = time.monotonic() + PATIENCE
                while len(received) < len(sent) and time.monotonic() < end:
                    with anyio.move_on_after(0.0015):
                        received.append(await kcm.arecv())
            assert received == sent

        run(main)

    def test_a_full_queue_uses_no_cpu(self, kcm: pykcm.KCMSocket, run: Backend) -> None:
        fill(kcm)

        async def main() -> None:
            with mostly_waiting(who=resource.RUSAGE_SELF), anyio.move_on_after(2) as scope:
                while True:  # TCP may take some after all
                    await kcm.asend(message(bytes(50_000)))
            assert scope.cancelled_caught

        run(main)

    def test_a_full_queue_wakes_the_sender(
        self, kcm: pykcm.KCMSocket, tcp: Pair, run: Backend
    ) -> None:
        count = fill(kcm)

        async def main() -> None:
            reader = threading.Timer(0.3, read, [tcp[1], (count + 1) * 50_004])
            reader.start()
            with anyio.fail_after(PATIENCE):
                await kcm.asend(message(bytes(50_000)))
                await kcm.aflush()
            reader.join(PATIENCE)

        run(main)
        assert kcm.unsent == 0

    def test_multiplexor(self, tcp: Pair, run: Backend) -> None:
        async def main() -> None:
            with pykcm.Multiplexor(FRAMING) as mux:
                with pytest.raises(pykcm.Disconnected):
                    await mux.asend(message(b"nowhere"))
                mux.attach(tcp[0])
                messages = [message(bytes(40_000)) for _ in range(40)]
                reader = threading.Timer(0.3, read, [tcp[1], 40 * 40_004])
                reader.start()
                assert await mux.asend_many(messages) == 40
                await mux.aflush()
                reader.join(PATIENCE)
                tcp[1].close()
                with pytest.raises(pykcm.Disconnected):
                    await mux.arecv()

        run(main)

    def test_datagram_endpoint(self, tcp: Pair) -> None:
        async def main() -> None:
            received: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()

            class Protocol(asyncio.DatagramProtocol):
                def datagram_received(self, data: bytes, addr: Any) -> None:
                    received.put_nowait((data, addr))

            kcm = pykcm.KCMSocket()
            kcm.attach(tcp[0], FRAMING)
            kcm.setblocking(False)
            transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                Protocol, sock=kcm
            )
            tcp[1].sendall(message(b"in") * 2)
            assert await received.get() == (message(b"in"), None)
            assert await received.get() == (message(b"in"), None)
            transport.sendto(message(b"out"))
            assert tcp[1].recv(100) == message(b"out")
            transport.close()
            await asyncio.sleep(0)

        asyncio.run(main())


def test_trio_is_there() -> None:
    """The parametrized tests above say nothing if a backend silently is another."""
    trio.run(trio.sleep, 0)


def test_kill_leaves_nothing_in_the_kernel() -> None:
    """A worker, and a whole program, killed in the middle of receiving."""
    near, far = _loopback.connection()
    with near, far:
        pid = os.fork()
        if pid == 0:
            try:
                os.setpgid(0, 0)
                mux = pykcm.Multiplexor(FRAMING)
                mux.attach(near)
                clone = mux.clone()
                if os.fork() == 0:
                    while True:
                        clone.recv()
                while True:
                    mux.recv(timeout=PATIENCE)
            finally:
                os._exit(1)
        near.close()
        far.setblocking(False)
        pending = memoryview(b"")
        end = time.monotonic() + 1
        while time.monotonic() < end:
            try:
                pending = pending or memoryview(message(bytes(3000)))
                pending = pending[far.send(pending) :]
            except BlockingIOError:
                time.sleep(0.01)
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the program ended by itself"
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    eventually(lambda: statistics.multiplexors() == [])
