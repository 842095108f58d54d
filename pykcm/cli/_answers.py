"""Which message has its answer, and how long it took."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any, NamedTuple

_PERCENTILES = (50, 90, 99)


class Identity(NamedTuple):
    """Where in a message stands what its answer has at the same place.

    Attributes:
        offset: the first byte, counted from the message's first.
        size: in bytes.
    """

    offset: int
    size: int

    def of(self, message: bytes) -> bytes | None:
        """It, or None for a message that is too short."""
        found = message[self.offset : self.offset + self.size]
        return found if len(found) == self.size else None


class Answers:
    """Counts messages, and matches what came in with what was sent.

    Args:
        identity: how answers are known; None takes them in the order of the messages.

    Attributes:
        sent, received: how many messages.
        times: how long each answer took, in seconds.
    """

    def __init__(self, identity: Identity | None) -> None:
        self._identity = identity
        self._open: dict[bytes | None, deque[float]] = {}
        self.outstanding = 0
        self.sent = 0
        self.received = 0
        self.times: list[float] = []

    def going(self, message: bytes) -> None:
        """A message is being sent now."""
        key = self._identity.of(message) if self._identity else None
        self._open.setdefault(key, deque()).append(time.monotonic())
        self.outstanding += 1
        self.sent += 1

    def not_gone(self, message: bytes) -> None:
        """It could not be sent."""
        self._open[self._identity.of(message) if self._identity else None].pop()
        self.outstanding -= 1
        self.sent -= 1

    def came(self, message: bytes) -> None:
        """A message came in."""
        self.received += 1
        key = self._identity.of(message) if self._identity else None
        waiting = self._open.get(key)
        if not waiting:
            return
        self.times.append(time.monotonic() - waiting.popleft())
        self.outstanding -= 1
        if not waiting:
            del self._open[key]

    def report(self, timed: bool) -> dict[str, Any]:
        """What is to be said at the end; times in milliseconds if they were asked for."""
        told: dict[str, Any] = {
            "sent": self.sent,
            "received": self.received,
            "unanswered": self.outstanding,
        }
        if timed:
            told["rtt_ms"] = self._percentiles()
        return told

    def _percentiles(self) -> dict[str, float]:
        times = sorted(self.times)
        if not times:
            return {}
        ranks = {f"p{each}": math.ceil(len(times) * each / 100) - 1 for each in _PERCENTILES}
        ranks = {"min": 0, **ranks, "max": len(times) - 1}
        return {name: round(1000 * times[rank], 3) for name, rank in ranks.items()}
