"""Write the manual pages of `kcm`, from the help texts of its commands.

    python -m ci.manual DIRECTORY

DIRECTORY gets man1/kcm.1 and a page for each command: `man -M DIRECTORY kcm-frame`.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from pykcm import __version__, cli
from pykcm.cli import _group


def escaped(text: str) -> str:
    """Text for roff: nothing in it is a request or an escape."""
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return re.sub(r"^(?=[.'])", r"\\&", text, flags=re.MULTILINE)


def paragraphs(help_text: str) -> Iterator[str]:
    """A help text of click's, where \\b keeps a paragraph's lines as they are."""
    for paragraph in re.split(r"\n\s*\n", help_text.strip()):
        if paragraph.startswith("\b\n"):
            yield f".nf\n{escaped(paragraph[2:])}\n.fi"
        else:
            yield escaped(" ".join(paragraph.split()))


def section(title: str, *lines: str) -> str:
    return "\n".join([f".SH {title}", *lines])


def options(ctx: click.Context) -> str:
    records = [
        param.get_help_record(ctx)
        for param in ctx.command.get_params(ctx)
        if isinstance(param, click.Option)
    ]
    return section(
        "OPTIONS",
        *(
            f".TP\n.B {escaped(names)}\n{escaped(' '.join(text.split()))}"
            for names, text in filter(None, records)
        ),
    )


def page(name: str, summary: str, *sections: str) -> str:
    head = f'.TH {name.upper()} 1 "" "pykcm {__version__}" "User Commands"'
    named = section("NAME", f"{escaped(name)} \\- {escaped(summary.rstrip('.'))}")
    return "\n".join([head, named, *sections, ""])


def of_command(name: str, summary: str, command: click.Command, parent: click.Context) -> str:
    """The page of one command."""
    ctx = click.Context(command, info_name=name, parent=parent)
    if not command.add_help_option:
        return of_program(name, summary)
    usage = escaped(" ".join(command.collect_usage_pieces(ctx)))
    sections = [
        section("SYNOPSIS", f".B {escaped(f'kcm {name}')}", usage),
        section("DESCRIPTION", "\n.PP\n".join(paragraphs(command.help or ""))),
        options(ctx),
    ]
    if command.epilog:
        _, _, statuses = command.epilog.partition("Exit status:\n")
        sections.append(section("EXIT STATUS", f".nf\n{escaped(statuses)}\n.fi"))
    return page(f"kcm-{name}", summary, *sections)


def of_program(name: str, summary: str) -> str:
    """The page of a command that has a command line of its own."""
    shown = subprocess.run(
        [sys.executable, "-m", "pykcm", name, "--help"], capture_output=True, text=True, check=True
    )
    return page(f"kcm-{name}", summary, section("DESCRIPTION", f".nf\n{escaped(shown.stdout)}.fi"))


def pages() -> dict[str, str]:
    """All pages by their file's name."""
    group = _group.make(cli.COMMANDS)
    parent = click.Context(group, info_name="kcm", **group.context_settings)
    made: dict[str, str] = {}
    for name, summary in sorted(cli.COMMANDS.items()):
        command = group.get_command(parent, name)
        assert command is not None
        made[f"kcm-{name}.1"] = of_command(name, summary, command, parent)
    listed = [f".TP\n.BR kcm\\-{name} (1)\n{escaped(text)}" for name, text in cli.COMMANDS.items()]
    made["kcm.1"] = page(
        "kcm",
        "use, watch and test Linux's Kernel Connection Multiplexor",
        section("SYNOPSIS", ".B kcm", escaped("[OPTIONS] COMMAND [ARGS]...")),
        section("COMMANDS", *listed),
        options(parent),
    )
    return made


def main(arguments: list[str]) -> None:
    (directory,) = arguments or ["build/man"]
    target = Path(directory) / "man1"
    target.mkdir(parents=True, exist_ok=True)
    for name, text in pages().items():
        (target / name).write_text(text, encoding="utf-8")
        print(target / name)


if __name__ == "__main__":
    main(sys.argv[1:])
