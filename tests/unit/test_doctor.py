"""`kcm doctor` without a kernel that has KCM: what it reads, what it says, what it leaves out."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from pykcm import _explain, _loopback, _module, _offset, doctor
from pykcm.doctor import Finding, Status, _holes, _limits, _programs, _sockets, _traffic
from pykcm.doctor._attempt import attempt
from pykcm.doctor._errors import more_descriptors
from pykcm.doctor.examination import examine
from pykcm.doctor.others import Target
from pykcm.doctor.situation import Situation
from pykcm.doctor.system import System
from pykcm.framing import FixedLength
from pykcm.selftest import versions
from tests import delegation as staged
from tests.children import begin, in_child

from .test_unavailable import has_kcm

RELEASE = os.uname().release
without_kcm = pytest.mark.skipif(has_kcm(), reason="this host has KCM: tests/kernel has these")


def kcm(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pykcm", "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


def write(root: Path, **files: str) -> System:
    """A System with some files; "__" in a name is a "/"."""
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("RELEASE", RELEASE)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return System(str(root))


def why(system: System, code: int = errno.EAFNOSUPPORT) -> Finding:
    return _sockets._explain(code, system)


@without_kcm
def test_a_kernel_without_kcm() -> None:
    result = kcm("--json")
    assert result.returncode == 2
    data = json.loads(result.stdout)
    assert data["status"] == "problem"
    found = {each["name"]: each for each in data["findings"]}
    assert found["socket"]["status"] == "problem"
    assert found["socket"]["text"].startswith("socket(AF_KCM) fails with EAFNOSUPPORT: ")
    assert found["socket"]["fix"] or found["socket"]["advice"]
    assert found["messages"]["text"] == "not tried: no KCM socket can be opened"
    text = kcm("DNS")
    assert text.returncode == 2
    assert max(map(len, text.stdout.splitlines())) <= 80
    assert text.stdout.splitlines()[-1].startswith("KCM can't be used here as it is: ")


@pytest.mark.parametrize(
    ("files", "words", "fix"),
    [
        (
            {"etc__modprobe.d__x.conf": "#\nblacklist kcm\n"},
            "x.conf:2 forbids that the module kcm is loaded",
            "sudo sed -i 2d ",
        ),
        ({"proc__cmdline": "quiet module_blacklist=kcm"}, "(module_blacklist=kcm) forbids", ""),
        (
            {"lib__modules__RELEASE__modules.dep": "kernel/net/ipv4/x.ko:\n"},
            "kcm is not among the modules",
            "",
        ),
        (
            {
                "lib__modules__RELEASE__config": "CONFIG_NET=y\n# CONFIG_AF_KCM is not set\n",
                "etc__os-release": 'ID=rocky\nID_LIKE="rhel centos fedora"\n',
            },
            "built without it (CONFIG_AF_KCM is not set); RHEL and its clones",
            "",
        ),
        (
            {
                "lib__modules__RELEASE__config": "CONFIG_AF_KCM=m\n",
                "etc__os-release": "ID=ubuntu\nID_LIKE=debian\n",
            },
            "built with the module kcm, which is not installed",
            f"sudo apt install linux-modules-extra-{RELEASE}",
        ),
        (
            {"lib__modules__RELEASE__modules.dep": "kernel/net/kcm/kcm.ko.xz: x\n"},
            "listed, but its file is missing",
            "",
        ),
        ({}, "there is no /lib/modules", "sudo modprobe kcm"),
        (
            {"proc__net__protocols": "protocol  size\nKCM  1024 0\n"},
            "a seccomp filter forbids it",
            "sudo systemctl edit UNIT",
        ),
        (
            {
                "lib__modules__RELEASE__modules.dep": "kernel/net/kcm/kcm.ko: x\n",
                "lib__modules__RELEASE__kernel__net__kcm__kcm.ko": "",
                "proc__sys__kernel__modules_disabled": "1\n",
            },
            "kernel.modules_disabled is 1",
            "echo kcm | sudo tee /etc/modules-load.d/kcm.conf",
        ),
        (
            {
                "lib__modules__RELEASE__modules.dep": "kernel/net/kcm/kcm.ko: x\n",
                "lib__modules__RELEASE__kernel__net__kcm__kcm.ko": "",
            },
            "is there but was not loaded",
            "sudo modprobe kcm",
        ),
    ],
)
def test_why_no_socket_opens(tmp_path: Path, files: dict[str, str], words: str, fix: str) -> None:
    found = why(write(tmp_path, **files))
    assert found.status is Status.PROBLEM
    assert words in found.text
    assert found.fix.startswith(fix)
    assert found.fix or found.advice


def test_a_socket_that_a_sandbox_forbids(tmp_path: Path) -> None:
    assert "seccomp" in why(System(str(tmp_path)), errno.EPERM).text
    assert "is killed by SIGSYS" in why(System(str(tmp_path)), -31).text


def test_an_attempt_that_is_killed_or_refused() -> None:
    def refuse() -> None:
        raise PermissionError(errno.EPERM, "no")

    assert attempt(lambda: None) == 0
    assert attempt(refuse) == errno.EPERM
    assert attempt(lambda: os.kill(os.getpid(), 9)) == -9
    with pytest.raises(RuntimeError):
        attempt(lambda: 1 // 0)


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("none [integrity] confidentiality", Status.OK),
        ("none integrity [confidentiality]", Status.PROBLEM),
    ],
)
def test_lockdown(tmp_path: Path, text: str, status: Status) -> None:
    system = write(tmp_path, sys__kernel__security__lockdown=text)
    (found,) = _programs.lockdown(Situation(system))
    assert found.status is status


def test_lockdown_does_no_harm_where_the_offset_is_found(tmp_path: Path) -> None:
    system = write(tmp_path, sys__kernel__security__lockdown="none integrity [confidentiality]")
    (found,) = _programs.lockdown(Situation(system, strategy=_offset.CB1))
    assert found.status is Status.OK
    (found,) = _programs.lockdown(Situation(system, FixedLength(8)))
    assert found.status is Status.WARNING


def test_lockdown_is_not_known_where_it_is_not_shown(tmp_path: Path) -> None:
    (found,) = _programs.lockdown(Situation(System(str(tmp_path))))
    assert found.status is Status.UNKNOWN
    assert "mount -t securityfs" in found.fix


@pytest.mark.parametrize(
    ("value", "status", "words"),
    [
        ("0", Status.OK, "not tainted"),
        ("512", Status.WARNING, "(W): warning (W)"),
        ("4097", Status.WARNING, "(PO), by no fault of its own"),
        (None, Status.UNKNOWN, "can't be read"),
    ],
)
def test_taint(tmp_path: Path, value: str | None, status: Status, words: str) -> None:
    system = System(str(tmp_path))
    if value is not None:
        write(tmp_path, proc__sys__kernel__tainted=f"{value}\n")
    (found,) = _holes.taint(Situation(system))
    assert found.status is status
    assert words in found.text


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ("5.10.262", (False, False, True)),
        ("6.12.42", (False, False, False)),
        ("6.12.75", (True, True, False)),
        ("6.13.9", (False, False, False)),
        ("6.18.44", (True, True, True)),
        ("7.0.3", (True, True, False)),
        ("7.2.13", (True, True, True)),
    ],
)
def test_which_holes_a_version_has_fixed(version: str, fixed: tuple[bool, ...]) -> None:
    parsed = versions.parse(version)
    assert tuple(_holes.is_fixed(parsed, hole) for hole in _holes.HOLES) == fixed


def test_a_framing_whose_messages_do_not_fit() -> None:
    framing = FixedLength(1 << 30)
    (found,) = _limits.longest_message(Situation(System(), framing, connects=True))
    assert found.status is Status.PROBLEM
    assert f"{1 << 30:,}" in found.text
    assert f"'4096 131072 {4 << 30}'" in found.fix


def test_no_loopback_interface(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(timeout: float = 1) -> None:
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

    monkeypatch.setattr(_loopback, "connection", refuse)
    situation = Situation(System(), opens=True, loads=True)
    (found,) = _traffic.loopback(situation)
    assert found.status is Status.PROBLEM
    assert "127.0.0.1" in situation.obstacle
    assert found.fix == "sudo ip link set lo up"


def test_want_of_descriptors(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(timeout: float = 1) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(_loopback, "connection", refuse)
    (found,) = _traffic.loopback(Situation(System()))
    assert found.fix == more_descriptors()
    assert "RLIMIT_NOFILE" in found.text


def test_a_long_command_can_be_copied() -> None:
    from pykcm.cli.doctor import _command

    for command in (_explain.RUN_WITH_CAPABILITIES, _explain.RUN_WITH_TOKEN):
        shown = _command(command)
        assert max(map(len, shown.splitlines())) <= 80
        assert shlex.split(shown.replace("\\\n", "").strip()) == ["$", *shlex.split(command)]


def test_exit_statuses() -> None:
    def of(*found: Status) -> int:
        return doctor.exit_status(Finding("x", status, "") for status in found)

    assert of(Status.OK, Status.UNKNOWN) == 0
    assert of(Status.OK, Status.WARNING) == 1
    assert of(Status.PROBLEM, Status.WARNING) == 2


def test_without_the_compiled_module() -> None:
    script = (
        "import sys\n"
        "sys.modules['pykcm._native'] = None\n"
        "from pykcm import doctor\n"
        "print(*doctor.examine(), sep='\\n')"
    )
    command = [sys.executable, "-c", script]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert told.count("Finding(") == 1
    assert "compiled module" in told
    assert "PROBLEM" in told


def test_a_failure_of_a_look_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: object) -> list[Finding]:
        raise OSError(errno.EIO, "broken")

    from pykcm.doctor import examination

    monkeypatch.setattr(examination, "_LOOKS", (("disk", fail),))
    (found,) = examine()
    assert (found.name, found.status) == ("disk", Status.UNKNOWN)
    assert "broken" in found.text


def test_whom_it_is_for() -> None:
    me = os.getpid()
    assert Target.parse("uid:1000") == Target(False, 1000)
    assert Target.parse(f"pid:{me}") == Target.parse(str(me)) == Target(True, me)
    assert Target.parse("0") == Target(False, 0)
    for wrong in ("", "root", "gid:5", "uid:-1", "pid:4194305", "uid:4294967295"):
        with pytest.raises(ValueError, match=r"UID|no process"):
            Target.parse(wrong)
    result = kcm("--for", "root")
    assert result.returncode == 2
    assert "neither a UID nor a PID" in result.stderr
    assert kcm("--mask").returncode == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="requires root, to become another user")
def test_for_a_user_and_not_by_one() -> None:
    found = {each.name: each for each in doctor.examine_for(Target(False, 65534))}
    assert "neither CAP_BPF" in found["capabilities"].text
    assert "sandbox" in found
    assert "CAP_BPF," in {each.name: each for each in examine()}["capabilities"].text
    reading, writing = os.pipe()

    def examine_as_nobody() -> None:  # who may not run this Python where it lies in a home
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        try:
            doctor.examine_for(Target(False, 1))
        except PermissionError as error:
            os.write(writing, str(error).encode())

    in_child(examine_as_nobody)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:  # noqa: PTH123
        told = stream.read()
    assert "sudo kcm doctor" in told


_refusal = staged.refusal()


@pytest.mark.skipif(bool(_refusal), reason=_refusal)
def test_for_a_process_with_a_token() -> None:
    """Its namespaces are entered: the token is its own, and there is none outside."""
    read, write = os.pipe()
    held, release = os.pipe()

    def run() -> None:
        # The PID as everybody sees it: the namespace is the parent's.
        os.write(write, str(os.getpid()).encode())
        os.read(held, 1)

    outside = begin(lambda: staged.delegated(staged.FULL, run))
    try:
        pid = int(os.read(read, 20))
        found = {each.name: each for each in doctor.examine_for(Target(True, pid))}
    finally:
        os.write(release, b"x")
        status = os.waitpid(outside, 0)[1]
        for fd in (read, write, held, release):
            os.close(fd)
    assert status == 0
    assert "with a BPF token" in found["program"].text
    assert "user namespace of its own" in found["capabilities"].text


def test_the_module_is_looked_for_where_it_may_be(tmp_path: Path) -> None:
    write(tmp_path, lib__modules__RELEASE__modules__builtin="")
    (tmp_path / "lib/modules" / RELEASE / "modules.builtin").write_text(
        "kernel/net/kcm/kcm.ko\n", encoding="ascii"
    )
    assert _module.look(str(tmp_path)).state is _module.State.BUILT_IN
