"""The page about what of KCM is executed: numbers, a table by function, what is not and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ci.coverage import File, Line, Share
from ci.unreached import reason

NO_REASON = "**no check does yet**"
LEGEND = """\
By function: 12-15 are lines that did not run, 20: 3/4 is one that went 3 of its 4 ways."""
INTRODUCTION = """\
# What of KCM the checks reach

Written by `make debug`, which runs what the first column names, one after the other, on Debian's
kernel {kernel}, built with KASAN, lockdep, kmemleak, UBSAN, fault injection and gcov.
The percentages are those of gcov: of the lines that have code, and of the ways that branches can
go. What gcov counts as a branch includes what the compiler made of macros, assertions among them.
"""

ADDED = (
    "What earlier runs of the same build counted is added to the last phase: what takes a race\n"
    "is not reached in each run.\n"
)


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
    kernel: str,
    phases: Sequence[Mapping[str, Any]],
    saved: Mapping[str, Sequence[File]],
    added: bool = False,
) -> str:
    """The page.

    Args:
        added: what an earlier run counted was added to the last phase.
        saved: the coverage after each phase; each has what those before it reached.
    """
    *_, files = saved.values()
    lines = [INTRODUCTION.format(kernel=kernel) + (ADDED if added else "")]
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
    lines += ["## What is not reached, and why", "", LEGEND, ""]
    for file in files:
        lines += [f"### {file.name}", ""]
        for why, unreached in by_reason(file).items():
            lines += [f"- {why[0].upper()}{why[1:]}. {places(file, unreached)}"]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def by_reason(file: File) -> dict[str, list[Line]]:
    """What is not reached of a file, by the reasons; what has none comes first."""
    found: dict[str, list[Line]] = {}
    for line in file.unreached():
        found.setdefault(reason(file.name, line) or NO_REASON, []).append(line)
    return dict(sorted(found.items(), key=lambda item: item[0] != NO_REASON))


def part(share: Share) -> str:
    return f"{share.reached} of {share.total}" if share.total else "none"


def places(file: File, lines: Sequence[Line]) -> str:
    """Where they are, by function, as LEGEND says."""
    order = {line.number: place for place, line in enumerate(file.lines)}
    spans: list[list[Line]] = []
    for line in lines:
        before = spans[-1][-1] if spans else None
        follows = before and order[line.number] == order[before.number] + 1
        if (
            before
            and follows
            and before.function == line.function
            and not line.count + before.count
        ):
            spans[-1].append(line)
        else:
            spans.append([line])
    functions: dict[str, list[str]] = {}
    for first, *rest in spans:
        text = f"{first.number}-{rest[-1].number}" if rest else f"{first.number}"
        if first.count:
            text += f": {sum(1 for way in first.ways if way)}/{len(first.ways)}"
        functions.setdefault(first.function, []).append(text)
    return "; ".join(f"`{function}` {', '.join(texts)}" for function, texts in functions.items())
