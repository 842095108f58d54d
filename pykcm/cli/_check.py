"""`kcm frame NAME --check CAPTURE`: which messages a framing finds in a stream."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import click

from pykcm.cli import _capture
from pykcm.cli._framings import Chosen
from pykcm.cli._scan import Problem, Scan

NOT_WHOLE = 3
"""The exit status where something is wrong with the stream."""

_PIECE = 1 << 18
_IN_MEMORY = 1 << 24  # bytes of a capture from standard input that need no file


def run(chosen: Chosen, path: str, *, port: int | None, raw: bool, as_json: bool) -> int:
    """Measure a capture and report what is in it.

    Args:
        chosen: the framing.
        path: the capture; "-" is standard input.
        port: of a pcap, only the streams from or to this port.
        raw: the file is the stream itself, however it begins.
        as_json: the report is one JSON object.

    Returns:
        The exit status.

    Raises:
        OSError: the file can't be read.
        ClickException: the capture's kind is not known, or the framing can't be run here.
    """
    try:
        with _opened(path) as (begin, file):
            if raw or not _capture.is_capture(begin):
                if port is not None:
                    raise click.UsageError("--port is for pcap and pcapng; this is a raw stream")
                report = _raw(chosen, begin, file)
            else:
                report = _packets(chosen, begin, file, port)
    except NotImplementedError as error:
        raise click.ClickException(
            f"{chosen.name} has a program by hand, which only the kernel can run"
        ) from error
    except _capture.CaptureError as error:
        raise click.ClickException(f"{path}: {error}") from error
    report = {"framing": chosen.name, "capture": path, **report}
    if as_json:
        click.echo(json.dumps(report))
    else:
        _print(report)
    return 0 if report["whole"] else NOT_WHOLE


@contextlib.contextmanager
def _opened(path: str) -> Iterator[tuple[bytes, IO[bytes]]]:
    """The first four bytes, and a file that goes on behind them."""
    with contextlib.ExitStack() as stack:
        file: IO[bytes]
        file = sys.stdin.buffer if path == "-" else stack.enter_context(Path(path).open("rb"))
        yield file.read(4), file


def _raw(chosen: Chosen, begin: bytes, file: IO[bytes]) -> dict[str, Any]:
    scan = Scan(chosen.framing)
    piece = begin
    while piece:
        scan.feed(piece)
        piece = file.read(_PIECE)
    scan.finish()
    stream = {"source": None, "destination": None, "begun": True, **_found(scan)}
    return {"streams": [stream], "damaged": "", "whole": scan.problem is None}


def _packets(chosen: Chosen, begin: bytes, file: IO[bytes], port: int | None) -> dict[str, Any]:
    with tempfile.SpooledTemporaryFile(_IN_MEMORY) as copy:
        if file.seekable():
            file.seek(0)
        else:
            copy.write(begin)
            while piece := file.read(_PIECE):
                copy.write(piece)
            copy.seek(0)
        read_from: Any = file if file.seekable() else copy
        streams, damaged = _capture.read(read_from, lambda: Scan(chosen.framing), port)
    found = [
        {
            "source": stream.ends[0],
            "destination": stream.ends[1],
            "begun": stream.begun,
            **_found(stream.scan),
        }
        for stream in streams
    ]
    whole = not damaged and all(
        stream.begun and stream.scan.problem is None and not stream.scan.lost for stream in streams
    )
    return {"streams": found, "damaged": damaged, "whole": whole}


def _found(scan: Scan) -> dict[str, Any]:
    problem = scan.problem
    return {
        "bytes": scan.size,
        "lost": scan.lost,
        "messages": [message._asdict() for message in scan.messages],
        "problem": problem and {**problem._asdict(), "data": problem.data.hex()},
    }


def _print(report: dict[str, Any]) -> None:
    write = sys.stdout.write
    for stream in report["streams"]:
        if stream["source"]:
            write(f"{stream['source']} > {stream['destination']}\n")
            if not stream["begun"]:
                write("its beginning is not in the capture: measured from the first byte that is\n")
        write(f"{'offset':>14} {'length':>12}\n")
        for message in stream["messages"]:
            lost = message["lost"]
            write(f"{message['offset']:14} {message['length']:12}")
            write(f"  {lost} bytes of it are not in the capture\n" if lost else "\n")
        if stream["problem"]:
            _print_problem(Problem(**stream["problem"]))
        write(f"{_count(stream['messages'])} in {stream['bytes']} bytes")
        write(f", {stream['lost']} of them not in the capture\n" if stream["lost"] else "\n")
    if not report["streams"]:
        write("the capture has no TCP data\n")
    if report["damaged"]:
        write(f"{report['damaged']}\n")


def _print_problem(problem: Problem) -> None:
    sys.stdout.write(f"{problem.offset:14} {problem.kind:>12}\n")
    sys.stdout.write(click.wrap_text(problem.text, 80, " " * 4, " " * 4) + "\n")
    data = bytes.fromhex(str(problem.data))
    for at in range(0, len(data), 16):
        line = data[at : at + 16]
        shown = "".join(chr(byte) if 0x20 <= byte < 0x7F else "." for byte in line)
        sys.stdout.write(f"{problem.offset + at:10x}  {line.hex(' '):<47}  |{shown}|\n")


def _count(messages: list[Any]) -> str:
    return "1 message" if len(messages) == 1 else f"{len(messages)} messages"
