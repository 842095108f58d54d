"""Multiplexor on a real kernel: transports come, die and go, and no message is lost."""

from __future__ import annotations

import errno
import os
import socket
import struct
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pykcm
from pykcm import Disconnection, Multiplexor, Reason, _kernel, _loopback, statistics
from pykcm._binding import lib
from pykcm._tcp import unparsed
from pykcm.errors import AttachError, Disconnected, KCMOSError
from tests.children import begin, in_child
from tests.strikes import no_descriptor_left

from .connections import (
    FRAMING,
    PATIENCE,
    Pair,
    deliver,
    ended,
    eventually,
    fill,
    message,
    number_of_bytes,
    parsed,
    received_in_all,
    reset,
)

Reports = list[Disconnection]


@pytest.fixture
def mux() -> Iterator[Multiplexor]:
    with Multiplexor(FRAMING) as multiplexor:
        yield multiplexor


@pytest.fixture
def connect() -> Iterator[Callable[[], Pair]]:
    opened: list[socket.socket] = []

    def new() -> Pair:
        pair = _loopback.connection()
        opened.extend(pair)
        return pair

    yield new
    for tcp in opened:
        tcp.close()


@pytest.fixture
def reports(mux: Multiplexor) -> Reports:
    found: Reports = []
    mux.on_disconnect = found.append
    return found


def write_and_close(tcp: socket.socket, messages: list[bytes]) -> threading.Thread:
    def run() -> None:
        tcp.sendall(b"".join(messages))
        tcp.close()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def receive_all(mux: Multiplexor) -> tuple[list[bytes], Disconnected]:
    received: list[bytes] = []
    while True:
        try:
            received += mux.recv_many(timeout=PATIENCE)
        except Disconnected as error:
            return received, error


class TestTheEnd:
    def test_no_end_of_file_in_the_kernel(self, connect: Callable[[], Pair]) -> None:
        """A KCM socket does not tell that its last transport is gone; pykcm's Multiplexor does."""
        near, far = connect()
        with _kernel.open_socket() as raw, FRAMING.load() as program:
            _kernel.attach(raw.fileno(), near.fileno(), program.fd)
            far.close()
            raw.settimeout(1)
            with pytest.raises(TimeoutError):
                raw.recv(100)

    def test_disconnected_comes_after_the_last_message(
        self, mux: Multiplexor, connect: Callable[[], Pair], reports: Reports
    ) -> None:
        near, far = connect()
        # So small that most of it is still in TCP when the peer has closed.
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        messages = [message(struct.pack(">I", i) + bytes(i % 700)) for i in range(10_000)]
        mux.attach(near, allow_small_buffer=True)
        writer = write_and_close(far, messages)
        time.sleep(1)
        received, error = receive_all(mux)
        writer.join()
        assert received == messages
        assert [(report.tcp, report.reason, report.cut) for report in reports] == [
            (near, Reason.PEER_CLOSED, 0)
        ]
        assert error.errno == errno.EPIPE
        assert mux.transports == []

    def test_several_connections(self, mux: Multiplexor, connect: Callable[[], Pair]) -> None:
        writers = []
        sent = []
        for number in range(8):
            near, far = connect()
            messages = [message(bytes([number]) * size) for size in range(1, 500)]
            sent += messages
            mux.attach(near)
            writers.append(write_and_close(far, messages))
        received, _ = receive_all(mux)
        for writer in writers:
            writer.join()
        assert sorted(received) == sorted(sent)
        assert len(list(mux.disconnections())) == 8

    def test_new_transports_while_traffic_flows(
        self, mux: Multiplexor, connect: Callable[[], Pair], reports: Reports
    ) -> None:
        near, far = connect()
        mux.attach(near)
        far.sendall(message(b"one"))
        assert mux.recv(timeout=PATIENCE) == message(b"one")
        other_near, other_far = connect()
        mux.attach(other_near)
        far.close()
        other_far.sendall(message(b"two"))
        assert mux.recv(timeout=PATIENCE) == message(b"two")
        with pytest.raises(TimeoutError):
            mux.recv(timeout=0.5)
        assert [report.tcp for report in reports] == [near]
        assert mux.transports == [other_near]
        assert [report.tcp for report in mux.disconnections()] == [near]
        assert list(mux.disconnections()) == []

    def test_without_any_transport(self, mux: Multiplexor) -> None:
        with pytest.raises(Disconnected) as info:
            mux.recv(timeout=PATIENCE)
        assert info.value.errno == errno.ENOTCONN

    def test_messages_keep_their_order(self, mux: Multiplexor, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        mux.attach(near)
        messages = [message(struct.pack(">I", i) + bytes(3000)) for i in range(2000)]
        writer = write_and_close(far, messages)
        writer.join(0.2)
        received, _ = receive_all(mux)
        writer.join()
        assert [m[:8] for m in received] == [m[:8] for m in messages]


class TestReasons:
    def ended(self, mux: Multiplexor, reports: Reports) -> Disconnection:
        with pytest.raises(Disconnected):
            mux.recv(timeout=PATIENCE)
        assert len(reports) == 1
        return reports[0]

    def test_reset(self, mux: Multiplexor, connect: Callable[[], Pair], reports: Reports) -> None:
        near, far = connect()
        mux.attach(near)
        reset(far)
        assert self.ended(mux, reports).reason is Reason.RESET

    def test_cut_in_mid_message(
        self, mux: Multiplexor, connect: Callable[[], Pair], reports: Reports
    ) -> None:
        near, far = connect()
        far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        mux.attach(near)
        far.sendall(message(b"whole") + message(bytes(1000))[:500])
        assert mux.recv(timeout=PATIENCE) == message(b"whole")
        # Once the kernel has taken the beginning, what follows shows that the message was cut.
        eventually(lambda: parsed(near))
        time.sleep(0.1)  # the kernel's worker has done with it, else it takes what follows too
        far.sendall(bytes(100))
        eventually(lambda: unparsed(near.fileno()) == 100)
        far.close()
        report = self.ended(mux, reports)
        assert report.reason is Reason.PEER_CLOSED
        assert report.cut == 100

    def test_oversize(
        self, mux: Multiplexor, connect: Callable[[], Pair], reports: Reports
    ) -> None:
        near, far = connect()
        mux.attach(near)
        far.sendall(message(b"good") + struct.pack(">I", 1 << 30) + message(b"never seen"))
        assert mux.recv(timeout=PATIENCE) == message(b"good")
        report = self.ended(mux, reports)
        assert (report.reason, report.errno) == (Reason.OVERSIZE, errno.EMSGSIZE)

    def test_bad_header(self, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        framing = pykcm.LengthField(offset=2, size=2, adjustment=4, magic=b"OK", max_length=60_000)
        with Multiplexor(framing) as mux:
            mux.attach(near)
            far.sendall(b"OK\0\1!" + b"NO\0\1!")
            assert mux.recv(timeout=PATIENCE) == b"OK\0\1!"
            with pytest.raises(Disconnected):
                mux.recv(timeout=PATIENCE)
            (report,) = mux.disconnections()
            assert (report.reason, report.errno) == (Reason.BAD_HEADER, errno.EBADMSG)

    def test_assembly_timeout(
        self, mux: Multiplexor, connect: Callable[[], Pair], reports: Reports
    ) -> None:
        near, far = connect()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 200_000))
        mux.attach(near)
        far.sendall(message(bytes(100))[:50])
        report = self.ended(mux, reports)
        assert (report.reason, report.errno) == (Reason.ASSEMBLY_TIMEOUT, errno.ETIMEDOUT)


class TestDetach:
    def test_what_has_arrived_stays_to_be_received(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        mux.attach(near)
        messages = [message(bytes(10_000)) for _ in range(100)]
        deliver(far, near, b"".join(messages))
        mux.unattach(near)
        assert mux.transports == []
        assert [mux.recv(timeout=0) for _ in messages] == messages
        far.sendall(b"plain")
        near.settimeout(PATIENCE)
        assert near.recv(10) == b"plain"

    def test_the_kernel_drops_what_waits(self, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        before = statistics.totals().multiplexors["rx_ready_drops"]
        with _kernel.open_socket() as raw, FRAMING.load() as program:
            raw.setsockopt(lib.SOL_KCM, pykcm._binding.lib.KCM_RECV_DISABLE, 1)
            _kernel.attach(raw.fileno(), near.fileno(), program.fd)
            deliver(far, near, message(b"complete"))
            eventually(lambda: parsed(near))
            _kernel.unattach(raw.fileno(), near.fileno())
            raw.setsockopt(lib.SOL_KCM, pykcm._binding.lib.KCM_RECV_DISABLE, 0)
            raw.settimeout(1)
            with pytest.raises(TimeoutError):
                raw.recv(100)
        assert statistics.totals().multiplexors["rx_ready_drops"] == before + 1

    def test_sent_messages_get_out_first(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        mux.attach(near)
        sent = message(bytes(200_000))
        for _ in range(10):
            mux.send(sent)
        received = bytearray()

        def read() -> None:
            while len(received) < 10 * len(sent):
                received.extend(far.recv(1 << 20))

        reader = threading.Thread(target=read)
        reader.start()
        mux.unattach(near)
        reader.join(PATIENCE)
        assert bytes(received) == sent * 10

    def test_what_is_not_attached(self, mux: Multiplexor, connect: Callable[[], Pair]) -> None:
        with pytest.raises(AttachError) as info:
            mux.unattach(connect()[0])
        assert info.value.errno == errno.ENOENT


class TestSending:
    def test_refused_without_transport(self, mux: Multiplexor) -> None:
        with pytest.raises(Disconnected):
            mux.send(message(b"x"))

    def test_refused_after_the_last_has_gone(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        mux.attach(near)
        far.close()
        with pytest.raises(Disconnected):
            while True:
                mux.send(message(bytes(1000)))

    def test_queued_until_a_transport_comes(self, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        with Multiplexor(FRAMING, queue_unattached=True) as mux:
            mux.send(message(b"waits"))
            assert mux.unsent == len(message(b"waits"))
            mux.attach(near)
            far.settimeout(PATIENCE)
            assert far.recv(100) == message(b"waits")

    def test_blocked_send_ends_with_the_last_transport(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        mux.attach(near)
        closer = threading.Timer(1, reset, [far])
        closer.start()
        with pytest.raises(Disconnected):
            while True:
                mux.send(message(bytes(60_000)), timeout=PATIENCE)
        closer.join()
        with pytest.warns(pykcm.UnsentWarning):
            mux.close(0)

    def test_a_dead_transport_s_messages_go_by_another(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        other_near, other_far = connect()
        mux.attach(near)
        mux.attach(other_near)
        reset(far)
        eventually(lambda: ended(near))
        for number in range(20):
            mux.send(message(bytes([number])))
        other_far.settimeout(PATIENCE)
        received = b""
        while len(received) < 20 * 5:
            received += other_far.recv(1000)
        assert received == b"".join(message(bytes([number])) for number in range(20))


class TestWorkers:
    def test_the_parent_watches_while_workers_receive(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        mux.attach(near)
        with mux.clone() as worker:
            with pytest.raises(KCMOSError):
                mux.wait_disconnection(0)
            mux.socket.recv_disabled = True
            # More than the worker's own buffer takes, so that the rest waits in TCP.
            messages = [message(struct.pack(">I", i) + bytes(5_000)) for i in range(300)]
            writer = write_and_close(far, messages)
            report = mux.wait_disconnection(PATIENCE)
            writer.join()
            assert (report.tcp, report.reason, report.cut) == (near, Reason.PEER_CLOSED, 0)
            worker.settimeout(PATIENCE)
            received = [worker.recv() for _ in messages]
            assert sorted(received) == messages
            with pytest.raises(Disconnected):
                worker.recv(None, socket.MSG_DONTWAIT)

    def test_a_dead_worker_s_queue_goes_to_the_others(
        self, mux: Multiplexor, connect: Callable[[], Pair]
    ) -> None:
        near, far = connect()
        mux.attach(near)
        mux.socket.recv_disabled = True
        worker = mux.clone()
        messages = [message(struct.pack(">I", i)) for i in range(50)]
        far.sendall(b"".join(messages))

        def die() -> None:
            """Takes one message, and dies with the others in its queue."""
            worker.recv()
            os.kill(os.getpid(), 9)

        pid = begin(die)
        worker.close()
        os.waitpid(pid, 0)
        mux.socket.recv_disabled = False
        received = [mux.recv(timeout=PATIENCE) for _ in range(49)]
        assert len(set(received)) == 49
        assert set(received) < set(messages)

    def test_use_after_fork(self, mux: Multiplexor, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        mux.attach(near)

        def use() -> None:
            with pytest.raises(KCMOSError) as info:
                mux.recv(timeout=0)
            assert info.value.errno == errno.EPERM
            mux.close()

        in_child(use)
        far.sendall(message(b"the parent's"))
        assert mux.recv(timeout=PATIENCE) == message(b"the parent's")

    def test_nothing_is_left_in_the_kernel(self) -> None:
        eventually(lambda: statistics.multiplexors() == [])


class TestClosing:
    def test_the_kernel_throws_the_queue_away(self, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        with _kernel.open_socket() as raw, FRAMING.load() as program:
            _kernel.attach(raw.fileno(), near.fileno(), program.fd)
            sent = 100_000 * fill(raw, 99_996)
        near.close()
        assert received_in_all(far) < sent

    def test_leaving_the_block_flushes(self, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        sent = message(bytes(99_996))
        received = bytearray()

        def read() -> None:
            time.sleep(0.5)
            while len(received) < 30 * len(sent):
                received.extend(far.recv(1 << 16))

        reader = threading.Thread(target=read)
        with Multiplexor(FRAMING, linger=PATIENCE) as mux:
            mux.attach(near)
            reader.start()
            for _ in range(30):
                mux.send(sent)
        reader.join(PATIENCE)
        assert bytes(received) == sent * 30

    def test_what_is_lost_is_said(self, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        kcm = pykcm.KCMSocket()
        kcm.attach(near, FRAMING)
        sent = 100_000 * fill(kcm, 99_996)
        before = kcm.unsent
        with pytest.warns(pykcm.UnsentWarning) as warned:
            kcm.close(0)
        near.close()
        # TCP may have taken a message meanwhile, and a part of the next one.
        lost = number_of_bytes(warned[0].message)
        assert 0 < lost <= before
        assert sent - lost <= received_in_all(far) < sent

    @pytest.mark.parametrize("make", [pykcm.KCMSocket, lambda: Multiplexor(FRAMING)])
    def test_what_is_lost_without_closing_is_said(
        self, connect: Callable[[], Pair], make: Callable[[], pykcm.KCMSocket | Multiplexor]
    ) -> None:
        near, _ = connect()
        with no_descriptor_left():
            forgotten = make()
            if isinstance(forgotten, Multiplexor):
                forgotten.attach(near)
                kcm = forgotten.socket
            else:
                kcm = forgotten
                kcm.attach(near, FRAMING)
            fill(kcm, 99_996)
            del kcm
            with pytest.warns(pykcm.UnsentWarning, match=r"\d+ bytes"), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "unclosed", ResourceWarning)
                warnings.filterwarnings("ignore", ".*was not closed$", ResourceWarning)
                del forgotten

    def test_hand_over_closes(self, mux: Multiplexor, connect: Callable[[], Pair]) -> None:
        near, far = connect()
        mux.attach(near, hand_over=True)
        far.close()
        with pytest.raises(Disconnected):
            mux.recv(timeout=PATIENCE)
        assert near.fileno() == -1

    def test_a_closed_multiplexor(self, mux: Multiplexor) -> None:
        mux.close()
        mux.close()
        with pytest.raises(KCMOSError) as info:
            mux.recv(timeout=0)
        assert info.value.errno == errno.EBADF


# Connections that come and go, one after the other.
@pytest.mark.timeout(600)
def test_cycles_leave_nothing_behind(request: pytest.FixtureRequest) -> None:
    cycles = request.config.getoption("--cycles")

    def cycle() -> None:
        near, far = _loopback.connection()
        with near, far, Multiplexor(FRAMING) as mux:
            mux.attach(near)
            far.sendall(message(b"question"))
            assert mux.recv(timeout=PATIENCE) == message(b"question")
            mux.send(message(b"answer"))
            far.settimeout(PATIENCE)
            assert far.recv(100) == message(b"answer")
            mux.unattach(near)
            reset(far)

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")

    def objects() -> dict[str, int]:
        """Objects in use in the kernel's slabs for KCM and TCP."""
        lines = Path("/proc/slabinfo").read_text().splitlines()
        found = {line.split()[0]: int(line.split()[1]) for line in lines[2:]}
        return {name: found.get(name, 0) for name in ("kcm_mux_cache", "TCP", "tw_sock_TCP")}

    for _ in range(100):
        cycle()
    memory = resident()
    before = objects()
    with no_descriptor_left():
        for _ in range(cycles):
            cycle()
    assert resident() - memory < 4 << 20
    eventually(lambda: statistics.multiplexors() == [])
    # A slab's free objects count while they lie in a CPU's cache; a leak would be `cycles` of them.
    eventually(lambda: all(n < before[name] + cycles // 2 for name, n in objects().items()))
