"""The page about what of KCM is executed: numbers, a table by function, what is not and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ci.coverage import File, Line, Share
from ci.unreached import reason

INTRODUCTION = """\
# What of KCM the checks reach

Written by `make debug`, which runs `kcm selftest`, its stress and some of the kernel tests on a
kernel of Debian's source ({kernel}) with KASAN, lockdep, kmemleak, UBSAN, fault injection and gcov.
The percentages are those of gcov: of the lines that have code, and of the ways that branches can
go. What gcov counts as a branch includes what the compiler made of macros, assertions among them.
"""


def summary(files: Sequence[File]) -> dict[str, Any]:
    """For a JSON document."""

    def share(it: Share) -> dict[str, Any]:
        return {"reached": it.reached, "total": it.total, "percent": round(it.percent, 1)}

    return {
        file.name: {
            "lines": share(file.line_share),
            "branches": share(file.branch_share),
            "functions": {
                function.name: {
                    "lines": share(function.lines),
                    "branches": share(function.branches),
                }
                for function in file.functions()
            },
            "unreached": [
                {
                    "line": line.number,
                    "function": line.function,
                    "text": line.text,
                    "count": line.count,
                    "ways": list(line.ways),
                    "reason": reason(file.name, line),
                }
                for line in file.unreached()
            ],
        }
        for file in files
    }


def table(rows: Sequence[Sequence[str]], head: Sequence[str]) -> list[str]:
    """A table of Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    return [lines[0], "|---" * len(head) + "|", *lines[1:], ""]


def document(
    kernel: str, phases: Sequence[Mapping[str, Any]], saved: Mapping[str, Sequence[File]]
) -> str:
    """The page.

    Args:
        saved: the coverage after each phase; each has what those before it reached.
    """
    *_, files = saved.values()
    lines = [INTRODUCTION.format(kernel=kernel)]
    rows = []
    for name, reached in saved.items():
        seconds = next(str(phase["seconds"]) for phase in phases if phase["name"] == name)
        for file in reached:
            rows.append([name, seconds, file.name, str(file.line_share), str(file.branch_share)])
    lines += table(rows, ["after", "s", "file", "lines", "branches"])
    lines += ["## By function", "", "Those that were not reached wholly.", ""]
    rows = [
        [f"`{function.name}`", part(function.lines), part(function.branches)]
        for file in files
        for function in file.functions()
        if function.lines.percent < 100 or function.branches.percent < 100
    ]
    lines += table(rows, ["function", "lines", "branches"])
    lines += ["## What is not reached, and why", ""]
    for file in files:
        lines += [f"### {file.name}", ""]
        for why, places in by_reason(file).items():
            lines += [f"- {why}: {', '.join(map(place, places))}"]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def by_reason(file: File) -> dict[str, list[Line]]:
    """What is not reached of a file, by the reasons; what has none comes first."""
    found: dict[str, list[Line]] = {}
    for line in file.unreached():
        found.setdefault(reason(file.name, line) or "**no check does yet**", []).append(line)
    return dict(sorted(found.items(), key=lambda item: not item[0].startswith("**")))


def part(share: Share) -> str:
    return f"{share.reached} of {share.total}" if share.total else "none"


def place(line: Line) -> str:
    """Where it is, and how much of it."""
    ways = f" ({sum(1 for way in line.ways if way)} of {len(line.ways)} ways)" if line.count else ""
    return f"`{line.function}` {line.number}{ways}"
