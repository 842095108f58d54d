"""How another user, or a process, would fare: tried in a child that has become like it.

It takes on what can be taken on: user, groups, capabilities, limits, and the user, mount and
network namespaces.  What can't be is told: a seccomp filter, and a security module's label.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import pwd
import resource
import signal
import struct
from pathlib import Path
from typing import Any, NamedTuple

from pykcm.doctor.examination import examine
from pykcm.doctor.finding import Finding, problem, unknown
from pykcm.errors import CapabilityError, KCMOSError
from pykcm.framing import Framing

_LIMITS = ("RLIMIT_MEMLOCK", "RLIMIT_NOFILE")
# linux/sched.h; in the order in which they are joined.
_NAMESPACES = {"user": 0x10000000, "net": 0x40000000, "mnt": 0x20000}
_CAPABILITY_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3, linux/capability.h
_KEEP_CAPABILITIES = 8  # PR_SET_KEEPCAPS, linux/prctl.h

_libc = ctypes.CDLL(None, use_errno=True)


class Target(NamedTuple):
    """Whom it is about.

    Attributes:
        is_process: whether the number is a PID; else it is a UID.
        number: the number.
    """

    is_process: bool
    number: int

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read "1000", "uid:1000" or "pid:1234"; a bare number is a PID if one has it.

        Raises:
            ValueError: it is none of these, or there is no such process.
        """
        kind, colon, digits = text.rpartition(":")
        if not digits.isascii() or not digits.isdigit() or kind not in ("", "uid", "pid"):
            raise ValueError(f"{text!r} is neither a UID nor a PID, such as uid:1000 or pid:1234")
        number = int(digits)
        exists = number > 0 and Path(f"/proc/{number}").is_dir()
        if kind == "pid" and not exists:
            raise ValueError(f"there is no process {number}")
        if number >= (1 << 32) - 1:
            raise ValueError(f"{number} is too large for a UID")
        return cls(kind == "pid" or (not colon and exists), number)


def examine_for(target: Target, framing: Framing | None = None) -> list[Finding]:
    """As `examine`, for another user or process.

    Raises:
        CapabilityError: this process may not become like it; root may.
        KCMOSError: the process is gone, or the examination died.
    """
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(read)
            text = json.dumps(_examined(target, framing)).encode()
            with os.fdopen(write, "wb") as pipe:
                pipe.write(text)
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pipe.read()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code < 0:
        return [problem("all", f"the examination was killed by {signal.Signals(-code).name}")]
    if not answer:
        raise KCMOSError(errno.ECHILD, "the examination for another ended without a word")
    data = json.loads(answer)
    if "errno" in data:
        kind = CapabilityError if data["errno"] in (errno.EPERM, errno.EACCES) else KCMOSError
        raise kind(data["errno"], data["text"])
    return [Finding.from_dict(each) for each in data["findings"]]


def _examined(target: Target, framing: Framing | None) -> dict[str, Any]:
    """The findings, or an error, for JSON."""
    what = f"{'process' if target.is_process else 'user'} {target.number}"
    try:
        more = _be_process(target.number) if target.is_process else _be_user(target.number)
    except OSError as error:
        text = f"this process can't become like {what} ({error.strerror or error}): sudo kcm doctor"
        return {"errno": error.errno or errno.EPERM, "text": text}
    findings = [*examine(framing), *more]
    return {"findings": [finding.as_dict() for finding in findings]}


def _be_user(uid: int) -> list[Finding]:
    """Become a user who has just logged in."""
    if uid == os.geteuid():
        return []
    try:
        entry = pwd.getpwuid(uid)
        os.initgroups(entry.pw_name, entry.pw_gid)
        group = entry.pw_gid
    except KeyError:  # a user without a name, a container's say
        os.setgroups([])
        group = uid
    os.setresgid(group, group, group)
    os.setresuid(uid, uid, uid)
    return [
        unknown(
            "sandbox",
            "a seccomp filter, limits or a label that this user's processes have is not seen; "
            "name a process for its limits",
        )
    ]


def _be_process(pid: int) -> list[Finding]:
    """Become like a process, as far as that goes."""
    status = _status(pid)
    limits = {name: resource.prlimit(pid, getattr(resource, name)) for name in _LIMITS}
    _load_everything()
    _join(pid)
    uid, gid = int(status["Uid"].split()[1]), int(status["Gid"].split()[1])
    ids = _in_namespace(uid, "uid"), _in_namespace(gid, "gid")
    _libc.prctl(_KEEP_CAPABILITIES, ctypes.c_ulong(1), *[ctypes.c_ulong(0)] * 3)
    with contextlib.suppress(PermissionError):  # its namespace may forbid it
        os.setgroups([])
    os.setresgid(ids[1], ids[1], ids[1])
    os.setresuid(ids[0], ids[0], ids[0])
    for name, limit in limits.items():
        resource.setrlimit(getattr(resource, name), limit)
    held = int(status["CapEff"], 16)
    low, high = held & 0xFFFFFFFF, held >> 32
    header = ctypes.create_string_buffer(struct.pack("Ii", _CAPABILITY_VERSION, 0))
    _check(_libc.capset(header, struct.pack("6I", low, low, 0, high, high, 0)), "capset")
    return _not_taken_on(pid, status)


def _status(pid: int) -> dict[str, str]:
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _join(pid: int) -> None:
    """Enter the namespaces that differ from this process's own."""
    wanted = 0
    for name, flag in _NAMESPACES.items():
        if os.readlink(f"/proc/{pid}/ns/{name}") != os.readlink(f"/proc/self/ns/{name}"):  # noqa: PTH115
            wanted |= flag
    if not wanted:
        return
    fd = os.pidfd_open(pid)
    try:
        _check(_libc.setns(fd, wanted), "setns")
    finally:
        os.close(fd)


def _in_namespace(number: int, kind: str) -> int:
    """What a user's or group's number outside is in this process's namespace now."""
    for line in Path(f"/proc/self/{kind}_map").read_text(encoding="ascii").splitlines():
        inside, outside, count = map(int, line.split())
        if outside <= number < outside + count:
            return inside + number - outside
    raise OSError(errno.EINVAL, f"{kind} {number} has no number in its user namespace")


def _load_everything() -> None:
    """Import what the examination imports when it is used: its mounts may not have it."""
    from pykcm import _explain, _offset, _trials, bpf, multiplexor  # noqa: F401
    from pykcm.bpf import _functions, _load, _token, _verifier, assembler  # noqa: F401


def _check(result: int, what: str) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def _not_taken_on(pid: int, status: dict[str, str]) -> list[Finding]:
    found: list[Finding] = []
    if status.get("Seccomp", "0") != "0":
        found.append(
            unknown(
                "sandbox",
                f"process {pid} has a seccomp filter, which another can't take on: what it forbids "
                "is not seen",
            )
        )
    try:
        label = Path(f"/proc/{pid}/attr/current").read_text(encoding="utf-8").strip("\0\n")
    except OSError:
        label = ""
    if label not in ("", "unconfined"):
        found.append(
            unknown(
                "label",
                f"process {pid} has the label {label!r}, which was not taken on: what a security "
                "policy forbids it is not seen",
            )
        )
    return found
