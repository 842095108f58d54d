"""An outcome in the light of the table of known deviations."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable
from typing import Any

from pykcm.selftest.check import Check
from pykcm.selftest.deviations import Deviation
from pykcm.selftest.runner import Outcome


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
    outcome: Outcome
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
        """It does not make the whole fail."""
        if self.gone:
            return not self.expect_known
        return self.outcome.status in ("pass", "skip") or self.expected

    @property
    def kind(self) -> str:
        """What it counts as: pass, fail, xfail, xpass, skip or error, as kselftest.h has them."""
        if self.gone:
            return "xpass"
        if self.expected:
            return "xfail"
        return {"timeout": "fail", "fault": "fail"}.get(self.outcome.status, self.outcome.status)

    @property
    def directive(self) -> tuple[str, str]:
        """KTAP's directive and what follows it."""
        lines = self.outcome.lines
        if self.deviation and self.gone:
            return "XPASS", f"known deviation that is gone: {self.deviation.happens}"
        if self.deviation and self.expected:
            return "XFAIL", f"known deviation: {self.deviation.happens}"
        if self.outcome.status in ("skip", "timeout"):
            return self.outcome.status.upper(), " ".join(lines)
        if self.outcome.status in ("error", "fault"):
            return "ERROR", lines[-1] if lines else ""
        return "", ""

    @property
    def comments(self) -> list[str]:
        """The diagnostic lines."""
        lines = list(self.outcome.lines)
        if self.deviation and self.gone:
            return [
                f"{self.check.name}: passed, but the table of known deviations says that it fails "
                f"on this kernel ({self.deviation.kernels}: {self.deviation.happens})",
                "update pykcm/selftest/deviations.py",
            ]
        if self.outcome.status == "pass":
            return lines
        if self.outcome.status == "skip":
            return []
        said = [f"{self.check.name}: {self.check.summary}", f"source: {self.check.source}"]
        if self.deviation and self.expected:
            said.append(f"cause: {self.deviation.cause}")
        return said + lines

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "name": self.check.name,
            "summary": self.check.summary,
            "source": self.check.source,
            "status": self.outcome.status,
            "kind": self.kind,
            "known_deviation": dataclasses.asdict(self.deviation) if self.deviation else None,
            "ok": self.ok,
            "seconds": round(self.outcome.seconds, 3),
            "lines": list(self.outcome.lines),
        }


def totals(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """How many verdicts there are of each kind."""
    counts = Counter(verdict.kind for verdict in verdicts)
    return {kind: counts[kind] for kind in ("pass", "fail", "xfail", "xpass", "skip", "error")}
