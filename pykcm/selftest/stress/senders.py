"""The senders of a stress, on clones that they make and close meanwhile."""

from __future__ import annotations

import functools
import socket
import time
from typing import Any

from pykcm._binding import lib
from pykcm.selftest.messages import encode
from pykcm.selftest.stress.shared import MAX_BODY, SENT, Shared, Work, clone, threads


def sender(number: int) -> Work:
    """Sends on clones, two threads at once, and makes and closes the clones meanwhile."""

    def work(shared: Shared) -> dict[str, Any]:
        rng = shared.random("sender", number)
        accepted: dict[int, int] = {}
        made = clones = 0
        while shared.until(SENT):
            clones += 1
            with clone(shared) as kcm:
                until = time.monotonic() + rng.uniform(0.02, 1.0)

                def send(
                    name: int, alone: bool, kcm: socket.socket = kcm, until: float = until
                ) -> None:
                    _Sender(shared, kcm, name, alone=alone).run(until, accepted)

                # A thread alone may leave a message open for its next part, or hold it back.
                first = (1 << 31) | (number << 24) | made
                alone = rng.randrange(2) == 0
                names = [first] if alone else [first, first + 1]
                threads(*(functools.partial(send, name, alone) for name in names))
                made += len(names)
                if not shared.rough:
                    unsent = functools.partial(shared.lab.unsent_bytes, kcm)
                    shared.lab.eventually("bytes unsent", unsent, 0)
        return {"accepted": accepted, "clones": clones}

    return work


class _Sender:
    """A thread that sends messages numbered from 0."""

    def __init__(self, shared: Shared, kcm: socket.socket, name: int, *, alone: bool) -> None:
        self._calls = shared.lab.calls
        self._kcm = kcm
        self._name = name
        self._alone = alone
        self._rng = shared.random(name)
        self._pool = self._rng.randbytes(MAX_BODY)
        self._end = socket.MSG_EOR if kcm.type == socket.SOCK_SEQPACKET else 0
        self._shared = shared

    def run(self, until: float, accepted: dict[int, int]) -> None:
        """Send; what the kernel took is counted by the sender's name."""
        count = 0
        while time.monotonic() < until and self._shared.until(SENT):
            count += self._some(count)
            accepted[self._name] = count
        # With this one goes what was held back to be sent together.
        if not self._shared.rough:
            while not self._whole(count, 0):
                pass
            accepted[self._name] = count + 1

    def _message(self, number: int) -> bytes:
        body = self._pool[: self._rng.randint(0, MAX_BODY >> self._rng.randrange(10))]
        return encode(self._name, number, body)

    def _some(self, number: int) -> int:
        """Send in one of the ways that there are; how many messages were taken."""
        what = self._rng.randrange(10)
        if what == 0 and not self._end:
            found = [self._message(number + more) for more in range(self._rng.randint(1, 8))]
            self._kcm.settimeout(0)
            try:
                return self._calls.send_many(self._kcm.fileno(), found)
            except BlockingIOError:
                return 0
        if what < 4 and self._alone:
            return self._in_parts(number)
        return self._whole(number, lib.MSG_BATCH if what < 7 and self._alone else 0)

    def _whole(self, number: int, flags: int) -> int:
        message = self._message(number)
        return int(self._send(message, flags | self._end))

    def _in_parts(self, number: int) -> int:
        message = self._message(number)
        places = sorted(self._rng.randint(1, len(message) - 1) for _ in range(3))
        more = 0 if self._end else socket.MSG_MORE
        if not self._send(message[: places[0]], more):
            return 0
        for start, stop in zip(places, [*places[1:], len(message)], strict=True):
            # A message that was begun does not wait for room.
            if not self._send(message[start:stop], self._end if stop == len(message) else more):
                raise ValueError("a part of a message was refused for want of room")
        return 1

    def _send(self, data: bytes, flags: int) -> bool:
        """Send without waiting; False if there was no room."""
        try:
            size = self._calls.send(self._kcm.fileno(), [data], flags | socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._calls.poll(self._kcm.fileno(), 0, self._rng.uniform(0, 0.01))
            return False
        if size != len(data):
            raise ValueError(f"send took {size} of {len(data)} bytes")
        return True
