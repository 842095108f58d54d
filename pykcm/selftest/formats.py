"""The formats of a report.

All but JSON are written as the checks are made.  KTAP is nested, and is read by the kernel's
kunit.py.  TAP is flat, and is read by prove, tappy and others.  The kernel's selftests write TAP 13
in a way of their own (tools/testing/selftests/kselftest.h): their runner and netdev's CI want no
indentation, "time=…ms" at the end, and " # SKIP" only where the whole was skipped.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TextIO

from pykcm.selftest.check import Group
from pykcm.selftest.ktap import KTAP, TAP, Writer
from pykcm.selftest.verdict import Verdict, totals


class Report:
    """A report that is written while the checks are made.

    Args:
        file: where to.
        facts: what there is to know about the run, by name.
        obstacles: why not all can be tested here.

    Attributes:
        verdicts: what was reported so far.
    """

    def __init__(self, file: TextIO, facts: dict[str, str], obstacles: Sequence[str]) -> None:
        self.file = file
        self.facts = facts
        self.obstacles = obstacles
        self.verdicts: list[Verdict] = []

    def nothing(self, reason: str, status: int) -> None:
        """No check can be made, for this reason: the whole report.

        Args:
            reason: why.
            status: the exit status.
        """
        raise NotImplementedError

    def begin(self, groups: Sequence[Group]) -> None:
        """These checks will be made."""

    def begin_group(self, group: Group) -> None:
        """The verdicts of a group follow."""

    def verdict(self, verdict: Verdict) -> None:
        """A check was made."""
        self.verdicts.append(verdict)

    def end_group(self) -> None:
        """All checks of the group were made."""

    def end(self, status: int, ended_by: str = "") -> None:
        """No more checks will be made.

        Args:
            status: the exit status.
            ended_by: the signal before whose time there would have been more.
        """
        raise NotImplementedError


class _TextReport(Report):
    """What the formats for people have in common."""

    version: str

    def __init__(self, file: TextIO, facts: dict[str, str], obstacles: Sequence[str]) -> None:
        super().__init__(file, facts, obstacles)
        self._out = Writer(file, self.version)
        self._results = self._out

    def nothing(self, reason: str, status: int) -> None:
        self._out.nothing(reason)
        self._facts()

    def verdict(self, verdict: Verdict) -> None:
        super().verdict(verdict)
        self._results.comment(verdict.comments)
        self._results.result(verdict.ok, verdict.check.name, self._data(verdict))

    def end(self, status: int, ended_by: str = "") -> None:
        if ended_by:
            self._out.bail_out(f"ended by {ended_by}")
        else:
            self._out.end()
        counts = " ".join(f"{kind}:{count}" for kind, count in totals(self.verdicts).items())
        self._out.comment([f"Totals: {counts}"])

    def _begin(self, planned: int) -> None:
        self._out.begin(planned)
        self._facts()
        self._out.comment(f"can't test all: {reason}" for reason in self.obstacles)

    def _facts(self) -> None:
        self._out.comment(f"{name}: {text}" for name, text in self.facts.items())

    def _data(self, verdict: Verdict) -> str:
        """What follows a check's name."""
        return " ".join([*verdict.directive, f"time={verdict.outcome.seconds * 1000:.0f}ms"])


class KTAPReport(_TextReport):
    """Nested: each group is a test whose subtests are its checks."""

    version = KTAP

    def begin(self, groups: Sequence[Group]) -> None:
        self._begin(len(groups))

    def begin_group(self, group: Group) -> None:
        self._group, self._first = group, len(self.verdicts)
        self._results = self._out.nested()
        self._results.begin(len(group.checks), [f"Subtest: {group.name}", group.title])

    def end_group(self) -> None:
        self._results.end()
        verdicts = self.verdicts[self._first :]
        skipped = all(verdict.outcome.status == "skip" for verdict in verdicts)
        data = " ".join(verdicts[0].directive) if skipped else ""
        self._out.result(all(verdict.ok for verdict in verdicts), self._group.name, data)


class TAPReport(_TextReport):
    """Flat: one list of all checks."""

    version = TAP

    def begin(self, groups: Sequence[Group]) -> None:
        self._begin(sum(len(group.checks) for group in groups))

    def begin_group(self, group: Group) -> None:
        self._out.comment([f"{group.name}: {group.title}"])


class SelftestReport(TAPReport):
    """As the kernel's selftests write it."""

    def _data(self, verdict: Verdict) -> str:
        # netdev's CI takes the whole for skipped where it reads " # SKIP", a check also by "skip".
        data = super()._data(verdict)
        return data.replace("SKIP", "skip", 1) if data.startswith("SKIP") else data


class JSONReport(Report):
    """One document, written at the end."""

    def nothing(self, reason: str, status: int) -> None:
        self.end(status)

    def end(self, status: int, ended_by: str = "") -> None:
        document = {
            **{name.replace(" ", "_"): text for name, text in self.facts.items()},
            "obstacles": list(self.obstacles),
            "ended_by": ended_by or None,
            "exit_status": status,
            "totals": totals(self.verdicts),
            "checks": [verdict.as_json() for verdict in self.verdicts],
        }
        print(json.dumps(document, indent=2), file=self.file, flush=True)


FORMATS: dict[str, type[Report]] = {
    "ktap": KTAPReport,
    "tap": TAPReport,
    "ksft": SelftestReport,
    "json": JSONReport,
}
