"""KTAP version 1 and TAP version 13, a line at a time.

Sources: the kernel's Documentation/dev-tools/ktap.rst, and testanything.org.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO

# The first lines.
KTAP, TAP = "KTAP version 1", "TAP version 13"


class Writer:
    """Writes the lines of one level, and sees that the plan is kept.

    Args:
        file: where to.
        version: the first line.
        level: how deep this report is nested.
    """

    def __init__(self, file: TextIO, version: str = KTAP, level: int = 0) -> None:
        self._file = file
        self._version = version
        self._level = level
        self._number = 0
        self._planned = 0

    def begin(self, planned: int, comments: Iterable[str] = ()) -> None:
        """The version, and the plan: how many results will follow."""
        self._planned = planned
        self._line(self._version)
        self.comment(comments)
        self._line(f"1..{planned}")

    def nothing(self, reason: str) -> None:
        """A report without results, since none can be had."""
        self._line(self._version)
        self._line(f"1..0 # SKIP {_one_line(reason)}")

    def nested(self) -> Writer:
        """A report inside, whose result the caller writes when it is done."""
        return Writer(self._file, self._version, self._level + 1)

    def comment(self, lines: Iterable[str]) -> None:
        """Diagnostic lines; those about a result come before it."""
        for line in lines:
            for part in line.splitlines() or [""]:
                self._line(f"# {part}".rstrip())

    def result(self, passed: bool, name: str, data: str = "") -> None:
        """A result line.

        Args:
            passed: whether it is "ok".
            name: of what was tested.
            data: what follows the name: SKIP, XFAIL, TIMEOUT or ERROR with the reason, or anything.

        Raises:
            ValueError: that is more than was planned.
        """
        self._number += 1
        if self._number > self._planned:
            raise ValueError(f"result {self._number} of {self._planned} planned: {name}")
        # A hash sign in a name would begin a directive.
        shown = _one_line(name).replace("#", "\\#")
        line = f"{'ok' if passed else 'not ok'} {self._number} {shown}"
        self._line(f"{line} # {_one_line(data)}" if data else line)

    def end(self) -> None:
        """Check that the plan was kept.

        Raises:
            ValueError: a result is missing.
        """
        if self._number != self._planned:
            raise ValueError(f"{self._number} results of {self._planned} planned")

    def bail_out(self, reason: str) -> None:
        """No more results will follow, for this reason."""
        self._file.write(f"Bail out! {_one_line(reason)}\n")
        self._file.flush()

    def _line(self, text: str) -> None:
        self._file.write(f"{'  ' * self._level}{text}\n")
        self._file.flush()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def blocks(text: str) -> Iterator[str]:
    """The nested reports of a report in KTAP, each without its indentation."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("  "):
            block.append(line[2:])
        elif block:
            yield "\n".join(block) + "\n"
            block = []
