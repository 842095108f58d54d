"""The selftest's reports: what each format looks like, and that others can read it."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

from pykcm.selftest import deviations, formats, ktap, report, runner
from pykcm.selftest.check import Check, Failure, Group, Skip
from pykcm.selftest.environment import Environment
from pykcm.selftest.lab import Lab
from pykcm.selftest.verdict import Verdict
from tests.kernel_source import kernel_module, kernel_source


class TestWriter:
    def test_lines(self) -> None:
        file = io.StringIO()
        writer = ktap.Writer(file)
        writer.begin(1)
        nested = writer.nested()
        nested.begin(3, ["Subtest: group"])
        nested.result(True, "group.first")
        nested.comment(["expected: 1\nseen: 2"])
        nested.result(False, "group.second")
        nested.result(True, "group.third # 3", "SKIP no\nreason")
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


def passes(lab: Lab) -> None:
    pass


def notes(lab: Lab) -> None:
    lab.notes.append("this is worth telling")


def fails(lab: Lab) -> None:
    raise Failure("a thing\nexpected: 1\nseen: 2")


def skips(lab: Lab) -> None:
    raise Skip("no reason")


def breaks(lab: Lab) -> None:
    raise ZeroDivisionError("a mistake")


CHECK = Check("unit.0", "Text.", "source", passes)


def outcome(status: runner.Status) -> runner.Outcome:
    return runner.Outcome(status, ("what happened",), 0.5)


KNOWN = deviations.Deviation(CHECK.name, "-", "it fails", "a cause", "4.6")


class TestVerdict:
    @pytest.mark.parametrize(
        ("status", "known", "strict", "ok", "kind", "directive"),
        [
            ("pass", False, False, True, "pass", ""),
            ("fail", False, False, False, "fail", ""),
            ("skip", False, False, True, "skip", "SKIP"),
            ("timeout", False, False, False, "fail", "TIMEOUT"),
            ("error", False, False, False, "error", "ERROR"),
            ("fault", False, False, False, "fail", "ERROR"),
            ("fail", True, False, True, "xfail", "XFAIL"),
            ("fail", True, True, True, "xfail", "XFAIL"),
            ("pass", True, False, True, "xpass", "XPASS"),
            ("pass", True, True, False, "xpass", "XPASS"),
            ("timeout", True, True, False, "fail", "TIMEOUT"),
            ("error", True, False, False, "error", "ERROR"),
            ("fault", True, False, False, "fail", "ERROR"),
        ],
    )
    def test_status(
        self, status: runner.Status, known: bool, strict: bool, ok: bool, kind: str, directive: str
    ) -> None:
        verdict = Verdict(CHECK, outcome(status), KNOWN if known else None, strict)
        assert (verdict.ok, verdict.kind, verdict.directive[0]) == (ok, kind, directive)

    def test_a_deviation_that_is_gone_says_to_update_the_table(self) -> None:
        verdict = Verdict(CHECK, outcome("pass"), KNOWN, True)
        assert "update pykcm/selftest/deviations.py" in verdict.comments

    def test_a_failure_says_what_and_whence(self) -> None:
        comments = Verdict(CHECK, outcome("fail"), None).comments
        assert comments == [
            f"{CHECK.name}: {CHECK.summary}",
            f"source: {CHECK.source}",
            "what happened",
        ]


def groups(*bodies: object) -> list[Group]:
    """A group of every body, and one of a body that passes."""
    first, second = Group("unit", "Made up"), Group("other", "More of it")
    for number, body in enumerate(bodies):
        first.checks.append(Check(f"unit.{number}", "Text.", "source", body))  # type: ignore[arg-type]
    second.checks.append(Check("other.0", "Text.", "source", passes))
    return [first, second]


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """All can be tested, and unit.1 is known to fail, unit.2 too."""
    monkeypatch.setattr(report, "survey", Environment)
    monkeypatch.setattr(
        report,
        "known",
        lambda name, _: KNOWN if name in ("unit.1", "unit.2") else None,
    )
    return monkeypatch


def made(format: str, *bodies: object, **options: object) -> tuple[int, str]:
    """Exit status and text of a report, with every time the same."""
    file = io.StringIO()
    given = report.Options(format=format, **options)  # type: ignore[arg-type]
    status = report.run(groups(*bodies), given, file)
    return status, re.sub(r"time=\d+ms", "time=3ms", file.getvalue())


ALL = (passes, fails, passes, skips, breaks, notes)


def without_facts(text: str) -> list[str]:
    """The lines of a report without those that tell of this machine."""
    names = "pykcm|command|kernel|kernel version|machine|kernel command line|taint|config"
    return [line for line in text.splitlines() if not re.match(rf"# ({names}): ", line)]


class TestFormats:
    def test_ktap(self, here: pytest.MonkeyPatch) -> None:
        status, text = made("ktap", *ALL)
        lines = without_facts(text)
        assert status == 1
        assert [line for line in lines if not line.strip().startswith("#")] == [
            "KTAP version 1",
            "1..2",
            "  KTAP version 1",
            "  1..6",
            "  ok 1 unit.0 # time=3ms",
            "  ok 2 unit.1 # XFAIL known deviation: it fails time=3ms",
            "  ok 3 unit.2 # XPASS known deviation that is gone: it fails time=3ms",
            "  ok 4 unit.3 # SKIP no reason time=3ms",
            "  not ok 5 unit.4 # ERROR ZeroDivisionError: a mistake time=3ms",
            "  ok 6 unit.5 # time=3ms",
            "not ok 1 unit",
            "  KTAP version 1",
            "  1..1",
            "  ok 1 other.0 # time=3ms",
            "ok 2 other",
        ]
        assert lines[3] == "  # Subtest: unit"
        assert lines[-1] == "# Totals: pass:3 fail:0 xfail:1 xpass:1 skip:1 error:1"
        at = lines.index("  ok 2 unit.1 # XFAIL known deviation: it fails time=3ms")
        assert lines[at - 6 : at] == [
            "  # unit.1: Text.",
            "  # source: source",
            "  # cause: a cause",
            "  # a thing",
            "  # expected: 1",
            "  # seen: 2",
        ]
        at = lines.index("  ok 6 unit.5 # time=3ms")
        assert lines[at - 1] == "  # this is worth telling"

    @pytest.mark.parametrize(("format", "skip"), [("tap", "SKIP"), ("ksft", "skip")])
    def test_flat(self, format: str, skip: str, here: pytest.MonkeyPatch) -> None:
        status, text = made(format, *ALL)
        lines = without_facts(text)
        assert status == 1
        assert [line for line in lines if not line.startswith("#")] == [
            "TAP version 13",
            "1..7",
            "ok 1 unit.0 # time=3ms",
            "ok 2 unit.1 # XFAIL known deviation: it fails time=3ms",
            "ok 3 unit.2 # XPASS known deviation that is gone: it fails time=3ms",
            f"ok 4 unit.3 # {skip} no reason time=3ms",
            "not ok 5 unit.4 # ERROR ZeroDivisionError: a mistake time=3ms",
            "ok 6 unit.5 # time=3ms",
            "ok 7 other.0 # time=3ms",
        ]
        assert lines[-1] == "# Totals: pass:3 fail:0 xfail:1 xpass:1 skip:1 error:1"

    def test_json(self, here: pytest.MonkeyPatch) -> None:
        status, text = made("json", *ALL)
        document = json.loads(text)
        assert document["exit_status"] == status == 1
        assert document["ended_by"] is None
        assert document["totals"] == {
            **{"pass": 3, "fail": 0, "xfail": 1, "xpass": 1, "skip": 1, "error": 1}
        }
        statuses = ["pass", "fail", "pass", "skip", "error", "pass", "pass"]
        assert [check["status"] for check in document["checks"]] == statuses
        assert [check["ok"] for check in document["checks"]] == [True] * 4 + [False] + [True] * 2
        assert document["command"] == "kcm selftest"
        assert os.uname().release in document["kernel"]

    def test_the_head_says_what_a_reader_must_know(self, here: pytest.MonkeyPatch) -> None:
        _, text = made("ktap", passes, command=("kcm", "selftest", "--filter", "a b"))
        head = dict(line[2:].split(": ", 1) for line in text.splitlines()[2:8])
        assert list(head)[:5] == ["pykcm", "command", "kernel", "kernel version", "machine"]
        assert head["command"] == "kcm selftest --filter 'a b'"
        assert head["kernel command line"] == Path("/proc/cmdline").read_text("utf-8").strip()
        assert re.search(r"^# taint: \d+", text, re.MULTILINE)

    @pytest.mark.parametrize("format", ["ktap", "tap", "ksft"])
    def test_a_repeated_check_is_one_result(self, format: str, here: pytest.MonkeyPatch) -> None:
        status, text = made(format, fails, repeat=3)
        assert status == 1
        assert "made 3 times: 3 fail; " in text
        assert len(re.findall(r"(?:not )?ok \d+ unit\.0", text)) == 1


def test_0_if_nothing_fails(here: pytest.MonkeyPatch) -> None:
    assert made("ktap", passes, fails, fails, skips)[0] == 0


def test_1_if_anything_fails(here: pytest.MonkeyPatch) -> None:
    here.setattr(report, "survey", lambda: Environment(no_programs="no BPF"))
    assert made("ktap", fails)[0] == 1


def test_1_if_a_deviation_is_gone_and_that_is_asked_for(here: pytest.MonkeyPatch) -> None:
    assert made("ktap", passes, passes)[0] == 0
    assert made("ktap", passes, passes, expect_known=True)[0] == 1


def test_4_if_all_is_skipped(here: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    assert report.run(groups(skips)[:1], file=file) == 4
    assert re.search(
        r"\n  ok 1 unit\.0 # SKIP no reason time=\d+ms\nok 1 unit # SKIP no reason\n",
        file.getvalue(),
    )


def test_4_if_something_could_not_be_tried_here(here: pytest.MonkeyPatch) -> None:
    here.setattr(report, "survey", lambda: Environment(no_programs="no BPF"))
    status, text = made("ktap", passes)
    assert status == 4
    assert "\n# can't test all: no BPF\n" in text


@pytest.mark.parametrize("format", formats.FORMATS)
def test_without_kcm_the_reason_is_said_once(format: str, here: pytest.MonkeyPatch) -> None:
    """Each of the checks said it: 199 times the same."""
    here.setattr(report, "survey", lambda: Environment(no_sockets="there is no AF_KCM"))
    status, text = made(format, passes, passes)
    assert status == 4
    assert text.count("there is no AF_KCM") == 1
    assert "unit" not in text
    if format != "json":
        assert text.splitlines()[1] == "1..0 # SKIP there is no AF_KCM"


def test_a_reader_that_goes_away() -> None:
    """As head does."""
    reading, writing = os.pipe()
    os.close(reading)
    result = subprocess.run(
        [sys.executable, "-m", "pykcm.selftest.command"],
        stdout=writing,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.parametrize("format", formats.FORMATS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_says_so(
    format: str, number: signal.Signals, here: pytest.MonkeyPatch
) -> None:
    """It exited 1, "something failed", with no totals."""

    def interrupts(lab: Lab) -> None:
        os.kill(os.getppid(), number)
        signal.pause()

    before = signal.getsignal(number)
    status, text = made(format, passes, fails, interrupts, passes)
    assert status == 128 + number
    assert signal.getsignal(number) == before
    if format == "json":
        document = json.loads(text)
        assert document["ended_by"] == number.name
        assert document["exit_status"] == status
        assert [check["status"] for check in document["checks"]] == ["pass", "fail"]
        return
    lines = text.splitlines()
    assert lines[-2] == f"Bail out! ended by {number.name}"
    assert lines[-1] == "# Totals: pass:1 fail:0 xfail:1 xpass:0 skip:0 error:0"


class TestReaders:
    """Programs of others read the reports, and count what is in them."""

    @pytest.fixture
    def reports(self, here: pytest.MonkeyPatch, tmp_path: Path) -> Path:
        """A report in each format, of three checks that pass, one skipped, and XFAIL and XPASS."""
        for format in ("ktap", "tap", "ksft"):
            text = made(format, passes, fails, passes, skips, notes)[1]
            (tmp_path / format).write_text(text, encoding="utf-8")
        return tmp_path

    @pytest.mark.skipif(not shutil.which("prove"), reason="perl's prove is not installed")
    @pytest.mark.parametrize(("format", "tests"), [("ktap", 2), ("tap", 6), ("ksft", 6)])
    def test_prove(self, format: str, tests: int, reports: Path) -> None:
        said = subprocess.run(
            ["prove", "--nocolor", "-e", "cat", str(reports / format)],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
        ).stdout
        assert f"Files=1, Tests={tests}," in said
        assert "Result: PASS" in said

    @pytest.mark.parametrize("format", ["tap", "ksft"])
    def test_tappy(self, format: str, reports: Path) -> None:
        from tap.parser import Parser

        lines = list(Parser().parse_file(reports / format))
        kinds = Counter(line.category for line in lines)
        assert (kinds["version"], kinds["plan"], kinds["test"], kinds["unknown"]) == (1, 1, 6, 0)
        results = [line for line in lines if line.category == "test"]
        assert all(result.ok for result in results)
        assert [result.number for result in results] == [1, 2, 3, 4, 5, 6]
        assert [result.description for result in results][:2] == ["unit.0", "unit.1"]
        assert [result.skip for result in results] == [False] * 3 + [True] + [False] * 2

    def test_kunit(self, reports: Path) -> None:
        parser = kernel_module("tools/testing/kunit/kunit_parser.py")
        with (reports / "ktap").open(encoding="utf-8") as file:
            main = parser.parse_run_tests(file, *printer(parser))
        counts = main.counts
        assert (counts.passed, counts.skipped) == (5, 1)
        assert counts.failed == counts.crashed == counts.errors == 0
        assert [test.name for test in main.subtests] == ["unit", "other"]

    def test_kselftest(self, reports: Path) -> None:
        """The runner of the kernel's selftests, with a test that writes such a report."""
        runner_sh = kernel_source() / "tools/testing/selftests/kselftest/runner.sh"
        for format, status, wanted in (
            ("ksft", 0, "ok 1 selftests: kcm: kcm.sh"),
            ("ksft", 4, "ok 1 selftests: kcm: kcm.sh # SKIP"),
            ("ksft", 1, "not ok 1 selftests: kcm: kcm.sh # exit=1"),
        ):
            directory = reports / "base" / "kcm"
            directory.mkdir(parents=True, exist_ok=True)
            test = directory / "kcm.sh"
            test.write_text(f"#!/bin/sh\ncat {reports / format}\nexit {status}\n", "utf-8")
            test.chmod(0o755)
            link = reports / "base" / "kselftest"
            if not link.exists():
                link.symlink_to(runner_sh.parent)
            said = subprocess.run(
                ["sh", "-c", '. "$0"; cd "$1"; run_many kcm.sh', str(runner_sh), str(directory)],
                capture_output=True,
                text=True,
                check=True,
                env={**os.environ, "BASE_DIR": str(reports / "base")},
            ).stdout
            assert said.splitlines()[-1].rstrip() == wanted
            assert "\n# ok 2 unit.1 # XFAIL known deviation: it fails time=3ms\n" in said

    def test_netdev_ci(self, reports: Path) -> None:
        """What NIPA looks for in what the kernel's runner made of a report (contest/remote)."""
        text = (reports / "ksft").read_text(encoding="utf-8")
        run = "".join(f"# {line}\n" for line in text.splitlines())
        # It takes all for skipped at " # SKIP", for failed at "not ok 1" and others.
        for word in (" # SKIP", "[SKIP]", "SKIP:", "[FAIL]", " FAIL:", "\n# not ok 1"):
            assert word not in run
        assert run.startswith("# TAP version 13\n")
        found = re.findall(
            r"^# (not )?ok (\d+)( -)? ([^#]*[^ ])( +# +)?([^ ].*)?$", run, re.MULTILINE
        )
        assert len(found) == 6
        assert all(re.findall(r"time=(\d+)ms", match[5]) for match in found)
        assert [match[5].lower().startswith("skip") for match in found].count(True) == 1


def printer(parser: ModuleType) -> list[object]:
    """What newer kunit parsers want beside the lines."""
    return [parser.Printer()] if hasattr(parser, "Printer") else []
