"""`kcm doctor` in set-ups that are made for it, most of them in a process of their own."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pykcm
from pykcm import _explain, _kernel, _offset, _trials, doctor, protocols
from pykcm.doctor import Finding, Status, _programs
from pykcm.selftest import syscalls
from tests import delegation as staged
from tests.children import in_child

from .connections import is_contained

NOBODY = 65534
MODPROBE = Path("/run/modprobe.d/pykcm-test.conf")
MODULES = Path("/lib/modules") / os.uname().release
LOCKDOWN = Path("/sys/kernel/security/lockdown")
HARDENING = Path("/proc/sys/net/core/bpf_jit_harden")

NEWNS, NEWNET, MS_REC, MS_PRIVATE = 0x20000, 0x40000000, 0x4000, 0x40000
NO_NEW_PRIVS, SET_SECCOMP, SECCOMP_FILTER = 38, 22, 2
FAIL, KILL, ALLOW = 0x00050000, 0x80000000, 0x7FFF0000

_libc = ctypes.CDLL(None, use_errno=True)
_refusal = staged.refusal()
needs_bpf = pytest.mark.skipif(
    "CAP_BPF" not in _explain.capabilities(),
    reason="this root has no CAP_BPF: engines before 2021 do not know it, not even privileged",
)
needs_token = pytest.mark.skipif(bool(_refusal), reason=_refusal)


def _needs_probe() -> bool:
    try:
        return _offset.find_strategy().name == "probe"
    except pykcm.UnavailableError:  # by lockdown
        return False


needs_probe = pytest.mark.skipif(
    not _needs_probe(), reason="on this kernel a program needs no CAP_PERFMON to find the offset"
)
needs_denial = pytest.mark.skipif(
    Path("/proc/sys/kernel/unprivileged_bpf_disabled").read_text().strip() == "0",
    reason="this kernel lets everybody load socket filters",
)

Found = dict[str, Finding]
InChild = Callable[[Callable[[], None]], None]


def examined(
    stage: Callable[[], object],
    within: InChild = in_child,
    framing: pykcm.Framing = protocols.THRIFT_FRAMED,
) -> Found:
    """What the doctor finds in a process that was staged."""
    read, write = os.pipe()

    def run() -> None:
        stage()
        _offset._found = None
        _trials._found.clear()
        found = [finding.as_dict() for finding in doctor.examine(framing)]
        os.write(write, json.dumps(found).encode())

    within(run)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        return {each["name"]: Finding.from_dict(each) for each in json.loads(pipe.read())}


def names(found: Found, status: Status) -> set[str]:
    return {name for name, finding in found.items() if finding.status is status}


def nothing() -> None:
    pass


@needs_bpf
def test_root() -> None:
    found = examined(nothing)
    assert names(found, Status.PROBLEM) == set()
    assert names(found, Status.WARNING) <= {"taint", "jit"}  # no compiler on User-Mode Linux
    assert {"socket", "program", "offset", "messages", "framing", "clone"} <= names(
        found, Status.OK
    )
    assert "CAP_BPF" in found["program"].text


def test_the_command_says_the_same() -> None:
    command = [sys.executable, "-m", "pykcm", "doctor", "--json"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    data = json.loads(result.stdout)
    found = {each["name"]: Finding.from_dict(each) for each in data["findings"]}
    assert result.returncode == doctor.exit_status(found.values()) < 2
    assert found["messages"].status is Status.OK


def way() -> str:
    """How a process gets the capabilities."""
    return _programs.DOCKER if Path("/.dockerenv").exists() else _explain.RUN_WITH_CAPABILITIES


@needs_bpf
@needs_probe
def test_no_cap_perfmon() -> None:
    found = examined(lambda: staged.drop(staged.CAP_SYS_ADMIN, staged.CAP_PERFMON))
    assert names(found, Status.PROBLEM) == {"offset"}
    assert "CAP_PERFMON" in found["offset"].text
    assert found["offset"].fix == way()
    assert "offset" in found["messages"].text


@needs_bpf
@needs_probe
def test_fixed_lengths_need_no_cap_perfmon() -> None:
    found = examined(
        lambda: staged.drop(staged.CAP_SYS_ADMIN, staged.CAP_PERFMON),
        framing=pykcm.FixedLength(8),
    )
    assert names(found, Status.PROBLEM) == set()
    assert "offset" in names(found, Status.WARNING)
    assert found["framing"].status is Status.OK


@needs_denial
def test_no_cap_bpf() -> None:
    found = examined(lambda: staged.drop(staged.CAP_SYS_ADMIN, staged.CAP_BPF))
    assert names(found, Status.PROBLEM) == {"program"}
    assert "neither CAP_BPF" in found["program"].text
    assert found["program"].fix == way()


def become_nobody() -> None:
    os.setgroups([])
    os.setresgid(NOBODY, NOBODY, NOBODY)
    os.setresuid(NOBODY, NOBODY, NOBODY)


@needs_denial
def test_an_ordinary_user() -> None:
    found = examined(become_nobody)
    assert names(found, Status.PROBLEM) == {"program"}
    assert found["socket"].status is Status.OK
    assert found["jit hardening"].status is Status.UNKNOWN
    target = doctor.Target.parse(f"uid:{NOBODY}")
    by_root = {each.name: each for each in doctor.examine_for(target)}
    assert by_root["program"] == found["program"]


@needs_token
def test_a_token() -> None:
    found = examined(nothing, lambda run: staged.delegated(staged.FULL, run))
    assert names(found, Status.PROBLEM) == set()
    assert "with a BPF token" in found["program"].text
    assert {"token", "offset", "messages", "framing"} <= names(found, Status.OK)


@needs_token
def test_a_token_that_delegates_too_little() -> None:
    options = {name: value for name, value in staged.FULL.items() if name != "delegate_attachs"}
    found = examined(nothing, lambda run: staged.delegated(options, run))
    assert names(found, Status.PROBLEM) == {"program", "token"}
    assert "delegate_attachs=cgroup_inet_ingress" in found["token"].advice


@needs_token
def test_a_token_without_cap_perfmon() -> None:
    found = examined(
        lambda: staged.drop(staged.CAP_SYS_ADMIN, staged.CAP_PERFMON),
        lambda run: staged.delegated(staged.FULL, run),
    )
    assert names(found, Status.PROBLEM) == {"offset"}
    assert "in this user namespace" in found["offset"].text


def remove() -> subprocess.CompletedProcess[str]:
    return subprocess.run(["rmmod", "kcm"], capture_output=True, text=True, check=False)


@pytest.fixture
def unloaded() -> Iterator[None]:
    """The module is not loaded; it is again afterwards."""
    _kernel.open_socket().close()
    if not Path("/sys/module/kcm/refcnt").exists():
        pytest.skip("KCM is built into this kernel, or its module can't be removed")
    if is_contained():
        pytest.skip("the kernel loads modules as the host says, not as a container does")
    end = time.monotonic() + 10
    while (removed := remove()).returncode:
        assert time.monotonic() < end, removed.stderr
        time.sleep(0.1)
    try:
        yield
    finally:
        _kernel.open_socket().close()


@contextlib.contextmanager
def configured(line: str) -> Iterator[None]:
    """With a line for modprobe, in a directory that a boot empties."""
    MODPROBE.parent.mkdir(exist_ok=True)
    MODPROBE.write_text(f"# from pykcm's tests\n{line}\n", encoding="ascii")
    try:
        yield
    finally:
        MODPROBE.unlink()


@pytest.mark.parametrize("line", ["blacklist kcm", "install kcm /bin/false"])
def test_a_module_that_must_not_be_loaded(unloaded: None, line: str) -> None:
    with configured(line):
        found = examined(nothing)
        assert names(found, Status.PROBLEM) == {"socket"}
        assert f"{MODPROBE}:2 forbids" in found["socket"].text
        fix = found["socket"].fix.removeprefix("sudo ").split()
        subprocess.run(fix, check=True)
        assert examined(nothing)["socket"].status is Status.OK


def test_a_module_that_was_removed(unloaded: None) -> None:
    if not MODULES.exists():
        pytest.skip("this kernel's modules are loaded from elsewhere")
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", MODULES], check=True)
    try:
        found = examined(nothing)
    finally:
        subprocess.run(["umount", MODULES], check=True)
    assert names(found, Status.PROBLEM) == {"socket"}
    assert "kcm is not among the modules" in found["socket"].text
    assert found["messages"].status is Status.UNKNOWN


def test_lockdown() -> None:
    if not LOCKDOWN.parent.joinpath("lsm").exists():
        subprocess.run(["mount", "-t", "securityfs", "securityfs", LOCKDOWN.parent], check=False)
    if not LOCKDOWN.exists() or "[confidentiality]" not in LOCKDOWN.read_text():
        pytest.skip("this kernel was not booted with lockdown=confidentiality")
    found = examined(nothing)
    assert {"lockdown", "offset"} <= names(found, Status.PROBLEM)
    assert "lockdown=integrity" in found["lockdown"].advice


def test_no_bpf_file_system() -> None:
    def stage() -> None:
        assert _libc.unshare(NEWNS) == 0
        assert _libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None) == 0
        while _libc.umount2(b"/sys/fs/bpf", 0) == 0:
            pass

    found = examined(stage)
    assert names(found, Status.PROBLEM) == set()
    assert "bpf file system" in names(found, Status.WARNING)
    assert found["bpf file system"].fix == "sudo mount -t bpf bpf /sys/fs/bpf"
    assert not list(Path("/sys/fs/bpf").glob("pykcm_doctor*"))


def test_jit_hardening() -> None:
    if not HARDENING.exists():
        pytest.skip("this kernel has no compiler for BPF")
    before = HARDENING.read_text()
    HARDENING.write_text("2")
    try:
        found = examined(nothing)
    finally:
        HARDENING.write_text(before)
    assert names(found, Status.PROBLEM) == set()
    assert "jit hardening" in names(found, Status.WARNING)
    assert found["jit hardening"].fix.endswith("net.core.bpf_jit_harden=1")


def test_no_locked_memory() -> None:
    found = examined(lambda: resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0)))
    assert names(found, Status.PROBLEM) == set()
    assert "0 bytes" in found["locked memory"].text


def test_a_loopback_interface_that_is_down() -> None:
    found = examined(lambda: _libc.unshare(NEWNET))
    assert names(found, Status.PROBLEM) == {"loopback"}
    assert found["loopback"].fix == "sudo ip link set lo up"
    assert "127.0.0.1" in found["messages"].text


@pytest.mark.parametrize("room", [0, 1, 3, 5, 8, 20])
def test_few_descriptors(room: int) -> None:
    """However few are left: no answer is wrong for it, and none is missing."""

    def stage() -> None:
        free = os.dup(0)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + room, free + room))

    found = examined(stage)
    assert {"socket", "program", "messages", "descriptors"} <= set(found)
    for finding in found.values():
        if finding.status is Status.PROBLEM:
            assert "RLIMIT_NOFILE" in finding.text
            assert "prlimit" in finding.fix


def forbid(call: int, action: int, argument: int | None = None) -> None:
    """Set a seccomp filter for a system call, of which an argument, the first, may be asked for."""

    def instruction(code: int, yes: int, no: int, value: int) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    load, equal, answer = 0x20, 0x15, 0x06  # of a word of struct seccomp_data; linux/filter.h
    if argument is None:
        checks = [instruction(load, 0, 0, 0), instruction(equal, 0, 1, call)]
    else:
        checks = [
            *(instruction(load, 0, 0, 0), instruction(equal, 0, 3, call)),
            *(instruction(load, 0, 0, 16), instruction(equal, 0, 1, argument)),
        ]
    program = b"".join(
        [*checks, instruction(answer, 0, 0, action), instruction(answer, 0, 0, ALLOW)]
    )
    room = ctypes.create_string_buffer(program)
    header = struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(room))
    assert _libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0
    assert _libc.prctl(SET_SECCOMP, SECCOMP_FILTER, header, 0, 0) == 0


@pytest.mark.parametrize(
    ("action", "words"),
    [(FAIL | errno.EPERM, "fails with EPERM"), (KILL, f"is killed by {signal.SIGSYS.name}")],
    ids=["refused", "killed"],
)
def test_a_seccomp_filter_that_forbids_bpf(action: int, words: str) -> None:
    found = examined(lambda: forbid(syscalls._numbers().bpf, action))
    assert names(found, Status.PROBLEM) == {"bpf call"}
    assert f"bpf(2) {words}: a seccomp filter" in found["bpf call"].text
    assert found["socket"].status is Status.OK


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the number of socket(2) is x86-64's")
def test_a_seccomp_filter_that_forbids_the_family() -> None:
    _kernel.open_socket().close()  # so that the module is loaded
    found = examined(lambda: forbid(41, FAIL | errno.EAFNOSUPPORT, 41))
    assert names(found, Status.PROBLEM) == {"socket"}
    assert "RestrictAddressFamilies" in found["socket"].advice


@needs_bpf
@needs_probe
def test_for_a_process() -> None:
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        staged.drop(staged.CAP_SYS_ADMIN, staged.CAP_PERFMON)
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))
        os.write(write, b"r")
        signal.pause()
        os._exit(0)
    try:
        os.read(read, 1)
        _offset._found = None
        findings = doctor.examine_for(doctor.Target.parse(f"pid:{pid}"))
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
    found = {each.name: each for each in findings}
    assert names(found, Status.PROBLEM) == {"offset"}
    assert "the limit of 100 " in found["descriptors"].text
