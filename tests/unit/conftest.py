"""What several files' tests are given."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from pykcm import _faults
from tests.unit.stand_in import World, stand_in


@pytest.fixture(autouse=True)
def _no_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checks that tests make up are not told of in this machine's log."""
    monkeypatch.setattr(_faults, "note", lambda check: None)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A Multiplexor with one live transport, where there is no AF_KCM."""
    stand_in(monkeypatch)
    with contextlib.closing(World()) as world:
        yield world


@pytest.fixture
def no_resolver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of hosts in .invalid do not resolve, without anybody's being asked."""
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
