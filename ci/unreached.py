"""Why some of KCM's code is reached by no check: by function and by the text of the line."""

from __future__ import annotations

import re

from ci.coverage import Line

ASSERTION = "an assertion, which only a bug of the kernel's own would make fail"
AFTER_ASSERTION = "what follows an assertion that failed"
BOOT = "the kernel lacks memory while KCM is loaded or a namespace is made"
RACE = (
    "takes another CPU between two lines of the kernel's own, where nothing can be held; the stress "
    "gets there at times"
)
REFERENCED = "a TCP socket without its struct sock: who calls holds its file, so that it has one"
GENERAL = "for users of the stream parser other than KCM"
EXPLICIT = "a callback that KCM does not give or TCP does not lack"
FRAG_LIST = "a received segment that has a frag_list: TCP makes none of what comes over loopback"
ONLY_ATOMIC = "an allocation that is reached only after the one before it, which the check lets fail"
HARD = "an error of kcm_write_msgs(), which returns one only after an assertion that failed"

# A function's name and the line's text, each a pattern for all of it; the first that fits counts.
REASONS: tuple[tuple[str, str, str], ...] = (
    (r".*", r".*WARN_ON(_ONCE)?\(.*", ASSERTION),
    (r"kcm_init|kcm_proc_init_net|strp_dev_init|kcm_init_net", r".*", BOOT),
)


def reason(file: str, line: Line) -> str:
    """Why a line of a file, or a way that it may go, is not reached; empty if nobody knows."""
    for function, text, why in REASONS:
        if re.fullmatch(function, line.function) and re.fullmatch(text, line.text):
            return why
    return ""
