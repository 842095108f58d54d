"""A process in a user namespace of its own, with a BPF file system that a privileged one delegates.

As a container manager does it: the child opens the file system's context in its namespaces, the
parent sets what it delegates, which needs CAP_SYS_ADMIN in the initial one, and creates it; the
child mounts it (kernel/bpf/inode.c, bpf_parse_param).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Mapping
from pathlib import Path

from pykcm import _kernel
from tests.children import begin, ends_well

# asm-generic/unistd.h; the same on every architecture.
_MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 429, 430, 431, 432
# linux/mount.h, linux/fcntl.h, linux/sched.h, linux/capability.h
_SET_STRING, _CREATE = 1, 6
_EMPTY_PATH, _AT_FDCWD = 4, -100
_NEWNS, _NEWUSER, _NEWNET = 0x20000, 0x10000000, 0x40000000
_CAPABILITY_VERSION = 0x20080522
CAP_SYS_ADMIN, CAP_PERFMON, CAP_BPF = 21, 38, 39

FULL = {
    "delegate_cmds": "prog_load",
    "delegate_progs": "socket_filter",
    "delegate_attachs": "cgroup_inet_ingress",
}

_RETURN = bytes([0xB7, 0, 0, 0, 0, 0, 0, 0, 0x95, 0, 0, 0, 0, 0, 0, 0])

_libc = ctypes.CDLL(None, use_errno=True)


def _called(name: str, *arguments: object) -> int:
    result: int = getattr(_libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")
    return result


def drop(*capabilities: int) -> None:
    """Give some capabilities up, for this process (capset(2))."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    held = next(int(line.split()[1], 16) for line in status.splitlines() if "CapEff" in line)
    for number in capabilities:
        held &= ~(1 << number)
    low, high = held & 0xFFFFFFFF, held >> 32
    data = struct.pack("6I", low, low, 0, high, high, 0)
    _called("capset", struct.pack("Ii", _CAPABILITY_VERSION, 0), data)


def delegated(
    options: Mapping[str, str], run: Callable[[], None], path: str = "/sys/fs/bpf"
) -> None:
    """Run in a forked process with user, mount and network namespaces of its own.

    Args:
        options: what the BPF file system at the path delegates.

    Raises:
        AssertionError: it failed; what it raised is on standard error.
        OSError: the kernel knows no such options, or refuses the namespaces or the file system.
    """
    here, there = socket.socketpair()
    with here:
        with there:

            def inside() -> None:
                here.close()
                _in_namespaces(there, run, path)

            pid = begin(inside)
        try:
            _delegate(here, pid, options)
        except BaseException:
            here.close()  # ends the child, which waits for an answer
            os.waitpid(pid, 0)
            raise
        ends_well(pid)


def refusal() -> str:
    """Why nothing can be delegated here; empty if it can."""
    if os.geteuid() != 0:
        return "delegating requires root"
    read, write = os.pipe()

    def run() -> None:  # an older kernel ignores options that it does not know
        told = _kernel.token_state()
        with contextlib.suppress(OSError):
            os.close(
                _kernel.bpf_load(_RETURN, b"GPL", b"", None, None, b"", b"", b"/sys/fs/bpf", told)
            )
        os.write(write, bytes([told[0] == 0]))

    try:
        delegated(FULL, run)
        why = "" if os.read(read, 1) == b"\1" else "there are no tokens"
    except OSError as error:
        why = error.strerror or str(error)
    finally:
        os.close(read)
        os.close(write)
    return f"this kernel delegates no BPF ({why}); Linux 6.9 does" if why else ""


def _in_namespaces(parent: socket.socket, run: Callable[[], None], path: str) -> None:
    try:
        _called("unshare", _NEWUSER | _NEWNS | _NEWNET)
        _tell(parent)
        context = _called("syscall", _FSOPEN, b"bpf", 0)
        _tell(parent, context)
        mount = _called("syscall", _FSMOUNT, context, 0, 0)
        _called("syscall", _MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(path), _EMPTY_PATH)
        _tell(parent)
    except OSError as error:
        parent.send(struct.pack("i", error.errno))
        raise
    os.close(mount)
    os.close(context)
    parent.close()
    _set_loopback_up()
    run()


def _tell(parent: socket.socket, *fds: int) -> None:
    """Say that this went well, and wait for the parent to do its part."""
    socket.send_fds(parent, [struct.pack("i", 0)], fds)
    if not parent.recv(1):
        raise SystemExit(1)


def _hear(child: socket.socket) -> list[int]:
    """Wait for the child to do its part; the descriptors that it gives."""
    said, fds, _, _ = socket.recv_fds(child, 4, 1)
    assert said, "the child has ended; see standard error"
    [number] = struct.unpack("i", said)
    if number:
        raise OSError(number, f"in the child: {os.strerror(number)}")
    return fds


def _delegate(child: socket.socket, pid: int, options: Mapping[str, str]) -> None:
    _hear(child)
    for name, text in (("setgroups", "deny"), ("uid_map", "0 0 1"), ("gid_map", "0 0 1")):
        Path(f"/proc/{pid}/{name}").write_text(text, encoding="ascii")
    child.send(b"m")
    [context] = _hear(child)
    try:
        for name, value in options.items():
            _called("syscall", _FSCONFIG, context, _SET_STRING, name.encode(), value.encode(), 0)
        _called("syscall", _FSCONFIG, context, _CREATE, None, None, 0)
    finally:
        os.close(context)
    child.send(b"d")
    _hear(child)
    child.send(b"r")


def _set_loopback_up() -> None:
    import fcntl

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as interface,
        contextlib.suppress(OSError),
    ):
        # SIOCSIFFLAGS: IFF_UP
        fcntl.ioctl(interface, 0x8914, struct.pack("16sh14x", b"lo", 1))
