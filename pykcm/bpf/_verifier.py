"""What the verifier's log says: the complaint, and the instruction that it is about."""

from __future__ import annotations

import re
from dataclasses import dataclass

# "12: (61) r0 = *(u32 *)(r1 +4)", with the registers' state before it on some kernels.
_INSTRUCTION = re.compile(r"^(\d+): \([0-9a-f]{2}\) ")
# Complaints that come before the walk through the program, or name another instruction.
_NAMED = re.compile(r"\binsn (\d+)\b")
# What is no complaint: statistics, register states, branches taken, the C source, function heads.
_NOISE = re.compile(
    r"^(processed \d+ insns|verification time|stack depth|max_states|mark_precise|"
    r"(\d+: )?R\d+[_=]|from \d+ to \d+|\d+: R|; |func#|Validating |arg#|"
    r"last_idx |first_idx |parent |regs=)"
)


@dataclass(frozen=True)
class Complaint:
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
