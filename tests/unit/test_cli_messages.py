"""Messages as lines, with and without their headers, and their answers: parts of `kcm connect`."""

from __future__ import annotations

import io
import os
from pathlib import Path

import click
import pytest

from pykcm import Delimiter, FixedLength, Framing, LengthField, Varint, protocols
from pykcm.cli import _answers, _bodies, _lines


@pytest.mark.parametrize(
    "framing",
    [
        LengthField(size=2),
        LengthField(offset=2, size=2, adjustment=4, magic=b"OK", max_length=60_000),
        LengthField(offset=1, size=4, byteorder="little", adjustment=0, multiplier=1),
        LengthField(size=2, mask=0x3FFC, shift=2, magic=b"\xff", magic_offset=2, adjustment=3),
        Varint(offset=1),
        Delimiter(b"\r\n"),
        protocols.THRIFT_FRAMED,
    ],
)
@pytest.mark.parametrize("body", [b"", b"x", bytes(range(100)), bytes(300)])
def test_bodies(framing: Framing, body: bytes) -> None:
    message = _bodies.wrap(framing, body)
    assert framing.measure(message) == len(message)
    assert _bodies.unwrap(framing, message) == body
    assert body in message


def test_bodies_that_no_message_has() -> None:
    impossible: list[tuple[Framing, bytes]] = [
        (FixedLength(3), b"four"),
        (Delimiter(b"\n"), b"a\nb"),
        (LengthField(size=1), bytes(256)),
        (LengthField(size=2, multiplier=4), b"abc"),
        (protocols.DNS, b"short"),
    ]
    for framing, body in impossible:
        with pytest.raises(ValueError, match=r"."):
            _bodies.wrap(framing, body)


def test_lines_in_pieces() -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as _, io.FileIO(writing, "w") as end:
        lines = _lines.Lines(reading)
        found: list[str] = []
        for piece in (b"on", b"e\ntwo\nth", b"ree"):
            end.write(piece)
            found += lines.read()
        assert (found, lines.ended) == (["one", "two"], False)
        end.close()
        assert (lines.read(), lines.ended) == (["three"], True)


def test_a_line_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_lines, "_LONGEST", 100)
    with Path("/dev/zero").open("rb") as zeros:
        lines = _lines.Lines(zeros.fileno())
        with pytest.raises(click.ClickException, match="longer than any message"):
            lines.read()


def test_percentiles() -> None:
    answers = _answers.Answers(None)
    answers.times = [number / 1000 for number in range(100, 0, -1)]
    assert answers.report(True)["rtt_ms"] == {
        "min": 1.0,
        "p50": 50.0,
        "p90": 90.0,
        "p99": 99.0,
        "max": 100.0,
    }
