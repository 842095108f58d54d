"""The tests: the unit tests here, the kernel tests where there is KCM. No part may run no test.

Each part leaves a JUnit XML file in reports/. They are read to see that tests were really run: an
exit status alone does not tell.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

from ci.jobs import say
from ci.kernels import ROOT

REPORTS = ROOT / "reports"

# For pytest: the same tests, but what is done 10,000 times is done a tenth as often.
BRIEF = ["--cycles=1000"]

UNIT_TESTS = ["pytest", "tests/unit"]
# They use no Hypothesis, and loading it takes seconds in an emulated guest.
KERNEL_TESTS = ["pytest", "-p", "no:hypothesispytest", "tests/kernel"]

PARTS = {
    "unit": [str(ROOT / ".venv/bin/python"), "-m", *UNIT_TESTS],
    "kernel": ["ci/run-kcm", *KERNEL_TESTS],
}


def executed(report: Path) -> int:
    """How many tests of a JUnit XML file were run, skipped ones not counted."""
    suites = ElementTree.parse(report).getroot().iter("testsuite")
    return sum(int(suite.get("tests", 0)) - int(suite.get("skipped", 0)) for suite in suites)


def run_part(part: str, arguments: list[str]) -> str | None:
    """Run one part's tests; what is wrong with it, or None."""
    report = REPORTS / f"{part}.xml"
    report.unlink(missing_ok=True)
    color = ["--color=yes"] if os.isatty(1) else []
    command = [*PARTS[part], f"--junitxml={report.relative_to(ROOT)}"]
    status = subprocess.run([*command, *color, *arguments], cwd=ROOT, check=False).returncode
    if status == 5:
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
    parts = list(PARTS)
    if arguments and arguments[0] in PARTS:
        parts = [arguments.pop(0)]
    REPORTS.mkdir(exist_ok=True)
    failed = False
    summary = []
    for part in parts:
        say(f"\n== {part} tests")
        start = time.monotonic()
        problem = run_part(part, arguments)
        failed = failed or problem is not None
        summary.append(f"{part} tests: {problem or 'passed'} ({time.monotonic() - start:.0f} s)")
    say("\n" + "\n".join(summary))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
