"""ci/: what is asked for wrongly, and output that nobody takes, end at once and without a trace."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import time
from fnmatch import fnmatch
from pathlib import Path

import pytest

from ci import foreign, qemu, testing, vm
from ci.guest import BEGIN, GUEST_FAILED, KERNEL_FAULTED, PORTS, TIMED_OUT, Guest, Run
from ci.kernels import FOREIGN, ROOT, Kernel
from ci.testing import UsageError, choose
from pykcm import _faults


def ci(script: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        ["sh", "-c", script],
        cwd=ROOT,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
        **options,
    )


# --- ci/test


@pytest.mark.parametrize("word", ["foo", "kernels", "tests/kernel/test_no.py", "ci/test", "/etc"])
def test_a_typo_runs_nothing(word: str) -> None:
    with pytest.raises(UsageError, match=f"there is no {word}: name unit, kernel, or a path"):
        choose([word])


def test_a_typo_ends_within_a_second() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = ci(f"{sys.executable} -m ci.testing foo")
    assert result.returncode == 2
    assert result.stderr.startswith("test: there is no foo")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    # Of CPU time, so that a busy host does not count.
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 1


def test_what_pytest_refuses_boots_no_guest(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(testing, "REPORTS", tmp_path)
    monkeypatch.setattr(testing, "ROOT", tmp_path)
    monkeypatch.setitem(testing.PARTS, "unit", ["sh", "-c", "exit 4"])
    monkeypatch.setitem(testing.PARTS, "kernel", ["sh", "-c", f"echo booted >{tmp_path}/booted"])
    monkeypatch.setattr(sys, "argv", ["ci/test", "--bogus"])
    assert testing.main() == 2
    assert not (tmp_path / "booted").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], {"unit": ["tests/unit"], "kernel": ["tests/kernel"]}),
        (["-q"], {"unit": ["tests/unit", "-q"], "kernel": ["tests/kernel", "-q"]}),
        (["unit", "-x"], {"unit": ["tests/unit", "-x"]}),
        (["tests/unit/test_ci.py::test_x"], {"unit": ["tests/unit/test_ci.py::test_x"]}),
        (
            ["unit", "tests/kernel/test_bpf.py", "tests/kernel/test_socket.py", "-q"],
            {
                "unit": ["tests/unit", "-q"],
                "kernel": ["tests/kernel/test_bpf.py", "tests/kernel/test_socket.py", "-q"],
            },
        ),
    ],
)
def test_parts_and_paths(arguments: list[str], parts: dict[str, list[str]]) -> None:
    for part, command in choose(arguments).items():
        assert command[: len(testing.PARTS[part]) - 1] == testing.PARTS[part][:-1]
        assert command[len(testing.PARTS[part]) - 1 :] == parts.pop(part)
    assert parts == {}


# --- Output


@pytest.mark.parametrize("command", ["testing", "vm", "matrix", "kernels"])
@pytest.mark.parametrize("where", [">/dev/full", "| true"])
def test_help_that_nobody_takes_leaves_no_trace(command: str, where: str) -> None:
    result = ci(f"{sys.executable} -m ci.{command} --help {where}")
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    if where == ">/dev/full":
        assert result.returncode == 1
        assert result.stderr == f"can't write to standard output: {os.strerror(errno.ENOSPC)}\n"
    else:
        assert result.stderr == ""


@pytest.mark.parametrize(
    "program",
    [
        # Each writes without end to a standard output that is closed or full.
        "from ci import guest, output; g = guest.Guest(['x'], [], 1, 1, 30, False, False); "
        "output.run(lambda: guest.execute(['yes'], g, None))",
        "from ci import jobs, output; job = jobs.Job('a', ('yes',)); "
        "output.run(lambda: jobs.run([job, job], 2)[0])",
    ],
    ids=["a guest", "jobs"],
)
@pytest.mark.parametrize("where", [">/dev/full", "| true"])
def test_a_command_ends_when_nobody_takes_its_output(program: str, where: str) -> None:
    start = time.monotonic()
    result = ci(f'{{ {sys.executable} -c "{program}"; echo $? >&2; }} {where}')
    assert "Traceback" not in result.stderr
    assert result.stderr.endswith("1\n")  # that is 1, or 141
    assert time.monotonic() - start < 20


def test_clean_removes_all_that_git_ignores() -> None:
    recipe = subprocess.run(
        ["make", "-n", "clean"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    words = recipe.split()
    for line in (ROOT / ".gitignore").read_text(encoding="utf-8").split():
        ignored = line.strip("/")
        assert any(fnmatch(ignored, word) or Path(word).name == ignored for word in words), line


# --- What a guest leaves


@pytest.fixture
def run(tmp_path: Path) -> Run:
    run = Run(tmp_path)
    run.console.write_text("[ 0.1] WARNING: at boot\n[ 0.2] last words\n")
    return run


def left(run: Run, status: str | None, taint: str, *log: str) -> None:
    (run.directory / "taint").write_text(taint)
    if status is not None:
        (run.directory / "status").write_text(status)
        lines = ["[ 0.1] WARNING: at boot", f"[ 1.0] {BEGIN}", *log]
        (run.directory / "dmesg").write_text("\n".join(lines))


UBSAN = "[ 2.0] UBSAN: shift-out-of-bounds in a.c:1:2"


@pytest.mark.parametrize(
    ("status", "taint", "log", "expected"),
    [
        ("0", "0\n0\n", [], 0),
        ("0", "512\n512\n", [], 0),
        ("3", "0\n0\n", [], 3),
        ("0", "0\n0\n", [UBSAN], KERNEL_FAULTED),
        ("3", "0\n512\n", [UBSAN], 3),
        ("0", "0\n512\n", [], KERNEL_FAULTED),
        ("0", "0\n4096\n", ["[ 2.0] kcm: loading out-of-tree module taints kernel."], 0),
    ],
)
def test_a_fault_of_the_kernel_fails_the_run(
    run: Run,
    status: str,
    taint: str,
    log: list[str],
    expected: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left(run, status, taint, *log)
    assert vm.judge(run, None) == expected
    said = capsys.readouterr().err
    assert "the kernel said before the command began: [ 0.1] WARNING: at boot" in said
    assert ("the kernel said: [ 2.0] UBSAN" in said) == (UBSAN in log)
    assert ("it became tainted: warning (W)" in said) == (taint == "0\n512\n")


def test_a_kernel_that_dies_under_the_command(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    left(run, None, "0\n")
    assert vm.judge(run, None) == KERNEL_FAULTED
    assert "died while the command ran; its last words" in capsys.readouterr().err


def test_a_kernel_that_does_not_boot(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert vm.judge(run, None) == GUEST_FAILED
    said = capsys.readouterr().err
    assert "did not get as far as the command" in said
    assert "last words" in said


def test_a_clock_that_runs_wrong(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (run.directory / "clock").write_text("648\n")
    assert vm.judge(run, None) == GUEST_FAILED
    assert "the guest's clock runs at 648 % of the host's" in capsys.readouterr().err


def test_a_kernel_that_hangs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    left(run, None, "0\n")
    assert vm.judge(run, "not done after 5 s") == TIMED_OUT
    assert "ended: not done after 5 s; the kernel's last words" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("noted", "said"),
    [
        (["attach.a", "receive.b"], "vm: the last check that began: receive.b\n"),
        (["attach.a", "receive.b", _faults.NONE], ""),
        ([""], ""),  # cut off
        ([], ""),
    ],
)
@pytest.mark.parametrize("ended", [None, "not done after 5 s"])
def test_the_check_in_which_a_kernel_died_is_named(
    run: Run,
    ended: str | None,
    noted: list[str],
    said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    left(run, None, "0\n")
    with run.console.open("a") as console:
        for check in noted:
            console.write(f"[ 3.0][ T17] {_faults.NOTE}{check}\r\n[ 3.1] BUG: x\r\n")
    vm.judge(run, ended)
    assert capsys.readouterr().err.rpartition("BUG: x\n")[2].endswith(said)


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the time stamp counter is x86's")
def test_the_time_stamp_counter_is_measured_the_same_again_and_again() -> None:
    first, second = qemu.tsc_khz(), qemu.tsc_khz()
    assert first > 100_000
    assert abs(first - second) < first / 1000


def test_each_emulated_kernel_has_patience_with_a_busy_host(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[str] = []

    def execute(arguments: list[str], *_: object) -> bool:
        started[:] = " ".join(arguments).split()
        return True

    for module in (qemu, foreign):
        monkeypatch.setattr(module, "execute", execute)
    monkeypatch.setattr(qemu, "kvm_works", lambda _: False)
    monkeypatch.setattr(qemu, "tsc_khz", lambda: 1)
    monkeypatch.setattr(foreign, "root", lambda _: run.console)
    monkeypatch.setattr(foreign, "own_part", lambda *_: b"")
    monkeypatch.setattr("subprocess.run", lambda *_, **__: None)
    guest = Guest(["true"], ["last=1"], 1, 1, None, False, False)
    for module, arch in ((qemu, ""), *((foreign, arch) for arch in FOREIGN)):
        kernel = Kernel("6.12", "6.12.0", run.console, None, arch=arch)
        assert module.boot(kernel, guest, run)
        assert {"watchdog_thresh=30", "nmi_watchdog=0", "last=1"} <= {*started}, arch
        assert "rcupdate.rcu_cpu_stall_timeout=60" in started


def test_output_goes_to_ports_that_are_late(tmp_path: Path) -> None:
    """Where they come late, virtme-ng runs the script on the console, where nobody reads."""
    paths = PORTS.replace("/sys/class", f"{tmp_path}").replace("/dev/", f"{tmp_path}/")
    script = f"{paths}\nread -r word\necho out $word\necho err >&2\n"
    process = subprocess.Popen(
        ["sh", "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.PIPE,
    )
    for number, name in enumerate(("stdin", "stdout", "stderr"), 1):
        time.sleep(0.1)
        (tmp_path / f"vport0p{number}").write_text("word\n", encoding="ascii")
        port = tmp_path / "virtio-ports" / f"vport0p{number}"
        port.mkdir(parents=True)
        (port / "name").write_text(f"virtme.{name}\n", encoding="ascii")
    assert process.communicate(timeout=60)[0] == b""
    assert (tmp_path / "vport0p2").read_text(encoding="ascii") == "out word\n"
    assert (tmp_path / "vport0p3").read_text(encoding="ascii") == "err\n"


def test_ports_that_do_not_come_are_told_of(tmp_path: Path) -> None:
    paths = PORTS.replace("/sys/class", f"{tmp_path}").replace("left=60", "left=1")
    done = subprocess.run(
        ["sh", "-c", f"{paths}\necho the command"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=True,
    )
    assert b"no virtio-serial ports" in done.stdout
    assert b"the command" not in done.stdout.splitlines()
