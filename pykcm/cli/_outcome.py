"""What became of a `kcm connect`: its exit status, and the report at the end."""

from __future__ import annotations

import json
import sys
from typing import Any, NamedTuple

from pykcm import Disconnection, Reason
from pykcm.cli._answers import Answers, Identity

UNANSWERED = 3
LOST = 4
LOST_AND_UNANSWERED = 5


class Options(NamedTuple):
    """The command line; see `connect.command` for what each is."""

    host: str
    port: int
    connections: int
    listen: bool
    format: str
    body: bool
    execute: tuple[str, ...]
    rate: float | None
    limit: int | None
    wait: float | None
    times: bool
    rtt: bool
    identity: Identity | None
    reconnect: bool
    as_json: bool


class Outcome:
    """What is told of connections and mistakes, and what follows from it.

    Args:
        options: the command line.
        answers: the messages that were sent and received.
    """

    def __init__(self, options: Options, answers: Answers) -> None:
        self._options = options
        self._answers = answers
        self._failed = False
        self._ends: list[Disconnection] = []

    def ended(self, disconnection: Disconnection) -> None:
        """A connection has ended."""
        self._ends.append(disconnection)
        if not _is_clean(disconnection):
            say(f"connection lost: {disconnection}")

    def wrong(self, text: str) -> None:
        """Something went wrong after which the others go on."""
        self._failed = True
        say(text)

    def status(self, unfinished: bool) -> int:
        """The exit status.

        Args:
            unfinished: whether something was still to be sent.
        """
        if self._lost(unfinished):
            return LOST_AND_UNANSWERED if self._unanswered() else LOST
        if self._unanswered():
            return UNANSWERED
        return 1 if self._failed else 0

    def report(self, unfinished: bool) -> None:
        """Tell what was asked for, or is not as it should be, on standard error."""
        report: dict[str, Any] = {
            **self._answers.report(self._options.rtt),
            "ended": [str(each) for each in self._ends],
            "lost": self._lost(unfinished),
        }
        if self._options.as_json:
            print(json.dumps(report), file=sys.stderr)
            return
        text = "{sent} sent, {received} received, {unanswered} unanswered".format(**report)
        if self._options.rtt:
            times = " ".join(f"{name} {value}" for name, value in report["rtt_ms"].items())
            say(f"{text}; ms: {times}" if times else text)
        elif self._unanswered() or report["lost"]:
            say(text)

    def _lost(self, unfinished: bool) -> bool:
        if any(not _is_clean(each) for each in self._ends):
            return True
        if not self._ends or self._options.execute or self._options.listen:
            return False
        return unfinished or self._answers.outstanding > 0

    def _unanswered(self) -> bool:
        options = self._options
        if options.execute or options.listen or options.wait == 0:
            return False
        if options.limit is not None and self._answers.received >= options.limit:
            return False
        return self._answers.outstanding > 0


def _is_clean(disconnection: Disconnection) -> bool:
    """Whether the peer closed the connection between two messages, as far as the kernel shows."""
    return disconnection.reason is Reason.PEER_CLOSED and not disconnection.cut


def say(text: str) -> None:
    """A line on standard error."""
    print(f"kcm connect: {text}", file=sys.stderr, flush=True)
