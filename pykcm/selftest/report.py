"""Makes checks and writes what comes of them: as they are made, or as one JSON document."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import json
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TextIO

from pykcm.selftest import facts, runner, versions
from pykcm.selftest.calls import Calls
from pykcm.selftest.check import Group
from pykcm.selftest.checks import GROUPS
from pykcm.selftest.deviations import known
from pykcm.selftest.environment import survey
from pykcm.selftest.formats import FORMATS
from pykcm.selftest.verdict import Verdict

# The kernel's selftests' (tools/testing/selftests/kselftest.h).
PASSED, FAILED, SKIPPED = 0, 1, 4

_STOPPING = (signal.SIGINT, signal.SIGTERM)


@dataclasses.dataclass(frozen=True)
class Options:
    """How checks are made and told of.

    Attributes:
        format: one of formats.FORMATS.
        expect_known: a known deviation that is gone is a failure.
        parallel: how many checks are made at once.
        repeat: how often each is made.
        command: the command line, for the head of the report.
    """

    format: str = "ktap"
    expect_known: bool = False
    parallel: int = 1
    repeat: int = 1
    command: tuple[str, ...] = ("kcm", "selftest")


def select(pattern: str | None, groups: Sequence[Group] = GROUPS) -> list[Group]:
    """The groups with those checks whose name matches.

    Args:
        pattern: a shell pattern, or a regular expression between slashes; None for all.
        groups: what to choose from.

    Raises:
        ValueError: no check matches, or the regular expression is wrong.
    """
    if pattern is None:
        return list(groups)
    matches: Callable[[str], object]
    if len(pattern) > 1 and pattern.startswith("/") and pattern.endswith("/"):
        try:
            matches = re.compile(pattern[1:-1]).search
        except re.error as error:
            raise ValueError(f"{pattern} is not a regular expression: {error}") from None
    else:
        matches = re.compile(fnmatch.translate(pattern)).match
    found = []
    for group in groups:
        some = Group(group.name, group.title)
        some.checks = [check for check in group.checks if matches(check.name)]
        if some.checks:
            found.append(some)
    if not found:
        raise ValueError(f"no check's name matches {pattern}; see kcm selftest --list")
    return found


def list_checks(groups: Sequence[Group], as_json: bool, file: TextIO | None = None) -> None:
    """Write the names of the checks, a line each, or all about them as JSON."""
    file = file or sys.stdout
    checks = [check for group in groups for check in group.checks]
    if as_json:
        described = [
            {"name": check.name, "summary": check.summary, "source": check.source}
            for check in checks
        ]
        print(json.dumps(described, indent=2), file=file)
    else:
        for check in checks:
            print(check.name, file=file)


def run(groups: Sequence[Group], options: Options | None = None, file: TextIO | None = None) -> int:
    """Make checks, write the report as they are made, and return the exit status.

    SIGINT and SIGTERM end it early, with a report of what was done until then; the exit status is
    a shell's for that signal.
    """
    options = options or Options()
    environment = survey()
    version = versions.running()
    known_facts = facts.collect(options.command)
    report = FORMATS[options.format](file or sys.stdout, known_facts, environment.obstacles)
    if environment.no_sockets:
        report.nothing(environment.no_sockets, SKIPPED)
        return SKIPPED
    jobs = (
        runner.Job(check, Calls())
        for group in groups
        for check in group.checks
        for _ in range(options.repeat)
    )
    report.begin(groups)
    try:
        with (
            _stop_signals() as stop,
            contextlib.closing(runner.run(jobs, environment, options.parallel, stop)) as outcomes,
        ):
            for group in groups:
                report.begin_group(group)
                for check in group.checks:
                    outcome = runner.combined([next(outcomes) for _ in range(options.repeat)])
                    deviation = known(check.name, version)
                    report.verdict(Verdict(check, outcome, deviation, options.expect_known))
                report.end_group()
    except runner.Stopped as stopped:
        status = 128 + stopped.number
        report.end(status, signal.Signals(stopped.number).name)
        return status
    status = _status(report.verdicts, environment.obstacles)
    report.end(status)
    return status


@contextlib.contextmanager
def _stop_signals() -> Iterator[int]:
    """A descriptor on which a byte tells of each SIGINT and SIGTERM: its number.

    So a signal ends the run between two lines of the report and not in the middle of one.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    handlers = {number: signal.signal(number, lambda *_: None) for number in _STOPPING}
    wakeup = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    try:
        yield reading
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        os.close(reading)
        os.close(writing)


def _status(verdicts: Sequence[Verdict], obstacles: Sequence[str]) -> int:
    if not all(verdict.ok for verdict in verdicts):
        return FAILED
    if obstacles or all(verdict.outcome.status == "skip" for verdict in verdicts):
        return SKIPPED
    return PASSED
