"""How long the assembler and the disassembler take for a program of 4,096 instructions.

    PYTHONPATH=. python bench/assembler.py [--json] [--repeat N]

4,096 is the longest program that a process without CAP_BPF may load.  The text has every kind of
instruction, in equal parts.  Each figure is the best of N runs: what else the machine does only
adds to it.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from bench.core import Row, print_json, print_rows
from pykcm import bpf

INSTRUCTIONS = 4096
LIMIT_MS = 50.0
PIECE = """
step_{n}:
    r6 = r1                             # the context
    r7 = SIZE
    w2 += -5
    r3 <<= 7
    r0 = *(u16 *)skb[r7 + 2]
    if r0 > 5 goto step_{n}
    r4 = *(u32 *)(r10 - 4)
    *(u64 *)(r10 - 16) = r3
    r3 = be16 r3
    r1 = 0x1122334455667788 ll
    if w1 s< w2 goto +1
    call bpf_get_prandom_u32
    r5 = (s16)r3
    lock *(u64 *)(r10 - 16) += r3
    r2 s>>= 3
"""


def text() -> str:
    """A program of 4,096 slots: 255 pieces of 16, and 16 instructions to end with."""
    pieces = [PIECE.format(n=number) for number in range(INSTRUCTIONS // 16 - 1)]
    return "".join(pieces) + "r0 = 0\n" * 15 + "exit\n"


def best(call: Callable[[], object], repeat: int) -> float:
    """The shortest of the runs, in milliseconds."""
    times = []
    for _ in range(repeat):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return min(times) * 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--repeat", type=int, default=20, metavar="N", help="runs (20)")
    arguments = parser.parse_args()
    source = text()
    code = bpf.assemble(source, SIZE=4)
    if len(code) != INSTRUCTIONS * 8:
        raise SystemExit(f"the program has {len(code) // 8} instructions, not {INSTRUCTIONS}")
    rows: list[Row] = [
        (
            f"assemble {INSTRUCTIONS:,} instructions, ms",
            best(lambda: bpf.assemble(source, SIZE=4), arguments.repeat),
            f"≤ {LIMIT_MS:.0f}",
        ),
        (
            f"disassemble {INSTRUCTIONS:,} instructions, ms",
            best(lambda: bpf.disassemble(code), arguments.repeat),
            "none",
        ),
    ]
    if arguments.json:
        print_json({"assembler": rows})
    else:
        print_rows(rows, sys.stdout)


if __name__ == "__main__":
    main()
