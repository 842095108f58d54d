"""The `kcm` command: a file for each subcommand, and what they share in those with an underscore.

`_ending` makes exit statuses and lines on standard error of what is raised.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Sequence

# The subcommands' modules, each with a click command named `command`; imported when used, so that
# `kcm` starts quickly.
COMMANDS = {
    "asm": "Assemble BPF text: to bytes, C, or a pin.",
    "connect": "Send and receive whole messages over TCP connections: netcat for KCM.",
    "demo": "Send messages through a real KCM and count what arrives.",
    "disasm": "Disassemble a BPF program: a file's, a pinned one, one in the kernel.",
    "doctor": "Say whether KCM can be used here, and what puts right what is wrong.",
    "frame": "Show a framing's program, pin it, or try the framing on a capture.",
    "selftest": "Check the kernel's KCM against its documentation; a report in KTAP.",
    "stat": "Show multiplexors, sockets, transports, and the processes that hold them.",
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Do what a command line says, and exit.

    Args:
        arguments: the words behind `kcm`; by default those that this process was given.
    """
    try:
        from pykcm.cli import _ending, _group
    except ModuleNotFoundError as error:
        sys.exit(f"kcm: {error.name} is missing; install pykcm with its extra: pykcm[cli]")
    words = sys.argv[1:] if arguments is None else arguments
    sys.exit(_ending.run(_group.make(COMMANDS), words))
