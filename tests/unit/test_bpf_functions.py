"""Functions that the verifier looks at once, however often they are called."""

from __future__ import annotations

import errno

import pytest

from pykcm import _kernel, bpf
from pykcm.bpf import Program, _functions
from pykcm.bpf import _instructions as isa
from pykcm.errors import BPFError, VerifierError
from tests.strikes import no_descriptor_left
from tests.unit.bpf_oracle import needs_bpf

# A hundred calls of a function of a hundred instructions.
HEAVY = "\n".join(["r0 += 1"] * 100)
NUMBERS = f"""
    r6 = 0
    r7 = 0
turn:
    r1 = r6
    r2 = 0
    r3 = 0
    r4 = 0
    r5 = r7
    call function
    r7 = r0
    r6 += 1
    if r6 < 100 goto turn
    exit
function:
    r0 = r5
    {HEAVY}
    exit
"""
POINTER = f"""
    r6 = 0
    *(u64 *)(r10 - 8) = r6
turn:
    r1 = r10
    r1 += -8
    call function
    *(u64 *)(r10 - 8) = r0
    r6 += 1
    if r6 < 100 goto turn
    exit
function:
    r0 = 0
    if r1 == 0 goto end
    r0 = *(u64 *)(r1 + 0)
    {HEAVY}
end:
    exit
"""


@needs_bpf
@pytest.mark.parametrize(("text", "takes"), [(NUMBERS, 0), (POINTER, 8)])
def test_a_function_is_verified_once(text: str, takes: int) -> None:
    with Program.load(text) as each, Program.load(text, functions_take=takes) as once:
        assert each.run(b"x") == once.run(b"x") == 10_000
        if each.info.verified_instructions:  # a kernel that counts
            assert each.info.verified_instructions > 10_000
            assert once.info.verified_instructions < 2_000


@needs_bpf
@pytest.mark.parametrize("takes", [None, 0])
def test_a_translated_call_of_a_function_is_disassembled(takes: int | None) -> None:
    with Program.load(NUMBERS, functions_take=takes) as loaded:
        assert loaded.translated() == bpf.assemble(NUMBERS)


@needs_bpf
def test_a_program_without_functions() -> None:
    with Program.load("r0 = 7\nexit", functions_take=0) as loaded:
        assert loaded.run(b"x") == 7


@needs_bpf
def test_a_refused_function() -> None:
    with no_descriptor_left(), pytest.raises(VerifierError) as caught:
        # A global function can't be given more than it says it takes.
        Program.load(POINTER, functions_take=16)
    assert caught.value.log


def test_a_kernel_without_btf(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(_kernel, "bpf_load", refuse)
    with pytest.raises(BPFError) as caught:
        Program.load(NUMBERS, functions_take=0)
    assert caught.value.errno == errno.EINVAL


def test_where_functions_start() -> None:
    assert _functions.starts(bpf.assemble("r0 = 0\nexit")) == [0]
    assert _functions.starts(bpf.assemble(NUMBERS)) == [0, 12]
    # What the kernel will refuse is no reason to fail here.
    outside = [isa.Instruction(isa.CALL_IMM, 0, isa.CALL_LOCAL, 0, to) for to in (-5, 500)]
    assert _functions.starts(isa.encode(outside)) == [0]
