"""Exceptions that strike where they like: at each bytecode of pykcm, and by a storm of signals."""

from __future__ import annotations

import contextlib
import dis
import functools
import gc
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

import pykcm
from pykcm import _messages

_LIBRARY = str(Path(pykcm.__file__).parent) + os.sep

#: A case: it prepares, yields the call that is struck, is sent what that returned or raised, and
#: checks what is left.
Case = Generator[Callable[[], Any], Any, None]


class Strike(Exception):  # noqa: N818
    """What strikes."""


@functools.cache
def _ends_of_with(code: CodeType) -> frozenset[int]:
    """Where `with` calls __exit__: there CPython looks for no signal, and a trace function's
    exception would do what no other can."""
    ends: set[int] = set()
    instructions = list(dis.get_instructions(code))
    for i, instruction in enumerate(instructions):
        three = instructions[i : i + 3]
        names = [each.opname for each in three]
        constants = {"LOAD_CONST", "LOAD_COMMON_CONSTANT"}  # the latter from Python 3.15 on
        if [each.argval for each in three] == [None] * 3 and {*names} <= constants:
            ends.update(each.offset for each in instructions[max(0, i - 1) : i + 5])
        elif names == ["LOAD_CONST", "DUP_TOP", "DUP_TOP"]:  # Python 3.10
            ends.update(each.offset for each in instructions[max(0, i - 1) : i + 4])
        elif names[:2] == ["ROT_FOUR", "POP_EXCEPT"]:
            # Python 3.10: what is returned lies below the exception that is handled.  Whatever is
            # raised here, it takes for a part of that exception.
            ends.add(three[1].offset)
        elif instruction.opname == "WITH_EXCEPT_START":
            ends.update(each.offset for each in instructions[max(0, i - 1) : i + 1])
    return frozenset(ends)


def _finalizes(frame: FrameType | None) -> bool:
    """Whether it is part of a __del__: what strikes there, Python itself can but report."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


class _Striker:
    """Raise at the first bytecode, or line, that was not struck yet."""

    def __init__(self, lines: bool) -> None:
        self.event = "line" if lines else "opcode"
        self.struck: set[tuple[CodeType, int]] = set()
        self.place = ""

    def call(self, action: Callable[[], Any]) -> Any:
        """Make a call under fire; what it returned or raised."""
        self.place = ""
        before = sys.gettrace()
        sys.settrace(self._enter)
        try:
            return action()
        except Exception as error:
            error.__context__ = None
            return error.with_traceback(None)  # which would keep what the call's frames had
        finally:
            sys.settrace(before)

    def _enter(self, frame: FrameType, event: str, argument: object) -> Any:
        if self.place or not frame.f_code.co_filename.startswith(_LIBRARY) or _finalizes(frame):
            return None
        frame.f_trace_opcodes = self.event == "opcode"
        return self._step

    def _step(self, frame: FrameType, event: str, argument: object) -> Any:
        # A line's event comes before its first bytecode's, which Python 3.13.0 at times leaves out.
        if event in (self.event, "line") and not self.place:
            place = frame.f_code, frame.f_lasti
            if place not in self.struck and place[1] not in _ends_of_with(frame.f_code):
                self.struck.add(place)
                name = Path(frame.f_code.co_filename).name
                self.place = f"{name}:{frame.f_lineno} {frame.f_code.co_name}+{frame.f_lasti}"
                raise Strike(self.place)
        return self._step


def descriptors() -> dict[int, str]:
    """This process's open descriptors, and what they are; without sentinels."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208  (thousands of times)
        with contextlib.suppress(OSError):
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
    return {fd: target for fd, target in found.items() if "sentinel" not in target}


@contextlib.contextmanager
def no_descriptor_left() -> Iterator[None]:
    """Check that a block leaves the descriptors that there were, and no others."""
    gc.collect()  # what others left, whose descriptors would go meanwhile
    before = descriptors()
    yield
    left = descriptors()
    assert left == before, f"leaked or lost: {left.items() ^ before.items()}"


@contextlib.contextmanager
def sentinels(count: int = 3) -> Iterator[None]:
    """Descriptors that take the numbers of any that were closed; nobody else may close them."""
    ours = [os.memfd_create("sentinel") for _ in range(count)]
    inodes = [os.fstat(fd).st_ino for fd in ours]
    yield
    assert [os.fstat(fd).st_ino for fd in ours] == inodes, "a descriptor of ours was closed"
    for fd in ours:
        os.close(fd)


def needs_compiled_calls() -> None:
    """Skip a test of what holds where no line of Python lies between a message and its caller."""
    if not _messages.Port.__module__.endswith("_fastpath"):
        pytest.skip("the compiled calls can't be used, and those in Python hold less: _slowpath.py")


def strike_everywhere(case: Callable[[], Case], *, lines: bool = False) -> int:
    """Run a case as often as its call has bytecodes of pykcm's, each time struck at another.

    Args:
        lines: strike at the beginning of lines alone, which are fewer.

    Returns:
        How many there were.
    """
    needs_compiled_calls()
    striker = _Striker(lines)
    rehearse(case)  # what is loaded or made once
    gc.collect()  # what others left, whose descriptors would go meanwhile
    missed = 0
    while missed < 2:  # in how many steps a wait ends may differ
        before = descriptors()
        running = case()
        outcome = striker.call(next(running))
        try:
            with sentinels():
                with contextlib.suppress(StopIteration):
                    running.send(outcome)
                del running, outcome
                if descriptors() != before:
                    gc.collect()
                left = descriptors()
                assert left == before, f"leaked or lost: {left.items() ^ before.items()}"
        except BaseException as error:
            raise AssertionError(f"struck at {striker.place}: {error!r}") from error
        missed = 0 if striker.place else missed + 1
    return len(striker.struck)


def rehearse(case: Callable[[], Case]) -> None:
    """Run a case without a strike."""
    running = case()
    action = next(running)
    outcome: Any
    try:
        outcome = action()
    except Exception as error:
        outcome = error
    with contextlib.suppress(StopIteration):
        running.send(outcome)


@contextlib.contextmanager
def alarms(
    handle: Callable[[int, FrameType | None], object], first: float = 0.0, interval: float = 0.0
) -> Iterator[None]:
    """Have SIGALRM for a block's own use; then the timer that was there goes on as if it had run.

    That is pytest-timeout's, without which a test that hangs would hang for ever.

    Args:
        handle: the handler; it may raise if the signal comes once.
        first: seconds until the signal comes; 0 if the block sets the timer itself.
        interval: seconds until it comes again; 0 for never.
    """
    start = time.monotonic()
    left, again = signal.getitimer(signal.ITIMER_REAL)
    previous = signal.signal(signal.SIGALRM, handle)
    try:
        signal.setitimer(signal.ITIMER_REAL, first, interval)
        yield
    finally:
        try:
            signal.setitimer(signal.ITIMER_REAL, 0)
        finally:  # the signal may have come just now
            signal.signal(signal.SIGALRM, previous)
            if left:
                due = left - (time.monotonic() - start)
                signal.setitimer(signal.ITIMER_REAL, max(due, 1e-6), again)


class Storm:
    """A signal handler that raises, again and again, while it is armed."""

    def __init__(self, seconds: float) -> None:
        needs_compiled_calls()
        self._alarms = alarms(self._handle, seconds, seconds)
        self.armed = False
        self.strikes = 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.armed:
            self.strikes += 1
            raise Strike

    def __enter__(self) -> Storm:
        self._alarms.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.armed = False
        self._alarms.__exit__(None, None, None)


class Connections:
    """TCP connections of the loopback interface, made of one listener."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))

    def new(self) -> tuple[socket.socket, socket.socket]:
        near = socket.create_connection(self._listener.getsockname())
        return near, self._listener.accept()[0]

    def close(self) -> None:
        self._listener.close()
