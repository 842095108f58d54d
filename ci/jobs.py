"""Commands that run at the same time, each line of their output behind the name of its command.

One at a time, a command has our own standard output, and so a terminal where we have one.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from ci.kernels import ROOT
from ci.output import say

_libc = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

Events: TypeAlias = "queue.SimpleQueue[_Running | int | OSError]"


@dataclass(frozen=True)
class Job:
    name: str
    command: tuple[str, ...]


def run(jobs: Sequence[Job], at_once: int = 1) -> list[int]:
    """Run commands in the project's root; their exit statuses, negative for a signal.

    Args:
        at_once: how many at the same time at most.

    Raises:
        SystemExit: SIGINT, SIGTERM or SIGHUP came; the commands were ended.
        OSError: one of them could not be started, or there was no room for what one said; the
            others were ended.
    """
    events: Events = queue.SimpleQueue()
    waiting = list(jobs)
    running: list[_Running] = []
    statuses: dict[Job, int] = {}
    with _signals(events):
        try:
            while waiting or running:
                while waiting and len(running) < at_once:
                    running.append(_Running(waiting.pop(0), events, beside=at_once > 1))
                event = events.get()
                if isinstance(event, int):
                    raise SystemExit(128 + event)
                if isinstance(event, OSError):
                    raise event
                running.remove(event)
                statuses[event.job] = event.process.wait()
        finally:
            for left in running:
                left.process.terminate()
            for left in running:
                left.process.wait()
    return [statuses[job] for job in jobs]


def end_with_parent() -> Callable[[], None]:
    """What a child calls before it executes a command (`preexec_fn`), to end with this process,
    however that ends.

    It is the thread that forks whose end counts.
    """
    parent = os.getpid()

    def ask() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGTERM)

    return ask


@contextlib.contextmanager
def _signals(events: Events) -> Iterator[None]:
    """Have signals reported, so that none comes between a command's start and our knowing it."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, lambda number, _: events.put(number)) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


class _Running:
    def __init__(self, job: Job, events: Events, *, beside: bool) -> None:
        say(f"\n== {job.name}")
        self.job = job
        self._events = events
        self._start = time.monotonic()
        self.process = subprocess.Popen(
            job.command,
            cwd=ROOT,
            stdin=subprocess.DEVNULL if beside else None,
            stdout=subprocess.PIPE if beside else None,
            stderr=subprocess.STDOUT if beside else None,
            encoding="utf-8",
            errors="replace",
        )
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        try:
            with self.process:  # it closes the pipe and waits for the end
                for line in self.process.stdout or ():
                    say(f"{self.job.name} | {line.rstrip()}")
            say(f"{self.job.name}: {time.monotonic() - self._start:.0f} s")
        except OSError as error:
            self._events.put(error)
        self._events.put(self)
