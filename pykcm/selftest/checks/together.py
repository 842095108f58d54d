"""Calls on one socket at the same time.

Those that look for a race go on for a second or two, and what shows it may be the kernel's own
report of a fault.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

from pykcm.selftest.check import Failure, Group, code
from pykcm.selftest.lab import NUMBERED, Lab, framed

GROUP = Group("together", "Calls on one socket at the same time")

_SECONDS = 1.5


@contextlib.contextmanager
def _meanwhile(lab: Lab, *works: Callable[[], object]) -> Iterator[None]:
    """Have threads do something while the block runs; they have ended after it.

    Raises:
        OSError: one of them did.
    """
    failed: list[OSError] = []

    def run(work: Callable[[], object]) -> None:
        try:
            work()
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=run, args=(work,), daemon=True) for work in works]
    for thread in threads:
        thread.start()
    yield
    for thread in threads:
        thread.join(lab.patience)
        lab.expect("a call that does not come back", thread.is_alive(), False)
    if failed:
        raise failed[0]


def _turns() -> Iterator[int]:
    """Count for a while."""
    end = time.monotonic() + _SECONDS
    turn = 0
    while time.monotonic() < end:
        yield turn
        turn += 1


@GROUP.check(code("kcm_sendmsg, tx_mutex"))
def parts_that_wait_for_room_are_joined(lab: Lab) -> None:
    """Of two MSG_MORE parts that wait for room at once, one goes behind the other."""
    kcm, near, far = lab.attached()
    message = lab.reserve(kcm, near)
    one, other = b"a part", b"another one"

    def send(part: bytes) -> Callable[[], object]:
        return lambda: lab.calls.send(kcm.fileno(), [part], socket.MSG_MORE)

    with _meanwhile(lab, send(one), send(other)):
        time.sleep(lab.quiet)
        lab.streamed(far, message)
    lab.calls.send(kcm.fileno(), [b"the end"])
    wanted = {one + other + b"the end", other + one + b"the end"}
    seen = lab.stream(far, len(min(wanted)))
    if seen not in wanted:
        raise Failure(f"the message\nexpected: one of {sorted(wanted)}\nseen: {seen!r}")


@GROUP.check(code("kcm_release, tx_work"))
def socket_can_be_closed_while_it_writes(lab: Lab) -> None:
    """A socket is closed while its connection takes what it has queued."""
    program = lab.documented()
    message = framed(bytes(range(256)) * 2000)
    for turn in _turns():
        with lab.another() as own:
            kcm, near, far = own.attached(program)
            near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            own.calls.send(kcm.fileno(), [message])
            read = bytearray()

            def take(far: socket.socket = far, read: bytearray = read) -> None:
                with contextlib.suppress(ConnectionError):
                    while piece := far.recv(1 << 14):
                        read.extend(piece)

            with _meanwhile(own, take):
                time.sleep(turn % 16 * 0.0005)
                own.calls.close(kcm)
                near.close()
            whole = message.startswith(read)
            own.expect("what the other end read is the message's beginning", whole, True)


@GROUP.check(code("kcm_release, tx_psock; kcm_unattach, tx_kcm"))
def connection_can_be_unattached_while_its_socket_is_closed(lab: Lab) -> None:
    """A connection is unattached while the socket that writes to it is closed."""
    program = lab.documented()
    for turn in _turns():
        with lab.another() as own:
            kcm, near, _ = own.attached(program)
            clone = own.clone(kcm)
            own.reserve(kcm, near)

            def unattach(
                clone: socket.socket = clone, near: socket.socket = near, turn: int = turn
            ) -> None:
                time.sleep(turn % 4 * 0.0001)
                lab.unattach(clone, near)

            with _meanwhile(own, unattach):
                own.calls.close(kcm)
            other, far = own.tcp()
            own.attach(clone, other, program)
            own.calls.send(clone.fileno(), [b"goes on"])
            own.streamed(far, b"goes on")


@GROUP.check(code("requeue_rx_msgs, skb_dequeue"))
def messages_can_be_moved_while_they_are_received(lab: Lab) -> None:
    """A process receives while another one turns receiving off and on: each message comes once."""
    kcm, _, far = lab.attached(lab.fixed(100))
    for _ in _turns():
        pid = os.fork()
        if pid == 0:
            try:
                while True:
                    lab.set_receive_disabled(kcm, 1)
                    lab.set_receive_disabled(kcm, 0)
            finally:
                os._exit(0)
        received: list[bytes] = []
        try:
            end = time.monotonic() + lab.patience
            with lab.arriving(far, NUMBERED):
                while len(received) < len(NUMBERED) and time.monotonic() < end:
                    received += lab.receive_all(kcm)
        finally:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        lab.set_receive_disabled(kcm, 0)
        received += lab.receive_rest([kcm], len(NUMBERED) - len(received))
        lab.expect("the messages, sorted", sorted(received), NUMBERED)
