"""Delineation programs that were not written by a Framing, on a real kernel: by hand and from C."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

import pytest

import pykcm
from pykcm import _loopback, _offset, bpf
from pykcm._offset import find_strategy
from pykcm.errors import VerifierError
from tests.kernel.connections import PATIENCE, message

SOURCES = Path(__file__).parents[1] / "unit" / "c"

BY_HAND = """
    r7 = message_offset
    r0 = *(u32 *)skb[r7 + 0]
    r0 += HEADER
    exit
"""
MESSAGES = [message(bytes([size & 255]) * size) for size in (10, 20, 5, 300, 7, 1000, 3, 0)]


def received(program: bpf.Program) -> list[bytes]:
    """Messages that are in one segment when the program is attached, as KCM delivers them."""
    near, far = _loopback.connection()
    with near, far, pykcm.KCMSocket() as sock:
        sock.settimeout(30)
        far.sendall(b"".join(MESSAGES))
        sock.attach(near, program)
        return [sock.recv() for _ in MESSAGES]


def test_the_line_for_the_offset_is_right_in_a_program_by_hand() -> None:
    lines = find_strategy().lines()
    with bpf.Program.load(BY_HAND, message_offset=lines, HEADER=4) as program:
        assert received(program) == MESSAGES


@pytest.mark.parametrize("name", ["cb1", "cb4", "probe"])
def test_a_guess_at_the_offset_is_answered_at_once(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wrong one too: the kernel may not wait for the rest of a message that nobody sent."""
    monkeypatch.setattr(_offset, "_EXPERIMENT_TIMEOUT", 3 * PATIENCE)
    start = time.monotonic()
    with contextlib.suppress(VerifierError):  # this kernel has no such helper, or field
        text = _offset._experiment(_offset.STRATEGIES[name])
        with bpf.Program.load(text) as program:
            right = _offset._delineates(program)
        # The offset of skb->cb is the one of this kernel's build only in what was found.
        assert right == (find_strategy().name == name) or name == "probe"
    assert time.monotonic() - start < PATIENCE


def test_the_same_from_c() -> None:
    """What clang makes of the C program; the unit tests compare it with clang."""
    if find_strategy().name != "probe":
        pytest.skip("the C program is for kernels that need bpf_probe_read_kernel: 5.16 and later")
    text = (SOURCES / "message_offset.clang-19.bpf").read_text(encoding="ascii")
    with bpf.Program.load(text) as program:
        assert received(program) == MESSAGES


def test_a_pinned_program_is_attached_by_path(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "bpf", "bpf", str(tmp_path)], check=True)
    try:
        with bpf.Program.load(BY_HAND, message_offset=find_strategy().lines(), HEADER=4) as program:
            program.pin(tmp_path / "framing")
        with bpf.Program.from_pin(tmp_path / "framing") as program:
            assert received(program) == MESSAGES
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)
