"""The selftest and the kernel tests on several kernels: one table, check by kernel.

The table goes to the screen and to reports/kernels.md, that of all series to docs/kernels.md. A
kernel that could not be had, did not boot or ran no test is a failure that says so. So is one that
deviates from what pykcm's table of known deviations says of it, for better or for worse. On one
kernel the tests of `make peers` are rows too, unless series or tests were chosen.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from rich import box
from rich.console import Console
from rich.table import Table

from ci import built, jobs, output, peers, servers
from ci.columns import ABSENT, DEVIATES, ELSEWHERE, FAIL, PASS, SKIP, WIDTH, Check, Column
from ci.guest import GUEST_FAILED, KERNEL_FAULTED, TIMED_OUT
from ci.jobs import Job
from ci.kernels import (
    ARCHIVES,
    DEFAULT_SERIES,
    FOREIGN,
    MATRIX,
    NAME,
    ROOT,
    KernelUnavailableError,
    is_series,
    split,
)
from ci.output import say
from ci.testing import KERNEL_TESTS, LONG, REPORTS

DOCUMENT = ROOT / "docs" / "kernels.md"
TIMEOUT = 1200  # seconds for one kernel, boot included

SHOWN_WHOLE = 6  # columns; with more, the screen has the rows only that are not "pass" everywhere

# One boot for both; what the selftest says is kept, and the tests' exit status is the whole's.
COMMAND = """\
echo "kcm selftest: its report goes to $1"
kcm selftest --json --expect-known --jobs 2 >"$1"
shift
exec "$@"
"""


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


def run_on(
    kernels: Sequence[str],
    arguments: list[str],
    at_once: int,
    peers_on: str | None = None,
    contained_on: str | None = None,
) -> list[Column]:
    """Boot each of these kernels and run the selftest and the kernel tests on it.

    One of them is booted once more, for the tests against real servers; and one for a column of its
    own, in which all is in a container. With several at once each
    has its share of the CPUs: guests that together have more than the host slow each other far more
    than twofold.
    """
    columns = [Column(asked) for asked in kernels]
    if contained_on:
        columns.append(Column(contained_on, contained=True))
    for column in columns:
        try:
            column.kernel = built.kernel(column.asked)
        except KernelUnavailableError as reason:
            column.problems.append(f"could not be had: {reason}")
    names: set[str] = set()
    for column in columns:
        while column.name in names:
            column.number += 1
        names.add(column.name)
    there = [column for column in columns if not column.problems]
    todo = [Job(f"kernel {c.name}", tuple(command(c, arguments, at_once))) for c in there]
    meeting = [c for c in there if c.asked == peers_on and not c.contained]
    for column in meeting:
        column.peers = True
        try:
            todo.append(Job(f"kernel {column.name} peers", tuple(meet(column, at_once))))
        except KernelUnavailableError as reason:
            column.peers_problems.append(f"had no peers: {reason}")
            meeting = []
    statuses = jobs.run(todo, at_once)
    for column, status in zip(there, statuses, strict=False):
        read_reports(column, status)
    for column, status in zip(meeting, statuses[len(there) :], strict=True):
        read_peers(column, status)
    return columns


def command(column: Column, arguments: list[str], at_once: int) -> list[str]:
    """What runs both on one kernel; it starts with no reports of an earlier run."""
    reports = Reports.of(column.name)
    for report in (reports.selftest, reports.tests):
        report.unlink(missing_ok=True)
    inside = ["sh", "-c", COMMAND, "sh", str(reports.selftest.relative_to(ROOT))]
    inside += [*KERNEL_TESTS, f"--junitxml={reports.tests.relative_to(ROOT)}", *arguments]
    if column.contained:
        inside = ["python", "-m", "ci.contained", *inside]
    return [*guest(column, reports.guest, at_once), *inside]


def meet(column: Column, at_once: int) -> list[str]:
    """What runs the tests against real servers on one kernel.

    Raises:
        KernelUnavailableError: the servers could not be had.
    """
    peers.PEERS.report.unlink(missing_ok=True)
    inside = peers.inside(peers.PEERS, servers.root(), [])
    return [*guest(column, REPORTS / f"guest-{column.name}-peers", at_once), *inside]


def guest(column: Column, keep: Path, at_once: int) -> list[str]:
    """What boots a kernel and runs what is put behind it; the kernel's log is kept."""
    start = ["ci/vm", "--kernel", column.asked, "--timeout", str(TIMEOUT), "--keep", str(keep)]
    uml = column.kernel and column.kernel.uml
    if at_once > 1 and not uml:  # that one has a single CPU in any case
        start += ["--cpus", str(max((os.cpu_count() or 1) // at_once, 1))]
    return [*start, "--"]


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
    if wrong := verdict(status, unread, bool(column.outcomes), column.failed):
        column.problems.append(wrong)


def read_peers(column: Column, status: int) -> None:
    """Add what the tests against real servers left, and what is wrong with them."""
    report = peers.PEERS.report
    found: peers.Rows = []
    unread = []
    try:
        found = peers.rows(report)
    except (OSError, ElementTree.ParseError):
        unread.append(report.name)
    column.read_peers(found)
    failed = any(row["result"] != PASS for row in found)
    if wrong := verdict(status, unread, bool(found), failed):
        column.peers_problems.append(f"with the peers {wrong}")


def verdict(status: int, unread: list[str], tested: bool, failed: bool) -> str | None:
    """What is wrong with a run in a guest, or None."""
    if status == GUEST_FAILED:
        return "did not boot; its last words are above"
    if status == TIMED_OUT:
        return f"was not done after {TIMEOUT} s"
    if status == KERNEL_FAULTED and (unread or not tested):
        return "died while it was tested; its last words, and the last check, are above"
    if status == KERNEL_FAULTED:
        return "told of a fault of its own; its words are above"
    if unread:
        return f"left no readable {' and '.join(unread)}"
    if not tested:
        return f"ran no test (exit status {status})"
    return "has checks that failed" if status or failed else None


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
        "others are Debian's stock kernels in QEMU, those with -rt with PREEMPT_RT. The rows of",
        f"*peers* are the tests of `make peers`, on one of them; elsewhere there is a {ELSEWHERE}.",
        "",
        "| check | " + " | ".join(column.name for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        "| `uname -r` | " + " | ".join(column.release for column in columns) + " |",
    ]
    for check in checks:
        cells = " | ".join(column.cell(check) for column in columns)
        lines.append(f"| {'.'.join(check)} | {cells} |")
    said = remarks(columns)
    said[FAIL] += [wrong for column in columns for wrong in column.wrong]
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
        if len(columns) > SHOWN_WHOLE and {*cells} <= {PASS, ELSEWHERE}:
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
    own = [kernel for kernel in asked if not is_series(kernel)]
    series = [kernel for kernel in asked if is_series(kernel)] or list(MATRIX)
    if every:
        series = [*ARCHIVES[""].series(), *(f"6.12-{arch}" for arch in FOREIGN)]
    if rt:
        series.append([name for name in ARCHIVES[""].series() if name.endswith("-rt")][-1])
    return list(dict.fromkeys(series + own))


def where_peers_are_met(kernels: list[str]) -> str | None:
    """The newest of the usual kernels, or else the last that can run this machine's servers."""
    able = [name for name in kernels if not (NAME.fullmatch(name) and split(name)[1])]
    if MATRIX[-1] in able:
        return MATRIX[-1]
    return able[-1] if able else None


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/matrix", description=__doc__)
    parser.add_argument(
        "--kernel",
        action="append",
        default=[],
        help="only this series, or stock; a bzImage or the directory in which a kernel was built "
        "comes as one more column",
    )
    parser.add_argument(
        "--all",
        action="store_true",
        help="every series that Debian has, and 6.12 on other machines",
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
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        help="the tests of `make peers` too, on the newest of the usual kernels or else on the "
        "last one; by itself where neither --kernel nor pytest's arguments choose",
    )
    parser.add_argument(
        "--container",
        action="store_true",
        help=f"all of it in a privileged container on {DEFAULT_SERIES}, as one more column",
    )
    parser.add_argument("pytest", nargs="*", help="arguments for the kernel tests, after --")
    arguments = parser.parse_args()
    if arguments.jobs < 1:
        parser.error("--jobs: at least 1")
    arguments.kernel = [built.meant(kernel) for kernel in arguments.kernel]
    for kernel in arguments.kernel:
        if not is_series(kernel) and not Path(kernel).is_absolute():
            parser.error(f"--kernel {kernel}: no series, such as 6.12 or 7.3-rt, and no such file")
    try:
        kernels = choose(arguments.kernel, arguments.all, arguments.rt)
    except KernelUnavailableError as reason:
        parser.error(f"which series there are is not known: {reason}")
    chosen = bool(arguments.kernel or arguments.pytest)
    peers_on = None
    if not chosen if arguments.peers is None else arguments.peers:
        peers_on = where_peers_are_met(kernels)
        if not peers_on:
            parser.error("--peers: the servers take a kernel of this machine's architecture")
    contained_on = DEFAULT_SERIES if arguments.container or (arguments.all and not chosen) else None
    if contained_on and not shutil.which("dockerd"):
        subprocess.run(["ci/setup", "image"], cwd=ROOT, check=True)
    REPORTS.mkdir(exist_ok=True)
    long = [] if arguments.brief else LONG
    columns = run_on(kernels, arguments.pytest + long, arguments.jobs, peers_on, contained_on)
    checks = list(dict.fromkeys(check for column in columns for check in column.outcomes))
    say("")
    show(columns, checks)
    whole = arguments.all and not chosen and peers_on
    document = DOCUMENT if whole else REPORTS / DOCUMENT.name
    document.parent.mkdir(exist_ok=True)
    document.write_text(markdown(columns, checks), encoding="utf-8")
    say(f"written to {document.relative_to(ROOT)}")
    problems = [f"kernel {wrong}" for column in columns for wrong in column.wrong]
    gaps = [
        f"kernel {column.name} did not run {'.'.join(check)}"
        for column in columns
        for check in checks
        if column.lacks(check)
    ]
    say("\n".join(problems + gaps) or "every check passed, or was skipped with a reason, on all")
    return 1 if problems or gaps else 0


if __name__ == "__main__":
    output.run(main)
