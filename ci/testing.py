"""The tests: the unit tests here, the kernel tests where there is KCM. No part may run no test.

Each part leaves a JUnit XML file in reports/. They are read to see that tests were really run: an
exit status alone does not tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from itertools import takewhile
from pathlib import Path
from xml.etree import ElementTree

from ci import output
from ci.kernels import ROOT
from ci.output import say

REPORTS = ROOT / "reports"

# For pytest, where time does not matter: what is done many times is done ten times as often.
LONG = ["--cycles=10000", "--messages=1000000"]

UNIT_TESTS = ["pytest", "tests/unit"]
# They use neither Hypothesis nor xdist, and loading these takes seconds in an emulated guest.
KERNEL_TESTS = ["pytest", "-p", "no:hypothesispytest", "-p", "no:xdist", "tests/kernel"]

# Processes that share the unit tests.
WORKERS = str(min(os.cpu_count() or 1, 4))

# Exit statuses of pytest.
PYTEST_USAGE_ERROR, PYTEST_NO_TESTS = 4, 5

# Each part's command; its last word is what is tested if nothing is named.
PARTS = {
    "unit": [str(ROOT / ".venv/bin/python"), "-m", UNIT_TESTS[0], "-n", WORKERS, *UNIT_TESTS[1:]],
    "kernel": ["ci/run-kcm", *KERNEL_TESTS],
}
USAGE = """\
usage: ci/test [unit|kernel] [PATH...] [PYTEST OPTION...]

Run every test: the unit tests here, the kernel tests where there is KCM. A part's name or paths in
tests/unit or tests/kernel, before all options, choose. The reports are in reports/.
KERNEL=6.12 asks for a guest with that kernel."""


class UsageError(Exception):
    """What was asked for is not there."""


def choose(arguments: list[str]) -> dict[str, list[str]]:
    """The parts to run, each with its command.

    Raises:
        UsageError: a word before the options is neither a part nor a test's path.
    """
    words = list(takewhile(lambda argument: not argument.startswith("-"), arguments))
    paths: dict[str, list[str]] = {}
    for word in words:
        path = Path(os.path.relpath(word.partition("::")[0], ROOT))
        part = next((part for part in PARTS if Path("tests", part) in (path, *path.parents)), None)
        if word in PARTS:
            paths.setdefault(word, [])
        elif part and (ROOT / path).exists():
            paths.setdefault(part, []).append(word)
        else:
            raise UsageError(
                f"there is no {word}: name unit, kernel, or a path in tests/unit or tests/kernel"
            )
    return {
        part: [*PARTS[part][:-1], *(paths.get(part) or PARTS[part][-1:]), *arguments[len(words) :]]
        for part in (paths or PARTS)
    }


def executed(report: Path) -> int:
    """How many tests of a JUnit XML file were run, skipped ones not counted."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def run_part(part: str, command: list[str]) -> str | None:
    """Run one part's tests; what is wrong with it, or None.

    Raises:
        UsageError: pytest does not take these arguments.
    """
    report = REPORTS / f"{part}.xml"
    report.unlink(missing_ok=True)
    color = ["--color=yes"] if os.isatty(1) else []
    report_option = f"--junitxml={report.relative_to(ROOT)}"
    status = subprocess.run([*command, report_option, *color], cwd=ROOT, check=False).returncode
    if status == PYTEST_USAGE_ERROR:
        raise UsageError("pytest does not take these arguments")
    if status == PYTEST_NO_TESTS:
        return "no test was selected"
    if status:
        return f"failed with exit status {status}"
    if not report.exists():
        return "left no report"
    if not executed(report):
        return "ran no test: all were skipped"
    return None


def main() -> int:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & {*arguments}:
        say(USAGE)
        return 0
    REPORTS.mkdir(exist_ok=True)
    failed = False
    summary = []
    try:
        for part, command in choose(arguments).items():
            say(f"\n== {part} tests")
            start = time.monotonic()
            problem = run_part(part, command)
            failed = failed or problem is not None
            summary.append(
                f"{part} tests: {problem or 'passed'} ({time.monotonic() - start:.0f} s)"
            )
    except UsageError as error:
        print(f"test: {error}", file=sys.stderr)
        return 2
    say("\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    output.run(main)
