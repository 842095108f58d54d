"""`kcm selftest`: the kernel's KCM, checked against its documentation and source."""

from __future__ import annotations

import sys

import click


@click.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(arguments: tuple[str, ...]) -> None:
    """Check the kernel's KCM: a report in KTAP, the format of the kernel's own tests."""
    # The selftest has a command line of its own, since it must also run where click is not.
    from pykcm.selftest.command import main

    sys.exit(main(arguments))
