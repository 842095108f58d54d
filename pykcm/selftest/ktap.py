"""KTAP version 1, as the kernel's Documentation/dev-tools/ktap.rst describes it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TextIO


class Writer:
    """Writes a KTAP report, a line at a time, so that it can be followed.

    Args:
        file: where to.
        level: how deep this report is nested.
    """

    def __init__(self, file: TextIO, level: int = 0) -> None:
        self._file = file
        self._indent = "  " * level
        self._level = level
        self._number = 0
        self._planned: int | None = None

    def begin(self, planned: int) -> None:
        """The version and the plan: how many results will follow."""
        self._planned = planned
        self._line("KTAP version 1")
        self._line(f"1..{planned}")

    def subtest(self, planned: int, comments: Iterable[str]) -> Writer:
        """Begin a nested report, whose result the caller writes when it is done."""
        nested = Writer(self._file, self._level + 1)
        nested._planned = planned
        nested._line("KTAP version 1")
        nested.comment(comments)
        nested._line(f"1..{planned}")
        return nested

    def comment(self, lines: Iterable[str]) -> None:
        """Diagnostic lines; those about a result come before it."""
        for line in lines:
            for part in line.splitlines() or [""]:
                self._line(f"# {part}".rstrip())

    def result(self, passed: bool, name: str, directive: str = "", reason: str = "") -> None:
        """A result line.

        Args:
            passed: whether it is "ok".
            name: of what was tested.
            directive: SKIP, XFAIL, TIMEOUT or ERROR, or nothing.
            reason: what follows the directive.
        """
        self._number += 1
        if self._planned is not None and self._number > self._planned:
            raise ValueError(f"result {self._number} of {self._planned} planned: {name}")
        words = ["ok" if passed else "not ok", str(self._number), escaped(name)]
        if directive:
            words += ["#", directive, " ".join(reason.split())]
        self._line(" ".join(word for word in words if word))

    def end(self) -> None:
        """Check that the plan was kept.

        Raises:
            ValueError: a result is missing.
        """
        if self._number != self._planned:
            raise ValueError(f"{self._number} results of {self._planned} planned")

    def _line(self, text: str) -> None:
        self._file.write(f"{self._indent}{text}\n")
        self._file.flush()


def escaped(name: str) -> str:
    """A name that can't be taken for a directive: a hash sign begins one."""
    return " ".join(name.replace("#", "\\#").split())


def blocks(text: str) -> Iterator[str]:
    """The nested reports of a report, each without its indentation."""
    block: list[str] = []
    for line in [*text.splitlines(), ""]:
        if line.startswith("  "):
            block.append(line[2:])
        elif block:
            yield "\n".join(block) + "\n"
            block = []
