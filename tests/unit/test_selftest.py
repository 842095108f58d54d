"""The selftest's parts that need no KCM: the plan, the report's format, the table, the runner."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import ClassVar

import pytest

from pykcm import _faults, _module
from pykcm._faults import note
from pykcm.selftest import command, deviations, facts, lab, report, runner, versions
from pykcm.selftest.calls import Calls
from pykcm.selftest.check import Check, Skip, every
from pykcm.selftest.checks import GROUPS
from pykcm.selftest.environment import Environment
from pykcm.selftest.lab import Lab
from tests import mutations
from tests.children import begin, in_child
from tests.strikes import no_descriptor_left
from tests.unit.stand_in import eventually

CHECKS = every(GROUPS)


def kcm(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", "import pykcm.cli; pykcm.cli.main()", "selftest", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


class TestPlan:
    def test_there_are_at_least_60_checks(self) -> None:
        assert len(CHECKS) >= 60

    def test_each_says_what_it_checks_and_where_that_comes_from(self) -> None:
        for check in CHECKS.values():
            assert check.summary.endswith("."), check.name
            assert re.search(r"kcm\.rst, .*: \"|\(\)|\(2\)|\(7\)|struct strp_msg", check.source), (
                check.name,
                check.source,
            )

    def test_names_are_unique(self) -> None:
        names = Counter(check.name for group in GROUPS for check in group.checks)
        assert [name for name, count in names.items() if count > 1] == []

    def test_the_list_has_every_check(self) -> None:
        result = kcm("--list")
        assert result.returncode == 0
        assert result.stdout.split() == list(CHECKS)

    def test_the_list_as_json(self) -> None:
        described = json.loads(kcm("--list", "--json", "--filter", "attach.*").stdout)
        assert [entry["name"] for entry in described] == [
            name for name in CHECKS if name.startswith("attach.")
        ]
        assert all(set(entry) == {"name", "summary", "source"} for entry in described)

    @pytest.mark.parametrize(
        ("pattern", "wanted"),
        [
            ("attach.udp_is_eopnotsupp", ["attach.udp_is_eopnotsupp"]),
            ("*.seqpacket_opens", ["sockets.seqpacket_opens"]),
            (
                "/^sockets.(raw|stream)_/",
                ["sockets.stream_is_esocktnosupport", "sockets.raw_is_esocktnosupport"],
            ),
        ],
    )
    def test_filter(self, pattern: str, wanted: list[str]) -> None:
        assert list(every(report.select(pattern))) == wanted

    @pytest.mark.parametrize("pattern", ["attach", "nothing.*", "/(/", "/none/"])
    def test_a_filter_that_selects_nothing_is_a_mistake(self, pattern: str) -> None:
        result = kcm("--filter", pattern)
        assert result.returncode == 2
        assert pattern in result.stderr
        assert result.stdout == ""


@pytest.mark.parametrize("seconds", ["nan", "inf", "-inf", "0", "-5", "604801", "3e6"])
def test_a_stress_without_a_time_is_a_mistake(
    seconds: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main([f"--stress={seconds}", "--filter", "none"])
    said = capsys.readouterr().err
    assert "argument --stress: more than 0, and at most 604800 (a week)" in said


def test_a_seed_without_a_stress_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        command.main(["--seed", "1", "--filter", "none"])
    assert "--seed is nothing without --stress" in capsys.readouterr().err


class TestDeviations:
    def test_each_names_a_check(self) -> None:
        assert {deviation.check for deviation in deviations.DEVIATIONS} <= set(CHECKS)

    def test_each_is_complete(self) -> None:
        for deviation in deviations.DEVIATIONS:
            versions.within((6, 1, 0), deviation.kernels)
            assert deviation.happens, deviation
            assert deviation.cause, deviation
            assert deviation.since, deviation

    @pytest.mark.parametrize(
        ("version", "lost"), [("5.10.46", False), ("5.10.262", True), ("6.1.0", True)]
    )
    def test_the_rest_of_a_seqpacket_message(self, version: str, lost: bool) -> None:
        known = deviations.known("receive.short_seqpacket_keeps_the_rest", versions.parse(version))
        assert (known is not None) == lost


class TestMutations:
    def test_each_check_has_one(self) -> None:
        broken = {check for mutation in mutations.MUTATIONS for check in mutation.checks}
        assert broken == set(CHECKS)

    def test_each_known_deviation_has_a_repair(self) -> None:
        repaired = {check for mutation in mutations.REPAIRS for check in mutation.checks}
        assert repaired == {deviation.check for deviation in deviations.DEVIATIONS}

    def test_each_is_described_once(self) -> None:
        described = Counter(mutation.what for mutation in mutations.MUTATIONS)
        assert [what for what, count in described.items() if count > 1] == []


@pytest.mark.parametrize(
    "table",
    [mutations.table(), mutations.table(mutations.REPAIRS), deviations.table()],
    ids=["mutations", "repairs", "deviations"],
)
def test_the_documentation_has_the_table(table: str) -> None:
    text = (Path(__file__).parents[2] / "docs/selftest.md").read_text(encoding="utf-8")
    assert table in text, f"docs/selftest.md needs this table:\n{table}"


class TestVersions:
    @pytest.mark.parametrize(
        ("version", "ranges", "inside"),
        [
            ("6.1.192", "5.10-", True),
            ("5.9.9", "5.10-", False),
            ("5.10", "5.10-", True),
            ("5.10.300", "5.10.156-5.10", True),
            ("5.10.155", "5.10.156-5.10", False),
            ("5.11.0", "5.10.156-5.10", False),
            ("6.8.1", "6.2-6.6.22, 6.8-6.8.1", True),
            ("6.8.2", "6.2-6.6.22, 6.8-6.8.1", False),
            ("6.5.0", "6.2-6.6.22, 6.8-6.8.1", True),
            ("4.6", "-4.9", True),
            ("4.10", "-4.9", False),
            ("7.2.13", "-", True),
        ],
    )
    def test_within(self, version: str, ranges: str, inside: bool) -> None:
        assert versions.within(versions.parse(version), ranges) == inside

    def test_release(self) -> None:
        assert versions.parse("6.1.0-56-amd64") == (6, 1, 0)
        assert versions.parse("7.2.13+deb14-amd64") == (7, 2, 13)

    def test_no_range(self) -> None:
        with pytest.raises(ValueError, match=r"no range of versions: '6.1'"):
            versions.within((6, 1), "6.1")


def run(*bodies: object, limit: float = 20.0, parallel: int = 1) -> list[runner.Outcome]:
    jobs = []
    for number, body in enumerate(bodies):
        check = Check(f"unit.{number}", "Text.", "source", body, limit)  # type: ignore[arg-type]
        jobs.append(runner.Job(check, Calls()))
    return list(runner.run(jobs, Environment(), parallel))


class TestRunner:
    def test_statuses(self) -> None:
        def passes(lab: Lab) -> None:
            pass

        def fails(lab: Lab) -> None:
            lab.expect("a number", 1, 2)

        def skips(lab: Lab) -> None:
            raise Skip("no reason")

        def breaks(lab: Lab) -> None:
            raise ZeroDivisionError("a mistake")

        def refused(lab: Lab) -> None:
            raise PermissionError(1, "no")

        found = run(passes, fails, skips, breaks, refused)
        assert [outcome.status for outcome in found] == ["pass", "fail", "skip", "error", "fail"]
        assert found[1].lines == ("a number", "expected: 2", "seen: 1")
        assert found[2].lines == ("no reason",)
        assert found[3].lines[-1] == "ZeroDivisionError: a mistake"
        assert found[4].lines[-1] == "seen: EPERM: [Errno 1] no"

    def test_a_check_that_hangs_is_ended_with_its_children(self, tmp_path: Path) -> None:
        new, file = tmp_path / "new", tmp_path / "child"

        def hangs(lab: Lab) -> None:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            new.write_text(str(pid), encoding="ascii")
            new.rename(file)
            signal.pause()

        limit = 1.0
        while not file.exists():  # until its time has sufficed for it to hang
            [outcome] = run(hangs, limit=limit)
            assert (outcome.status, outcome.lines) == ("timeout", (f"ended after {limit:g} s",))
            limit *= 2
        child = int(file.read_text(encoding="ascii"))
        eventually(lambda: not self._runs(child))

    @staticmethod
    def _runs(pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] != "Z"

    def test_a_check_ends_with_the_runner(self, tmp_path: Path) -> None:
        new, file = tmp_path / "new", tmp_path / "check"

        def waits(lab: Lab) -> None:
            new.write_text(str(os.getpid()), encoding="ascii")
            new.rename(file)
            signal.pause()

        pid = begin(lambda: run(waits))
        eventually(file.exists)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        child = int(file.read_text(encoding="ascii"))
        eventually(lambda: not self._runs(child))

    def test_a_check_that_crashes(self) -> None:
        def crashes(lab: Lab) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        [outcome] = run(crashes)
        assert outcome.status == "error"
        assert outcome.lines == ("the check's process died: killed by SIGKILL",)

    def test_the_order_is_kept_when_several_run_at_once(self) -> None:
        def late(lab: Lab) -> None:
            time.sleep(0.3)
            raise Skip("late")

        def soon(lab: Lab) -> None:
            raise Skip("soon")

        found = run(late, soon, soon, late, parallel=4)
        assert [outcome.lines[0] for outcome in found] == ["late", "soon", "soon", "late"]

    def test_nothing_reaches_standard_output(self, capfd: pytest.CaptureFixture[str]) -> None:
        def talks(lab: Lab) -> None:
            os.write(1, b"not KTAP\n")

        run(talks)
        assert capfd.readouterr().out == ""

    def test_no_process_and_no_descriptor_is_left(self) -> None:
        def passes(lab: Lab) -> None:
            pass

        def look() -> None:
            with no_descriptor_left():
                run(passes, passes, parallel=2)
            with pytest.raises(ChildProcessError):
                os.waitpid(-1, os.WNOHANG)

        in_child(look)  # which has no children of others


class TestStatistics:
    """A kernel that lacks a column can't be asked for it: the checks of it are skipped."""

    class Without(Calls):
        def proc(self, name: str) -> str:
            if name == "kcm_stats":
                return "MUX Attach\n 5\nPsock\n\n"
            return (
                "*** KCM statistics (1 MUX) ****\n"
                "Object Recv-Q Status\nmux - KCMs: 1, Psocks 0\nkcm-0 2 RxWait\n"
            )

    def test_a_missing_column(self) -> None:
        with Lab(self.Without(), Environment()) as lab:
            assert lab.total("MUX Attach") == 5
            with pytest.raises(Skip, match="no column Psock RX-Aborts"):
                lab.total("Psock RX-Aborts")
            line = lab.multiplexor().sockets[0]
            assert lab.shown(line.receive_queue) == (2,)
            with pytest.raises(Skip, match="lacks a column"):
                lab.shown(line.receive_queue, line.tx_bytes)


@pytest.mark.parametrize(
    ("option", "form"),
    # 32 bits with a time_t of 32 bits, and of 64: there the same numbers have a longer form.
    [(20, "ll"), (0x1006, "ll"), (18, "ll"), (66, "qq"), (0x4040, "qq")],
)
def test_a_timeout_has_the_form_of_its_option(
    option: int, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed: list[tuple[object, ...]] = []
    with monkeypatch.context() as patched:
        patched.setattr("socket.SO_RCVTIMEO", option)
        patched.setattr("struct.pack", lambda *given: packed.append(given))
        lab.timeval(1.2)
        lab.timeval(0.004)
    assert packed == [(form, 1, 200_000), (form, 0, 4_000)]


def test_no_check_packs_a_timeout_itself() -> None:
    for path in Path(lab.__file__).parent.rglob("*.py"):
        assert '"ll", ' not in path.read_text(encoding="utf-8"), path


class TestNotes:
    """The kernel's log says which check runs."""

    @pytest.fixture
    def log(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        log = tmp_path / "kmsg"
        log.touch()
        monkeypatch.setattr(_faults, "_KMSG", log)
        return log

    @pytest.fixture
    def noted(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        noted: list[str] = []
        monkeypatch.setattr(_faults, "note", noted.append)
        return noted

    def test_before_a_check_and_when_all_is_over(self, noted: list[str]) -> None:
        def looks(lab: Lab) -> None:
            lab.expect("the notes", noted, ["unit.0"])

        [outcome] = run(looks)
        assert outcome.status == "pass"
        assert noted == ["unit.0", "none"]

    def test_no_kernel_to_test(self, noted: list[str]) -> None:
        job = runner.Job(CHECKS["sockets.dgram_opens"], Calls())
        assert list(runner.run([job], Environment(no_sockets="no KCM")))
        assert noted == []

    def test_a_note(self, log: Path) -> None:
        note("unit.x")
        assert log.read_text() == "<4>pykcm: the check that runs: unit.x\n"

    def test_a_report_on_the_kernels_console_is_left_whole(
        self, noted: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        active = tmp_path / "active"
        active.write_text("tty0 ttyS0\n")
        monkeypatch.setattr(runner, "_CONSOLES", active)
        monkeypatch.setattr("os.ttyname", lambda _: "/dev/ttyS0")
        run(lambda _: None)
        assert noted == []
        monkeypatch.setattr("os.ttyname", lambda _: "/dev/pts/1")
        run(lambda _: None)
        assert noted == ["unit.0", "none"]

    def test_a_log_that_can_not_be_written(self, log: Path) -> None:
        log.unlink()
        log.mkdir()
        note("unit.x")

    def test_no_name_is_a_fault(self) -> None:
        assert _faults.faults(f"[ 1.0] {_faults.NOTE}{name}" for name in CHECKS) == []


class TestFaults:
    """A check during which the kernel told of a fault has failed, however it went itself."""

    class Watch:
        told: ClassVar[list[list[str]]] = []

        def faults(self) -> list[str]:
            return self.told.pop(0)

        def close(self) -> None:
            self.told.clear()

    def test_a_fault(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def passes(lab: Lab) -> None:
            pass

        self.Watch.told[:] = [[], ["WARNING: net/kcm/kcmsock.c:1 at kcm_x, CPU#0", "tainted"], []]
        monkeypatch.setattr(_faults, "Watch", self.Watch)
        first, second, third = run(passes, passes, passes)
        assert [first.status, second.status, third.status] == ["pass", "fault", "pass"]
        assert second.lines == (
            "the check's outcome was: pass",
            "WARNING: net/kcm/kcmsock.c:1 at kcm_x, CPU#0",
            "tainted",
            "the kernel told of a fault of its own",
        )
        assert self.Watch.told == []

    def test_a_fault_beside_other_checks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        reading, writing = os.pipe()

        def passes(lab: Lab) -> None:
            os.write(writing, b"%d" % os.getpid())

        def waits(lab: Lab) -> None:
            first = int(os.read(reading, 20))
            with pytest.raises(ProcessLookupError):
                while True:  # until the first one's process was waited for
                    os.kill(first, 0)
                    time.sleep(0.01)

        self.Watch.told[:] = [["WARNING: x"], []]
        monkeypatch.setattr(_faults, "Watch", self.Watch)
        first, second = run(passes, waits, parallel=2)
        os.close(reading)
        os.close(writing)
        assert (first.status, second.status) == ("fault", "pass")
        assert "while 1 other checks were made: --jobs 1" in first.lines[-1]

    def test_without_proc(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def passes(lab: Lab) -> None:
            pass

        monkeypatch.setattr(_faults, "_TAINTED", Path("/nowhere"))
        assert run(passes)[0].status == "pass"
        assert facts.collect(["kcm"])["taint"].startswith("unknown, and no fault ")


class TestRepeating:
    def outcomes(self, *statuses: runner.Status) -> list[runner.Outcome]:
        return [runner.Outcome(s, (f"it was {s}",), n / 2) for n, s in enumerate(statuses, 1)]

    def test_once(self) -> None:
        [outcome] = self.outcomes("fail")
        assert runner.combined([outcome]) == outcome

    def test_the_worst_counts(self) -> None:
        combined = runner.combined(self.outcomes("pass", "fail", "pass"))
        assert combined.status == "fail"
        assert combined.lines == (
            "made 3 times: 2 pass, 1 fail; 0.500 to 1.500 s",
            "it was fail",
        )
        assert combined.seconds == 3

    def test_all_skipped(self) -> None:
        outcomes = self.outcomes("skip", "skip")
        assert runner.combined(outcomes) == outcomes[0]


class TestEnvironment:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("blacklist kcm\n", "x.conf:1"),
            ("# no\ninstall kcm /bin/false\n", "x.conf:2"),
            ("alias net-pf-41 off # never\n", "x.conf:1"),
            ("# blacklist kcm\nblacklist kcmx\n", None),
        ],
    )
    def test_blacklist(self, tmp_path: Path, text: str, found: str | None) -> None:
        (tmp_path / "x.conf").write_text(text, encoding="utf-8")
        where = _module.forbidden((str(tmp_path),), "/dev/null")
        assert where == (f"{tmp_path}/{found}" if found else None)

    @pytest.mark.parametrize(
        ("option", "found"),
        [("module_blacklist=foo,kcm", True), ("modprobe.blacklist=kcm", True), ("kcm", False)],
    )
    def test_command_line(self, tmp_path: Path, option: str, found: bool) -> None:
        line = tmp_path / "cmdline"
        line.write_text(f"quiet {option} ro\n", encoding="ascii")
        where = _module.forbidden((), str(line))
        assert where == (f"the kernel's command line ({option})" if found else None)

    def test_without_sockets_all_is_skipped_with_the_reason(self) -> None:
        def passes(lab: Lab) -> None:
            pass

        job = runner.Job(Check("unit.x", "Text.", "source", passes), Calls())
        [outcome] = runner.run([job], Environment(no_sockets="no AF_KCM"))
        assert (outcome.status, outcome.lines) == ("skip", ("no AF_KCM",))

    def test_without_programs_what_needs_one_is_skipped(self) -> None:
        with (
            Lab(Calls(), Environment(no_programs="no BPF")) as lab,
            pytest.raises(Skip, match="no BPF"),
        ):
            lab.documented()
