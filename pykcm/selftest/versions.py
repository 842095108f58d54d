"""Kernel versions and ranges of them, for the table of known deviations alone."""

from __future__ import annotations

import os
import re

Version = tuple[int, ...]


def parse(text: str) -> Version:
    """The numbers at a version's beginning: "6.1.0-56-amd64" is (6, 1, 0)."""
    found = re.match(r"\d+(\.\d+)*", text)
    if not found:
        raise ValueError(f"no kernel version: {text!r}")
    return tuple(int(number) for number in found[0].split("."))


def running() -> Version:
    """The running kernel's version.

    Debian's release says 6.1.0 for all of 6.1; the true version stands in `uname -v`.
    """
    name = os.uname()
    found = re.search(r"\bDebian (\d+\.\d+\.\d+)", name.version)
    return parse(found[1] if found else name.release)


def within(version: Version, ranges: str) -> bool:
    """Whether a version lies in one of some ranges.

    Args:
        version: of a kernel.
        ranges: such as "5.10.156-5.10, 6.1-": each from its first to its last version, the last
            with all that begins like it; "" on either side for no limit.
    """
    for part in ranges.split(","):
        first, dash, last = part.strip().partition("-")
        if not dash:
            raise ValueError(f"no range of versions: {part!r}")
        after = not first or version >= parse(first)
        before = not last or version[: len(parse(last))] <= parse(last)
        if after and before:
            return True
    return False
