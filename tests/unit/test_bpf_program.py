"""Loading, running, describing and pinning programs, on the kernel at hand."""

from __future__ import annotations

import pytest

from pykcm import bpf
from pykcm.errors import VerifierError


def test_a_program_sees_the_data_from_offset_0() -> None:
    with bpf.Program.load("r6 = r1\nr0 = *(u32 *)skb[0]\nexit") as program:
        assert program.run(b"\x00\x01\x02\x03") == 0x010203


def test_a_negative_result_reads_as_such() -> None:
    with bpf.Program.load("r0 = ERROR\nexit", ERROR=-90) as program:
        assert program.run(b"x") == -90


def test_the_verifier_is_quoted_with_the_line_of_the_text() -> None:
    text = "r6 = r1\nr0 = 0\nr2 = *(u32 *)(r6 + 1000)  # too far\nexit"
    with pytest.raises(VerifierError, match="line 3 of the text:\n    r2 = ") as caught:
        bpf.Program.load(text)
    assert "invalid bpf_context access off=1000 size=4" in str(caught.value)
    assert "invalid bpf_context access off=1000 size=4" in caught.value.log
