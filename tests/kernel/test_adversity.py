"""Storms of signals, forks, dropped rights and full tables: nothing is lost or told twice."""

from __future__ import annotations

import collections
import contextlib
import ctypes
import errno
import functools
import os
import resource
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

import pykcm
from pykcm import Reason
from tests.children import in_child
from tests.strikes import Storm, Strike

from .connections import PATIENCE, message
from .interrupted import TYPES, World

# What strikes a __del__, Python itself can but report.
pytestmark = [
    pytest.mark.timeout(10 * PATIENCE),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(params=TYPES, ids=["dgram", "seqpacket"])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    with contextlib.closing(World(request.param)) as world:
        yield world


@pytest.fixture
def dgram() -> Iterator[World]:
    with contextlib.closing(World()) as world:
        yield world


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
            world.mux.send_many([])  # so that `sent_many` is of no call before
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
    assert storm.strikes > 0 or not many  # `send` alone runs no line that could be struck
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
    with contextlib.suppress(TimeoutError):  # what the drains have received
        while True:
            got.extend(dgram.mux.recv_many(timeout=0.05))
    assert sorted(got) == sorted(expected)
    assert {report.tcp for report in reports} == {near for near, _ in pairs}
    assert len(reports) == count
    assert {report.reason for report in reports} == {Reason.PEER_CLOSED}
    dgram.rest([], [])
    for near, _ in pairs:
        near.close()


# ---- processes, rights, limits ----


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

        in_child(child)
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

    in_child(run)


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

    in_child(run)


# A process in which nothing was explained before: with a full table, no module can be read.
FIRST_ERRORS = """
import contextlib, os, resource, socket
from pykcm import KCMOSError, LengthField, Multiplexor
from pykcm._loopback import connection

near, far = connection()
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
with contextlib.suppress(OSError):
    while True:
        taken.append(os.dup(0))
errors = 0
while True:
    try:
        with Multiplexor(LengthField()) as mux:
            mux.attach(near)
            far.sendall(bytes(4))
            message = mux.recv(timeout=20)
        break
    except KCMOSError as error:
        assert "RLIMIT_NOFILE" in str(error), error
        errors += 1
    os.close(taken.pop())
print(errors, message)
"""


def test_the_first_errors_of_a_process_with_a_full_table() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIRST_ERRORS], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    errors, message = done.stdout.split(" ", 1)
    assert int(errors) >= 5
    assert message == f"{bytes(4)!r}\n"


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

    in_child(run)
