"""doctor, stat --watch and connect on a terminal of 80 columns and 24 lines."""

from __future__ import annotations

import pytest

from tests import terminal

pytestmark = pytest.mark.skipif(bool(terminal.missing()), reason=terminal.missing())


@pytest.mark.parametrize("name", terminal.SHOWN)
def test_the_screen(name: str) -> None:
    """It is as it is kept; `python -m tests.terminal` writes it anew."""
    kept = (terminal.SCREENS / f"terminal-{name}.txt").read_text("utf-8")
    with terminal.terminal(name) as at:
        terminal.SHOWN[name](at)
        assert at.screen() == kept
        assert at.status() == {"doctor": "2", "stat": "", "connect": "0"}[name]
    # The picture shows the same.
    drawn = (terminal.PICTURES / f"{name}.svg").read_text("utf-8")
    lines = terminal.text_of(drawn).splitlines()
    lines.remove(f"kcm {name}")  # the title
    assert [line for line in lines if line] == [line for line in kept.splitlines() if line]


def test_keys_sort_and_quit_and_a_terminal_may_become_narrow() -> None:
    with terminal.terminal("stat") as at:
        terminal.watched(at)
        at.press("s")
        at.until(lambda shown: "sorts by received" in shown)
        at.resize(20, terminal.HEIGHT)
        narrow = at.until(lambda shown: "lines below" in shown)
        assert max(map(len, narrow.splitlines())) <= 20
        at.press(*"j" * 40)
        narrow = at.until(lambda shown: "psock-0 ESTAB" in shown)
        assert max(map(len, narrow.splitlines())) <= 20
        at.resize(terminal.WIDTH, terminal.HEIGHT)
        at.until(lambda shown: "sorts by received" in shown and shown.startswith("KCM:"))
        at.press("q")
        at.until(lambda _: at.status() != "")
        assert at.status() == "0"
        assert at.screen().strip() == ""  # what was there before is there again
