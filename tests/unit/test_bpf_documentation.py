"""What docs/bpf.md shows works."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

from pykcm import bpf
from pykcm._offset import PROBE
from pykcm.bpf import Program
from tests import documents
from tests.unit.bpf_oracle import needs_bpf
from tests.unit.test_bpf_elf import compiled

PAGE = "docs/bpf.md"
TEXT = documents.text(PAGE)


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


@needs_bpf
def test_the_program_by_hand() -> None:
    (text,) = blocks("asm")
    with Program.load(text, message_offset=PROBE.lines(), MAX=1000, EMSGSIZE=90) as program:
        assert program.run((996).to_bytes(4, "big")) == 1000
        assert program.run((1001).to_bytes(4, "big")) == -90
        assert program.run(b"\0\0\0") == 0


@needs_bpf
def test_the_program_in_c(tmp_path: Path) -> None:
    (text,) = blocks("c")
    source = tmp_path / "program.c"
    source.write_text(text, encoding="ascii")
    with Program.from_elf(compiled(source, tmp_path)) as program:
        assert program.run((996).to_bytes(4, "big")) == 1000


@needs_bpf
def test_the_python_and_what_it_prints() -> None:
    (error,) = (block.text for block in documents.blocks(PAGE) if "AssemblyError" in block.text)
    (programs,) = (block.text for block in documents.blocks(PAGE) if block.needs == "BPF")
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(error, {})
    shown = [f"    {line}" for line in output.getvalue().splitlines()]
    assert "\n".join(shown) in TEXT
    with contextlib.redirect_stdout(output):
        exec(programs, {})
    assert "\n20\n" in output.getvalue()
    assert "name='example'" in output.getvalue()


def test_every_example_of_the_table_assembles() -> None:
    rows = re.findall(r"^\| ([^|]+) \| (`.*) \|$", TEXT, re.MULTILINE)
    seen = 0
    for _, cell in rows:
        for example in re.findall(r"`([^`]+)`", cell):
            if " " in example or example == "exit":
                target = "\nexit" * 5 + "\nlabel: function: exit"
                prefix = "exit\n" * 5
                bpf.assemble(f"{prefix}{example}{target}")
                seen += 1
    assert seen >= 35
