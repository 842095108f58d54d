"""The checks and tests on a kernel that tells of its own mistakes, and what of KCM they reached.

Boots the kernel of `make kernel` and runs there the selftest, its stress and some of the kernel
tests. Tells what failed, the faults that the kernel told of, what it takes for leaked, and how much
of KCM and of the stream parser was executed; writes docs/coverage.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from ci import building, coverage, output
from ci.coverage_report import document, summary
from ci.guest import GUEST_FAILED
from ci.jobs import end_with_parent
from ci.kernels import ROOT, KernelUnavailableError
from ci.output import say
from ci.testing import KERNEL_TESTS, REPORTS

TARGET = REPORTS / "debug"
COUNTS = "coverage"  # in TARGET, a directory for each phase
EARLIER = REPORTS / "debug-before"  # the counts of an earlier run, for --add
DOCUMENT = ROOT / "docs" / "coverage.md"
MEMORY = "2048"  # KASAN needs an eighth of it beside what there is
TIMEOUT = 3600  # seconds, boot included, beside the stress

# Kernel tests that use KCM in other ways than the selftest does. With KASAN an emulated kernel is
# several times slower than a stock one, too slow for all of them.
TESTS = (
    "test_defects_transports",
    "test_draining",
    "test_multiplexor",
    "test_super_messages",
)
# Of those, with why.
LEFT_OUT = {
    "test_defects_transports.py::test_21_a_thousand_connections_reset_at_once": (
        "it asks for seconds, which KASAN makes longer"
    ),
    "test_multiplexor.py::test_cycles_leave_nothing_behind": (
        "KASAN holds freed memory back, which then counts as in use"
    ),
}
SELFTEST = "selftest"


@dataclass(frozen=True)
class Leak:
    """What kmemleak takes for leaked: the size and where it was allocated."""

    size: int
    trace: tuple[str, ...]


@dataclass
class Result:
    """What one run on the debug kernel left."""

    kernel: str
    phases: list[dict[str, Any]]
    leaks: list[Leak]
    coverage: dict[str, list[coverage.File]]

    @property
    def problems(self) -> list[str]:
        """What is wrong, a line each."""
        found = []
        for phase in self.phases:
            name = phase["name"]
            if phase["status"]:
                found.append(f"{name} ended with status {phase['status']}: see {name}.out")
            found += [f"{name}: the kernel said: {line}" for line in phase["faults"]]
        found += [
            f"{leak.size} bytes leaked by {' < '.join(leak.trace[:8])}" for leak in self.leaks
        ]
        return found


def leaks(text: str) -> list[Leak]:
    """What stands in /sys/kernel/debug/kmemleak."""
    found = []
    for report in re.split(r"^(?=unreferenced object)", text, flags=re.MULTILINE):
        if head := re.match(r"unreferenced object 0x\w+ \(size (\d+)\)", report):
            trace = re.findall(r"^\s+(?:\[<\w+>\] )?([\w.]+)\+0x", report, re.MULTILINE)
            found.append(Leak(int(head[1]), tuple(trace)))
    return found


def commands(stress: float, seed: int, tests: list[str], filtered: str) -> dict[str, list[str]]:
    """What is run, in this order, by the names of the phases."""
    selftest = ["kcm", "selftest", "--json", "--expect-known"]
    found = {SELFTEST: selftest + (["--filter", filtered] if filtered else [])}
    if stress:
        found["stress"] = ["kcm", "selftest", "--stress", f"{stress:g}", "--seed", str(seed)]
    if tests:
        paths = [f"{KERNEL_TESTS[-1]}/{name}.py" for name in tests]
        report = f"--junitxml={(TARGET / 'tests.xml').relative_to(ROOT)}"
        left_out = [f"--deselect={KERNEL_TESTS[-1]}/{name}" for name in LEFT_OUT]
        found["tests"] = [*KERNEL_TESTS[:-1], "--timeout=300", report, *left_out, *paths]
    return found


def boot(directory: Path, cpus: int, stress: float, todo: dict[str, list[str]]) -> int:
    """Run these commands in a guest; ci/vm's exit status."""
    shutil.rmtree(EARLIER, ignore_errors=True)
    # The last phase has what those before it reached.
    if before := sorted((TARGET / COUNTS).glob("*"), key=lambda path: path.stat().st_mtime):
        before[-1].rename(EARLIER)
    shutil.rmtree(TARGET, ignore_errors=True)
    TARGET.mkdir(parents=True)
    command = ["ci/vm", "--kernel", str(directory), "--memory", MEMORY, "--timeout"]
    command += [f"{TIMEOUT + stress:.0f}"]
    command += ["--cpus", str(cpus), "--keep", str(TARGET), "--", "python", "-m", "ci.debugged"]
    command += [str(TARGET.relative_to(ROOT)), json.dumps(todo)]
    # Standard output is for the report.
    return subprocess.run(
        command, cwd=ROOT, stdout=sys.stderr, preexec_fn=end_with_parent(), check=False
    ).returncode


def read(kernel: str, counted: bool, adding: bool = False) -> Result:
    """What a run left in TARGET.

    Args:
        counted: the kernel counted what was executed.
        adding: add what the run before it counted to what was there at the end.

    Raises:
        KernelUnavailableError: it did not get so far.
    """
    try:
        phases = json.loads((TARGET / "phases.json").read_text(encoding="utf-8"))
        text = TARGET / "kmemleak"
        found = leaks(text.read_text(encoding="utf-8")) if text.exists() else []
        places = [TARGET / COUNTS / phase["name"] for phase in phases if counted]
        if adding and places and EARLIER.exists():
            coverage.add(places[-1], EARLIER)
        saved = {place.name: coverage.read(place) for place in places}
    except (OSError, ValueError) as error:
        raise KernelUnavailableError(f"the guest left no readable result: {error}") from None
    return Result(kernel, phases, found, saved)


def as_json(result: Result) -> str:
    """The whole as one JSON document."""
    return json.dumps(
        {
            "kernel": result.kernel,
            "phases": result.phases,
            "leaks": [asdict(leak) for leak in result.leaks],
            "problems": result.problems,
            "coverage": {name: summary(files) for name, files in result.coverage.items()},
        },
        indent=2,
    )


def show(result: Result) -> None:
    """The result for people."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=80)
    table = Table("phase", "status", "s", "faults", box=box.SIMPLE_HEAD)
    for phase in result.phases:
        status, seconds = str(phase["status"]), str(phase["seconds"])
        table.add_row(phase["name"], status, seconds, str(len(phase["faults"])))
    console.print(table)
    table = Table("reached after", "file", "lines", "branches", box=box.SIMPLE_HEAD)
    for name, files in result.coverage.items():
        for file in files:
            table.add_row(name, file.name, str(file.line_share), str(file.branch_share))
    if result.coverage:
        console.print(table)
    for line in result.problems:
        console.print(line, highlight=False, markup=False)
    if not result.problems:
        console.print("nothing failed, the kernel told of no fault, nothing leaked")


def main() -> int:
    parser = argparse.ArgumentParser(prog="ci/debug", description=__doc__)
    parser.add_argument("--kcsan", action="store_true", help="on the one that finds data races")
    parser.add_argument("--json", action="store_true", help="the result as one JSON document")
    parser.add_argument("--stress", type=float, default=30, metavar="SECONDS", help="0 for none")
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of the stress")
    parser.add_argument("--filter", default="", help="of the selftest's checks, as kcm selftest's")
    parser.add_argument("--cpus", type=int, default=min(os.cpu_count() or 1, 2))
    parser.add_argument(
        "--add",
        action="store_true",
        help="add the counts of the run before: what takes a race is not reached each time",
    )
    parser.add_argument("--no-tests", action="store_true", help="only the selftest and its stress")
    parser.add_argument(
        "tests",
        nargs="*",
        metavar="TEST",
        help="kernel tests by their file's name; some by default",
    )
    arguments = parser.parse_args()
    tests = [] if arguments.no_tests else list(arguments.tests or TESTS)
    for name in tests:
        if not (ROOT / KERNEL_TESTS[-1] / f"{name}.py").exists():
            parser.error(f"there is no {KERNEL_TESTS[-1]}/{name}.py")
    for name, reason in LEFT_OUT.items():
        if name.partition(".")[0] in tests:
            print(f"debug: {name.partition('::')[2]} is left out: {reason}", file=sys.stderr)
    flavour = building.KCSAN if arguments.kcsan else building.DEBUG
    try:
        directory = building.build(flavour)
        todo = commands(arguments.stress, arguments.seed, tests, arguments.filter)
        status = boot(directory, arguments.cpus, arguments.stress, todo)
        if status == GUEST_FAILED:
            return status
        result = read(building.source(), counted=not arguments.kcsan, adding=arguments.add)
    except KernelUnavailableError as reason:
        print(f"debug: {reason}", file=sys.stderr)
        return 1
    whole = not (arguments.kcsan or arguments.filter or arguments.tests or arguments.no_tests)
    report = DOCUMENT if whole and len(result.phases) == len(todo) else REPORTS / DOCUMENT.name
    if result.coverage:
        text = document(result.kernel, result.phases, result.coverage, arguments.add)
        report.write_text(text, encoding="utf-8")
    if arguments.json:
        say(as_json(result))
    else:
        show(result)
        if result.coverage:
            say(f"written to {report.relative_to(ROOT)}")
    return int(bool(result.problems or status))


if __name__ == "__main__":
    output.run(main)
