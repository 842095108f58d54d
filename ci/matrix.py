"""The selftest and the kernel tests on several kernels: one table, check by kernel.

The table goes to the screen and to reports/kernels.md, that of all series to docs/kernels.md. A
kernel that could not be had, did not boot or
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

from ci import built, jobs, output
from ci.guest import GUEST_FAILED, KERNEL_FAULTED, TIMED_OUT
from ci.jobs import Job
from ci.kernels import ARCHIVES, FOREIGN, MATRIX, NAME, ROOT, Kernel, KernelUnavailableError
from ci.output import say
from ci.testing import KERNEL_TESTS, LONG, REPORTS

DOCUMENT = ROOT / "docs" / "kernels.md"
TIMEOUT = 1200  # seconds for one kernel, boot included

PASS, DEVIATES, FAIL, SKIP, ABSENT = "pass", "deviates", "FAIL", "skip", "ABSENT"

WIDTH = 80  # of a log, which has none of its own
SHOWN_WHOLE = 6  # columns; with more, the screen has the rows only that are not "pass" everywhere
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

    asked: str
    kernel: Kernel | None = None
    outcomes: dict[Check, Counter[str]] = field(default_factory=dict)
    reasons: set[tuple[Check, str, str]] = field(default_factory=set)
    problem: str | None = None

    @property
    def name(self) -> str:
        """The series; of one's own kernel the release."""
        own = self.kernel and not NAME.fullmatch(self.asked)
        return self.kernel.release if self.kernel and own else self.asked

    @property
    def release(self) -> str:
        return self.kernel.release if self.kernel else "none"

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
    """What a run on one kernel leaves: two reports, and a directory with the kernel's log."""

    selftest: Path
    tests: Path
    guest: Path

    @classmethod
    def of(cls, name: str) -> Reports:
        return cls(
            REPORTS / f"selftest-{name}.json",
            REPORTS / f"kernel-{name}.xml",
            REPORTS / f"guest-{name}",
        )


def run_on(kernels: Sequence[str], arguments: list[str], at_once: int) -> list[Column]:
    """Boot each of these kernels and run the selftest and the kernel tests on it.

    With several at once each has its share of the CPUs: guests that together have more than the
    host slow each other far more than twofold.
    """
    columns = [Column(asked) for asked in kernels]
    for column in columns:
        try:
            column.kernel = built.kernel(column.asked)
        except KernelUnavailableError as reason:
            column.problem = f"could not be had: {reason}"
    there = [column for column in columns if not column.problem]
    todo = [Job(f"kernel {c.name}", tuple(command(c, arguments, at_once))) for c in there]
    for column, status in zip(there, jobs.run(todo, at_once), strict=True):
        read_reports(column, status)
    return columns


def command(column: Column, arguments: list[str], at_once: int) -> list[str]:
    """What runs both on one kernel; it starts with no reports of an earlier run."""
    reports = Reports.of(column.name)
    for report in (reports.selftest, reports.tests):
        report.unlink(missing_ok=True)
    guest = ["ci/vm", "--kernel", column.asked, "--timeout", str(TIMEOUT)]
    guest += ["--keep", str(reports.guest)]
    uml = column.kernel and column.kernel.uml
    if at_once > 1 and not uml:  # that one has a single CPU in any case
        guest += ["--cpus", str(max((os.cpu_count() or 1) // at_once, 1))]
    inside = ["sh", "-c", COMMAND, "sh", str(reports.selftest.relative_to(ROOT))]
    inside += [*KERNEL_TESTS, f"--junitxml={reports.tests.relative_to(ROOT)}", *arguments]
    return [*guest, "--", *inside]


def read_reports(column: Column, status: int) -> None:
    """Add what a run on the column's kernel left, and what is wrong with it."""
    reports = Reports.of(column.name)
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
    elif status == KERNEL_FAULTED:
        column.problem = "told of a fault of its own; its words are above"
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
            found[outcome].setdefault(check, {}).setdefault(text, []).append(column.name)

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
        "Written by `make matrix ALL=1`: first the checks of `kcm selftest`, then pykcm's own",
        "kernel tests. *deviates* means that the kernel does not do what the check asks, as",
        "pykcm's table of known deviations says of it. A test that has variants is one row;",
        "*pass/skip* means that some of them were skipped. 5.10 is a User-Mode Linux kernel; the",
        "others are Debian's stock kernels in QEMU, those with -rt with PREEMPT_RT.",
        "",
        "| check | " + " | ".join(column.name for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| `uname -r` | " + " | ".join(column.release for column in columns) + " |",
    ]
    for check in checks:
        cells = " | ".join(column.cell(check) for column in columns)
        lines.append(f"| {'.'.join(check)} | {cells} |")
    said = remarks(columns)
    said[FAIL] += [f"{column.name} {column.problem}" for column in columns if column.problem]
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
        console.print(f"{column.name}: {column.release}", highlight=False)
    table = Table("check", *(column.name for column in columns), box=box.SIMPLE_HEAD, padding=0)
    table.columns[0].overflow = "fold"
    for shown in table.columns[1:]:
        shown.min_width = len(f"{PASS}/{SKIP}")
    group = None
    quiet = 0
    for check in checks:
        cells = [column.cell(check) for column in columns]
        if len(columns) > SHOWN_WHOLE and {*cells} == {PASS}:
            quiet += 1
            continue
        if check[0] != group:
            group = check[0]
            table.add_row(f"[bold]{group}[/bold]")
        table.add_row(f"  {check[1]}", *cells, style="red" if {FAIL, ABSENT} & {*cells} else None)
    console.print(table, width=max(console.width, (len(columns) + 5) * 11))
    if quiet:
        console.print(f"and {quiet} checks that passed on all", highlight=False)
    for title, lines in remarks(columns).items():
        for line in lines:
            console.print(f"{title}: {line}", highlight=False, markup=False)


def choose(asked: list[str], every: bool, rt: bool) -> list[str]:
    """The kernels to test.

    Raises:
        KernelUnavailableError: the archive, which knows what there is, does not answer.
    """
    own = [kernel for kernel in asked if not NAME.fullmatch(kernel)]
    series = [kernel for kernel in asked if NAME.fullmatch(kernel)] or list(MATRIX)
    if every:
        series = [*ARCHIVES[""].series(), *(f"6.12-{arch}" for arch in FOREIGN)]
    if rt:
        series.append([name for name in ARCHIVES[""].series() if name.endswith("-rt")][-1])
    return list(dict.fromkeys(series + own))


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/matrix", description=__doc__)
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        help="only this series; a bzImage or the directory in which a kernel was built comes as "
        "one more column",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every series that Debian has, and 6.12 on arm64 and s390x",
    )
    parser.add_argument(
        "--rt", action="store_true", help="the newest series with PREEMPT_RT, as one more column"
    )
    parser.add_argument(
        "--brief",
        action="store_true",
        help="repeat things as often as `make test` does, not ten times",
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
    for kernel in arguments.kernel:
        if not NAME.fullmatch(kernel) and not Path(kernel).exists():
            parser.error(f"--kernel {kernel}: no series, such as 6.12 or 7.3-rt, and no such file")
    try:
        kernels = choose(arguments.kernel, arguments.all, arguments.rt)
    except KernelUnavailableError as reason:
        parser.error(f"which series there are is not known: {reason}")
    REPORTS.mkdir(exist_ok=True)
    columns = run_on(kernels, arguments.pytest + ([] if arguments.brief else LONG), arguments.jobs)
    checks = list(dict.fromkeys(check for column in columns for check in column.outcomes))
    say("")
    show(columns, checks)
    whole = arguments.all and not arguments.kernel and not arguments.pytest
    document = DOCUMENT if whole else REPORTS / DOCUMENT.name
    document.parent.mkdir(exist_ok=True)
    document.write_text(markdown(columns, checks), encoding="utf-8")
    say(f"written to {document.relative_to(ROOT)}")
    problems = [f"kernel {column.name} {column.problem}" for column in columns if column.problem]
    gaps = [
        f"kernel {column.name} did not run {'.'.join(check)}"
        for column in columns
        for check in checks
        if not column.problem and column.cell(check) == ABSENT
    ]
    say("\n".join(problems + gaps) or "every check passed, or was skipped with a reason, on all")
    return 1 if problems or gaps else 0


if __name__ == "__main__":
    output.run(main)
