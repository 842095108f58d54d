"""A column of the matrix: what a kernel's reports say, check by check."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias
from xml.etree import ElementTree

from ci.kernels import Kernel, is_series

PASS, DEVIATES, FAIL, SKIP, ABSENT = "pass", "deviates", "FAIL", "skip", "ABSENT"
ELSEWHERE = "-"  # what one kernel alone is asked for
PEERS = "peers"  # the group of what is, tests against real servers

WIDTH = 80  # of a log, which has none of its own
REASON = 600  # characters of what pytest says of a failure; the log above has all

Check: TypeAlias = tuple[str, str]


@dataclass
class Column:
    """One kernel's results: for each check how often it ended how, and what there is to say of it.

    A check is a group and a name in it.

    Attributes:
        problems: what is wrong with the run as a whole.
        peers: whether it is the one that meets real servers.
        peers_problems: what is wrong with the run in which it did.
        contained: whether all of it is in a privileged container.
        number: which one of this name it is, among kernels of one's own with the same release.
    """

    asked: str
    kernel: Kernel | None = None
    outcomes: dict[Check, Counter[str]] = field(default_factory=dict)
    reasons: set[tuple[Check, str, str]] = field(default_factory=set)
    problems: list[str] = field(default_factory=list)
    peers_problems: list[str] = field(default_factory=list)
    peers: bool = False
    contained: bool = False
    number: int = 1

    @property
    def name(self) -> str:
        """The series; of one's own kernel the release.  Reports are called by it."""
        own = self.kernel and not is_series(self.asked)
        name = self.kernel.release if self.kernel and own else self.asked
        name += f"-{self.number}" if self.number > 1 else ""
        return f"{name}-container" if self.contained else name

    @property
    def release(self) -> str:
        return self.kernel.release if self.kernel else "none"

    @property
    def failed(self) -> bool:
        return any(counts[FAIL] for counts in self.outcomes.values())

    @property
    def wrong(self) -> list[str]:
        """What is wrong with either run, behind the column's name."""
        return [f"{self.name} {problem}" for problem in self.problems + self.peers_problems]

    def lacks(self, check: Check) -> bool:
        """Whether a run of which nothing else is wrong is without a check."""
        problems = self.peers_problems if check[0] == PEERS else self.problems
        return not problems and self.cell(check) == ABSENT

    def cell(self, check: Check) -> str:
        if check[0] == PEERS and not self.peers:
            return ELSEWHERE
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

    def read_peers(self, rows: list[dict[str, str]]) -> None:
        """Add what ci/peers makes of its report: a row for each server, and one for each test."""
        for row in rows:
            check = (PEERS, row.get("title") or row["test"].partition("[")[0])
            self.add(check, PASS if row["result"] == PASS else FAIL, row.get("reason", ""))


def why(bad: ElementTree.Element) -> str:
    """A test's failure in a few lines: what pytest says of it, and where it was."""
    message = " ".join(bad.get("message", "").split())
    where = (bad.text or "").strip().rpartition("\n")[2]
    return f"{message[:REASON]} ({where})" if where else message[:REASON]
