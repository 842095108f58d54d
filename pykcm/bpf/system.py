"""Why bpf(2) may say no to this process."""

from __future__ import annotations

import errno
from pathlib import Path

from pykcm.errors import CapabilityError

_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}  # linux/capability.h


def capabilities() -> frozenset[str]:
    """Which of the capabilities that bpf(2) asks for this process has in effect.

    Source: CapEff in /proc/self/status; empty where that can't be read.
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            mask = int(value, 16)
            return frozenset(name for name, bit in _CAPABILITIES.items() if mask >> bit & 1)
    return frozenset()


def may_load() -> bool:
    """Whether this process has what BPF_PROG_LOAD asks for, as far as it can see by itself."""
    return bool(capabilities() & {"CAP_BPF", "CAP_SYS_ADMIN"}) or _unprivileged_disabled() == "0"


def denied(what: str) -> CapabilityError:
    """The error for an EPERM of bpf(2): the reason, as far as it can be found, and the remedy.

    Args:
        what: what was refused, such as "loading the BPF program".
    """
    held = capabilities()
    if not held & {"CAP_BPF", "CAP_SYS_ADMIN"}:
        setting = _unprivileged_disabled()
        reason = (
            "this process has neither CAP_BPF nor CAP_SYS_ADMIN"
            f"{f', and kernel.unprivileged_bpf_disabled is {setting}' if setting != '0' else ''}: "
            "a process with CAP_BPF and CAP_PERFMON must load this program; "
            "pin it and attach by path"
        )
    elif not _initial_user_namespace():
        reason = (
            f"this process has {' and '.join(sorted(held))} in a user namespace of its own only: "
            "a process with CAP_BPF and CAP_PERFMON in the initial one must load this program; "
            "pin it and attach by path"
        )
    else:
        reason = (
            f"this process has {' and '.join(sorted(held))}, so a seccomp filter (that of a "
            "container, say), a security module or kernel lockdown forbids it"
        )
    return CapabilityError(errno.EPERM, f"{what} was refused: {reason}")


def _unprivileged_disabled() -> str:
    """kernel.unprivileged_bpf_disabled: "0" lets anyone load socket filters."""
    try:
        return (
            Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text(encoding="ascii").strip()
        )
    except OSError:
        return "unknown"


def _initial_user_namespace() -> bool:
    try:
        return Path("/proc/self/uid_map").read_text(encoding="ascii").split() == [
            *("0", "0", "4294967295")
        ]
    except OSError:
        return True
