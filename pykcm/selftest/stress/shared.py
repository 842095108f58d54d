"""What the processes of a stress have in common."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import mmap
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from pykcm._binding import lib
from pykcm.selftest.lab import Lab

#: Room for any message, in bytes.
ROOM = 1 << 15
#: The longest body, in bytes.
MAX_BODY = 20_000
#: The body lengths of a connection's messages; None for any up to the longest.
BODIES = (None, 0, 48, 684, 3_984, 19_984)

#: How long a call may wait before it looks whether the phase is another one, in seconds.
TICK = 0.05

# The phases: all goes on; no more is sent; no new connections; what is left is received.
RUNNING, SENT, CONNECTED, DRAINING = range(4)

Work = Callable[["Shared"], dict[str, Any]]


@dataclasses.dataclass(frozen=True)
class Shared:
    """What the processes of one round know of each other.

    Attributes:
        lab: how the kernel is called.
        kcm: the multiplexor's first socket.
        address: where peers connect to.
        seed: decides what is sent; who runs when is the scheduler's.
        bodies: the indices in BODIES that can be used here.
        rough: peers reset connections, and sockets are closed while they hold what is not sent.
        phase: a byte of memory that all share.
    """

    lab: Lab
    kcm: socket.socket
    address: tuple[str, int]
    seed: str
    bodies: tuple[int, ...]
    rough: bool
    phase: mmap.mmap

    def until(self, phase: int) -> bool:
        """Whether this phase has not come."""
        return self.phase[0] < phase

    def random(self, *names: object) -> random.Random:
        return random.Random("/".join(map(str, (self.seed, *names))))


class Process:
    """A process that does one thing and leaves what it found."""

    def __init__(self, shared: Shared, name: str, work: Work) -> None:
        self.name = name
        self._fd = os.memfd_create(name)
        self.pid: int = os.fork()
        if self.pid == 0:
            try:
                try:
                    found = work(shared)
                except BaseException:
                    found = {"broken": traceback.format_exc()}
                with os.fdopen(self._fd, "w", encoding="ascii") as file:
                    json.dump(found, file)
            finally:
                os._exit(0)

    def result(self, patience: float) -> dict[str, Any]:
        """What it left; {"broken": why} if it failed or did not end in time."""
        end = time.monotonic() + patience
        while os.waitpid(self.pid, os.WNOHANG) == (0, 0):
            if time.monotonic() > end:
                return {"broken": f"did not end in {patience:g} s; its stack:\n{self._stack()}"}
            time.sleep(0.005)
        with os.fdopen(self._fd, encoding="ascii") as file:
            file.seek(0)
            found: dict[str, Any] = json.loads(file.read() or '{"broken": "the process died"}')
        return found

    def _stack(self) -> str:
        try:
            return Path(f"/proc/{self.pid}/stack").read_text(encoding="ascii")
        except OSError as error:
            return str(error)


def threads(*works: Callable[[], None]) -> None:
    """Do several things at once; raises what one of them raised."""
    raised: list[BaseException] = []

    def guarded(work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            raised.append(error)

    started = [threading.Thread(target=guarded, args=(work,)) for work in works]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()
    if raised:
        raise raised[0]


@contextlib.contextmanager
def clone(shared: Shared) -> Iterator[socket.socket]:
    fd = shared.lab.calls.clone(shared.kcm.fileno())
    kcm = socket.socket(lib.AF_KCM, shared.kcm.type, 0, fileno=fd)
    try:
        yield kcm
    finally:
        shared.lab.calls.close(kcm)
