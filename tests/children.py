"""Forked processes of tests. None goes on as a second pytest, whatever happens in it."""

from __future__ import annotations

import faulthandler
import os
import signal
import traceback
import warnings
from collections.abc import Callable

#: Seconds after which a child ends that does not come to an end.
LIMIT = 60


def begin(run: Callable[[], object], limit: int = LIMIT) -> int:
    """Run in a forked process; its number.

    It exits with 0 if run returns, and with 1 if it raises; what was raised, or where the child was
    when its time was over, is on standard error.
    """
    with warnings.catch_warnings():  # of a fork beside threads, which some tests are about
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        # The handler that is there may be pytest-timeout's, which raises.
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        faulthandler.register(signal.SIGALRM, file=2, chain=True)
        signal.alarm(limit)
        run()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def ends_well(pid: int) -> None:
    """Wait for a child.

    Raises:
        AssertionError: it did not exit with 0.
    """
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status == 0, f"the child ended with {status}; see standard error"


def in_child(run: Callable[[], object], limit: int = LIMIT) -> None:
    """Run in a forked process, and wait for its end.

    Raises:
        AssertionError: it failed, or did not come to an end.
    """
    ends_well(begin(run, limit))
