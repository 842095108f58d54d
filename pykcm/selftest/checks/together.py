"""Calls on one socket at the same time."""

from __future__ import annotations

import functools
import socket
import threading
import time

from pykcm.selftest.check import Failure, Group, code
from pykcm.selftest.lab import Lab

GROUP = Group("together", "Calls on one socket at the same time")


@GROUP.check(code("kcm_sendmsg, tx_mutex"))
def parts_that_wait_for_room_are_joined(lab: Lab) -> None:
    """Of two MSG_MORE parts that wait for room at once, one goes behind the other."""
    kcm, near, far = lab.attached()
    message = lab.reserve(kcm, near)
    parts = [b"a part", b"another one"]
    failed: list[OSError] = []

    def send(part: bytes) -> None:
        try:
            lab.calls.send(kcm.fileno(), [part], socket.MSG_MORE)
        except OSError as error:
            failed.append(error)

    threads = [
        threading.Thread(target=functools.partial(send, part), daemon=True) for part in parts
    ]
    for thread in threads:
        thread.start()
    time.sleep(lab.quiet)
    lab.streamed(far, message)
    for thread in threads:
        thread.join(lab.patience)
        lab.expect("a sender waits still", thread.is_alive(), False)
    if failed:
        raise failed[0]
    lab.calls.send(kcm.fileno(), [b"the end"])
    end = b"".join(parts) + b"the end"
    seen = lab.stream(far, len(end))
    if seen not in (end, b"".join(reversed(parts)) + b"the end"):
        raise Failure(
            f"the message\nexpected: {end!r}, or the parts the other way round\nseen: {seen!r}"
        )
