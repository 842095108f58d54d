"""What several files' tests are given."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest

from tests.unit.stand_in import World, stand_in


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """A Multiplexor with one live transport, where there is no AF_KCM."""
    stand_in(monkeypatch)
    with contextlib.closing(World()) as world:
        yield world
