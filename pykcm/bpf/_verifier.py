"""What the verifier's log says: the complaint, and the instruction that it is about."""

from __future__ import annotations

import errno
import re
from typing import NamedTuple

from pykcm import _explain
from pykcm.bpf import _instructions as isa
from pykcm.bpf.disassembler import disassemble_slot
from pykcm.errors import VerifierError

# "12: (61) r0 = *(u32 *)(r1 +4)", with the registers' state before it on some kernels.
_INSTRUCTION = re.compile(r"^(\d+): \([0-9a-f]{2}\) ")
# Complaints that come before the walk through the program, or name another instruction.
_NAMED = re.compile(r"\binsn (\d+)\b")
# Not a complaint: statistics, register states, branches taken, the C source, function heads.
_NOISE = re.compile(
    r"^(processed \d+ insns|verification time|stack depth|max_states|mark_precise|"
    r"(\d+: )?R\d+[_=]|from \d+ to \d+|\d+: R|; |func#|Validating |arg#|"
    r"last_idx |first_idx |parent |regs=)"
)


class Complaint(NamedTuple):
    """What the verifier objects to.

    Attributes:
        reason: its last words, a line; "" when the log has none.
        slot: the instruction's index from 0, or None where the log names none.
        excerpt: the lines of the log that matter: the instruction and what follows it.
    """

    reason: str
    slot: int | None
    excerpt: list[str]


def complaint(log: str) -> Complaint:
    """Read a log of level 1 or 2, of any kernel (kernel/bpf/verifier.c writes it)."""
    lines = [line.rstrip() for line in log.replace("\0", "").splitlines() if line.strip()]
    slot, instruction_at = None, -1
    for at, line in enumerate(lines):
        if match := _INSTRUCTION.match(line):
            slot, instruction_at = int(match[1]), at
    words = [line for line in lines[instruction_at + 1 :] if not _NOISE.match(line)]
    reason = words[0] if words else ""
    if instruction_at < 0 and (match := _NAMED.search(reason)):
        slot = int(match[1])
    excerpt = ([lines[instruction_at]] if instruction_at >= 0 else []) + words
    return Complaint(reason, slot, excerpt)


def refusal(
    error: OSError, log: str, whole: bool, code: bytes, text: str, lines: list[int]
) -> VerifierError:
    """The verifier's error, in the words of the log and of the user's own text.

    Args:
        error: what BPF_PROG_LOAD raised.
        log: the verifier's.
        whole: whether that is all of it.
        code: the program.
        text: the text that the code was made of; "" if there is none.
        lines: for each instruction its line in the text.
    """
    found = complaint(log)
    reason = found.reason or "see the log"
    if error.errno == errno.E2BIG and not found.reason:  # before Linux 6.4 a log's end is cut off
        reason = "it is too complex: the verifier gives up after a million instructions"
    parts = [f"the verifier refused the program: {reason}"]
    if found.slot is not None and found.slot < len(code) // isa.SIZE:
        if text:
            line = lines[found.slot]
            parts.append(f"  at instruction {found.slot}, line {line} of the text:")
            parts.append(f"    {text.split(chr(10))[line - 1].strip()}")
        else:
            parts.append(f"  at instruction {found.slot}:")
            parts.append(f"    {disassemble_slot(code, found.slot)}")
    parts.append("  in the verifier's words:")
    parts += [f"    {line}" for line in found.excerpt]
    if "bpf_probe_read" in log and not _explain.capabilities() & {"CAP_PERFMON", "CAP_SYS_ADMIN"}:
        parts.append(
            "  this process lacks CAP_PERFMON, which that helper needs: a process with CAP_BPF "
            "and CAP_PERFMON must load this program; pin it and attach by path"
        )
    what = "the whole log" if whole else "16 MiB of the log, which is longer"
    parts.append(f"  (the exception's attribute `log` has {what})")
    return VerifierError(error.errno or 0, "\n".join(parts), log)
