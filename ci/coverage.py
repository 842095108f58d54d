"""What of the kernel's code was executed, by what gcov says of it.

The kernel counts in memory and shows its counts in debugfs; what a count is of stands in the files
that the compiler left where the kernel was built. gcov, of the compiler's own version, puts the two
together.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ci.building import COVERED, DEBUG, SOURCE
from ci.kernels import KernelUnavailableError

# Where a guest finds the counts of a kernel that was built in a directory of the host.
DEBUGFS = Path("/sys/kernel/debug/gcov")


@dataclass(frozen=True)
class Line:
    """A line of source that has code: how often it ran, and each way that it branched.

    Attributes:
        ways: how often each was taken; none if the line does not branch.
    """

    number: int
    function: str
    text: str
    count: int
    ways: tuple[int, ...] = ()


@dataclass
class Share:
    """How many of something were reached."""

    reached: int = 0
    total: int = 0

    def add(self, reached: int, total: int) -> None:
        self.reached += reached
        self.total += total

    @property
    def percent(self) -> float:
        return 100 * self.reached / self.total if self.total else 100.0

    def __str__(self) -> str:
        return f"{self.percent:.1f} %"


@dataclass
class Function:
    """A function's coverage."""

    name: str
    first: int
    lines: Share = field(default_factory=Share)
    branches: Share = field(default_factory=Share)


@dataclass
class File:
    """A source file's coverage."""

    name: str
    lines: list[Line]

    @property
    def line_share(self) -> Share:
        return Share(sum(1 for line in self.lines if line.count), len(self.lines))

    @property
    def branch_share(self) -> Share:
        ways = [way for line in self.lines for way in line.ways]
        return Share(sum(1 for way in ways if way), len(ways))

    def functions(self) -> list[Function]:
        """In the order of the source."""
        found: dict[str, Function] = {}
        for line in self.lines:
            function = found.setdefault(line.function, Function(line.function, line.number))
            function.lines.add(int(line.count > 0), 1)
            function.branches.add(sum(1 for way in line.ways if way), len(line.ways))
        return sorted(found.values(), key=lambda function: function.first)

    def unreached(self) -> list[Line]:
        """Lines that did not run, and those of which a way was not taken."""
        return [line for line in self.lines if not line.count or 0 in line.ways]


def save(target: Path) -> None:
    """In the guest: copy the counts as they are now.

    Raises:
        FileNotFoundError: the kernel has no counts, or not of these files.
    """
    for name in COVERED:
        # They have no size before they are read.
        data = (DEBUGFS / str(DEBUG.directory / name)[1:]).with_suffix(".gcda").read_bytes()
        file = target / f"{Path(name).name}.gcda"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def add(directory: Path, other: Path) -> None:
    """Add the counts that another run saved to those of a directory.

    Raises:
        KernelUnavailableError: they are of another build, or can't be read.
    """
    both = directory.with_name(f"{directory.name}.both")
    command = ["gcov-tool", "merge", "--output", str(both), str(directory), str(other)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        said = (result.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise KernelUnavailableError(f"the counts of two runs can't be added: {said}")
    for file in both.iterdir():
        file.replace(directory / file.name)
    both.rmdir()


def read(directory: Path) -> list[File]:
    """What the counts that were saved in a directory say.

    Raises:
        KernelUnavailableError: they can't be read; says why.
    """
    return [_file(name, directory) for name in COVERED]


def _file(name: str, directory: Path) -> File:
    stem = Path(name).name
    shutil.copy((DEBUG.directory / name).with_suffix(".gcno"), directory)
    result = subprocess.run(
        ["gcov", "--json-format", "--branch-probabilities", "--stdout", f"{stem}.gcda"],
        cwd=directory,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode or not result.stdout.strip():
        said = (result.stderr.strip().splitlines() or ["it said nothing"])[0]
        raise KernelUnavailableError(
            f"gcov can't read what was counted: {said}; it has to be of the compiler that "
            "built the kernel"
        )
    source = SOURCE / f"{name}.c"
    return parse(f"{name}.c", json.loads(result.stdout), source.read_text(encoding="utf-8"))


def parse(name: str, document: dict[str, Any], source: str) -> File:
    """One source file of gcov's document; lines of the headers are left out."""
    texts = source.splitlines()
    found: dict[int, Line] = {}
    for entry in document["files"]:
        if not entry["file"].endswith(name):
            continue
        starts = [(f["start_line"], f["end_line"], f["name"]) for f in entry["functions"]]
        for line in entry["lines"]:
            number = line["line_number"]
            function = line.get("function_name") or _around(number, starts)
            ways = tuple(branch["count"] for branch in line["branches"])
            before = found.get(number)
            # A line that is in the document twice was compiled into two functions.
            found[number] = Line(
                number,
                function,
                texts[number - 1].strip(),
                line["count"] + (before.count if before else 0),
                ways + (before.ways if before else ()),
            )
    return File(name, [found[number] for number in sorted(found)])


def _around(number: int, starts: list[tuple[int, int, str]]) -> str:
    """The function in which a line is."""
    return next((name for first, last, name in starts if first <= number <= last), "")
