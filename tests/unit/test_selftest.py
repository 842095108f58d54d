"""The selftest's parts that need no KCM: the plan, the report's format, the table, the runner."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from pykcm.selftest import deviations, environment, ktap, report, runner, versions
from pykcm.selftest.calls import Calls
from pykcm.selftest.check import Check, Failure, Group, Skip, every
from pykcm.selftest.checks import GROUPS
from pykcm.selftest.environment import Environment
from pykcm.selftest.lab import Lab
from tests import mutations

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


class TestKTAP:
    def test_report(self) -> None:
        file = io.StringIO()
        writer = ktap.Writer(file)
        writer.begin(1)
        nested = writer.subtest(3, ["Subtest: group"])
        nested.result(True, "group.first")
        nested.comment(["expected: 1\nseen: 2"])
        nested.result(False, "group.second")
        nested.result(True, "group.third # 3", "SKIP", "no\nreason")
        nested.end()
        writer.result(False, "group")
        writer.end()
        assert file.getvalue() == (
            "KTAP version 1\n"
            "1..1\n"
            "  KTAP version 1\n"
            "  # Subtest: group\n"
            "  1..3\n"
            "  ok 1 group.first\n"
            "  # expected: 1\n"
            "  # seen: 2\n"
            "  not ok 2 group.second\n"
            "  ok 3 group.third \\# 3 # SKIP no reason\n"
            "not ok 1 group\n"
        )

    def test_a_missing_result_is_an_error(self) -> None:
        writer = ktap.Writer(io.StringIO())
        writer.begin(2)
        writer.result(True, "one")
        with pytest.raises(ValueError, match="1 results of 2 planned"):
            writer.end()

    def test_a_result_too_many_is_an_error(self) -> None:
        writer = ktap.Writer(io.StringIO())
        writer.begin(0)
        with pytest.raises(ValueError, match="result 1 of 0 planned"):
            writer.result(True, "one")


def outcome(status: runner.Status) -> runner.Outcome:
    return runner.Outcome(status, ("what happened",), 0.5)


CHECK = next(iter(CHECKS.values()))
KNOWN = deviations.Deviation(CHECK.name, "-", "it fails", "a cause", "4.6")


class TestVerdict:
    @pytest.mark.parametrize(
        ("status", "known", "strict", "ok", "bad", "directive"),
        [
            ("pass", False, False, True, False, ""),
            ("fail", False, False, False, True, ""),
            ("skip", False, False, True, False, "SKIP"),
            ("timeout", False, False, False, True, "TIMEOUT"),
            ("error", False, False, False, True, "ERROR"),
            ("fail", True, False, False, False, "XFAIL"),
            ("fail", True, True, False, False, "XFAIL"),
            ("pass", True, False, True, False, ""),
            ("pass", True, True, False, True, ""),
            ("timeout", True, True, False, True, "TIMEOUT"),
            ("error", True, False, False, True, "ERROR"),
        ],
    )
    def test_status(
        self,
        status: runner.Status,
        known: bool,
        strict: bool,
        ok: bool,
        bad: bool,
        directive: str,
    ) -> None:
        verdict = report.Verdict(CHECK, outcome(status), KNOWN if known else None, strict)
        assert (verdict.ok, verdict.bad, verdict.directive[0]) == (ok, bad, directive)

    def test_a_deviation_that_is_gone_says_to_update_the_table(self) -> None:
        verdict = report.Verdict(CHECK, outcome("pass"), KNOWN, True)
        assert "update pykcm/selftest/deviations.py" in verdict.comments

    def test_a_failure_says_what_and_whence(self) -> None:
        comments = report.Verdict(CHECK, outcome("fail"), None).comments
        assert comments == [
            f"{CHECK.name}: {CHECK.summary}",
            f"source: {CHECK.source}",
            "what happened",
        ]


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
        file = tmp_path / "child"

        def hangs(lab: Lab) -> None:
            pid = os.fork()
            if pid == 0:
                signal.pause()
            file.write_text(str(pid), encoding="ascii")
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
            signal.pause()

        start = time.monotonic()
        [outcome] = run(hangs, limit=1.0)
        assert outcome.status == "timeout"
        assert time.monotonic() - start < 10
        child = int(file.read_text(encoding="ascii"))
        end = time.monotonic() + 10
        while time.monotonic() < end and self._runs(child):
            time.sleep(0.01)
        assert not self._runs(child)

    @staticmethod
    def _runs(pid: int) -> bool:
        try:
            status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
        except OSError:
            return False
        return status.rpartition(")")[2].split()[0] != "Z"

    def test_a_check_ends_with_the_runner(self, tmp_path: Path) -> None:
        file = tmp_path / "check"

        def waits(lab: Lab) -> None:
            file.write_text(str(os.getpid()), encoding="ascii")
            signal.pause()

        pid = os.fork()
        if pid == 0:
            run(waits)
            os._exit(0)
        end = time.monotonic() + 10
        while not (file.exists() and file.read_text(encoding="ascii")):
            assert time.monotonic() < end
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        child = int(file.read_text(encoding="ascii"))
        while time.monotonic() < end and self._runs(child):
            time.sleep(0.01)
        assert not self._runs(child)

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
        before = sorted(os.listdir("/proc/self/fd"))  # noqa: PTH208

        def passes(lab: Lab) -> None:
            pass

        run(passes, passes, parallel=2)
        assert sorted(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)


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
        where = environment.forbidden((str(tmp_path),), "/dev/null")
        assert where == (f"{tmp_path}/{found}" if found else None)

    @pytest.mark.parametrize(
        ("option", "found"),
        [("module_blacklist=foo,kcm", True), ("modprobe.blacklist=kcm", True), ("kcm", False)],
    )
    def test_command_line(self, tmp_path: Path, option: str, found: bool) -> None:
        line = tmp_path / "cmdline"
        line.write_text(f"quiet {option} ro\n", encoding="ascii")
        where = environment.forbidden((), str(line))
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


class TestExitStatus:
    @staticmethod
    def status(monkeypatch: pytest.MonkeyPatch, *bodies: object, **lacking: str) -> tuple[int, str]:
        group = Group("unit", "Made up")
        for number, body in enumerate(bodies):
            group.checks.append(Check(f"unit.{number}", "Text.", "source", body))  # type: ignore[arg-type]
        monkeypatch.setattr(report, "survey", lambda: Environment(**lacking))
        file = io.StringIO()
        return report.run([group], file=file), file.getvalue()

    @staticmethod
    def passes(lab: Lab) -> None:
        pass

    @staticmethod
    def fails(lab: Lab) -> None:
        raise Failure("something")

    @staticmethod
    def skips(lab: Lab) -> None:
        raise Skip("no reason")

    def test_0_if_nothing_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        status, text = self.status(monkeypatch, self.passes, self.skips)
        assert status == 0
        assert text.splitlines()[-2:] == [
            "ok 1 unit",
            "# Totals: pass:1 fail:0 xfail:0 skip:1",
        ]

    def test_1_if_anything_fails(self, monkeypatch: pytest.MonkeyPatch) -> None:
        status, text = self.status(monkeypatch, self.passes, self.fails, no_programs="no BPF")
        assert status == 1
        assert "\nnot ok 1 unit\n" in text
        assert "\n  not ok 2 unit.1\n" in text

    def test_4_if_all_is_skipped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        status, text = self.status(monkeypatch, self.skips)
        assert status == 4
        assert "\n  ok 1 unit.0 # SKIP no reason\nok 1 unit # SKIP no reason\n" in text

    def test_4_if_something_could_not_be_tried_here(self, monkeypatch: pytest.MonkeyPatch) -> None:
        status, text = self.status(monkeypatch, self.passes, no_programs="no BPF")
        assert status == 4
        assert "\n# can't test all: no BPF\n" in text
