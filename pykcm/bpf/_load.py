"""Loading a program: the attempts, and why the last one failed."""

from __future__ import annotations

import errno
import functools
import os
from collections.abc import Callable
from typing import Any, TypeVar

from pykcm import _explain, _kernel
from pykcm.bpf import _instructions as isa

T = TypeVar("T")

_ATTEMPTS = 100  # the verifier gives up with EAGAIN when a signal is pending
_LOG_SIZES = (1 << 20, (1 << 24) - 1)  # the second is the most that every kernel takes


def retried(call: Callable[..., T], *arguments: Any) -> T:
    """The result of a call that is made again for EINTR, and some times for EAGAIN."""
    left = _ATTEMPTS
    while True:
        try:
            return call(*arguments)
        except InterruptedError:
            continue
        except BlockingIOError:
            left -= 1
            if not left:
                raise


def load(
    code: bytes,
    license: bytes,
    name: str,
    text: str,
    lines: list[int],
    functions_take: int | None = None,
) -> int:
    """Load a socket filter, at first without a log; only a refusal is worth writing one.

    Args:
        code: the instructions.
        license: up to 127 bytes.
        name: one that the kernel takes.
        text: the text that the code was made of; "" if there is none.
        lines: for each instruction its line in the text.
        functions_take: as of `Program.load`.

    Returns:
        A descriptor.

    Raises:
        VerifierError: the verifier refused the program.
        BPFError, CapabilityError, UnavailableError: something else is in the way.
    """
    types = b"", b""
    if functions_take is not None:
        from pykcm.bpf import _functions

        types = _functions.describe(_functions.starts(code), functions_take)

    token: tuple[Any, ...] = ()

    def attempt(log: bytearray | None = None) -> int:
        return retried(_kernel.bpf_load, code, license, name.encode(), log, None, *types, *token)

    try:
        return _with_locked_memory(attempt)
    except OSError as error:
        refused = error
    why = ""
    if refused.errno == errno.EPERM or _explain.in_own_user_namespace():
        from pykcm.bpf import _token

        where, told = _token.path(), _kernel.token_state()
        if where:
            token = os.fsencode(where), told
            try:
                return attempt()
            except OSError as error:
                if told[0]:
                    token = ()  # the kernel's words about the plain attempt are worth having
                else:
                    refused = error
        why = _token.explain(where, told, bool(types[0]))
    log, whole = "", True
    if refused.errno not in _explain.NOT_THE_PROGRAM:
        for size in _LOG_SIZES:
            room = bytearray(size)
            try:
                return _with_locked_memory(functools.partial(attempt, room))
            except OSError as error:
                whole = error.errno != errno.ENOSPC
            # This attempt may have failed for another reason, a want of memory say: with no log.
            log = room[: room.find(0)].decode("utf-8", "replace") or log
            if whole:
                break
    if log:
        from pykcm.bpf import _verifier

        raise _verifier.refusal(refused, log, whole, code, text, lines) from refused
    count = len(code) // isa.SIZE
    what = f"loading the program {name!r} of {count} instructions"
    raise _explain.explain(refused, _explain.LOAD, what=what, count=count, token=why) from refused


def _with_locked_memory(attempt: Callable[[], int]) -> int:
    """Attempt it; if need be with no limit on locked memory, as far as this process may lift it.

    Before Linux 5.11 a program's memory counted against RLIMIT_MEMLOCK: EPERM where it is over it.
    """
    try:
        return attempt()
    except PermissionError as error:
        if error.errno != errno.EPERM or not _explain.may_load():
            raise
        refused = error
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    infinity = resource.RLIM_INFINITY
    for limit in ((infinity, infinity), (hard, hard)):
        try:
            resource.setrlimit(resource.RLIMIT_MEMLOCK, limit)
        except (OSError, ValueError):
            continue
        try:
            return attempt()
        finally:
            # The hard limit can go down again, too.
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (soft, hard))
    raise refused
