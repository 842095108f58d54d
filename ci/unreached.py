"""Why some of KCM's code is reached by no check: by function and by the text of the line."""

from __future__ import annotations

import re

from ci.coverage import Line

ASSERTION = "an assertion: only a bug of the kernel's own makes it fail"
AFTER = "what follows an assertion that failed, or an error that nothing returns"
BOOT = "memory is lacking while KCM is loaded or a network namespace is made"
RACE = "another CPU has to come between two lines; the stress gets there at times"
REFERENCED = "a socket without its struct sock: whoever calls holds its file, so it has one"
OTHERS = "for users of the stream parser that are not KCM on TCP"
FRAG_LIST = "a received segment with a frag_list: TCP makes none over loopback"
SECOND = "a second allocation, when the one before it has not failed"

# A function's name and the line's text, each a pattern for all of it; the first that fits counts.
REASONS: tuple[tuple[str, str, str], ...] = (
    (r".*", r".*WARN_ON(_ONCE)?\(.*", ASSERTION),
    (r"kcm_init|kcm_proc_init_net|strp_dev_init", r".*", BOOT),
    # kcmsock.c
    (r"kcm_attach|kcm_unattach_ioctl", r"if \(!csk\).*", REFERENCED),
    (r"kcm_release", r"if \(!sk\)", REFERENCED),
    # strparser.c
    (r"strp_process|__strp_unpause|default_read_sock_done", r".*", OTHERS),
    (r"strp_init", r".*", OTHERS),
    (r"strp_peek_len", r".*", OTHERS),
    (r"strp_abort_strp", r"if \(strp->sk\).*", OTHERS),
    (r"strp_read_sock", r".*", OTHERS),
)


def reason(file: str, line: Line) -> str:
    """Why a line of a file, or a way that it may go, is not reached; empty if nobody knows."""
    for function, text, why in REASONS:
        if re.fullmatch(function, line.function) and re.fullmatch(text, line.text):
            return why
    return ""
