"""What is known of the running kernel's own faults and holes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from pykcm import _faults
from pykcm.doctor.finding import Finding, ok, unknown, warning
from pykcm.doctor.situation import Situation
from pykcm.selftest import versions

# Documentation/admin-guide/tainted-kernels.rst; _faults has those that a fault of the kernel sets.
_LETTERS = "PFSRMBUDAWCIOELKXTNJ"


class Hole(NamedTuple):
    """A published hole of KCM.

    Attributes:
        name: its CVE.
        what: what can happen.
        fixed: the first version of each series that has the fix, by the CVE's record; later series
            have it all.
    """

    name: str
    what: str
    fixed: tuple[str, ...]


HOLES = (
    Hole(
        "CVE-2025-38717",
        "closing a socket while a connection is unattached can use freed memory",
        ("6.12.43", "6.15.11", "6.16.2", "6.17"),
    ),
    Hole(
        "CVE-2026-43244",
        "a send whose buffer can't be read leaves an empty buffer behind, and the kernel warns",
        ("6.12.75", "6.18.16", "6.19.6", "7.0"),
    ),
    Hole(
        "CVE-2026-46102",
        "a message whose rest does not come in time leaks its memory",
        ("5.10.258", "5.15.209", "6.1.175", "6.6.140", "6.12.86", "6.18.27", "7.0.4", "7.1"),
    ),
)


def taint(situation: Situation) -> Iterator[Finding]:
    """Whether the kernel is tainted."""
    name = "taint"
    text = situation.system.read("/proc/sys/kernel/tainted")
    if text is None or not text.isdigit():
        yield unknown(name, "/proc/sys/kernel/tainted can't be read")
        return
    value = int(text)
    if not value:
        yield ok(name, "the kernel is not tainted")
        return
    letters = "".join(letter for bit, letter in enumerate(_LETTERS) if value >> bit & 1)
    faults = _faults.new_taints(0, value)
    if faults:
        yield warning(
            name,
            f"the kernel had a fault of its own since it was booted ({letters or value}): "
            f"{', '.join(faults)}",
            "sudo reboot",
            "see what dmesg says first",
        )
    else:
        yield warning(
            name,
            f"the kernel is tainted ({letters or value}), by no fault of its own",
            "cat /sys/module/*/taint",
            "which modules did it, if any; report no bug of the kernel that needs them",
        )


def holes(situation: Situation) -> Iterator[Finding]:
    """Which of the published holes this kernel's version says are fixed."""
    version = versions.running()
    shown = ".".join(map(str, version))
    for hole in HOLES:
        fixed = is_fixed(version, hole)
        if fixed:
            yield ok(hole.name, f"fixed in this kernel, {shown}: {hole.what}")
        else:
            yield unknown(
                hole.name,
                f"{hole.what}; this kernel's version, {shown}, has no fix by the public record, "
                "but a distribution may have put it in",
                advice="see the changelog of the kernel's package",
            )


def is_fixed(version: versions.Version, hole: Hole) -> bool:
    """Whether a version has the fix of a hole."""
    fixed = [versions.parse(text) for text in hole.fixed]
    if version[: len(fixed[-1])] >= fixed[-1]:
        return True
    return any(version[:2] == each[:2] and version >= each for each in fixed)
