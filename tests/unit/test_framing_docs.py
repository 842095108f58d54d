"""docs/framing.md says what the code does."""

from __future__ import annotations

from typing import Any

import pytest

from pykcm import protocols
from pykcm._offset import NONE, STRATEGIES
from pykcm.bpf import Program
from pykcm.framing import LengthField
from tests.documents import blocks, text
from tests.unit.bpf_oracle import needs_bpf

PAGE = "docs/framing.md"
DOCUMENT = text(PAGE)


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


@pytest.mark.parametrize("entry", protocols.ALL.values(), ids=protocols.ALL)
def test_the_catalogue(entry: protocols.Protocol) -> None:
    maximum = "" if entry.maximum is None else f"{entry.maximum:,}"
    length = f"{entry.framing.max_length:,}"
    assert row(f"`{entry.name}`", entry.summary, length, maximum, entry.reference) in DOCUMENT
    if entry.note:
        assert f"- `{entry.name}`: {entry.note}\n" in DOCUMENT
    assert row(f"`{entry.name}`", entry.connections, place(entry), entry.reason) in DOCUMENT


def place(entry: protocols.Protocol) -> str:
    """Where the id stands, as the table says it."""
    fields = [field for field in (entry.id, entry.answer_id) if field is not None]
    texts = [f"{field.offset}, {field.size}" for field in fields]
    texts = [
        f"{t}, little" if f.byteorder == "little" else t for t, f in zip(texts, fields, strict=True)
    ]
    return " / ".join(dict.fromkeys(texts))


def test_what_is_left_out() -> None:
    for name, why in protocols.LEFT_OUT.items():
        assert f"- {name}: {why}\n" in DOCUMENT


@needs_bpf
def test_the_program_by_hand() -> None:
    (example,) = (block.text for block in blocks(PAGE) if "CustomFraming" in block.text)
    names: dict[str, Any] = {}
    exec(example, names)
    for strategy in STRATEGIES.values():
        names["framing"].load(strategy).close()
    with names["framing"].load(NONE) as program:
        assert isinstance(program, Program)
        assert program.run(b"..\0\5") == 9
        assert program.run(b"..\xff\xff") == -90
        assert program.run(b"..\0") == 0


# Netty's own examples, from LengthFieldBasedFrameDecoder's documentation: offset, length and
# adjustment, the header, and how many bytes a frame has before anything is stripped.
@pytest.mark.parametrize(
    ("offset", "size", "adjustment", "header", "length"),
    [
        (0, 2, 0, "000c", 14),
        (0, 2, -2, "000e", 14),
        (2, 3, 0, "cafe 00000c", 17),
        (0, 3, 2, "00000c cafe", 17),
        (1, 2, 1, "ca 000c fe", 16),
        (1, 2, -3, "ca 0010 fe", 16),
    ],
)
def test_the_translation(offset: int, size: int, adjustment: int, header: str, length: int) -> None:
    framing = LengthField(offset=offset, size=size, adjustment=offset + size + adjustment)
    assert framing.measure(bytes.fromhex(header)) == length
