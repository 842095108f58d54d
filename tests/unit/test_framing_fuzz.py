"""Kernel, C and Python agree; `python -m tests.framing_fuzz` tries as often as one likes."""

from __future__ import annotations

import time

from tests import framing_fuzz
from tests.unit.bpf_oracle import needs_bpf


@needs_bpf
def test_none_is_different() -> None:
    seed = time.time_ns() % 1_000_000
    print(f"seed {seed}")
    outcomes = framing_fuzz.run(3000, seed)
    assert outcomes["cases"] == 3000
    # Of everything something, so that agreement means something.
    for outcome in ("lengths", "refusals", "too little", "super messages"):
        assert outcomes[outcome] > 30, outcomes
