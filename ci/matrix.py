"""The selftest and the kernel tests on every kernel series: one table, check by kernel.

The table goes to the screen and to docs/kernels.md. A kernel that could not be had, did not boot or
ran no test is a failure that says so. So is one that deviates from what pykcm's table of known
deviations says of it, for better or for worse.
"""

from __future__ import annotations

import argparse
import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from rich import box
from rich.console import Console
from rich.table import Table

from ci import jobs, output
from ci.guest import GUEST_FAILED, TIMED_OUT
from ci.jobs import Job
from ci.kernels import ROOT, SERIES, KernelUnavailableError, fetch
from ci.output import say
from ci.testing import BRIEF, KERNEL_TESTS, REPORTS

DOCUMENT = ROOT / "docs" / "kernels.md"
TIMEOUT = 1200  # seconds for one kernel, boot included

PASS, DEVIATES, FAIL, SKIP, ABSENT = "pass", "deviates", "FAIL", "skip", "ABSENT"

WIDTH = 80  # of a log, which has none of its own
REASON = 600  # characters of what pytest says of a failure; the log above has all

# One boot for both; what the selftest says is kept, and the tests' exit status is the whole's.
COMMAND = """\
echo "kcm selftest: its report goes to $1"
kcm selftest --json --expect-known --jobs 2 >"$1"
shift
exec "$@"
"""


Check: TypeAlias = tuple[str, str]


@dataclass
class Column:
    """One kernel's results: for each check how often it ended how, and what there is to say of it.

    A check is a group and a name in it.
    """

    series: str
    release: str = ""
    outcomes: dict[Check, Counter[str]] = field(default_factory=dict)
    reasons: set[tuple[Check, str, str]] = field(default_factory=set)
    problem: str | None = None

    @property
    def failed(self) -> bool:
        return any(counts[FAIL] for counts in self.outcomes.values())

    def cell(self, check: Check) -> str:
        counts = self.outcomes.get(check, Counter())
        for outcome in (FAIL, DEVIATES):
            if counts[outcome]:
                return outcome
        if counts[SKIP] and counts[PASS]:
            return f"{PASS}/{SKIP}"
        return next(iter(counts), ABSENT)

    def add(self, check: Check, outcome: str, reason: str = "") -> None:
        self.outcomes.setdefault(check, Counter())[outcome] += 1
        if reason:
            self.reasons.add((check, outcome, reason))

    def read_selftest(self, report: Path) -> None:
        """Add the checks of `kcm selftest --json --expect-known`."""
        for check in json.loads(report.read_text(encoding="utf-8"))["checks"]:
            group, _, own = check["name"].partition(".")
            name, status, lines = (group, own), check["status"], check["lines"]
            if not check["ok"]:
                self.add(name, FAIL, " ".join(lines) or "passed, but is a known deviation")
            elif status == "skip":
                self.add(name, SKIP, " ".join(lines))
            elif status == "fail":
                self.add(name, DEVIATES, check["known_deviation"]["happens"])
            else:
                self.add(name, PASS)

    def read_junit(self, report: Path) -> None:
        """Add the tests of a JUnit XML file; those that differ in a parameter share a row."""
        for case in ElementTree.parse(report).getroot().iter("testcase"):
            module, _, inner = (
                case.get("classname", "").removeprefix("tests.kernel.").partition(".")
            )
            test = case.get("name", "").partition("[")[0]
            check = (module, f"{inner}.{test}".lstrip("."))
            skipped = case.find("skipped")
            bad = [*case.iter("failure"), *case.iter("error")]
            if bad:
                self.add(check, FAIL, f"{case.get('name')}: {why(bad[0])}")
            elif skipped is not None:
                self.add(check, SKIP, skipped.get("message", ""))
            else:
                self.add(check, PASS)


def why(bad: ElementTree.Element) -> str:
    """A test's failure in a few lines: what pytest says of it, and where it was."""
    message = " ".join(bad.get("message", "").split())
    where = (bad.text or "").strip().rpartition("\n")[2]
    return f"{message[:REASON]} ({where})" if where else message[:REASON]


@dataclass(frozen=True)
class Reports:
    """What a run on one kernel leaves."""

    selftest: Path
    tests: Path

    @classmethod
    def of(cls, series: str) -> Reports:
        return cls(REPORTS / f"selftest-{series}.json", REPORTS / f"kernel-{series}.xml")


def run_on(kernels: Sequence[str], arguments: list[str], at_once: int) -> list[Column]:
    """Boot each of these series and run the selftest and the kernel tests on it.

    With several at once each has its share of the CPUs: guests that together have more than the
    host slow each other far more than twofold.
    """
    columns = [Column(series) for series in kernels]
    for column in columns:
        try:
            column.release = fetch(column.series).release
        except KernelUnavailableError as reason:
            column.problem = f"could not be had: {reason}"
    there = [column for column in columns if not column.problem]
    todo = [Job(f"kernel {c.series}", tuple(command(c.series, arguments, at_once))) for c in there]
    for column, status in zip(there, jobs.run(todo, at_once), strict=True):
        read_reports(column, status)
    return columns


def command(series: str, arguments: list[str], at_once: int) -> list[str]:
    """What runs both on one kernel; it starts with no reports of an earlier run."""
    reports = Reports.of(series)
    for report in (reports.selftest, reports.tests):
        report.unlink(missing_ok=True)
    guest = ["ci/vm", "--kernel", series, "--timeout", str(TIMEOUT)]
    if at_once > 1 and not SERIES[series].uml:  # that one has a single CPU in any case
        guest += ["--cpus", str(max((os.cpu_count() or 1) // at_once, 1))]
    inside = ["sh", "-c", COMMAND, "sh", str(reports.selftest.relative_to(ROOT))]
    inside += [*KERNEL_TESTS, f"--junitxml={reports.tests.relative_to(ROOT)}", *arguments]
    return [*guest, "--", *inside]


def read_reports(column: Column, status: int) -> None:
    """Add what a run on the column's kernel left, and what is wrong with it."""
    reports = Reports.of(column.series)
    unread = []
    for report, read in (
        (reports.selftest, column.read_selftest),
        (reports.tests, column.read_junit),
    ):
        try:
            read(report)
        except (OSError, ValueError, ElementTree.ParseError):
            unread.append(report.name)
    if status == GUEST_FAILED:
        column.problem = "did not boot, or died; its last words are above"
    elif status == TIMED_OUT:
        column.problem = f"was not done after {TIMEOUT} s"
    elif unread:
        column.problem = f"left no readable {' and '.join(unread)}"
    elif not column.outcomes:
        column.problem = f"ran no test (exit status {status})"
    elif status or column.failed:
        column.problem = "has checks that failed"


def remarks(columns: list[Column]) -> dict[str, list[str]]:
    """What the cells do not tell: why a check deviates, is skipped or failed, and on which kernels.

    What failed is last, and so at the end of a log.
    """
    found: dict[str, dict[Check, dict[str, list[str]]]] = {DEVIATES: {}, SKIP: {}, FAIL: {}}
    for column in columns:
        for check, outcome, reason in sorted(column.reasons):
            text = reason
            if outcome == SKIP and column.cell(check) != SKIP:
                counts = column.outcomes[check]
                text = f"{counts[SKIP]} of {counts.total()} skipped: {reason}"
            found[outcome].setdefault(check, {}).setdefault(text, []).append(column.series)

    def line(check: Check, texts: dict[str, list[str]]) -> str:
        said = [f"{text} ({', '.join(on)})" for text, on in texts.items()]
        return f"{'.'.join(check)}: {'; '.join(said)}"

    return {
        outcome: [line(check, texts) for check, texts in checks.items()]
        for outcome, checks in found.items()
    }


def markdown(columns: list[Column], checks: list[Check]) -> str:
    """The table as a document."""
    lines = [
        "# Kernel by kernel",
        "",
        "Written by `make matrix`: first the checks of `kcm selftest`, then pykcm's own kernel",
        "tests. *deviates* means that the kernel does not do what the check asks, as pykcm's",
        "table of known deviations says of it. A test that has variants is one row; *pass/skip*",
        "means that some of them were skipped. 5.10 is a User-Mode Linux kernel; the others are",
        "Debian's stock kernels in QEMU.",
        "",
        "| check | " + " | ".join(column.series for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| `uname -r` | " + " | ".join(column.release or "none" for column in columns) + " |",
    ]
    for check in checks:
        cells = " | ".join(column.cell(check) for column in columns)
        lines.append(f"| {'.'.join(check)} | {cells} |")
    said = remarks(columns)
    said[FAIL] += [f"{column.series} {column.problem}" for column in columns if column.problem]
    for title, outcome in (
        ("What deviates", DEVIATES),
        ("What was skipped, and why", SKIP),
        ("What failed", FAIL),
    ):
        if said[outcome]:
            lines += ["", f"## {title}", "", *(f"- {line}" for line in said[outcome])]
    return "\n".join(lines) + "\n"


def show(columns: list[Column], checks: list[Check]) -> None:
    """The table on the screen, and what deviates and was skipped."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=WIDTH)
    for column in columns:
        console.print(f"{column.series}: {column.release or 'none'}", highlight=False)
    table = Table("check", *(column.series for column in columns), box=box.SIMPLE_HEAD, padding=0)
    table.columns[0].overflow = "fold"
    for shown in table.columns[1:]:
        shown.min_width = len(f"{PASS}/{SKIP}")
    group = None
    for check in checks:
        if check[0] != group:
            group = check[0]
            table.add_row(f"[bold]{group}[/bold]")
        cells = [column.cell(check) for column in columns]
        table.add_row(f"  {check[1]}", *cells, style="red" if {FAIL, ABSENT} & {*cells} else None)
    console.print(table)
    for title, lines in remarks(columns).items():
        for line in lines:
            console.print(f"{title}: {line}", highlight=False, markup=False)


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/matrix", description=__doc__)
    parser.add_argument("--kernel", action="append", choices=SERIES, help="only this series")
    parser.add_argument(
        "--brief", action="store_true", help="repeat a tenth as often what is done 10,000 times"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="N kernels at once, each with its share of the CPUs",
    )
    parser.add_argument("pytest", nargs="*", help="arguments for pytest, after --")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs: at least 1")
    whole = not arguments.kernel and not arguments.pytest
    REPORTS.mkdir(exist_ok=True)
    columns = run_on(
        arguments.kernel or list(SERIES),
        arguments.pytest + BRIEF * arguments.brief,
        arguments.jobs,
    )
    checks = list(dict.fromkeys(check for column in columns for check in column.outcomes))
    say("")
    show(columns, checks)
    if whole:
        DOCUMENT.parent.mkdir(exist_ok=True)
        DOCUMENT.write_text(markdown(columns, checks), encoding="utf-8")
        say(f"written to {DOCUMENT.relative_to(ROOT)}")
    problems = [f"kernel {column.series} {column.problem}" for column in columns if column.problem]
    gaps = [
        f"kernel {column.series} did not run {'.'.join(check)}"
        for column in columns
        for check in checks
        if not column.problem and column.cell(check) == ABSENT
    ]
    say("\n".join(problems + gaps) or "every check passed, or was skipped with a reason, on all")
    return 1 if problems or gaps else 0


if __name__ == "__main__":
    output.run(main)
