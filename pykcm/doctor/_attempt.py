"""Trying a system call for which a seccomp filter may kill."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable

_DONE, _FAILED_OTHERWISE = 0, 255


def attempt(call: Callable[[], object]) -> int:
    """What a call comes to in a forked process.

    Returns:
        0 if it was done, the errno of an OSError, or the number of a signal that killed the
        process, negative.
    """
    pid = os.fork()
    if pid == 0:
        status = _FAILED_OTHERWISE
        with contextlib.suppress(BaseException):
            try:
                call()
                status = _DONE
            except OSError as error:
                status = error.errno or _FAILED_OTHERWISE
        os._exit(status)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == _FAILED_OTHERWISE:
        raise RuntimeError("an attempt failed by something else than the system call")
    return code


def outcome(code: int) -> str:
    """What `attempt` returned, as words: "fails with EPERM"."""
    import errno

    if code < 0:
        return f"is killed by {signal.Signals(-code).name}"
    return f"fails with {errno.errorcode.get(code, str(code))}"
