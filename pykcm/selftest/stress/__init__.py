"""A stress: threads and processes do everything at once on one multiplexor, by plain calls.

It goes in rounds of a few seconds, each with a multiplexor of its own.  At the end of a round
every byte that was sent must be accounted for: delivered once and whole, still in the TCP stream,
or lost in the way that unattaching is known to lose it.  In every second round peers also reset
their connections and sockets are closed with messages in them: what arrives must then be whole, in
the order of its connection, and come but once.
"""

from __future__ import annotations

import functools
import time
from collections import Counter

from pykcm import bpf
from pykcm.selftest.check import Check, Group, Skip, code
from pykcm.selftest.lab import Lab
from pykcm.selftest.messages import HEADER
from pykcm.selftest.stress.round import ENDING, Round
from pykcm.selftest.stress.shared import BODIES

_ROUND = 4.0  # seconds in which all goes on


def group(seconds: float, seed: int) -> Group:
    """The stress as a check of its own."""
    made = Group("stress", f"Everything at once on one multiplexor for {seconds:g} s, seed {seed}")
    made.checks.append(
        Check(
            "stress.every_message_is_accounted_for",
            "What is sent by many at once is delivered once and whole, or lost as is known.",
            code("kcm_rcv_strparser") + "; " + code("kcm_write_msgs"),
            functools.partial(_stress, seconds=seconds, seed=seed),
            limit=seconds + 2 * ENDING,
        )
    )
    return made


def _stress(lab: Lab, seconds: float, seed: int) -> None:
    end = time.monotonic() + seconds
    total: Counter[str] = Counter()
    try:
        lab.isolate()
    except Skip as skip:
        lab.notes.append(f"in the namespace of all others: {skip}")
    programs = _programs(lab)
    while total["rounds"] == 0 or time.monotonic() < end:
        name = f"{seed}/{total['rounds']}"
        rough = total["rounds"] % 2 == 1
        total["rounds"] += 1
        length = min(_ROUND, max(1.0, end - time.monotonic()))
        with lab.another() as own:
            # So many processes share the CPUs that a message may take long, on a debug kernel most.
            own.patience = max(own.patience, ENDING / 2)
            total += Round(own, name, rough, programs).run(length)
    counts = ", ".join(f"{count} {what}" for what, count in total.items())
    lab.notes.append(f"seed {seed}: {counts}")


def _programs(lab: Lab) -> dict[int, bpf.Program]:
    """A program for each way in which bodies can be as long as they are."""
    programs = {
        index: lab.fixed(HEADER.size + body)
        for index, body in enumerate(BODIES)
        if body is not None
    }
    try:
        programs[0] = lab.separating()
    except Skip as skip:
        lab.notes.append(f"only with messages of a fixed length: {skip}")
    return programs
