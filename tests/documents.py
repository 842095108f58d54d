"""The Python blocks of README.md and docs/, and where they can be run.

A comment on the line before a block says what it needs: `<!-- needs KCM -->`, a kernel that has it,
and after a colon which server, or `<!-- needs BPF -->`, the right to load programs.  A block whose
first line is a comment that names a file is that file: those of a page belong together.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *sorted(str(p.relative_to(ROOT)) for p in ROOT.glob("docs/**/*.md"))]

_BLOCK = re.compile(
    r"^(?:<!-- needs (\w+)(?:: ([^\n]*))? -->\n\n?)?```python\n(.*?)^```$", re.M | re.S
)
_FILE = re.compile(r"# (\w+\.py)\n")


class Block(NamedTuple):
    """A Python block.

    Attributes:
        where: its page, and the number of its first line.
        text: what stands between the fences.
        needs: "KCM", "BPF" or "".
        server: what it needs besides, as people say it; "" for nothing.
        file: the name of the file that it is; "" if it is none.
    """

    where: str
    text: str
    needs: str
    server: str
    file: str


def text(page: str) -> str:
    return (ROOT / page).read_text("utf-8")


def blocks(page: str) -> list[Block]:
    """The Python blocks of a page, in order."""
    found = []
    for match in _BLOCK.finditer(text(page)):
        needs, server, code = match.groups("")
        line = text(page).count("\n", 0, match.start(3)) + 1
        file = _FILE.match(code)
        found.append(Block(f"{page}:{line}", code, needs, server, file[1] if file else ""))
    return found


def all_blocks() -> list[Block]:
    return [block for page in PAGES for block in blocks(page)]
