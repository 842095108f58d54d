"""A KCM socket's descriptor is taken up, given away, duplicated and closed, without AF_KCM."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import socket
import ssl
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

import pykcm
from pykcm import KCMSocket, Multiplexor, _kernel
from tests.children import in_child
from tests.strikes import Case, Strike, strike_everywhere
from tests.unit.stand_in import PATIENCE, World

FRAMING = pykcm.FixedLength(3)
MESSAGE = bytes(1_000_000)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("batch", [1, 4])
def test_from_fd_that_raises_leaves_the_descriptor_to_the_caller(world: World, batch: int) -> None:
    """It was closed with the half-made object, and then once more by the caller."""
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    framing = None if batch == 1 else FRAMING

    def case() -> Case:
        fd = os.dup(ours.fileno())
        outcome = yield lambda: KCMSocket.from_fd(fd, framing=framing, batch=batch)
        if isinstance(outcome, KCMSocket):
            assert outcome._fd() == fd
            outcome.close()
        else:
            assert isinstance(outcome, Strike)
            assert os.path.sameopenfile(fd, ours.fileno())
            os.close(fd)

    with ours, other:
        assert strike_everywhere(case, lines=True) > 20


def test_from_fd_that_refuses_leaves_the_descriptor_to_the_caller(world: World) -> None:
    ours, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, other:
        with pytest.raises(pykcm.ArgumentError):
            KCMSocket.from_fd(ours.fileno(), batch=2)
        other.send(b"still open")
        assert ours.recv(100) == b"still open"


class Losing:
    """A KCM socket that loses bytes, and a message that its siblings could have got."""

    def __init__(self, world: World) -> None:
        self.kcm: KCMSocket | None = world.mux.clone()
        self.fd = self.kcm._fd()
        world.arrive(2)
        while self.kcm._port.held < 2:
            self.kcm._port.pull()

    def is_open(self) -> bool:
        with contextlib.suppress(OSError):
            os.fstat(self.fd)
            return True
        return False


@pytest.fixture
def losing(world: World) -> Iterator[Losing]:
    memory = [0] * 9
    memory[_kernel.WMEM_QUEUED] = 77
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_kernel, "memory", lambda fd: memory)
        yield Losing(world)


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_leaves_no_garbage_open(
    losing: Losing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under `-W error` __del__ ended with its first warning, before the descriptor was closed."""
    reported: list[BaseException] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    losing.kcm = None
    gc.collect()
    assert not losing.is_open()
    assert isinstance(reported[-1], pykcm.UnsentWarning)
    assert isinstance(reported[-1].__context__, pykcm.UnreadWarning)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("step", ["_left_behind", "__repr__", "_let_go"])
def test_an_exception_leaves_no_garbage_open(
    losing: Losing, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """A signal handler's, which struck __del__ before the descriptor was closed."""
    reported: list[BaseException] = []

    def strike(kcm: KCMSocket) -> None:
        raise Strike

    monkeypatch.setattr(sys, "unraisablehook", lambda args: reported.append(args.exc_value))
    with monkeypatch.context() as patch:
        patch.setattr(KCMSocket, step, strike)
        losing.kcm = None
        gc.collect()
    assert not losing.is_open()
    assert isinstance(reported[-1], Strike)


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_leaves_nothing_open(losing: Losing) -> None:
    assert losing.kcm is not None
    with pytest.raises(pykcm.UnsentWarning) as info:
        losing.kcm.close(0)
    assert isinstance(info.value.__context__, pykcm.UnreadWarning)
    assert not losing.is_open()


@pytest.mark.filterwarnings("error")
def test_a_warning_that_is_an_error_detaches_nothing(losing: Losing) -> None:
    """The number that `detach` would have returned was lost."""
    assert losing.kcm is not None
    with pytest.raises(pykcm.UnreadWarning):
        losing.kcm.detach()
    assert losing.kcm._fd() == losing.fd
    assert losing.kcm.recv(timeout=0) == b"0"
    losing.kcm.recv(timeout=0)
    assert losing.kcm.detach() == losing.fd
    assert losing.is_open()
    os.close(losing.fd)


@pytest.mark.parametrize("again", [KCMSocket.dup, KCMSocket.clone])
def test_what_a_clone_has_made_learns_of_the_end(
    world: World, again: Callable[[KCMSocket], KCMSocket]
) -> None:
    """It waited for ever, where the clone itself raised Disconnected."""
    with world.mux.clone() as clone, again(clone) as second, again(second) as third:
        clone.close()
        world.mux.unattach(world.near, timeout=PATIENCE)
        for kcm in (second, third):
            with pytest.raises(pykcm.Disconnected):
                kcm.recv(timeout=PATIENCE)
            with pytest.raises(pykcm.Disconnected):
                kcm.send(b"nowhere to go")
        world.mux.attach(world.near)
        second.send(b"there again")


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("again", [KCMSocket.dup, KCMSocket.clone])
def test_what_a_clone_has_made_may_receive(
    world: World, again: Callable[[KCMSocket], KCMSocket]
) -> None:
    """The Multiplexor did not know that messages were left to it."""
    assert not world.mux._clones.may_receive()
    with again(world.mux.clone()) as second:
        gc.collect()
        assert world.mux._clones.may_receive()
        with again(second) as third:
            second.close()
            assert world.mux._clones.may_receive()
            third.close()
    assert world.mux._clones.may_receive() == (again is KCMSocket.dup)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("again", [KCMSocket.dup, KCMSocket.clone])
def test_making_another_of_a_clone_is_struck(
    world: World, again: Callable[[KCMSocket], KCMSocket]
) -> None:
    with world.mux.clone() as clone:

        def case() -> Case:
            outcome = yield lambda: again(clone)
            if isinstance(outcome, KCMSocket):
                outcome.close()
            else:
                assert isinstance(outcome, Strike)
            assert clone._port.watched
            assert world.mux._clones.may_receive()

        assert strike_everywhere(case, lines=True) > 20


@pytest.mark.parametrize("kind", ["KCMSocket", "Multiplexor"])
def test_tls_in_user_space_is_refused(
    world: World, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was attached, and KCM took ciphertext for messages."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    near, far = world.connections.new()
    with (
        far,
        context.wrap_socket(near, do_handshake_on_connect=False) as tls,
        Multiplexor(0) as mux,
        KCMSocket() as kcm,
    ):

        def attach() -> None:
            if kind == "KCMSocket":
                kcm.attach(tls, 0)
            else:
                mux.attach(tls)

        with pytest.raises(pykcm.AttachError, match="kernel TLS") as info:
            attach()
        assert info.value.errno == errno.EOPNOTSUPP
        assert not mux.transports
        with pytest.raises(pykcm.KCMOSError, match="off a TLS socket"):
            FRAMING.read_message(tls)
        monkeypatch.setattr("pykcm._tcp.upper_protocol", lambda fd: "tls")
        monkeypatch.setattr("pykcm._trials.kernel_decrypts_tls", lambda: True)
        attach()


@pytest.fixture
def halved(world: World) -> Iterator[tuple[KCMSocket, socket.socket]]:
    """A KCM socket of which the kernel took a message in part, and where that goes.

    A stream stands in for it: it takes in part what KCM does for want of memory.
    """
    kcm = KCMSocket(socket.SOCK_SEQPACKET)
    ours, wire = socket.socketpair()
    os.dup2(ours.fileno(), kcm.fileno(), inheritable=False)
    ours.close()
    kcm.settimeout(0.2)
    with kcm.dup() as other, wire:
        other.send(MESSAGE)
        assert other._port.rest
        wire.settimeout(PATIENCE)
        yield other, wire
        kcm.close(0)


def received(wire: socket.socket) -> bytes:
    got = b""
    while len(got) < len(MESSAGE):
        got += wire.recv(1 << 20)
    return got


def test_a_socket_in_the_middle_of_a_message_is_not_detached(
    halved: tuple[KCMSocket, socket.socket],
) -> None:
    """The rest was dropped, and what the new owner sent went on with the message."""
    kcm, wire = halved
    with pytest.raises(pykcm.KCMOSError, match="flush") as info:
        kcm.detach()
    assert info.value.errno == errno.EBUSY
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(received, wire)
        kcm.flush(PATIENCE)
        assert reading.result() == MESSAGE
    os.close(kcm.detach())


def test_a_duplicate_in_the_middle_of_a_message_is_flushed_when_it_is_closed(
    halved: tuple[KCMSocket, socket.socket],
) -> None:
    """The rest was dropped without a word, since another object had the socket open."""
    kcm, wire = halved
    with ThreadPoolExecutor() as threads, warnings.catch_warnings():
        warnings.simplefilter("error")
        reading = threads.submit(received, wire)
        kcm.close(PATIENCE)
        assert reading.result() == MESSAGE


def test_a_duplicate_in_the_middle_of_a_message_warns(
    halved: tuple[KCMSocket, socket.socket],
) -> None:
    kcm, _ = halved
    rest = kcm._port.rest
    with pytest.warns(pykcm.UnsentWarning, match=f"with {rest} of them a message is cut"):
        kcm.close(0)


def test_a_child_has_no_rest(halved: tuple[KCMSocket, socket.socket]) -> None:
    """It is the parent's, and in the child nothing stands in the way."""
    kcm, wire = halved

    def child() -> None:
        os.close(kcm.detach())

    in_child(child)
    assert kcm._port.rest
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(received, wire)
        kcm.flush(PATIENCE)
        assert reading.result() == MESSAGE
