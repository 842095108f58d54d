"""The `kcm` command: a file for each subcommand."""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click


# The subcommands' modules, each with a click command named `command`; imported when used, so that
# `kcm` starts quickly.
_COMMANDS = {
    "demo": "Send messages through a real KCM and count what arrives.",
    "selftest": "Check the kernel's KCM against its documentation; a report in KTAP.",
}


def _group() -> click.Group:
    import click

    class Commands(click.Group):
        def list_commands(self, ctx: click.Context) -> list[str]:
            return sorted(_COMMANDS)

        def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
            if cmd_name not in _COMMANDS:
                return None
            module = importlib.import_module(f"pykcm.cli.{cmd_name}")
            command: click.Command = module.command
            command.short_help = _COMMANDS[cmd_name]
            return command

    return Commands(
        "kcm",
        help="Use, watch and test Linux's Kernel Connection Multiplexor (AF_KCM).",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def main() -> None:
    """Run the command; errors of pykcm's own are one line and exit status 1."""
    try:
        group = _group()
    except ImportError as error:
        sys.exit(f"kcm: {error.name} is missing; install pykcm with its extra: pykcm[cli]")
    from pykcm.errors import KCMError

    try:
        group.main(prog_name="kcm")
    except KCMError as error:
        sys.exit(f"kcm: {error}")
