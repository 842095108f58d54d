"""Why some of KCM's code is reached by no check: by function and by the text of the line."""

from __future__ import annotations

import re

from ci.coverage import Line

ASSERTION = "an assertion, which only a bug of the kernel's own would make fail"
BOOT = "the kernel lacks memory while KCM is loaded or a namespace is made"

# A function's name and the line's text, each a pattern for all of it; the first that fits counts.
REASONS: tuple[tuple[str, str, str], ...] = (
    (r".*", r".*WARN_ON(_ONCE)?\(.*", ASSERTION),
    (r"\w+_init|\w+_init_net", r".*", BOOT),
)


def reason(file: str, line: Line) -> str:
    """Why a line of a file, or a way that it may go, is not reached; empty if nobody knows."""
    for function, text, why in REASONS:
        if re.fullmatch(function, line.function) and re.fullmatch(text, line.text):
            return why
    return ""
