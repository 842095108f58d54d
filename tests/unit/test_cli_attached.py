"""`kcm disasm --attached`: which program a connection has, as far as the kernel tells."""

from __future__ import annotations

import click
import pytest

from pykcm._joining import kernel
from pykcm.cli import _attached
from tests.unit.stat_machine import MEMBERS, Lists, Machine, machine

__all__ = ["machine"]  # a fixture

ENDS = ("10.0.0.1:40001", "10.0.0.2:9090")


@pytest.mark.parametrize("end", ENDS)
def test_the_program_of_a_connection(machine: Machine, end: str) -> None:
    assert _attached.to(end) == 77
    assert _attached.transports() == [_attached.Attached(77, 2, 0, *ENDS)]


def test_a_connection_that_is_not_attached(machine: Machine) -> None:
    with pytest.raises(click.ClickException, match=r"no transport has the address 10\.0\.0\.9:1"):
        _attached.to("10.0.0.9:1")


def test_without_the_module_nothing_is_attached(machine: Machine) -> None:
    machine.texts.clear()
    assert _attached.transports() == []


def test_who_may_not_read_the_kernels_lists_is_told_so(machine: Machine) -> None:
    machine.lists = None
    with pytest.raises(click.ClickException, match=r"can't be told: joined by .*: not this one"):
        _attached.to(ENDS[0])


def test_two_programs_of_one_peer(machine: Machine) -> None:
    """The far end of both connections is the same; each has a program of its own."""
    first, second = (kernel.Psock(0x23 + place, place, 501, 0, 0, 77 + place) for place in range(2))
    line = next(line for line in machine.texts["/proc/net/kcm"].splitlines() if "psock-0" in line)
    both = f"{line}\n{line.replace('psock-0', 'psock-1')}"
    machine.texts["/proc/net/kcm"] = machine.texts["/proc/net/kcm"].replace(line, both)
    machine.lists = Lists([[MEMBERS[0]._replace(psocks=(first, second)), MEMBERS[1]]])
    with pytest.raises(click.ClickException, match="transports with several programs"):
        _attached.to(ENDS[1])


def test_a_program_that_could_not_be_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection is there, and is not denied; others' programs were told."""
    rows = [_attached.Attached(None, 2, 0, *ENDS)]
    monkeypatch.setattr(_attached, "transports", lambda: rows)
    with pytest.raises(click.ClickException, match="can't be told just now; try again"):
        _attached.to(ENDS[0])
