"""KCMSocket on a real kernel: attaching, cloning, whole messages in and out."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

import pykcm
from pykcm import _kernel, _loopback, _trials, bpf
from pykcm._binding import lib
from pykcm.cli.demo import DOCUMENTED
from pykcm.errors import AttachError, KCMOSError, MessageTruncated

from .connections import FRAMING, Pair, message


@pytest.fixture
def tcp() -> Iterator[Pair]:
    near, far = _loopback.connection()
    with near, far:
        yield near, far


@pytest.fixture(params=[socket.SOCK_DGRAM, socket.SOCK_SEQPACKET], ids=["dgram", "seqpacket"])
def kcm(request: pytest.FixtureRequest) -> Iterator[pykcm.KCMSocket]:
    with pykcm.KCMSocket(request.param) as sock:
        sock.settimeout(30)
        yield sock


def test_coalesced_messages_arrive_whole(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    messages = [message(bytes(size)) for size in (10, 20, 5, 300, 7, 1000, 3, 0)]
    far.sendall(b"".join(messages))
    kcm.attach(near, FRAMING)
    assert [kcm.recv() for _ in messages] == messages


def test_a_header_cut_after_each_of_its_bytes(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kcm.attach(near, FRAMING)
    first, second = message(b"the first"), message(b"the second, longer")
    for cut in range(1, 5):
        far.sendall(first + second[:cut])
        # That the first message was read shows that the cut has been seen.
        assert kcm.recv() == first
        with pytest.raises(BlockingIOError):
            kcm.recv(None, socket.MSG_DONTWAIT)
        far.sendall(second[cut:])
        assert kcm.recv() == second


def test_one_byte_per_segment(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    kcm.attach(near, FRAMING)
    messages = [message(bytes([number]) * number) for number in range(20)]
    for byte in b"".join(messages):
        far.sendall(bytes([byte]))
    assert [kcm.recv() for _ in messages] == messages


def test_the_documented_program_misframes(tcp: Pair) -> None:
    """The kernel runs the program from the segment's first byte, whatever message it is at.

    The day that this fails, the kernel has been mended, and the work-around can be retired.
    """
    near, far = tcp
    sizes = (10, 20, 5, 300, 7, 1000, 3)
    stream = b"".join(message(bytes([size & 0xFF]) * (size - 4)) for size in sizes if size > 4)
    far.sendall(stream)
    with _kernel.open_socket() as raw, bpf.Program.load(DOCUMENTED) as program:
        raw.settimeout(30)
        _kernel.attach(raw.fileno(), near.fileno(), program.fd)
        received = [raw.recv(4096) for _ in range(len(stream) // 10)]
    # Each is as long as the first message: the second and later ones are garbage.
    assert received == [stream[start : start + 10] for start in range(0, len(stream) - 9, 10)]


def test_send_is_one_message(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    kcm.attach(near, FRAMING)
    sent = message(b"hello")
    assert kcm.send(sent) == len(sent)
    far.settimeout(30)
    assert far.recv(100) == sent


def test_unattach_gives_the_connection_back(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    kcm.attach(near, FRAMING)
    kcm.unattach(near)
    far.sendall(b"plain")
    near.settimeout(30)
    assert near.recv(100) == b"plain"
    kcm.attach(near, FRAMING)
    far.sendall(message(b"framed"))
    assert kcm.recv() == message(b"framed")


def test_clones_share_the_messages(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    kcm.attach(near, FRAMING)
    with kcm.clone() as clone:
        clone.settimeout(30)
        assert clone.type == kcm.type
        kcm.recv_disabled = True
        assert kcm.recv_disabled
        assert not clone.recv_disabled
        far.sendall(message(b"for the clone"))
        assert clone.recv() == message(b"for the clone")


def test_disabling_hands_the_queue_on(kcm: pykcm.KCMSocket, tcp: Pair) -> None:
    near, far = tcp
    kcm.attach(near, FRAMING)
    far.sendall(message(b"queued"))
    assert kcm.recv(None, socket.MSG_PEEK) == message(b"queued")
    with kcm.clone() as clone:
        clone.settimeout(30)
        kcm.recv_disabled = True
        assert clone.recv() == message(b"queued")


def test_the_kernel_clones_without_close_on_exec(kcm: pykcm.KCMSocket) -> None:
    import fcntl

    request = bytearray(4)
    fcntl.ioctl(kcm.fileno(), lib.SIOCKCMCLONE, request)
    fd = int.from_bytes(request, sys.byteorder)
    try:
        assert not fcntl.fcntl(fd, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
    finally:
        os.close(fd)


def test_no_descriptor_survives_exec(kcm: pykcm.KCMSocket) -> None:
    with kcm.clone() as clone, kcm.dup() as duplicate:
        fds = [kcm.fileno(), clone.fileno(), duplicate.fileno()]
        assert not any(os.get_inheritable(fd) for fd in fds)
        probe = "import os,sys\nfor fd in sys.argv[1:]:\n try: os.fstat(int(fd)); print(fd)\n"
        probe += " except OSError: pass"
        output = subprocess.run(
            [sys.executable, "-c", probe, *map(str, fds)],
            close_fds=False,
            check=True,
            capture_output=True,
        ).stdout
        assert output == b""


class TestAttachErrors:
    """Each error of SIOCKCMATTACH and SIOCKCMUNATTACH, by name and with its errno."""

    @staticmethod
    def refused(kcm: pykcm.KCMSocket, tcp: socket.socket | int, delineation: object = None) -> int:
        with pytest.raises(AttachError) as info:
            kcm.attach(tcp, FRAMING if delineation is None else delineation)  # type: ignore[arg-type]
        assert isinstance(info.value, OSError)
        assert info.value.strerror
        return info.value.errno or 0

    def test_no_descriptor(self, kcm: pykcm.KCMSocket) -> None:
        assert self.refused(kcm, 987_654) == errno.ENOENT

    def test_a_file(self, kcm: pykcm.KCMSocket) -> None:
        with open("/dev/null", "rb") as file:  # noqa: PTH123
            assert self.refused(kcm, file.fileno()) == errno.ENOENT

    def test_a_closed_socket(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        tcp[0].close()
        assert self.refused(kcm, tcp[0]) == errno.ENOENT

    def test_bad_program_descriptor(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        assert self.refused(kcm, tcp[0], 987_654) == errno.EBADF

    def test_no_program(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        assert self.refused(kcm, tcp[0], tcp[1].fileno()) == errno.EINVAL

    def test_udp(self, kcm: pykcm.KCMSocket) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            assert self.refused(kcm, udp) == errno.EOPNOTSUPP

    def test_unix(self, kcm: pykcm.KCMSocket) -> None:
        one, other = socket.socketpair()
        with one, other:
            assert self.refused(kcm, one) == errno.EOPNOTSUPP

    def test_listening(self, kcm: pykcm.KCMSocket) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            assert self.refused(kcm, listener) == errno.EOPNOTSUPP

    def test_not_connected(self, kcm: pykcm.KCMSocket) -> None:
        with socket.socket() as fresh:
            assert self.refused(kcm, fresh) == errno.EOPNOTSUPP

    def test_mptcp(self, kcm: pykcm.KCMSocket) -> None:
        try:
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)
        except OSError as error:
            pytest.skip(f"this kernel has no MPTCP ({error})")
        with listener:
            listener.bind(("127.0.0.1", 0))
            listener.listen()
            with socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262) as near:
                near.connect(listener.getsockname())
                assert self.refused(kcm, near) == errno.EOPNOTSUPP

    def test_another_kcm_socket(self, kcm: pykcm.KCMSocket) -> None:
        with pykcm.KCMSocket() as other:
            assert self.refused(kcm, other) == errno.EOPNOTSUPP

    def test_attached_already(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        kcm.attach(tcp[0], FRAMING)
        assert self.refused(kcm, tcp[0]) == errno.EALREADY
        with pykcm.KCMSocket() as other:
            assert self.refused(other, tcp[0]) == errno.EALREADY

    def test_unattach_what_is_not_attached(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        with pytest.raises(AttachError) as info:
            kcm.unattach(tcp[0])
        assert info.value.errno == errno.ENOENT

    def test_attach_to_a_closed_socket(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        kcm.close()
        with pytest.raises(KCMOSError) as info:
            kcm.attach(tcp[0], FRAMING)
        assert info.value.errno == errno.EBADF


class TestReceiveBuffer:
    """A message longer than about half the TCP receive buffer stalls in the kernel, unseen."""

    # Just under the buffer of 131,072 bytes that an SO_RCVBUF of 65,536 gives.
    LONG = 131_000

    def test_the_kernel_stalls(self, tcp: Pair) -> None:
        near, far = tcp
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        far.setblocking(False)
        framing = pykcm.LengthField(adjustment=4, max_length=self.LONG)
        with _kernel.open_socket() as raw, framing.load() as program:
            _kernel.attach(raw.fileno(), near.fileno(), program.fd)
            # The header alone at first: the window has to take what the first segment leaves.
            far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sent = memoryview(message(bytes(self.LONG - 4)))
            far.send(sent[:4])
            time.sleep(0.2)
            far.send(sent[4:])
            raw.settimeout(2)
            with pytest.raises(TimeoutError):
                raw.recv(self.LONG)
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0

    def test_attach_refuses_a_buffer_that_cannot_grow(self, tcp: Pair) -> None:
        near, _ = tcp
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        framing = pykcm.LengthField(adjustment=4, max_length=self.LONG)
        with pykcm.KCMSocket() as kcm:
            with pytest.raises(AttachError) as info:
                kcm.attach(near, framing)
            assert info.value.errno == errno.ENOBUFS
            kcm.attach(near, framing, allow_small_buffer=True)

    def test_attach_makes_room_after_much_has_come(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        """Long segments before the attach make the kernel think that little overhead is needed."""
        near, far = tcp
        far.setblocking(False)
        stream = message(bytes(30_000)) * 10
        taken = far.send(stream)
        time.sleep(0.2)
        kcm.attach(near, pykcm.LengthField(adjustment=4, max_length=1 << 20))
        assert near.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) >= 2 << 20
        while taken < len(stream):
            taken += far.send(stream[taken:])
        assert [kcm.recv() for _ in range(10)] == [message(bytes(30_000))] * 10

    @pytest.mark.parametrize("size", [100_000, 131_073, 1 << 20])
    def test_attach_makes_room(self, kcm: pykcm.KCMSocket, tcp: Pair, size: int) -> None:
        near, far = tcp
        kcm.attach(near, pykcm.LengthField(adjustment=4, max_length=size))
        assert kcm.max_message_size >= size
        sent = message(bytes(size - 4))
        far.setblocking(False)
        view = memoryview(sent)
        received = b""
        while not received:
            if view:
                view = view[far.send(view) :]
            else:
                received = kcm.recv()
        assert received == sent


class TestTruncation:
    def test_a_message_over_the_room_is_an_error(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        near, far = tcp
        kcm.attach(near, FRAMING)
        kcm.max_message_size = 10
        far.sendall(message(b"0123456789") + message(b"short"))
        if kcm.type == socket.SOCK_SEQPACKET and _trials.seqpacket_keeps_the_rest():
            assert kcm.recv() == message(b"0123456789")
            return
        with pytest.raises(MessageTruncated) as info:
            kcm.recv()
        assert info.value.errno == errno.EMSGSIZE
        assert info.value.message == message(b"0123456789")[:11]

    def test_recv_into_a_short_buffer_loses_nothing(self, kcm: pykcm.KCMSocket, tcp: Pair) -> None:
        near, far = tcp
        kcm.attach(near, FRAMING)
        far.sendall(message(b"0123456789") + message(b"ok"))
        with pytest.raises(MessageTruncated) as info:
            kcm.recv_into(bytearray(10))
        assert info.value.message == message(b"0123456789")
        buffer = bytearray(10)
        assert kcm.recv_into(buffer) == 6
        assert buffer[:6] == message(b"ok")
