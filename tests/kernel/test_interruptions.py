"""An exception may strike at any line, and nothing is lost, doubled, leaked or reported twice.

Each case is struck at every line of pykcm's that its call runs through, and goes on after it;
tests/unit/test_interruptions.py has the same at every bytecode, which takes long on a slow kernel.
"""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import functools
import itertools
import os
import resource
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator

import pytest

import pykcm
from pykcm import Multiplexor, Reason
from tests.strikes import Case, Connections, Storm, Strike, strike_everywhere

from .connections import FRAMING, PATIENCE, eventually, message

# What strikes a __del__, Python itself can but report.
pytestmark = [
    pytest.mark.timeout(10 * PATIENCE),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

TYPES = [socket.SOCK_DGRAM, socket.SOCK_SEQPACKET]


class World:
    """A Multiplexor with one live transport, which all strikes of a test have to leave alive."""

    def __init__(self, type: int = socket.SOCK_DGRAM) -> None:
        self.connections = Connections()
        self.type = type
        self.program = FRAMING.load()
        self.mux = Multiplexor(self.program, type=type)
        self.near, self.far = self.connections.new()
        self.far.settimeout(PATIENCE)
        self.mux.attach(self.near)
        self.count = itertools.count()
        self.told: list[socket.socket] = []

    def close(self) -> None:
        self.mux.close()
        self.program.close()
        for tcp in (self.near, self.far):
            tcp.close()
        self.connections.close()

    def messages(self, count: int) -> list[bytes]:
        """Messages that never were before."""
        return [message(b"%d" % next(self.count)) for _ in range(count)]

    def arrive(self, count: int, far: socket.socket | None = None) -> list[bytes]:
        """Messages that wait in the kernel."""
        messages = self.messages(count)
        (far or self.far).sendall(b"".join(messages))
        eventually(lambda: pykcm._kernel.is_readable(self.mux.socket.fileno()))
        return messages

    def look(self) -> None:
        """Have the next call look after the transports."""
        self.mux._port.patience = 0

    def rest(self, got: list[bytes], expected: list[bytes]) -> None:
        """What was not received is received now, in order, and nothing else."""
        assert not self.mux._lock._is_owned(), "the lock is held"  # type: ignore[attr-defined]
        while len(got) < len(expected):
            got += self.mux.recv_many(timeout=PATIENCE)
        assert got == expected
        with contextlib.suppress(TimeoutError):
            raise AssertionError(self.mux.recv(timeout=0))
        self.true()

    def true(self) -> None:
        """The object's own books are right."""
        assert not self.mux._lock._is_owned(), "the lock is held"  # type: ignore[attr-defined]
        assert self.mux.transports == [self.near]
        assert list(self.mux.disconnections()) == []
        assert not self.mux._transports.draining
        assert not self.mux._drain._clones
        assert not self.mux._port.holding
        assert self.mux._port.attached


@pytest.fixture(params=TYPES, ids=["dgram", "seqpacket"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with contextlib.closing(World(request.param)) as world:
        yield world


@pytest.fixture
def dgram() -> Iterator[World]:
    with contextlib.closing(World()) as world:
        yield world


def strike(case: Callable[[], Case], at_least: int) -> None:
    start = time.monotonic()
    count = strike_everywhere(case, lines=True)
    print(f"{count} strikes in {time.monotonic() - start:.1f} s")
    assert count >= at_least, "was the call traced?"


def passed(outcome: object, *allowed: type[BaseException]) -> None:
    """The call returned, was struck, or raised what it may."""
    if isinstance(outcome, BaseException) and not isinstance(outcome, (Strike, *allowed)):
        raise outcome


def test_recv(dgram: World) -> None:
    def case() -> Case:
        expected = dgram.arrive(3)
        dgram.look()
        got: list[bytes] = []
        outcome = yield lambda: got.append(dgram.mux.recv(timeout=PATIENCE))
        passed(outcome)
        dgram.rest(got, expected)

    strike(case, 5)


def test_recv_many(dgram: World) -> None:
    def case() -> Case:
        expected = dgram.arrive(3)
        dgram.look()
        got: list[bytes] = []
        outcome = yield lambda: got.extend(dgram.mux.recv_many(timeout=PATIENCE))
        passed(outcome)
        dgram.rest(got, expected)

    strike(case, 5)


def test_recv_without_a_message(dgram: World) -> None:
    def case() -> Case:
        dgram.look()
        outcome = yield lambda: dgram.mux.recv(timeout=0.001)
        passed(outcome, TimeoutError)
        dgram.rest([], [])
        dgram.rest([], dgram.arrive(1))

    strike(case, 5)


@pytest.mark.parametrize("callback", [False, True], ids=["reported", "called back"])
@pytest.mark.parametrize("hand_over", [False, True], ids=["kept", "handed over"])
def test_a_transports_end(dgram: World, callback: bool, hand_over: bool) -> None:
    def case() -> Case:
        told: list[pykcm.Disconnection] = []
        dgram.mux.on_disconnect = told.append if callback else None
        near, far = dgram.connections.new()
        dgram.mux.attach(near, hand_over=hand_over)
        expected = dgram.arrive(3, far)
        far.close()
        got: list[bytes] = []

        def receive() -> None:
            while True:
                got.extend(dgram.mux.recv_many(timeout=0.01))

        outcome = yield receive
        passed(outcome, TimeoutError)
        assert not dgram.mux._lock._is_owned()  # type: ignore[attr-defined]
        reports: list[pykcm.Disconnection] = []
        end = time.monotonic() + PATIENCE
        while not reports:
            assert time.monotonic() < end, "no end was reported"
            with contextlib.suppress(TimeoutError):
                got += dgram.mux.recv_many(timeout=0.02)
            reports += dgram.mux.disconnections()
        assert [(r.tcp, r.reason, r.cut) for r in reports] == [(near, Reason.PEER_CLOSED, 0)]
        if callback:
            assert told == reports
        assert (near.fileno() < 0) == hand_over
        dgram.rest(got, expected)
        near.close()
        dgram.mux.on_disconnect = None

    strike(case, 50)


def test_wait_disconnection(dgram: World) -> None:
    def case() -> Case:
        near, far = dgram.connections.new()
        dgram.mux.attach(near)
        dgram.mux.socket.recv_disabled = True
        far.close()
        outcome = yield lambda: dgram.mux.wait_disconnection(timeout=PATIENCE)
        passed(outcome)
        reports = [outcome] if isinstance(outcome, pykcm.Disconnection) else []
        end = time.monotonic() + PATIENCE
        while not reports and time.monotonic() < end:
            reports.append(dgram.mux.wait_disconnection(timeout=PATIENCE))
        assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
        dgram.true()
        near.close()
        dgram.mux.socket.recv_disabled = False

    strike(case, 50)


def test_disconnections(dgram: World) -> None:
    def case() -> Case:
        near, far = dgram.connections.new()
        dgram.mux.attach(near)
        far.close()
        reports: collections.deque[pykcm.Disconnection] = collections.deque()
        outcome = yield lambda: reports.extend(dgram.mux.disconnections())
        passed(outcome)
        end = time.monotonic() + PATIENCE
        while not reports and time.monotonic() < end:
            reports.extend(dgram.mux.disconnections())
        assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
        dgram.rest([], [])
        near.close()

    strike(case, 37)


def test_attach(world: World) -> None:
    near, far = world.connections.new()
    far.settimeout(PATIENCE)
    before = [near.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_OOBINLINE, 18)]

    def case() -> Case:
        expected = world.messages(2)
        far.sendall(b"".join(expected))
        outcome = yield lambda: world.mux.attach(near)
        passed(outcome)
        got: list[bytes] = []
        if near not in world.mux.transports:
            assert isinstance(outcome, Strike)
            assert [
                near.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_OOBINLINE, 18)
            ] == before
            world.mux.attach(near)
        while len(got) < 2:
            got += world.mux.recv_many(timeout=PATIENCE)
        world.mux.send(message(b"hither"))
        world.mux.flush(PATIENCE)
        world.mux.unattach(near, timeout=PATIENCE)
        assert [near.getsockopt(socket.SOL_SOCKET, o) for o in (socket.SO_OOBINLINE, 18)] == before
        world.rest(got, expected)

    with near, far:
        strike(case, 37)


@pytest.mark.parametrize("beside", [False, True], ids=["alone", "beside a clone"])
def test_unattach(dgram: World, beside: bool) -> None:
    near, far = dgram.connections.new()
    clone = dgram.mux.clone() if beside else None

    def case() -> Case:
        dgram.mux.attach(near)
        expected = dgram.messages(2)
        far.sendall(b"".join(expected))
        outcome = yield lambda: dgram.mux.unattach(near, timeout=PATIENCE)
        passed(outcome)
        assert not dgram.mux._lock._is_owned()  # type: ignore[attr-defined]
        if near in dgram.mux.transports:
            dgram.mux.unattach(near, timeout=PATIENCE)
        got: list[bytes] = []
        end = time.monotonic() + PATIENCE
        while len(got) < 2 and time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                got += dgram.mux.recv_many(timeout=0.001)
            if clone:
                with contextlib.suppress(TimeoutError):
                    got += clone.recv_many(timeout=0.001)
        assert sorted(got) == sorted(expected)
        dgram.true()

    with near, far:
        strike(case, 50)
        if clone:
            clone.close()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_clone(world: World) -> None:
    def case() -> Case:
        outcome = yield world.mux.clone
        passed(outcome)
        if isinstance(outcome, pykcm.KCMSocket):
            outcome.close()
        del outcome
        with contextlib.closing(world.mux.clone()):
            pass
        assert not world.mux._is_shared()
        world.rest([], world.arrive(2))

    strike(case, 12)


@pytest.mark.parametrize("many", [False, True], ids=["send", "send_many"])
def test_send(world: World, many: bool) -> None:
    def case() -> Case:
        world.look()
        messages = world.messages(3)

        def send() -> None:
            if many:
                world.mux.send_many(messages)
            else:
                world.mux.send(messages[0])

        outcome = yield send
        passed(outcome)
        if isinstance(outcome, Strike):
            done = world.mux.sent_many if many else 0
        else:
            done = len(messages) if many else 1
        world.mux.send_many(messages[done:])
        data = b"".join(messages)
        came = b""
        while len(came) < len(data):
            came += world.far.recv(len(data) - len(came))
        assert came == data
        world.true()

    strike(case, 3)


class Full:
    """A Multiplexor whose queue is full."""

    def __init__(self, world: World) -> None:
        self.world = world
        world.far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        world.near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.sent: list[bytes] = []
        still = 0
        while still < 3:
            still += 1
            with contextlib.suppress(TimeoutError):
                while True:
                    one = message(b"%d" % next(world.count) + bytes(20_000))
                    world.mux.send(one, timeout=0.05)
                    self.sent.append(one)
                    still = 0

    def read(self, extra: list[bytes]) -> None:
        data = b"".join(self.sent + extra)
        came = bytearray()
        while len(came) < len(data):
            came += self.world.far.recv(1 << 20)
        assert came == data


def test_send_that_has_to_wait(world: World) -> None:
    full = Full(world)
    one = message(b"once" + bytes(20_000))

    def case() -> Case:
        outcome = yield lambda: world.mux.send(one, timeout=0.001)
        passed(outcome, TimeoutError)
        assert isinstance(outcome, (Strike, TimeoutError))
        world.true()

    strike(case, 12)
    thread = threading.Thread(target=full.read, args=([one],))
    thread.start()
    world.mux.send(one, timeout=PATIENCE)
    thread.join()


def test_flush(world: World) -> None:
    full = Full(world)

    def case() -> Case:
        outcome = yield lambda: world.mux.flush(timeout=0.001)
        passed(outcome, TimeoutError)
        world.true()

    strike(case, 18)
    thread = threading.Thread(target=full.read, args=([],))
    thread.start()
    world.mux.flush(timeout=PATIENCE)
    thread.join()


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_opening_and_closing(world: World) -> None:
    near, far = world.connections.new()

    def opening() -> Case:
        outcome = yield lambda: Multiplexor(world.program, type=world.type)
        passed(outcome)
        if isinstance(outcome, Multiplexor):
            outcome.close()

    def closing() -> Case:
        mux = Multiplexor(world.program, type=world.type)
        mux.attach(near)
        mux.fileno()
        outcome = yield mux.close
        passed(outcome)
        mux.close()
        # It is the caller's again: so it can be attached.
        world.mux.attach(near)
        world.mux.unattach(near, timeout=PATIENCE)
        world.true()

    with near, far:
        strike(opening, 25)
        strike(closing, 18)


@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_sockets_attach_clone_and_close(world: World) -> None:
    near, far = world.connections.new()

    def attaching() -> Case:
        kcm = pykcm.KCMSocket(world.type)
        outcome = yield lambda: kcm.attach(near, world.program)
        passed(outcome)
        with contextlib.suppress(pykcm.AttachError):
            kcm.attach(near, world.program)
        kcm.unattach(near)
        kcm.close()

    def unattaching() -> Case:
        with pykcm.KCMSocket(world.type) as kcm:
            kcm.attach(near, world.program)
            outcome = yield lambda: kcm.unattach(near)
            passed(outcome)
            with contextlib.suppress(pykcm.AttachError):
                kcm.unattach(near)
            kcm.attach(near, world.program)
            kcm.unattach(near)

    def cloning() -> Case:
        outcome = yield world.mux.socket.clone
        passed(outcome)
        if isinstance(outcome, pykcm.KCMSocket):
            outcome.close()
        del outcome

    def duplicating() -> Case:
        with pykcm.KCMSocket(world.type) as kcm:
            outcome = yield kcm.dup
            passed(outcome)
            if isinstance(outcome, pykcm.KCMSocket):
                outcome.close()
            del outcome

    def closing() -> Case:
        kcm = pykcm.KCMSocket(world.type)
        outcome = yield kcm.close
        passed(outcome)
        kcm.close()

    with near, far:
        for case in (attaching, unattaching, cloning, duplicating, closing):
            strike(case, 3)


def test_a_sockets_receives_and_send(world: World) -> None:
    near, far = world.connections.new()
    far.settimeout(PATIENCE)
    kcm = pykcm.KCMSocket(world.type)
    kcm.attach(near, world.program)
    kcm.settimeout(PATIENCE)
    room = bytearray(100)

    def receiving(receive: Callable[[], bytes]) -> Case:
        expected = world.messages(2)
        far.sendall(b"".join(expected))
        eventually(lambda: pykcm._kernel.is_readable(kcm.fileno()))
        got = []
        outcome = yield receive
        passed(outcome)
        if not isinstance(outcome, Strike):
            got.append(outcome)
        while len(got) < 2:
            got.append(kcm.recv())
        assert got == expected

    def into() -> bytes:
        return bytes(room[: kcm.recv_into(room)])

    def sending() -> Case:
        one = world.messages(1)[0]
        outcome = yield lambda: kcm.send(one)
        passed(outcome)
        if isinstance(outcome, Strike):
            kcm.send(one)
        assert far.recv(100) == one

    with near, far, kcm:
        strike(functools.partial(receiving, into), 2)
        strike(functools.partial(receiving, lambda: kcm.recvmsg(100)[0]), 2)
        strike(functools.partial(receiving, kcm.recv), 0)
        strike(sending, 0)


# ---- storms ----

MESSAGES = 3000


@pytest.mark.parametrize("many", [False, True], ids=["recv", "recv_many"])
def test_receiving_in_a_storm(world: World, many: bool) -> None:
    expected = world.messages(MESSAGES)

    def write() -> None:
        for start in range(0, MESSAGES, 50):
            world.far.sendall(b"".join(expected[start : start + 50]))
            time.sleep(0.002)

    # Extended by C alone, so that no exception can come between a call and its result.
    got: collections.deque[bytes] = collections.deque()
    thread = threading.Thread(target=write)
    with Storm(0.0007) as storm:
        thread.start()
        end = time.monotonic() + PATIENCE
        while len(got) < MESSAGES and time.monotonic() < end:
            batches: collections.deque[list[bytes]] = collections.deque()
            receive = (
                iter(functools.partial(world.mux.recv_many, timeout=0.05), None)
                if many
                else iter(functools.partial(world.mux.recv, timeout=0.05), None)
            )
            try:
                storm.armed = True
                (batches if many else got).extend(receive)  # type: ignore[arg-type]
                storm.armed = False
            except (Strike, TimeoutError):
                storm.armed = False
            for batch in batches:
                got.extend(batch)
    thread.join()
    print(f"{storm.strikes} strikes")
    assert storm.strikes > 50
    assert list(got) == expected
    world.true()


@pytest.mark.parametrize("many", [False, True], ids=["send", "send_many"])
def test_sending_in_a_storm(world: World, many: bool) -> None:
    messages = world.messages(MESSAGES)
    data = b"".join(messages)
    came = bytearray()

    def read() -> None:
        while len(came) < len(data):
            came.extend(world.far.recv(1 << 16))
            time.sleep(0.001)

    thread = threading.Thread(target=read)
    thread.start()
    done: collections.deque[int] = collections.deque()
    at = 0
    with Storm(0.0007) as storm:
        while at < MESSAGES:
            part = messages[at : at + (20 if many else MESSAGES)]
            calls = map(world.mux.send, part)
            try:
                storm.armed = True
                if many:
                    world.mux.send_many(part)
                else:
                    done.extend(calls)
                storm.armed = False
            except Strike:
                storm.armed = False
            at = at + world.mux.sent_many if many else len(done)
    thread.join()
    print(f"{storm.strikes} strikes")
    assert storm.strikes > 5
    assert came == data
    world.true()


def test_ends_in_a_storm(dgram: World) -> None:
    count = 60
    pairs = [dgram.connections.new() for _ in range(count)]
    expected = set()
    for near, far in pairs:
        dgram.mux.attach(near)
        messages = dgram.messages(3)
        expected.update(messages)
        far.sendall(b"".join(messages))
        far.close()
    got: collections.deque[bytes] = collections.deque()
    reports: collections.deque[pykcm.Disconnection] = collections.deque()
    with Storm(0.0007) as storm:
        end = time.monotonic() + PATIENCE
        while len(reports) < count and time.monotonic() < end:
            try:
                storm.armed = True
                got.extend(iter(functools.partial(dgram.mux.recv, timeout=0.05), None))
                storm.armed = False
            except (Strike, TimeoutError):
                storm.armed = False
            reports.extend(dgram.mux.disconnections())
    print(f"{storm.strikes} strikes")
    assert sorted(got) == sorted(expected)
    assert {report.tcp for report in reports} == {near for near, _ in pairs}
    assert len(reports) == count
    assert {report.reason for report in reports} == {Reason.PEER_CLOSED}
    dgram.rest([], [])
    for near, _ in pairs:
        near.close()


# ---- processes, rights, limits ----


def in_a_child(run: Callable[[], None]) -> int:
    """Run in a forked process; its number."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            run()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return pid


def ends_well(pid: int) -> None:
    assert os.waitpid(pid, 0)[1] == 0


@pytest.mark.parametrize("how", ["closes", "ends", "uses a clone"])
def test_a_fork_in_the_middle(dgram: World, how: str) -> None:
    """What the parent has received, half watched and not sent stays the parent's."""
    expected = dgram.arrive(3)
    got = [dgram.mux.recv(timeout=PATIENCE)]  # two more are in the object
    near, far = dgram.connections.new()
    dgram.mux.attach(near)
    far.close()
    with dgram.mux.clone() as clone:

        def child() -> None:
            if how == "closes":
                clone.close()
                dgram.mux.close()
                dgram.mux.close()
            elif how == "uses a clone":
                clone.send(message(b"from the child"))
                with pytest.raises(pykcm.KCMOSError) as info:
                    dgram.mux.recv(timeout=0)
                assert info.value.errno == errno.EPERM

        ends_well(in_a_child(child))
    while len(got) < 3:
        got += dgram.mux.recv_many(timeout=PATIENCE)
    assert got == expected
    reports: list[pykcm.Disconnection] = []
    end = time.monotonic() + PATIENCE
    while not reports and time.monotonic() < end:
        reports += dgram.mux.disconnections()
    assert [(r.tcp, r.reason) for r in reports] == [(near, Reason.PEER_CLOSED)]
    if how == "uses a clone":
        assert dgram.far.recv(100) == message(b"from the child")
    near.close()
    dgram.rest([], dgram.arrive(1))


def ends_without_help(world: World, cut: bool) -> None:
    near, far = world.connections.new()
    world.mux.attach(near)

    def child() -> None:
        os.setgroups([])
        os.setresgid(65534, 65534, 65534)
        os.setresuid(65534, 65534, 65534)
        one = message(b"whole")
        far.sendall(one + one[:5] if cut else one)
        far.shutdown(socket.SHUT_RDWR)
        got = world.mux.recv(timeout=PATIENCE)
        assert got == one
        end = time.monotonic() + PATIENCE
        reports: list[pykcm.Disconnection] = []
        while not reports and time.monotonic() < end:
            reports += world.mux.disconnections()
        assert [r.reason for r in reports] == [Reason.PEER_CLOSED]

    with near, far:
        child()


@pytest.mark.parametrize("cut", [False, True], ids=["whole", "cut"])
def test_an_end_after_privileges_were_dropped(cut: bool) -> None:
    def run() -> None:
        with contextlib.closing(World()) as world:
            ends_without_help(world, cut)

    ends_well(in_a_child(run))


def test_an_end_where_lo_is_down() -> None:
    def run() -> None:
        with contextlib.closing(World()) as world:
            near, far = world.connections.new()
            world.mux.attach(near)
            if ctypes.CDLL(None, use_errno=True).unshare(0x40000000):  # CLONE_NEWNET
                raise OSError(ctypes.get_errno(), "unshare")
            one = message(b"whole")
            far.sendall(one + one[:5])
            far.close()
            assert world.mux.recv(timeout=PATIENCE) == one
            end = time.monotonic() + PATIENCE
            reports: list[pykcm.Disconnection] = []
            while not reports and time.monotonic() < end:
                reports += world.mux.disconnections()
            assert [r.reason for r in reports] == [Reason.PEER_CLOSED]
            near.close()

    ends_well(in_a_child(run))


def test_receiving_where_memory_is_locked_and_limited() -> None:
    """mlockall under RLIMIT_MEMLOCK: whatever memory can't be had, no message is lost."""

    def run() -> None:
        with contextlib.closing(World(socket.SOCK_DGRAM)) as world:
            expected = world.arrive(20)
            libc = ctypes.CDLL(None, use_errno=True)
            assert libc.mlockall(2) == 0, os.strerror(ctypes.get_errno())  # MCL_FUTURE
            os.setresuid(65534, 65534, 65534)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (64 << 10, 64 << 10))
            got: list[bytes] = []
            errors = []
            for _ in range(5):
                with contextlib.suppress(TimeoutError):
                    try:
                        got += world.mux.recv_many(timeout=1)
                    except (MemoryError, OSError) as error:
                        if isinstance(error, (TimeoutError, BlockingIOError)):
                            raise
                        errors.append(error)
            libc.munlockall()
            while len(got) < 20:
                got += world.mux.recv_many(timeout=PATIENCE)
            assert got == expected
            print(len(errors), "errors")

    ends_well(in_a_child(run))
