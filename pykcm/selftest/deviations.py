"""The known deviations: checks that fail on some kernels, and why."""

from __future__ import annotations

import dataclasses

from pykcm.selftest import versions


@dataclasses.dataclass(frozen=True)
class Deviation:
    """A check that fails on some kernels.

    Attributes:
        check: the check's name.
        kernels: on which it fails, as versions.within takes them.
        happens: what the kernel does instead.
        cause: the place in the kernel's source, as far as it is known.
        since: the commit or version that brought it.
    """

    check: str
    kernels: str
    happens: str
    cause: str
    since: str


DEVIATIONS: tuple[Deviation, ...] = ()


def known(check: str, version: versions.Version) -> Deviation | None:
    """What the table says of a check on a kernel."""
    for deviation in DEVIATIONS:
        if deviation.check == check and versions.within(version, deviation.kernels):
            return deviation
    return None
