"""What any call may fail of, and what puts that right."""

from __future__ import annotations

import errno
import os
import resource

from pykcm import _explain
from pykcm.doctor.finding import Finding, problem
from pykcm.errors import KCMOSError


def more_descriptors() -> str:
    """The command, in a shell, by which more descriptors may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == soft:
        return "sudo prlimit --nofile=1024:1024 --pid $$"
    return f"ulimit -n {'unlimited' if hard == resource.RLIM_INFINITY else hard}"


def want(name: str, number: int | None) -> Finding | None:
    """A finding for want of descriptors or memory; None for another errno."""
    if number == errno.EMFILE:
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return problem(
            name,
            f"this process has no descriptor left: its limit is {soft:,} (RLIMIT_NOFILE)",
            more_descriptors(),
        )
    if number == errno.ENFILE:
        return problem(
            name,
            "the system has no descriptor left (fs.file-max)",
            "sudo sysctl -w fs.file-max=1000000",
        )
    if number in (errno.ENOMEM, errno.ENOBUFS):
        return problem(name, "the kernel has no memory for it", "free -m", "and free some")
    return None


def refused(name: str, error: KCMOSError, fix: str = "", advice: str = "") -> Finding:
    """A finding for an error of pykcm's."""
    found = want(name, error.errno)
    return found or problem(name, _explain.reason(error), fix, advice)


def failed(name: str, number: int, what: str) -> Finding:
    """A finding for a system call that failed."""
    return want(name, number) or problem(name, f"{what}: {os.strerror(number)}")
