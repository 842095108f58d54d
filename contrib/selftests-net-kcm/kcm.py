#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0 OR MIT

"""AF_KCM does what Documentation/networking/kcm.rst and its own source say.

Each check is a function of pykcm/selftest/checks, and is made in a process of its own.  What is
known to deviate (pykcm/selftest/deviations.py) is an expected failure.
"""

import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, HERE.as_posix())
sys.path.append(HERE.parents[1].as_posix())

from net.lib.py import KsftSkipEx, KsftXfailEx, ksft_eq, ksft_exit, ksft_pr, ksft_run  # noqa: E402

from pykcm.selftest import deviations, environment, runner, versions  # noqa: E402
from pykcm.selftest.calls import Calls  # noqa: E402
from pykcm.selftest.checks import GROUPS  # noqa: E402

KSFT_SKIP = 4


def case(check, surroundings):
    """A check as a function that ksft_run can call."""

    def run():
        [outcome] = runner.run([runner.Job(check, Calls())], surroundings)
        text = " ".join(outcome.lines)
        if outcome.status == "skip":
            raise KsftSkipEx(text)
        if outcome.status == "pass":
            return
        for line in (check.summary, f"source: {check.source}", *outcome.lines):
            ksft_pr(line)
        deviation = deviations.known(check.name, versions.running())
        if outcome.status == "fail" and deviation:
            raise KsftXfailEx(f"known deviation: {deviation.happens}")
        ksft_eq(outcome.status, "pass")

    run.__name__ = check.name
    return run


def main() -> None:
    surroundings = environment.survey()
    if surroundings.no_sockets:
        print("KTAP version 1")
        print(f"1..0 # SKIP {surroundings.no_sockets}")
        sys.exit(KSFT_SKIP)
    for reason in surroundings.obstacles:
        ksft_pr(f"can't test all: {reason}")
    ksft_run([case(check, surroundings) for group in GROUPS for check in group.checks])
    ksft_exit()


if __name__ == "__main__":
    main()
