"""What an examination finds."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterable
from typing import Any


class Status(str, enum.Enum):
    """How a thing is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"
    UNKNOWN = "unknown"


@dataclasses.dataclass(frozen=True)
class Finding:
    """A line of the report.

    Attributes:
        name: of what was looked at; it stays the same from version to version.
        status: UNKNOWN where it can't be found out, or was not for what `text` says.
        text: what was found, in a sentence or two.
        fix: the command that puts it right; empty where none does.
        advice: what else puts it right, or has to be known for the command; may be empty.
    """

    name: str
    status: Status
    text: str
    fix: str = ""
    advice: str = ""

    def as_dict(self) -> dict[str, str]:
        """For JSON."""
        return {
            "name": self.name,
            "status": self.status.value,
            "text": self.text,
            "fix": self.fix,
            "advice": self.advice,
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Finding:
        """What `as_dict` made."""
        return cls(data["name"], Status(data["status"]), data["text"], data["fix"], data["advice"])


def ok(name: str, text: str) -> Finding:
    """What works."""
    return Finding(name, Status.OK, text)


def warning(name: str, text: str, fix: str = "", advice: str = "") -> Finding:
    """What works, but not as well as it could."""
    return Finding(name, Status.WARNING, text, fix, advice)


def problem(name: str, text: str, fix: str = "", advice: str = "") -> Finding:
    """What keeps KCM from being used."""
    return Finding(name, Status.PROBLEM, text, fix, advice)


def unknown(name: str, text: str, fix: str = "", advice: str = "") -> Finding:
    """What can't be found out, or was not tried."""
    return Finding(name, Status.UNKNOWN, text, fix, advice)


def exit_status(findings: Iterable[Finding]) -> int:
    """0 if all is well, 1 with a warning, 2 with a problem; what is not known does not count."""
    found = {finding.status for finding in findings}
    return 2 if Status.PROBLEM in found else 1 if Status.WARNING in found else 0
