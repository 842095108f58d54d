"""Write docs/performance.md: all ratios, measured in one run, and what they say.

    ci/vm --icount --cpus 1 -- env PYTHONPATH=. python bench/performance.py

`make bench` calls it.  What is said beside the tables is written here, once.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from pathlib import Path

from bench import core, super_messages
from bench.core import Row

DOCUMENT = Path(__file__).parents[1] / "docs" / "performance.md"

TITLES = {
    "messages": "One call beside socket's and C's, on the same descriptor",
    "asynchronous": "asyncio beside threads",
    "round_trips": "A question and its answer beside plain TCP",
    "transports": "Many transports",
    "memory": "Memory",
    "attaching": "Attaching",
    "receiving": "Super messages received",
    "sending": "Super messages sent",
    "singly": "One message at a time",
    "spread": "How far two runs differ",
}

TEXT = """\
# Performance

Written by `make bench` on Linux {release}, in a guest that counts instructions: each figure is a
ratio of costs, both sides measured in turn in one run, the median of {rounds} rounds. Below 1 the
first is cheaper. What is worse than its goal is in the tables as it was measured.

## When KCM pays

- **Many small messages in a stream, to be shared out or handed on**: with `batch=N` the kernel
  finds the messages and hands over many at once. A message then costs less than reading the stream
  and dividing it in Python, and a fraction of receiving messages one by one in C.
- **Sending many small messages**: `send_many` with a batch joins them. One by one, each is a
  segment of its own, many times dearer.
- **Several workers, several connections**: the kernel gives each message to a worker that has room;
  no process stands between. (That is not measured here.)

## When it does not

- **One reader, one connection, large messages**: from 16 KiB on reading the stream costs the same.
- **A message at a time, each awaited**: a round trip costs what it costs over TCP.
- **Work that takes long beside messages that come seldom**: what a message costs does not matter.

What a batch changes for the receiver: [messages.md](messages.md#super-messages).
"""


def table(rows: list[Row]) -> list[str]:
    """Rows as Markdown."""
    return [
        "| | measured | goal |",
        "|---|---|---|",
        *(f"| {what} | {value:.2f} | {goal} |" for what, value, goal in rows),
    ]


def measured(name: str, section: Callable[[], list[Row]]) -> list[str]:
    rows = section()
    for what, value, goal in rows:
        print(f"{what:<52} {value:8.2f}   goal {goal}", flush=True)
    return ["", f"## {TITLES[name]}", "", *table(rows)]


def main() -> None:
    core.raise_descriptor_limit()
    sections = {**super_messages.SECTIONS, **core.SECTIONS}
    lines = [TEXT.format(release=platform.release(), rounds=core.ROUNDS).rstrip()]
    for name, section in sections.items():
        if name in TITLES:
            lines += measured(name, section)
    DOCUMENT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(f"written to {DOCUMENT.relative_to(DOCUMENT.parents[1])}", flush=True)
    os._exit(0)  # the connections that are left are of no interest


if __name__ == "__main__":
    main()
