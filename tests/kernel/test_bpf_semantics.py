"""The unit tests of what the instructions do, on this kernel too, with fewer of the edge values."""

from __future__ import annotations

import pytest

from tests.unit import test_bpf_semantics
from tests.unit.test_bpf_semantics import *  # noqa: F403

EDGES = [0, 1, 33, 0x1234_5678_9ABC_DEF0, 1 << 31, 1 << 63, (1 << 64) - 1]


@pytest.fixture(autouse=True)
def few_edge_values(monkeypatch: pytest.MonkeyPatch) -> None:
    """An emulated guest is slow."""
    monkeypatch.setattr(test_bpf_semantics, "EDGES_64", EDGES)
    monkeypatch.setattr(test_bpf_semantics, "ALL_PAIRS", [(a, b) for a in EDGES for b in EDGES])
    monkeypatch.setattr(test_bpf_semantics, "EDGES_IMM", [0, 7, -1, -(1 << 31)])
