"""From outcomes to a report and an exit status."""

from __future__ import annotations

import dataclasses
import fnmatch
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TextIO

from pykcm.selftest import ktap, runner, versions
from pykcm.selftest.calls import Calls
from pykcm.selftest.check import Check, Group
from pykcm.selftest.checks import GROUPS
from pykcm.selftest.deviations import Deviation, known
from pykcm.selftest.environment import survey

# The kernel's selftests' (tools/testing/selftests/kselftest.h).
PASSED, FAILED, SKIPPED = 0, 1, 4


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A check's outcome in the light of the table.

    Attributes:
        check: the check.
        outcome: how it went.
        deviation: what the table says of it on this kernel.
        expect_known: a deviation that is gone counts as a failure.
    """

    check: Check
    outcome: runner.Outcome
    deviation: Deviation | None
    expect_known: bool = False

    @property
    def gone(self) -> bool:
        """The table says that it fails, and it passed."""
        return self.deviation is not None and self.outcome.status == "pass"

    @property
    def expected(self) -> bool:
        """It failed as the table says."""
        return self.deviation is not None and self.outcome.status == "fail"

    @property
    def ok(self) -> bool:
        """What KTAP calls ok."""
        return self.outcome.status in ("pass", "skip") and not (self.gone and self.expect_known)

    @property
    def bad(self) -> bool:
        """It makes the whole fail."""
        return not self.ok and not self.expected

    @property
    def directive(self) -> tuple[str, str]:
        """KTAP's directive and what follows it."""
        lines = self.outcome.lines
        if self.outcome.status == "skip":
            return "SKIP", " ".join(lines)
        if self.outcome.status == "timeout":
            return "TIMEOUT", " ".join(lines)
        if self.outcome.status == "error":
            return "ERROR", lines[-1] if lines else ""
        if self.expected and self.deviation:
            return "XFAIL", f"known deviation: {self.deviation.happens}"
        return "", ""

    @property
    def comments(self) -> list[str]:
        """The diagnostic lines."""
        if self.gone and self.deviation:
            return [
                f"{self.check.name}: passed, but the table of known deviations says that it fails "
                f"on this kernel ({self.deviation.kernels}: {self.deviation.happens})",
                "update pykcm/selftest/deviations.py",
            ]
        if self.outcome.status in ("pass", "skip"):
            return []
        lines = [f"{self.check.name}: {self.check.summary}", f"source: {self.check.source}"]
        if self.expected and self.deviation:
            lines.append(f"cause: {self.deviation.cause}")
        return lines + list(self.outcome.lines)

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "name": self.check.name,
            "summary": self.check.summary,
            "source": self.check.source,
            "status": self.outcome.status,
            "known_deviation": dataclasses.asdict(self.deviation) if self.deviation else None,
            "ok": not self.bad,
            "seconds": round(self.outcome.seconds, 3),
            "lines": list(self.outcome.lines),
        }


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
            raise ValueError(f"{pattern} is no regular expression: {error}") from None
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


def run(
    groups: Sequence[Group],
    as_json: bool = False,
    expect_known: bool = False,
    parallel: int = 1,
    file: TextIO | None = None,
) -> int:
    """Make checks, write the report as they are made, and return the exit status."""
    file = file or sys.stdout
    environment = survey()
    version = versions.running()
    uname = os.uname()
    checks = [check for group in groups for check in group.checks]
    outcomes = runner.run((runner.Job(check, Calls()) for check in checks), environment, parallel)
    verdicts: Iterator[Verdict] = (
        Verdict(check, outcome, known(check.name, version), expect_known)
        for check, outcome in zip(checks, outcomes, strict=True)
    )
    if as_json:
        collected = list(verdicts)
        status = _status(collected, environment.obstacles)
        document = {
            "kernel": f"{uname.release} {uname.version}",
            "version": ".".join(map(str, version)),
            "obstacles": environment.obstacles,
            "exit_status": status,
            "checks": [verdict.as_json() for verdict in collected],
        }
        print(json.dumps(document, indent=2), file=file)
        return status
    writer = ktap.Writer(file)
    writer.begin(len(groups))
    writer.comment([f"kernel: {uname.sysname} {uname.release} {uname.version} {uname.machine}"])
    writer.comment(f"can't test all: {reason}" for reason in environment.obstacles)
    collected = []
    for group in groups:
        nested = writer.subtest(len(group.checks), [f"Subtest: {group.name}", group.title])
        part: list[Verdict] = []
        for _ in group.checks:
            verdict = next(verdicts)
            nested.comment(verdict.comments)
            nested.result(verdict.ok, verdict.check.name, *verdict.directive)
            part.append(verdict)
        nested.end()
        skipped = all(verdict.outcome.status == "skip" for verdict in part)
        reason = " ".join(part[0].outcome.lines) if skipped else ""
        writer.result(
            not any(verdict.bad for verdict in part), group.name, "SKIP" if skipped else "", reason
        )
        collected += part
    writer.end()
    writer.comment(_summary(collected))
    return _status(collected, environment.obstacles)


def _status(verdicts: Sequence[Verdict], obstacles: Sequence[str]) -> int:
    if any(verdict.bad for verdict in verdicts):
        return FAILED
    if obstacles or all(verdict.outcome.status == "skip" for verdict in verdicts):
        return SKIPPED
    return PASSED


def _summary(verdicts: Sequence[Verdict]) -> list[str]:
    counts = Counter(
        "xfail" if verdict.expected else "fail" if verdict.bad else verdict.outcome.status
        for verdict in verdicts
    )
    gone = [verdict.check.name for verdict in verdicts if verdict.gone]
    names = ("pass", "fail", "xfail", "skip")
    lines = ["Totals: " + " ".join(f"{name}:{counts[name]}" for name in names)]
    lines += [f"known deviation that is gone: {name}" for name in gone]
    return lines
