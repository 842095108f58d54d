"""errno to pykcm's error: what failed, why, and what to do about it, as tables."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pykcm.errors import (
    AttachError,
    BPFError,
    CapabilityError,
    KCMOSError,
    UnavailableError,
)


class Row(NamedTuple):
    """What an errno means.

    Attributes:
        errno: the number; None is any.
        kind: the class of the error.
        text: its text; what stands in braces is a name that `explain` is given, or one of _FOUND.
        when: asks whether the row fits; always if None.
    """

    errno: int | None
    kind: type[KCMOSError]
    text: str
    when: Callable[[Mapping[str, Any]], bool] | None = None


def explain(error: OSError, table: Sequence[Row], **names: object) -> KCMOSError:
    """The error of the first row that fits.

    Args:
        error: what the system call raised.
        table: one of the tables below.  Its last row fits everything.
        names: what the table's texts and questions name.  `reason`, the kernel's text of the
            errno, is there always.

    Raises:
        KCMOSError: the error itself, where it is pykcm's own already.
    """
    if isinstance(error, KCMOSError):
        raise error
    number = error.errno or 0
    facts = _Facts(reason=error.strerror, **names)
    row = next(
        row
        for row in table
        if row.errno in (None, number) and (row.when is None or row.when(facts))
    )
    return row.kind(number, row.text.format_map(facts))


class _Facts(dict[str, Any]):
    """The names in a text.  What the system has to be asked for is asked when a text needs it."""

    def __missing__(self, name: str) -> Any:
        return _FOUND[name](self)


# ---- bpf(2) ----

_CAPABILITIES = {"CAP_SYS_ADMIN": 21, "CAP_PERFMON": 38, "CAP_BPF": 39}  # linux/capability.h
_UNPRIVILEGED_INSTRUCTIONS = 4096  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h


def capabilities() -> frozenset[str]:
    """Which of the capabilities that bpf(2) asks for this process has in effect.

    Source: CapEff in /proc/self/status; empty where that can't be read.
    """
    for line in _read("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            mask = int(value, 16)
            return frozenset(name for name, bit in _CAPABILITIES.items() if mask >> bit & 1)
    return frozenset()


def may_load() -> bool:
    """Whether this process has what BPF_PROG_LOAD asks for, as far as it can see by itself."""
    return not _unprivileged({}) or _unprivileged_disabled() == "0"


def _read(path: str) -> str:
    """The text of a file of /proc; empty where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def _unprivileged_disabled() -> str:
    """kernel.unprivileged_bpf_disabled: "0" lets anyone load socket filters."""
    return _read("/proc/sys/kernel/unprivileged_bpf_disabled").strip() or "unknown"


def _unprivileged(_: Mapping[str, Any]) -> bool:
    return not capabilities() & {"CAP_BPF", "CAP_SYS_ADMIN"}


def in_own_user_namespace() -> bool:
    """Whether this process is in another user namespace than the initial one."""
    return _read("/proc/self/uid_map").split() not in ([], ["0", "0", "4294967295"])


def _is_long(names: Mapping[str, Any]) -> bool:
    return _unprivileged(names) and names["count"] > _UNPRIVILEGED_INSTRUCTIONS


def _has_no_directory(names: Mapping[str, Any]) -> bool:
    return not os.path.isdir(names["directory"])


def mounted(path: str) -> tuple[str, str] | None:
    """The type and the options of the file system in which a path lies (proc(5), mountinfo).

    None if that can't be told; both are empty if it is not among the mounts that this process sees.
    """
    try:
        device = os.stat(path).st_dev
    except OSError:
        return None
    wanted = f"{os.major(device)}:{os.minor(device)}"
    mounts = _read("/proc/self/mountinfo")
    for line in mounts.splitlines():
        fields, _, rest = line.partition(" - ")
        if fields.split()[2] == wanted:
            kind, *_, options = rest.split()
            return kind, options
    return ("", "") if mounts else None


def _outside_bpf_file_system(names: Mapping[str, Any]) -> bool:
    """Whether a path lies elsewhere than in a mounted BPF file system.

    A pin may be mounted alone, as in a container; where nothing is, it is the directory's.
    """
    found = mounted(names["path"]) or mounted(names["directory"])
    return found is not None and found[0] != "bpf"  # else the kernel's own word has to do


def _has_dot(names: Mapping[str, Any]) -> bool:
    return "." in os.path.basename(names["path"])


def _setting(_: Mapping[str, Any]) -> str:
    setting = _unprivileged_disabled()
    return "" if setting == "0" else f", and kernel.unprivileged_bpf_disabled is {setting}"


_FOUND: dict[str, Callable[[Mapping[str, Any]], str]] = {
    "directory": lambda names: os.path.dirname(os.path.abspath(names["path"])),
    "held": lambda names: " and ".join(sorted(capabilities())),
    "setting": _setting,
    "token": lambda _: "",
}

RUN_WITH_CAPABILITIES = (
    "systemd-run -p User=$USER -p AmbientCapabilities='CAP_BPF CAP_PERFMON' COMMAND"
)
RUN_WITH_TOKEN = (
    "systemd-run -p PrivateUsers=yes -p DelegateNamespaces=mnt -p PrivateBPF=yes "
    "-p BPFDelegateCommands=BPFProgLoad "
    "-p BPFDelegatePrograms=BPFProgTypeSocketFilter "
    "-p BPFDelegateAttachments=BPFCgroupInetIngress COMMAND"
)
LOAD_AND_PIN = "sudo kcm frame FRAMING --pin /sys/fs/bpf/NAME"
WAYS = (
    "Three ways remain: "
    f"run it as root (sudo COMMAND) or with CAP_BPF and CAP_PERFMON ({RUN_WITH_CAPABILITIES}); "
    f"give it a BPF token (Linux 6.9 and systemd 258: {RUN_WITH_TOKEN}); or "
    f"a process with CAP_BPF and CAP_PERFMON must load this program ({LOAD_AND_PIN}); "
    "attach it by path (Program.from_pin)"
)
"""How a program can be loaded all the same; ends the text of an error."""


def reason(error: KCMOSError) -> str:
    """An error's text without the ways that remain."""
    return (error.strerror or str(error)).removesuffix(WAYS).rstrip(" .")


_NO_BPF = Row(errno.ENOSYS, UnavailableError, "this kernel has no bpf(2)")
_DENIED = (
    Row(
        errno.EPERM,
        CapabilityError,
        "{what} was refused: this process has neither CAP_BPF nor CAP_SYS_ADMIN{setting}{token}. "
        f"{WAYS}",
        _unprivileged,
    ),
    Row(
        errno.EPERM,
        CapabilityError,
        "{what} was refused: this process has {held} in a user namespace of its own only{token}. "
        f"{WAYS}",
        lambda _: in_own_user_namespace(),
    ),
    Row(
        errno.EPERM,
        CapabilityError,
        "{what} was refused: this process has {held}, so a seccomp filter (that of a container, "
        "say), a security module or kernel lockdown forbids it",
    ),
)

_RESOURCES = (
    Row(
        errno.EMFILE,
        BPFError,
        "{what} failed: this process has no descriptor left; close some, or raise its limit "
        "(RLIMIT_NOFILE)",
    ),
    Row(
        errno.ENFILE,
        BPFError,
        "{what} failed: the system has no descriptor left; see /proc/sys/fs/file-max",
    ),
    Row(errno.ENOMEM, BPFError, "{what} failed: the kernel has no memory for it"),
    Row(
        errno.EAGAIN,
        BPFError,
        "{what} failed: signals interrupted every attempt; block them while it runs",
    ),
)
NOT_THE_PROGRAM = frozenset(row.errno for row in (_NO_BPF, *_RESOURCES))
"""The errnos of BPF_PROG_LOAD that say nothing about the program."""

LOAD = (
    _NO_BPF,
    *_RESOURCES,
    *_DENIED,
    Row(
        errno.E2BIG,
        BPFError,
        "the program has {count} instructions: a process without CAP_BPF may load "
        f"{_UNPRIVILEGED_INSTRUCTIONS} at most",
        _is_long,
    ),
    Row(
        errno.E2BIG,
        BPFError,
        "the program has {count} instructions: it is too complex: the verifier gives up after a "
        "million instructions",
    ),
    Row(None, BPFError, "{what} failed"),
)
"""BPF_PROG_LOAD without a word of the verifier's: `what`, and `count`, its instructions."""

PIN = (
    _NO_BPF,
    Row(
        errno.EEXIST,
        BPFError,
        "{what} failed: the path exists; remove it first to replace it",
    ),
    Row(errno.ENOENT, BPFError, "{what} failed: its directory does not exist", _has_no_directory),
    Row(errno.ENOENT, BPFError, "{what} failed: nothing is there"),
    *_RESOURCES,
    Row(
        None,
        BPFError,
        "{what} failed: {directory} is not in a BPF file system; one is mounted by "
        "`mount -t bpf bpf /sys/fs/bpf`",
        _outside_bpf_file_system,
    ),
    Row(
        errno.EPERM, BPFError, "{what} failed: a name with '.' is reserved to the kernel", _has_dot
    ),
    *_DENIED,
    Row(None, BPFError, "{what} failed"),
)
"""BPF_OBJ_PIN and BPF_OBJ_GET: `what` and `path`."""

INFO = (_NO_BPF, *_DENIED, Row(None, BPFError, "{what} failed"))
"""BPF_OBJ_GET_INFO_BY_FD: `what`."""

ID = (
    _NO_BPF,
    Row(errno.ENOENT, BPFError, "{what} failed: there is none"),
    *_RESOURCES,
    Row(
        errno.EPERM,
        CapabilityError,
        "{what} was refused: it requires CAP_SYS_ADMIN, that is root",
    ),
    Row(None, BPFError, "{what} failed"),
)
"""BPF_PROG_GET_FD_BY_ID and BPF_PROG_GET_NEXT_ID: `what`."""

RUN = (
    _NO_BPF,
    *_DENIED,
    Row(
        errno.EINVAL,
        BPFError,
        "{what} failed: the kernel takes 1 byte to a page less its own head and tail, some 3,500 "
        "bytes",
    ),
    Row(None, BPFError, "{what} failed"),
)
"""BPF_PROG_TEST_RUN: `what`."""


# ---- AF_KCM ----

OPEN = (
    Row(
        errno.EAFNOSUPPORT,
        UnavailableError,
        "this kernel has no AF_KCM; load the module (modprobe kcm), or boot a kernel built with "
        "CONFIG_AF_KCM (Debian's stock kernels have it, its cloud kernels do not)",
    ),
    Row(errno.ESOCKTNOSUPPORT, KCMOSError, "a KCM socket's type is SOCK_DGRAM or SOCK_SEQPACKET"),
    Row(
        errno.EPERM,
        CapabilityError,
        "this process may not open a KCM socket; allow it in its sandbox or policy",
    ),
    Row(
        errno.EACCES,
        CapabilityError,
        "this process may not open a KCM socket; allow it in its sandbox or policy",
    ),
    Row(
        errno.EMFILE,
        KCMOSError,
        "the KCM socket could not be opened, for want of a descriptor; close some, or raise "
        "RLIMIT_NOFILE",
    ),
    Row(None, KCMOSError, "the KCM socket could not be opened ({reason})"),
)

ATTACH = (
    Row(errno.ENOENT, AttachError, "descriptor {tcp} is not an open socket"),
    Row(errno.EBADF, AttachError, "descriptor {program}, given for the program, is not open"),
    Row(
        errno.EINVAL, AttachError, "descriptor {program} is not a BPF program of type socket filter"
    ),
    Row(
        errno.EOPNOTSUPP,
        AttachError,
        "socket {tcp} is not a connected TCP socket: KCM takes TCP over IPv4 or IPv6, neither "
        "listening nor closed, and not MPTCP",
    ),
    Row(
        errno.EALREADY,
        AttachError,
        "TCP socket {tcp} is attached to a multiplexor already, or used by another part of the "
        "kernel (TLS, sockmap); unattach it first",
    ),
    Row(
        errno.EACCES,
        AttachError,
        "a security policy forbids it; under SELinux a clone has no label: attach through the "
        "multiplexor's first socket",
    ),
    Row(
        errno.EMFILE,
        AttachError,
        "TCP socket {tcp} was not attached, for want of a descriptor; close some, or raise "
        "RLIMIT_NOFILE",
    ),
    Row(
        errno.ENOSPC,
        AttachError,
        "TCP socket {tcp} was not attached, since it cannot be watched; raise "
        "fs.epoll.max_user_watches",
    ),
    Row(None, AttachError, "TCP socket {tcp} was not attached ({reason})"),
)

UNATTACH = (
    Row(
        errno.ENOENT,
        AttachError,
        "TCP socket {tcp} cannot be unattached: it is not attached to this multiplexor",
    ),
    Row(
        errno.EALREADY,
        AttachError,
        "TCP socket {tcp} cannot be unattached: it is being unattached already",
    ),
    Row(None, AttachError, "TCP socket {tcp} cannot be unattached ({reason})"),
)

WAIT = (
    Row(
        errno.EMFILE,
        KCMOSError,
        "there is no descriptor to wait by; close some, or raise RLIMIT_NOFILE",
    ),
    Row(None, KCMOSError, "there is no descriptor to wait by ({reason})"),
)

LOOPBACK = (
    Row(
        errno.EMFILE,
        KCMOSError,
        "there is no descriptor to find out by how to read a message's offset; close some, or "
        "raise RLIMIT_NOFILE",
    ),
    Row(
        None,
        UnavailableError,
        "the way to read the message's offset is found by a TCP connection to 127.0.0.1, which "
        "failed ({reason}); set the loopback interface up",
    ),
)

CLONE = (
    Row(
        errno.EMFILE,
        KCMOSError,
        "the KCM socket was not cloned, for want of a descriptor; close some, or raise "
        "RLIMIT_NOFILE",
    ),
    Row(None, KCMOSError, "the KCM socket was not cloned ({reason})"),
)

_CLOSED = Row(errno.EBADF, KCMOSError, "the KCM socket is closed")

RECEIVE = (
    _CLOSED,
    Row(None, KCMOSError, "a receive on the KCM socket failed ({reason})"),
)

SEND = (
    _CLOSED,
    Row(
        errno.EMSGSIZE,
        KCMOSError,
        "one send takes 2,147,479,552 bytes at most: the kernel would end the message there",
    ),
    Row(None, KCMOSError, "the message was not sent ({reason})"),
)

CONTINUE = (
    Row(
        None,
        KCMOSError,
        "a message that was begun with MSG_MORE is gone, nothing of it was sent; send all of it "
        "again ({reason})",
    ),
)

EMPTY = (
    Row(
        None,
        KCMOSError,
        "a message of 0 bytes does not exist for KCM: the kernel would drop it in silence; a "
        "framing's shortest message is its header",
    ),
)

MORE = (Row(None, KCMOSError, "MSG_MORE begins one message; it can't be used with several"),)

OPEN_MESSAGE = (
    Row(
        None,
        KCMOSError,
        "a message was begun with MSG_MORE; end it by a send without MSG_MORE first",
    ),
)

HELD_BACK = (
    Row(
        None,
        KCMOSError,
        "messages are held back by MSG_BATCH, and the socket has been shared since, so that only "
        "a send without MSG_BATCH can hand them over",
    ),
)
