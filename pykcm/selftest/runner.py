"""Runs checks, each in a process of its own that is ended when its time is over.

So a check can't hang the others, can't leave a socket behind for them, and may crash.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import gc
import json
import os
import select
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path
from typing import Literal, NoReturn

from pykcm import _faults
from pykcm.selftest.calls import Calls, name_of
from pykcm.selftest.check import Check, Failure, Skip
from pykcm.selftest.environment import Environment
from pykcm.selftest.lab import Lab

Status = Literal["pass", "skip", "fail", "error", "timeout", "fault"]

# From the best to the worst.
_STATUSES: tuple[Status, ...] = ("pass", "skip", "fail", "error", "timeout", "fault")

_CONSOLES = Path("/sys/class/tty/console/active")

# How many seconds a killed process may take to go.  Beyond that it hangs in the kernel.
_DYING = 10.0

_PR_SET_PDEATHSIG = 1  # include/uapi/linux/prctl.h


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a check went.

    Attributes:
        status: "pass"; "fail": the kernel did something else; "skip": it could not be tried here;
            "timeout": it was ended when its time was over; "error": the check itself broke;
            "fault": meanwhile the kernel told of a fault of its own.
        lines: what there is to say about it.
        seconds: how long it took.
    """

    status: Status
    lines: tuple[str, ...]
    seconds: float


@dataclasses.dataclass(frozen=True)
class Job:
    """A check with the kernel it is made on.

    Attributes:
        check: the check.
        calls: the kernel, or a mutation of it.
        patience: seconds that the check waits for what has to happen.
    """

    check: Check
    calls: Calls
    patience: float = 10.0


class Stopped(Exception):  # noqa: N818 - it is what was asked for
    """No more checks are made since a signal said so.

    Attributes:
        number: the signal's number.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


# PyPy has neither.
_freeze = getattr(gc, "freeze", lambda: None)
_unfreeze = getattr(gc, "unfreeze", lambda: None)


class _Child:
    """A process that makes one check."""

    def __init__(self, job: Job, environment: Environment) -> None:
        self.limit = job.check.limit
        self.start = time.monotonic()
        self.deadline = self.start + self.limit
        self._report = b""
        self.fd, writing = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        _freeze()  # what is the parent's is not the child's to collect
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.fd)
            _be_child(job, environment, writing)
        _unfreeze()
        os.close(writing)

    def read(self) -> bool:
        """Take what the child has written; True once it has ended or closed its end."""
        piece = os.read(self.fd, 65536)
        self._report += piece
        return not piece

    def finish(self) -> Outcome:
        """End the child and all that it started, and say how it went."""
        timed_out = time.monotonic() >= self.deadline and not self._report
        with contextlib.suppress(ProcessLookupError, PermissionError):
            # Its children are in its process group.  It made the group itself, maybe not yet.
            os.killpg(self.pid, signal.SIGKILL)
        if timed_out:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
        status = self._reap()
        os.close(self.fd)
        seconds = time.monotonic() - self.start
        if status is None:
            return Outcome(
                "timeout",
                (f"not ended by SIGKILL after {self.limit:g} s: see /proc/{self.pid}/stack",),
                seconds,
            )
        if timed_out:
            return Outcome("timeout", (f"ended after {self.limit:g} s",), seconds)
        if not self._report:
            died = (
                f"killed by {signal.Signals(os.WTERMSIG(status)).name}"
                if os.WIFSIGNALED(status)
                else f"exit status {os.waitstatus_to_exitcode(status)}"
            )
            return Outcome("error", (f"the check's process died: {died}",), seconds)
        found = json.loads(self._report)
        return Outcome(found["status"], tuple(found["lines"]), seconds)

    def _reap(self) -> int | None:
        end = time.monotonic() + _DYING
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return status
            time.sleep(0.002)
        return None


def combined(outcomes: Sequence[Outcome]) -> Outcome:
    """The outcome of a check that was made several times: the worst, and how often it was so."""
    worst = max(outcomes, key=lambda outcome: _STATUSES.index(outcome.status))
    counts = Counter(outcome.status for outcome in outcomes)
    if len(outcomes) == 1 or worst.status == "skip":
        return worst
    said = ", ".join(f"{counts[status]} {status}" for status in _STATUSES if counts[status])
    seconds = [outcome.seconds for outcome in outcomes]
    lines = f"made {len(outcomes)} times: {said}; {min(seconds):.3f} to {max(seconds):.3f} s"
    return Outcome(worst.status, (lines, *worst.lines), sum(seconds))


def run(
    jobs: Iterable[Job], environment: Environment, parallel: int = 1, stop: int = -1
) -> Generator[Outcome, None, None]:
    """Make checks; the outcomes come in the order of the jobs.

    Args:
        jobs: what to do.
        environment: what this process may do.
        parallel: how many at once.
        stop: a descriptor on which a byte ends all: the number of the signal to which that is due.

    Raises:
        Stopped: there was such a byte.
    """
    waiting = enumerate(jobs)
    number, job = next(waiting, (0, None))
    running: dict[int, tuple[int, _Child]] = {}
    done: dict[int, Outcome] = {}
    next_out = 0
    poll = select.poll()
    if stop >= 0:
        poll.register(stop, select.POLLIN)
    watch = _watch()
    notes = not environment.no_sockets and not _on_console()
    alone = False
    try:
        while job or running:
            while job and len(running) < parallel and not alone:
                if environment.no_sockets:
                    done[number] = Outcome("skip", (environment.no_sockets,), 0.0)
                elif job.check.alone and running:
                    break
                else:
                    alone = job.check.alone
                    if notes:
                        _faults.note(job.check.name)
                    child = _Child(job, environment)
                    poll.register(child.fd, select.POLLIN)
                    running[child.fd] = number, child
                number, job = next(waiting, (0, None))
            if running:
                first = min(child.deadline for _, child in running.values())
                ready = dict(poll.poll(max(0.0, first - time.monotonic()) * 1000 + 1))
                if ready.pop(stop, 0):
                    raise Stopped(os.read(stop, 1)[0])
                finished = {fd for fd in ready if running[fd][1].read()}
                now = time.monotonic()
                finished |= {fd for fd, (_, child) in running.items() if child.deadline <= now}
                for fd in finished:
                    poll.unregister(fd)
                    finished_number, child = running.pop(fd)
                    done[finished_number] = _judged(child.finish(), watch, len(running))
                    alone = False
            while next_out in done:
                yield done.pop(next_out)
                next_out += 1
    finally:
        for _, child in running.values():
            child.deadline = 0.0
            child.finish()
        if notes:
            _faults.note(_faults.NONE)
        if watch:
            watch.close()


def _on_console() -> bool:
    """Whether the report goes where the kernel's log is shown, which would tear its lines apart."""
    try:
        name = os.ttyname(1)
        consoles = _CONSOLES.read_text(encoding="ascii").split()
    except OSError:
        return False
    return name.removeprefix("/dev/") in ("console", *consoles)


def _watch() -> _faults.Watch | None:
    try:
        return _faults.Watch()
    except OSError:  # without /proc; the report's head says so
        return None


def _judged(outcome: Outcome, watch: _faults.Watch | None, others: int) -> Outcome:
    """The outcome, unless the kernel has told of a fault since it was asked last."""
    faults = watch.faults() if watch else []
    if not faults:
        return outcome
    beside = f", while {others} other checks were made: --jobs 1 tells whose it is"
    return Outcome(
        "fault",
        (
            *outcome.lines,
            f"the check's outcome was: {outcome.status}",
            *faults,
            "the kernel told of a fault of its own" + (beside if others else ""),
        ),
        outcome.seconds,
    )


def _be_child(job: Job, environment: Environment, report: int) -> NoReturn:
    """The child's whole life."""
    status = 1
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
        gc.disable()  # it would touch, and so copy, every page of the parent's
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        os.dup2(2, 1)  # standard output is the report's alone
        outcome, lines = _make(job, environment)
        with open(report, "w", encoding="utf-8") as file:
            json.dump({"status": outcome, "lines": lines}, file)
        status = 0
    finally:
        os._exit(status)


def _make(job: Job, environment: Environment) -> tuple[Status, list[str]]:
    try:
        with Lab(job.calls, environment, job.patience) as lab:
            job.check.body(lab)
    except Skip as skip:
        return "skip", str(skip).splitlines()
    except Failure as failure:
        return "fail", str(failure).splitlines()
    except OSError as error:
        # A call that had to succeed: that it did not is what the kernel does.
        frame = traceback.extract_tb(error.__traceback__)
        where = next((f for f in reversed(frame) if "checks" in f.filename), frame[-1])
        return "fail", [
            f"a call failed: {where.line}",
            "expected: no error",
            f"seen: {name_of(error.errno)}: {error}",
        ]
    except Exception:
        return "error", traceback.format_exc().splitlines()
    return "pass", lab.notes
