"""`kcm selftest`: the kernel's KCM, checked against its documentation and source."""

from __future__ import annotations

import sys

import click
from click.shell_completion import CompletionItem


class _Command(click.Command):
    """A command of which click knows no options."""

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        from pykcm.selftest.command import option_names

        return _items(option_names(), incomplete)


def _complete(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What may stand after the last word: a check's name, a format, a file."""
    from pykcm.selftest.checks import GROUPS
    from pykcm.selftest.formats import FORMATS

    last = (ctx.params.get("arguments") or ("",))[-1]
    if last == "--filter":
        return _items([check.name for group in GROUPS for check in group.checks], incomplete)
    if last == "--format":
        return _items([*FORMATS], incomplete)
    return [CompletionItem(incomplete, type="file")]


def _items(words: list[str], incomplete: str) -> list[CompletionItem]:
    return [CompletionItem(word) for word in words if word.startswith(incomplete)]


@click.command(
    cls=_Command,
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED, shell_complete=_complete)
def command(arguments: tuple[str, ...]) -> None:
    """Check the kernel's KCM: a report in KTAP, the format of the kernel's own tests."""
    # The selftest has a command line of its own, since it must also run where click is not.
    from pykcm.selftest.command import main

    sys.exit(main(arguments))
