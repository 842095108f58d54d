"""`kcm stat --watch` on a terminal."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator

from rich.console import Console, Group
from rich.live import Live
from rich.segment import Segment, Segments
from rich.text import Text

from pykcm._joining.look import Observer
from pykcm._joining.views import Look
from pykcm.cli import _stat_screen

_HELP = "q quits   s sorts by {}   j, k scroll   every {:g} s"


class Screen:
    """What is shown of a look, and what the keys change.

    Attributes:
        look: the last one.
        sort: what transports are sorted by.
        top: how many lines of the look are scrolled away.
    """

    def __init__(self, seconds: float, sort: str) -> None:
        self.seconds = seconds
        self.sort = sort
        self.top = 0
        self.look: Look | None = None

    def press(self, keys: str) -> bool:
        """Do what keys say; whether to go on."""
        for key in keys:
            if key in "qQ":
                return False
            if key == "s":
                place = _stat_screen.SORTS.index(self.sort)
                self.sort = _stat_screen.SORTS[(place + 1) % len(_stat_screen.SORTS)]
            elif key in "jk":
                self.top += 1 if key == "j" else -1
        return True

    def render(self, console: Console) -> Group:
        """As much as fits the console: its last line tells the keys."""
        width, height = console.size
        lines: list[list[Segment]] = []
        if self.look:
            shown = _stat_screen.render(self.look, width, self.sort)
            lines = console.render_lines(shown, console.options.update(height=None), pad=False)
        room = max(1, height - 1)
        self.top = max(0, min(self.top, len(lines) - room))
        visible = lines[self.top : self.top + room]
        segments = [segment for line in visible for segment in (*line, Segment.line())]
        hidden = len(lines) - self.top - len(visible)
        keys = _HELP.format(self.sort, self.seconds)
        if hidden:
            keys = f"{hidden} lines below   {keys}"
        return Group(
            Segments([*segments, *[Segment.line()] * (room - len(visible))]),
            Text(keys, "reverse", no_wrap=True, overflow="crop", end=""),
        )


def watch(observer: Observer, seconds: float, sort: str) -> None:
    """Look until q is pressed, or the terminal is gone.

    Raises:
        KCMError, OSError: as of `Observer.look`.
    """
    console = Console(highlight=False)
    screen = Screen(seconds, sort)
    screen.look = observer.look()  # before the screen is taken: its errors are a line
    due = time.monotonic() + seconds
    with (
        _keys() as fds,
        Live(console=console, screen=True, auto_refresh=False, transient=True) as live,
    ):
        while True:
            live.update(screen.render(console), refresh=True)
            ready, _, _ = select.select(fds, [], [], max(0.0, due - time.monotonic()))
            for fd in ready:
                data = os.read(fd, 1024)
                # The second descriptor tells of signals: the screen has another size.
                if fd == fds[0] and not (data and screen.press(data.decode("ascii", "replace"))):
                    return
            if time.monotonic() >= due:
                screen.look = observer.look()
                due = time.monotonic() + seconds


@contextlib.contextmanager
def _keys() -> Iterator[tuple[int, int]]:
    """Have keys readable as they are pressed, and a change of the screen's size.

    Returns:
        The descriptor of the keys, and one that is readable when the size has changed.
    """
    keyboard = sys.stdin.fileno()
    told, teller = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    mode = termios.tcgetattr(keyboard)
    handler = signal.signal(signal.SIGWINCH, lambda *_: None)
    before = signal.set_wakeup_fd(teller, warn_on_full_buffer=False)
    try:
        tty.setcbreak(keyboard)
        yield keyboard, told
    finally:
        signal.set_wakeup_fd(before)
        signal.signal(signal.SIGWINCH, handler)
        termios.tcsetattr(keyboard, termios.TCSADRAIN, mode)
        os.close(told)
        os.close(teller)
