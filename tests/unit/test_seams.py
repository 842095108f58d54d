"""Between two steps of a call: what a thread, a handler, a fork or want of memory does there."""

from __future__ import annotations

import asyncio
import errno
import gc
import os
import resource
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from pykcm import _slowpath
from pykcm.errors import ArgumentError, KCMOSError, MessageTruncated
from tests.children import in_child
from tests.strikes import alarms
from tests.unit.port_owner import PATHS, own

FAST = [path for path in PATHS if path.__name__.endswith("_fastpath")]
TYPES = {"seqpacket": socket.SOCK_SEQPACKET, "dgram": socket.SOCK_DGRAM}


@pytest.fixture(params=PATHS, ids=lambda path: path.__name__.rpartition(".")[2])
def path(request: pytest.FixtureRequest) -> ModuleType:
    module: ModuleType = request.param
    return module


@pytest.fixture(params=["seqpacket", "dgram"])
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, TYPES[request.param])
    with ours, theirs:
        theirs.settimeout(5)
        yield ours, theirs


def test_a_batch_is_no_part_of_a_message_begun_meanwhile(path: ModuleType, pair: Any) -> None:
    owner = own(path, pair[0])

    async def both() -> int:
        operation = owner.asend_many([b"a message"])
        owner.send(b"begun,", socket.MSG_MORE)
        sent: int = await operation
        return sent

    with pytest.raises(KCMOSError, match="MSG_MORE") as caught:
        asyncio.run(both())
    assert caught.value.errno == errno.EBUSY
    assert owner._port.open
    assert owner._port.sent_many == 0
    assert pair[1].recv(100) == b"begun,"
    owner.send(b"ended")
    assert owner.send_many([b"one", b"two"]) == 2


def test_poll_that_fails_is_an_error(path: ModuleType, pair: Any) -> None:
    """With a limit of no descriptors poll(2) gives EINVAL: it must not be tried for ever."""

    def child() -> None:
        owner = own(path, pair[0])
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
        start = time.monotonic()
        try:
            owner.recv(timeout=0.3)
        except OSError as error:
            assert error.errno == errno.EINVAL, error
        else:
            raise AssertionError
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert time.monotonic() - start < 5

    in_child(child)


def test_longer_than_the_kernel_takes_at_once(path: ModuleType, pair: Any) -> None:
    owner = own(path, pair[0])
    message = bytes(0x7FFFF001)
    for name, argument in (("send", message), ("send_many", [b"a", message])):
        with pytest.raises(KCMOSError, match="2,147,479,552 bytes") as caught:
            getattr(owner, name)(argument)
        assert caught.value.errno == errno.EMSGSIZE
    pair[1].setblocking(False)
    with pytest.raises(BlockingIOError):
        pair[1].recv(1)


def test_a_waiting_peek_has_the_room_that_came_meanwhile(path: ModuleType, pair: Any) -> None:
    owner = own(path, pair[0], 8)
    peeked: list[bytes] = []
    thread = threading.Thread(
        target=lambda: peeked.append(owner.recv(0, socket.MSG_PEEK, timeout=9))
    )
    thread.start()
    time.sleep(0.3)  # until it waits; should it not yet, it has the room in any case
    owner._port.make_room(1000)
    pair[1].send(b"m" * 500)
    thread.join(20)
    assert peeked == [b"m" * 500]
    assert owner.recv() == b"m" * 500


def test_the_garbage_collector_knows_of_reports(path: ModuleType) -> None:
    class Connection:
        port: Any

    port, connection = path.Port(-1, True, 10), Connection()
    connection.port = port
    port.report(connection)
    seen = weakref.ref(connection)
    del port, connection
    for _ in range(3):
        gc.collect()
    assert seen() is None


class Interrupting:
    def __float__(self) -> float:
        raise KeyboardInterrupt

    def __index__(self) -> int:
        raise KeyboardInterrupt


def test_time_outs(path: ModuleType, pair: Any) -> None:
    owner = own(path, pair[0])
    owner.timeout = 0.01
    for call in (owner.recv, owner.recv_many):
        with pytest.raises(TimeoutError):
            call(timeout=...)  # what the signatures show: the socket's own
        with pytest.raises(ArgumentError):
            call(timeout="1")
    assert owner.send(b"m", timeout=...) == 1
    with pytest.raises(KeyboardInterrupt):
        owner.recv(timeout=Interrupting())


def test_a_handler_that_forks_doubles_nothing(path: ModuleType) -> None:
    """The child goes on in the same call, with none of the messages that were just fetched."""
    if path not in FAST:
        pytest.skip("the slow path looks for signals between any two lines")
    ours, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, wire:
        wire.settimeout(5)
        owner = own(path, ours)
        children: list[int] = []

        def fork(*_: object) -> None:
            if owner._port.held and not children:
                children.append(os.fork())

        for i in range(20000):
            with alarms(fork):
                wire.send(b"once")
                signal.setitimer(signal.ITIMER_REAL, 1e-6 * (1 + i % 30))
                try:
                    got = owner.recv(timeout=1)
                except TimeoutError:  # in the child, which has none
                    got = b""
            if children:
                break
        if children == [0]:
            os._exit(len(got) + owner._port.held)
        if not children:
            pytest.skip("no signal came while a message was in the Port")
        _, status = os.waitpid(children[0], 0)
        assert (got, status) == (b"once", 0)


SCRIPT = """
import socket, sys
try:
    import _xxsubinterpreters as interpreters
    create = lambda: interpreters.create(isolated=False)
except ImportError:
    import _interpreters as interpreters
    create = lambda: interpreters.create("legacy")
import pykcm
from tests.unit.port_owner import own
from pykcm import _messages, _slowpath
path = sys.modules[_messages.Port.__module__]
ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
owner = own(path, ours, 8)
def cut():
    theirs.send(b"m" * 100)
    theirs.send(b"after")
    try:
        owner.recv()
    except pykcm.MessageTruncated:
        pass
    assert owner.recv() == b"after"
cut()
other = create()
interpreters.run_string(other, "import pykcm, pykcm._messages as m; "
    "assert m.Port.__module__ == 'pykcm._slowport', m.Port")
cut()
interpreters.destroy(other)
cut()
assert owner.send(bytearray(b"x")) == 1
"""


@pytest.mark.skipif(not FAST, reason="there is no compiled path here")
def test_another_interpreter_does_not_take_the_errors_over() -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(SCRIPT)], capture_output=True, text=True, check=False
    )
    if "No module named '_interpreters'" in done.stderr:
        pytest.skip("this Python makes no other interpreters")
    assert not done.returncode, done.stderr


def test_what_was_begun_is_gone_whatever_the_errno(path: ModuleType, pair: Any) -> None:
    """A message that was begun and lost is not a reason to send its end again."""
    if pair[0].type != socket.SOCK_DGRAM:
        pytest.skip("the kernel keeps what a SOCK_SEQPACKET message has begun with")
    owner = own(path, pair[0])
    owner.send(b"begun,", socket.MSG_MORE)
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    assert owner._port.open
    with pytest.raises(KCMOSError, match="MSG_MORE is gone") as caught:
        for _ in range(1000):
            owner.send(b"m" * 1000, socket.MSG_MORE, timeout=0)
    assert caught.value.errno == errno.EAGAIN
    assert not owner._port.open


def test_a_cut_message_does_not_stay(path: ModuleType, pair: Any) -> None:
    owner = own(path, pair[0], 8)
    pair[1].send(b"m" * 100)
    pair[1].send(b"after")
    with pytest.raises(MessageTruncated):
        owner.recv()
    assert owner.recv() == b"after"


def test_a_child_does_not_receive_into_its_parents_memory() -> None:
    """Both may receive at once, and would tear each other's messages."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        owner = own(_slowpath, ours)
        theirs.send(b"parent")
        assert owner.recv() == b"parent"
        theirs.send(b"child's")

        def child() -> None:
            assert owner.recv(timeout=5) == b"child's"

        in_child(child)
        assert owner._port._memory[:7] == b"parent\0"
