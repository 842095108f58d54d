"""What `kcm demo` says, where no KCM is needed for it."""

from __future__ import annotations

import errno

import pytest
from rich.console import Console

from pykcm.cli import demo


@pytest.mark.parametrize(
    ("number", "name"),
    [(errno.EMSGSIZE, "EMSGSIZE"), (errno.EPIPE, "EPIPE"), (116143283, "garbage")],
)
def test_the_name_of_an_error(number: int, name: str) -> None:
    """The documented program's garbage was called errno 116143283, as if there were such a one."""
    assert demo._name(number) == name


def test_what_is_said_of_connections_that_ended(capsys: pytest.CaptureFixture[str]) -> None:
    right = demo.Result(2, 80, [(2, 80, 0)], 2, 0, 1.0, {})
    naive = demo.Result(2, 80, [(1, 40, 1)], 0, 0, 1.0, {0: "garbage", 1: "garbage"})
    demo._print(Console(width=80), demo._report(7, right, naive, "probe"))
    said = " ".join(capsys.readouterr().out.split())
    assert "2 of 2 messages lost or wrong; 2 connections ended by garbage" in said
