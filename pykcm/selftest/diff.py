"""What differs between two reports in JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, TextIO

SAME, DIFFERENT, UNREADABLE = 0, 1, 2

# A check is told of as slower from this factor on, and from so many seconds on.
_FACTOR, _SECONDS = 5.0, 1.0

_ABSENT = "absent"


class _UnreadableError(Exception):
    """A file that is not a whole report; the text says what to do."""


def run(first: str, second: str, file: TextIO | None = None) -> int:
    """Write what differs, a line for each check.

    Args:
        first, second: paths of reports by `kcm selftest --json`.
        file: where to; standard output by default.

    Returns:
        The exit status: 0 if every check has the same result in both, 1 if not, 2 if a file can't
        be read.
    """
    file = file or sys.stdout
    try:
        before, after = _load(first), _load(second)
    except _UnreadableError as error:
        print(f"kcm selftest: {error}", file=sys.stderr)
        return UNREADABLE
    for name in ("pykcm", "kernel", "machine", "taint", "config", "ended_by"):
        if before.get(name) != after.get(name):
            print(f"{name}: {before.get(name)} -> {after.get(name)}", file=file)
    old, new = _checks(before), _checks(after)
    differ = 0
    for name in dict.fromkeys([*old, *new]):
        kinds = [checks[name]["kind"] if name in checks else _ABSENT for checks in (old, new)]
        if kinds[0] != kinds[1]:
            differ += 1
            lines = new.get(name, {}).get("lines", [])
            print(f"{name}: {kinds[0]} -> {kinds[1]}", file=file)
            print("".join(f"    {line}\n" for line in lines), end="", file=file)
        elif name in old and name in new:
            took, takes = old[name]["seconds"], new[name]["seconds"]
            if takes >= max(_SECONDS, _FACTOR * took):
                print(f"{name}: {took:g} s -> {takes:g} s", file=file)
    print(f"{differ} of {len({*old, *new})} checks differ", file=file)
    return DIFFERENT if differ else SAME


def _load(path: str) -> dict[str, Any]:
    try:
        report = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise _UnreadableError(f"{path} can't be read: {error.strerror}") from None
    except RecursionError:
        raise _UnreadableError(
            f"{path} is nested too deeply for a report: make one with kcm selftest --json"
        ) from None
    except ValueError as error:
        raise _UnreadableError(
            f"{path} is not a whole report ({error}): make it again with kcm selftest --json"
        ) from None
    checks = report.get("checks") if isinstance(report, dict) else None
    if not isinstance(checks, list) or not all(map(_is_check, checks)):
        raise _UnreadableError(
            f"{path} is JSON, but not a report: make one with kcm selftest --json"
        )
    if not checks:
        obstacles = report.get("obstacles")
        why = map(str, obstacles) if isinstance(obstacles, list) else ()
        raise _UnreadableError(": ".join([f"{path} has no checks to compare", *why]))
    return report  # type: ignore[no-any-return]


def _is_check(check: Any) -> bool:
    return (
        isinstance(check, dict)
        and isinstance(check.get("name"), str)
        and isinstance(check.get("kind"), str)
        and isinstance(check.get("seconds"), int | float)
        and isinstance(check.get("lines"), list)
    )


def _checks(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in report["checks"]}
