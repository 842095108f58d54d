"""`kcm selftest` on this kernel: it behaves exactly as the table of known deviations says."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pykcm.selftest import ktap
from tests.kernel_source import selftests_library

from .connections import is_contained

# In an emulated guest on a busy host all the checks together take minutes.
pytestmark = pytest.mark.timeout(600)

ROOT = Path(__file__).parents[2]
KCM = [sys.executable, "-c", "import pykcm.cli; pykcm.cli.main()", "selftest"]
RESULT = re.compile(
    r"(ok|not ok) (\d+) (\S+) # (?:(?:SKIP|XFAIL|XPASS|TIMEOUT|ERROR)\b.* )?time=\d+ms"
)


# Groups of checks that stand for all where it is not the kernel that is tested.
FEW = "^(sockets|attach|transmit)"


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(  # type: ignore[call-overload,no-any-return]
        [*KCM, *arguments], capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope="module")
def report() -> subprocess.CompletedProcess[str]:
    return run("--expect-known", "--jobs", "2")


@functools.cache
def listed() -> list[str]:
    return run("--list").stdout.split()


def results(report: str) -> list[tuple[str, str]]:
    """The checks of a report in KTAP, and whether each is ok."""
    return [
        (found[3], found[1])
        for block in ktap.blocks(report)
        for line in block.splitlines()
        if (found := RESULT.fullmatch(line))
    ]


def test_the_kernel_behaves_as_the_table_says(report: subprocess.CompletedProcess[str]) -> None:
    wrong = [
        line
        for block in ktap.blocks(report.stdout)
        for line in block.splitlines()
        if line.startswith("not ok")
    ]
    assert wrong == [], report.stdout
    assert report.returncode == 0, report.stdout
    assert report.stderr == ""


def test_every_listed_check_has_a_result(report: subprocess.CompletedProcess[str]) -> None:
    names = []
    for block in ktap.blocks(report.stdout):
        results = [found for line in block.splitlines() if (found := RESULT.fullmatch(line))]
        assert f"1..{len(results)}" in block.splitlines()
        assert [int(found[2]) for found in results] == list(range(1, len(results) + 1))
        names += [found[3] for found in results]
    assert names == listed()


def test_the_misframing_of_the_documented_program_is_a_known_deviation(
    report: subprocess.CompletedProcess[str],
) -> None:
    assert re.search(
        r"^  ok \d+ delineation.documented_program_separates_messages # XFAIL known deviation:",
        report.stdout,
        re.MULTILINE,
    )


@pytest.mark.skipif(not shutil.which("prove"), reason="perl's prove is not installed")
class TestAnotherParser:
    """Perl's TAP::Parser, which knows nothing of pykcm, counts the same."""

    @staticmethod
    def prove(*files: Path) -> str:
        return subprocess.run(
            ["prove", "--nocolor", "-e", "cat", *map(str, files)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout

    def test_groups(self, report: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
        file = tmp_path / "groups.tap"
        file.write_text(report.stdout, encoding="utf-8")
        groups = {name.partition(".")[0] for name in listed()}
        said = self.prove(file)
        assert f"Files=1, Tests={len(groups)}," in said
        assert "Result: PASS" in said

    def test_checks(self, report: subprocess.CompletedProcess[str], tmp_path: Path) -> None:
        files = []
        for number, block in enumerate(ktap.blocks(report.stdout)):
            files.append(tmp_path / f"{number}.tap")
            files[-1].write_text(block, encoding="utf-8")
        said = self.prove(*files)
        assert "Parse errors" not in said, said
        assert f"Files={len(files)}, Tests={len(listed())}," in said, said


def test_as_the_kernel_wants_it(tmp_path: Path) -> None:
    """contrib/selftests-net-kcm runs on the kernel's own library, and says the same."""
    selftests_library(tmp_path)
    generate = ROOT / "contrib/selftests-net-kcm/generate"
    subprocess.run([sys.executable, str(generate), str(tmp_path / "net/kcm")], check=True)
    # As in an installed tree: no pykcm but the one that was generated.
    result = subprocess.run(
        [sys.executable, "-I", "-S", str(tmp_path / "net/kcm/kcm.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = result.stdout.splitlines()
    results = [line for line in lines if re.match(r"(not )?ok \d+ kcm\.", line)]
    assert [line.split()[-1 if "#" not in line else 2] for line in results] == [
        f"kcm.{name}" for name in listed()
    ]
    assert not [line for line in results if line.startswith("not ok")], result.stdout
    assert result.returncode == 0, result.stderr


def test_exported(tmp_path: Path, report: subprocess.CompletedProcess[str]) -> None:
    """One file, and a Python that has no more than it came with."""
    file = tmp_path / "kcm.pyz"
    assert run("--export", str(file)).returncode == 0
    result = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            str(file),
            "--expect-known",
            "--jobs",
            "2",
            "--filter",
            f"/{FEW}/",
        ],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    assert result.returncode == 0, result.stdout + result.stderr
    same = [each for each in results(report.stdout) if re.match(FEW, each[0])]
    assert results(result.stdout) == same
    assert len(same) > 50


def test_json(report: subprocess.CompletedProcess[str]) -> None:
    result = run("--json", "--filter", "attach.u*")
    document = json.loads(result.stdout)
    assert result.returncode == document["exit_status"] == 0
    assert [check["name"] for check in document["checks"]] == [
        name for name in listed() if name.startswith("attach.u")
    ]
    assert {check["status"] for check in document["checks"]} <= {"pass", "skip"}
    assert os.uname().release in document["kernel"]


def programs_for_all() -> bool:
    setting = Path("/proc/sys/kernel/unprivileged_bpf_disabled")
    return setting.read_text(encoding="ascii").strip() == "0"


class TestOrdinaryUser:
    """What needs no privilege is checked, the rest is skipped with the reason: status 4."""

    @staticmethod
    def drop() -> None:
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)

    def test_report(self) -> None:
        if programs_for_all():
            pytest.skip("this kernel lets everybody load socket filters")
        result = run(
            *("--filter", "/^sockets|^attach.(udp|bad_pointer)/"), preexec_fn=self.drop, cwd="/"
        )
        assert result.returncode == 4, result.stdout + result.stderr
        assert (
            "\n# can't test all: no BPF program can be loaded as an ordinary user: "
            in result.stdout
        )
        assert re.search(r"  ok 1 sockets.dgram_opens # time=\d+ms\n", result.stdout)
        assert re.search(r"  ok \d attach.bad_pointer_is_efault # time=\d+ms\n", result.stdout)
        assert re.search(r"  ok \d attach.udp_is_eopnotsupp # SKIP no BPF program", result.stdout)
        assert "not ok" not in result.stdout


def unshared(*options: str) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        ["unshare", *options, *KCM, "--filter", "/^attach/"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.stderr.startswith("unshare"):
        pytest.skip(f"no such namespace can be made: {result.stderr}")
    return result


def test_user_namespace() -> None:
    if programs_for_all():
        pytest.skip("this kernel lets everybody load socket filters")
    result = unshared("--user", "--map-root-user")
    assert result.returncode == 4, result.stdout + result.stderr
    assert (
        "# can't test all: no BPF program can be loaded in this user namespace: " in result.stdout
    )
    assert "not ok" not in result.stdout


def test_network_namespace_without_loopback() -> None:
    result = unshared("--net")
    assert result.returncode == 4, result.stdout + result.stderr
    assert "# can't test all: no TCP connection to 127.0.0.1 can be made" in result.stdout
    assert "not ok" not in result.stdout


@pytest.fixture
def blacklisted() -> Iterator[Path]:
    """The module kcm unloaded and blacklisted; only in a guest, whose files are gone with it."""
    if "virtme" not in Path("/proc/cmdline").read_text(encoding="utf-8"):
        pytest.skip("this is done in a QEMU guest only: it blacklists a module of the machine")
    if is_contained():
        pytest.skip("the kernel loads modules as the guest says, not as a container in it does")
    file = Path("/etc/modprobe.d/pykcm-test.conf")
    file.write_text("blacklist kcm\n", encoding="ascii")
    try:
        # Sockets of processes that were ended are given up a little later, on a busy host much.
        users = Path("/sys/module/kcm/refcnt")
        end = time.monotonic() + 60
        while users.read_text(encoding="ascii") != "0\n" and time.monotonic() < end:
            time.sleep(0.05)
        assert users.read_text(encoding="ascii") == "0\n", Path("/proc/net/kcm").read_text("ascii")
        subprocess.run(["rmmod", "kcm"], check=True)
        yield file
    finally:
        file.unlink()
        subprocess.run(["modprobe", "kcm"], check=True)


def test_a_blacklisted_module(blacklisted: Path) -> None:
    result = run()
    assert result.returncode == 4, result.stdout + result.stderr
    reason = f"the module kcm is blacklisted by {blacklisted}:1"
    assert result.stdout.splitlines()[1].startswith("1..0 # SKIP socket(AF_KCM) fails with ")
    assert result.stdout.count(reason) == 1
