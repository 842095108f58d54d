"""docs/performance.md and its plots, from what bench/performance.py measured.

What is said beside the tables is written here, once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pygal
from pygal.style import Style

from bench.core import SPREAD, Row

DOCS = Path(__file__).parents[1] / "docs"
PICTURES = DOCS / "pictures"

TEXT = """\
# Performance

Written by `make bench` on Linux {kernel}. Each figure is a ratio of costs, or of messages a
second where it says so; both sides were measured in turn in one run, and a row is the median of
several rounds. Costs were counted in a guest whose clock counts instructions, where two runs
differ by {spread:.1%}; such a clock overrates copies, which it counts byte by byte, and Python
beside C. What needs several CPUs was timed in a guest that has two; behind such a figure stands
how far its rounds lay apart, as half the way from the slowest to the fastest. What is worse than
its goal is in the tables as it was measured.

## When KCM pays

- **Many small messages in a stream**: with `batch=N` the kernel finds the messages and hands
  over many at once. A message of 64 bytes costs {split:.2f} of reading the stream and dividing
  it in Python, {streams:.2f} of asyncio's streams, and {c:.2f} of receiving messages one by one
  in C.
- **Sending many small messages**: `send_many` with a batch joins them, {sent:.2f} of what C's
  sendmmsg costs without. One by one, each is a segment of its own, many times dearer.
- **Several workers**: the kernel gives each message to a worker that has room, and no process
  stands between. Four workers take {fan_out:.1f} times as many messages a second as from the
  best dispatcher.
- **asyncio and Trio**: a round trip costs {task:.2f} of one over asyncio's streams.

## When it does not

- **One reader of large messages**: from 16 KiB on it is the copying that costs, with KCM or
  without.
- **A message at a time, each awaited by a thread**: a round trip costs {trip:.2f} of one over
  TCP.
- **Workers that have much to do for each message**: from 50 µs of work on all ways that hand on
  batches are alike.
- **Work that blocks, as long as every process has enough to do**: a server by clones answers
  {blocking:.2f} of the requests that one by epoll does. Each clone has a queue of its own, and what
  lies there waits for the worker that is blocked.
- **Small requests that come pipelined on connections that are well shared out**: here epoll,
  which reads many at once, does {pipelined:.1f} times as much as clones without a batch.

What a batch changes for the receiver: [messages.md](messages.md#super-messages).
"""

#: The tables: a section's name, its title, and what must be said beside it.
SECTIONS = {
    "receiving": (
        "Super messages received",
        "A coalesced stream, from the first write to the last message. Only to read it, and divide "
        "nothing, costs what the last row of each size says: no way can be cheaper. At 1 KiB the "
        "rest is the message's own object: memory for it, and a copy.",
    ),
    "sending": (
        "Super messages sent",
        "64 messages at a time. Where they are joined beforehand only the kernel's part is left: "
        "no way can be cheaper.",
    ),
    "singly": ("One message at a time", ""),
    "stream": (
        "Beside what else reads framed messages in Python",
        "",
    ),
    "idle": (
        "Messages to workers that only count them",
        "Messages a second ÷ those of the best dispatcher, by the number of workers. A dispatcher "
        "is a process that divides the stream and hands on messages, or batches of 64, in turn.",
    ),
    "working": (
        "Messages to workers with work",
        "The same, with work of 50 or 500 µs a message; mixed is 230 µs for one in ten, 30 µs for "
        "the others.",
    ),
    "waiting": (
        "How long a message waits for a worker",
        "Four workers, mixed work, messages at random times, 2,000 a second on average.",
    ),
    "loads": (
        "A server of four processes on 16 connections",
        "Requests a second ÷ those of a server by epoll, in which each process owns four "
        "connections. The goals are what KCM was presented with in 2016, of which neither machine "
        "nor program is known: of 1.62 for work that blocks nothing is seen here.",
    ),
    "tasks": ("Round trips in a task", ""),
    "messages": ("One call beside socket's and C's, on the same descriptor", ""),
    "asynchronous": ("asyncio beside threads", ""),
    "round_trips": ("A question and its answer beside plain TCP", ""),
    "clones": ("Many clones", ""),
    "connections": (
        "Many connections",
        "Messages in segments of their own. A segment on a connection that is seldom used costs "
        "TCP itself more, which the rows of plain TCP show.",
    ),
    "transports": ("Many transports", ""),
    "memory": ("Memory", ""),
    "attaching": ("Attaching", ""),
    "imports": ("Start-up", ""),
    "assembler": ("The assembler", ""),
    "spread": ("How far two runs differ", ""),
}

#: The plots: a section, the file, and its title, which says what 1 is.
PLOTS = {
    "idle": ("fan-out.svg", "Messages a second to workers without work; 1: the best dispatcher"),
    "working": ("fan-out-work.svg", "Messages a second to workers; 1: the best dispatcher"),
    "loads": ("servers.svg", "Requests a second of a server of four processes; 1: epoll"),
}

STYLE = Style(
    background="transparent",
    plot_background="transparent",
    foreground="#77808a",
    foreground_strong="#77808a",
    foreground_subtle="#9aa3ad",
    guide_stroke_color="#9aa3ad",
    major_guide_stroke_color="#9aa3ad",
    colors=("#2f6fd0", "#c2571a", "#3c8f5a", "#8a5cc2", "#b8860b", "#a04468", "#4a9aa8", "#7d7d7d"),
    font_family="sans-serif",
)


def of(report: dict[str, Any], what: str) -> float:
    """The figure of a row."""
    for rows in report["sections"].values():
        for name, value, _ in rows:
            if name == what:
                return float(value)
    raise KeyError(what)


def is_matrix(rows: list[Row]) -> bool:
    """Whether each row is one cell, "row: column"."""
    return all(what.count(": ") == 1 for what, _, _ in rows)


def matrix(rows: list[Row]) -> tuple[list[str], dict[str, dict[str, Row]]]:
    """The columns, and the rows by name, of cells by column."""
    columns: list[str] = []
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        name, column = row[0].split(": ")
        found.setdefault(name, {})[column] = row
        if column not in columns:
            columns.append(column)
    return columns, found


def table(rows: list[Row]) -> list[str]:
    """Rows as Markdown; of a cell the spread stands behind it."""
    if not is_matrix(rows):
        return [
            "| | measured | goal |",
            "|---|---|---|",
            *(f"| {what} | {value:.2f} | {goal} |" for what, value, goal in rows),
        ]
    columns, found = matrix(rows)

    def cell(row: Row | None) -> str:
        if row is None:
            return ""
        spread = found.get(f"{row[0].split(': ')[0]}{SPREAD}", {}).get(row[0].split(": ")[1])
        text = f"{row[1]:.2f}" if row[2] == "none" else f"**{row[1]:.2f}** ({row[2]})"
        return f"{text} ± {spread[1] / 2:.0%}" if spread else text

    return [
        "| | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *(
            f"| {name} | " + " | ".join(cell(cells.get(column)) for column in columns) + " |"
            for name, cells in found.items()
            if not name.endswith(SPREAD)
        ),
    ]


def bars(title: str, columns: Iterable[str], ways: dict[str, list[float | None]]) -> bytes:
    """A plot as SVG that needs nothing from elsewhere, for light and dark pages."""
    chart = pygal.Bar(
        style=STYLE,
        title=title,
        width=760,
        height=380,
        js=[],
        disable_xml_declaration=True,
        legend_at_bottom=True,
        legend_at_bottom_columns=4,
        show_y_guides=True,
    )
    chart.x_labels = list(columns)
    for name, values in ways.items():
        chart.add(name, values)
    chart.uuid = "plot"
    rendered = chart.render()
    data: bytes = rendered.encode() if isinstance(rendered, str) else rendered
    # Without the date, so that the same figures make the same file.
    return re.sub(rb"<!--.*?-->", b"", data)


def stream_plot(rows: list[Row]) -> bytes:
    """What each other way costs beside recv_many with a batch."""
    ways: dict[str, list[float | None]] = {}
    sizes = []
    for what, value, _ in rows:
        way, size = what.removeprefix("recv_many, batch, ÷ ").split(", ")
        ways.setdefault(way, []).append(1 / value)
        if size not in sizes:
            sizes.append(size)
    return bars("Cost of a message of a stream; 1: recv_many with a batch", sizes, ways)


def plots(report: dict[str, Any]) -> dict[str, bytes]:
    """Each plot by the name of its file."""
    found = {"stream.svg": stream_plot(report["sections"]["stream"])}
    for section, (file, title) in PLOTS.items():
        columns, rows = matrix(report["sections"][section])
        ways: dict[str, list[float | None]] = {
            name: [cells[column][1] if column in cells else None for column in columns]
            for name, cells in rows.items()
            if not name.endswith(SPREAD)
        }
        found[file] = bars(title, columns, ways)
    return found


def text(report: dict[str, Any]) -> str:
    """The page."""
    said = TEXT.format(
        kernel=report["kernel"],
        spread=of(report, "two runs of the same") - 1,
        split=of(report, "recv_many, batch, ÷ splitter, 64 B"),
        streams=of(report, "recv_many, batch, ÷ asyncio streams, 64 B"),
        c=of(report, "recv_many, batch, ÷ C's recvmmsg, 64 B"),
        sent=of(report, "send_many, batch, ÷ C's sendmmsg, 64 B"),
        fan_out=of(report, "clones, batch: 4 workers"),
        blocking=of(report, "clones: work that blocks"),
        task=of(report, "round trip in asyncio: asend, arecv ÷ streams, 64 B"),
        trip=of(report, "round trip ÷ TCP's, KCMSocket, 50 %"),
        pipelined=1 / of(report, "clones: small, pipelined"),
    )
    lines = [said.rstrip()]
    files = {"stream": "stream.svg", **{name: file for name, (file, _) in PLOTS.items()}}
    for name, (title, note) in SECTIONS.items():
        rows = report["sections"].get(name)
        if not rows:
            continue
        lines += ["", f"## {title}", ""]
        lines += [note, ""] if note else []
        lines += [f"![{title}](pictures/{files[name]})", ""] if name in files else []
        lines += table(rows)
    return "\n".join(lines) + "\n"


def write(report: dict[str, Any]) -> list[Path]:
    """Write all; the files."""
    page = DOCS / "performance.md"
    page.write_text(text(report), encoding="utf-8")
    written = [page]
    for file, data in plots(report).items():
        path = PICTURES / file
        path.write_bytes(data)
        written.append(path)
    return written
