"""The group of the subcommands: it imports none of them before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping

import click
from click.shell_completion import CompletionItem

from pykcm.cli._nearest import nearest


class State:
    """What is known of a command line while it is worked on; click's `obj`.

    Attributes:
        debug: whether tracebacks are wanted.
        name: the command so far, as in "kcm frame".
    """

    def __init__(self) -> None:
        self.debug = False
        self.name = "kcm"


def _set_debug(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(State).debug = True


def _debug_option() -> click.Option:
    return click.Option(
        ["--debug"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_set_debug,
        help="Show where an error was raised.",
    )


class _Group(click.Group):
    def __init__(self, table: Mapping[str, str]) -> None:
        super().__init__(
            "kcm",
            help="Use, watch and test Linux's Kernel Connection Multiplexor (AF_KCM).",
            context_settings={"help_option_names": ["-h", "--help"]},
            no_args_is_help=False,  # an error, in a line, where options are given and no command
            params=[_version_option(), _debug_option()],
        )
        self.table = table

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(self.table)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.table:
            return None
        command: click.Command = importlib.import_module(f"pykcm.cli.{cmd_name}").command
        command.short_help = self.table[cmd_name]
        if not any(param.name == "debug" for param in command.params):
            command.params.append(_debug_option())
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in self.table and not args[0].startswith("-"):
            ctx.fail(f"there is no command {args[0]!r}{nearest(args[0], self.table)}")
        ctx.ensure_object(State).name = f"kcm {args[0]}"
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(sorted(self.table.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        return [
            *(
                CompletionItem(name, help=text)
                for name, text in sorted(self.table.items())
                if name.startswith(incomplete)
            ),
            *click.Command.shell_complete(self, ctx, incomplete),
        ]


def _version_option() -> click.Option:
    def show(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            from pykcm import __version__

            click.echo(f"kcm {__version__}")
            ctx.exit()

    return click.Option(
        ["--version"],
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=show,
        help="Show the version and exit.",
    )


def make(table: Mapping[str, str]) -> click.Group:
    """The group.

    Args:
        table: what each subcommand does, in a line, by its name and its module's.
    """
    return _Group(table)
