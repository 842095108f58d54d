"""The checks, a file for each group."""

from __future__ import annotations

from pykcm.selftest.check import Group
from pykcm.selftest.checks import (
    attach,
    clone,
    delineation,
    disable,
    disconnect,
    errors,
    faults,
    namespace,
    options,
    receive,
    resources,
    sockets,
    splice,
    statistics,
    together,
    transmit,
    unattach,
)

#: In the order in which they are made.
GROUPS: tuple[Group, ...] = tuple(
    module.GROUP
    for module in (
        sockets,
        clone,
        attach,
        unattach,
        delineation,
        receive,
        transmit,
        errors,
        disable,
        options,
        disconnect,
        splice,
        together,
        statistics,
        namespace,
        faults,
        resources,
    )
)
