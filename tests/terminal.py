"""A terminal of 80 columns and 24 lines, in tmux, and pictures of what it shows.

    python -m tests.terminal

writes the screens that are kept in tests/unit/screens and their pictures in docs/pictures anew.
"""

from __future__ import annotations

import html
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).parents[1]
SCREENS = ROOT / "tests" / "unit" / "screens"
PICTURES = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 80, 24
PATIENCE = 60
_SETTINGS = """\
set -g status off
set -g remain-on-exit on
set -g remain-on-exit-format ""
set -g default-terminal xterm-256color
"""
# What would be fetched from elsewhere, or points there.
_FETCHED = re.compile(r"@font-face \{\{.*?\}\}\s*|<!-- .*? -->\s*", re.DOTALL)
_LINE = re.compile(r"<text [^>]*?\by=\"([\d.]+)\"[^>]*>([^<]*)</text>")


def missing() -> str:
    """Why there is no such terminal; empty if there is."""
    return "" if shutil.which("tmux") else "tmux (Debian's package of that name) is not installed"


class Terminal:
    """A terminal in which a program of tests/terminal_programs.py runs."""

    def __init__(self, directory: Path, name: str) -> None:
        settings = directory / "tmux.conf"
        settings.write_text(_SETTINGS, encoding="ascii")
        self._tmux = ["tmux", "-u", "-f", str(settings), "-S", str(directory / "socket")]
        size = ["-x", str(WIDTH), "-y", str(HEIGHT)]
        self._status = directory / "status"
        command = [sys.executable, "-m", "tests.terminal_programs", name]
        # tmux's own word for the status is missing at times.
        keeping = ["sh", "-c", '"$@"; echo $? >"$0"', str(self._status)]
        self._run("new-session", "-d", *size, *keeping, *command)

    def _run(self, *arguments: str) -> str:
        # A size in the environment would count for more than the terminal's.
        kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        return subprocess.run(
            [*self._tmux, *arguments],
            cwd=ROOT,
            env={**kept, "LC_ALL": "C.UTF-8", "TERM": "xterm-256color"},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout

    def press(self, *keys: str) -> None:
        self._run("send-keys", *keys)

    def resize(self, width: int, height: int) -> None:
        self._run("resize-window", "-x", str(width), "-y", str(height))

    def screen(self, *, colours: bool = False) -> str:
        """What it shows, without blanks at the ends of lines."""
        options = ["-e"] if colours else []
        shown = self._run("capture-pane", "-p", *options)
        return "".join(f"{line.rstrip()}\n" for line in shown.splitlines())

    def until(self, condition: Callable[[str], bool]) -> str:
        """What it shows once a condition holds.

        Raises:
            AssertionError: it does not come to hold.
        """
        deadline = time.monotonic() + PATIENCE
        while not condition(shown := self.screen()):
            assert time.monotonic() < deadline, f"the screen is:\n{shown}"
            time.sleep(0.1)
        return shown

    def status(self) -> str:
        """The program's exit status; empty until it has ended, and all is shown."""
        if self._run("display-message", "-p", "#{pane_dead}").strip() != "1":
            return ""
        return self._status.read_text("ascii").strip()

    def close(self) -> None:
        self._run("kill-server")


@contextmanager
def terminal(name: str) -> Iterator[Terminal]:
    # The path of a socket must not be long.
    with tempfile.TemporaryDirectory() as directory:
        made = Terminal(Path(directory), name)
        try:
            yield made
        finally:
            made.close()


def doctor(at: Terminal) -> None:
    at.until(lambda _: at.status() != "")


def watched(at: Terminal) -> None:
    at.until(lambda shown: "q quits" in shown)


def connected(at: Terminal) -> None:
    at.until(lambda shown: "$ kcm" in shown)
    for text in ("hello", "a message is a line"):
        at.press(text, "Enter")
        at.until(lambda shown, text=text: text.upper() in shown)  # type: ignore[misc]
    at.press("C-d")
    at.until(lambda _: at.status() != "")


SHOWN: dict[str, Callable[[Terminal], None]] = {
    "doctor": doctor,
    "stat": watched,
    "connect": connected,
}
"""The programs, and what is done until the screen is as it is kept."""


def picture(name: str, screen: str) -> str:
    """An SVG of a screen with its colours."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), color_system="truecolor")
    console.print(Text.from_ansi(screen), soft_wrap=True)
    form = _FETCHED.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code", "Fira Code, DejaVu Sans Mono")
    return console.export_svg(title=f"kcm {name}", code_format=form, unique_id=f"kcm-{name}")


def text_of(svg: str) -> str:
    """The lines that a picture has."""
    lines: dict[float, str] = {}
    for at, text in _LINE.findall(svg):
        lines[float(at)] = lines.get(float(at), "") + html.unescape(text).replace("\xa0", " ")
    return "\n".join(lines[at].rstrip() for at in sorted(lines))


def main() -> None:
    if reason := missing():
        raise SystemExit(reason)
    for name, until in SHOWN.items():
        with terminal(name) as at:
            until(at)
            (SCREENS / f"terminal-{name}.txt").write_text(at.screen(), encoding="utf-8")
            drawn = picture(name, at.screen(colours=True).rstrip("\n"))
            (PICTURES / f"{name}.svg").write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    main()
