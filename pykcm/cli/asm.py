"""`kcm asm`: BPF text to bytes, C, or a pin."""

from __future__ import annotations

import json
from typing import Any

import click

from pykcm import _offset, bpf
from pykcm.cli import _formats, _input, _pinning
from pykcm.errors import AssemblyError

_OFFSET = "message_offset"


def _symbols(ctx: click.Context, param: click.Parameter, values: tuple[str, ...]) -> dict[str, int]:
    symbols = {}
    for value in values:
        name, _, number = value.partition("=")
        try:
            symbols[name] = int(number, 0)
        except ValueError:
            raise click.BadParameter(f"{value!r} is not NAME=NUMBER", ctx, param) from None
    return symbols


@click.command()
@click.argument("file", type=click.Path(), default="-")
@click.option(
    "--define",
    "-D",
    "symbols",
    multiple=True,
    callback=_symbols,
    metavar="NAME=NUMBER",
    help="A constant that the text uses.",
)
@click.option(
    "--strategy",
    type=click.Choice([*_offset.STRATEGIES, "ask"]),
    help="What `message_offset` stands for: as in `kcm frame`.  [default: probe; ask with --pin]",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(_formats.FORMATS),
    default="bytes",
    show_default=True,
    help="How the program is written.",
)
@click.option(
    "--name", default="pykcm", show_default=True, help="The program's name in the kernel."
)
@_pinning.pins
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    file: str,
    symbols: dict[str, Any],
    strategy: str | None,
    format_: str,
    name: str,
    pin: str | None,
    mode: int,
    as_json: bool,
) -> None:
    """Assemble BPF text.

    FILE is the text, by default standard input; docs/bpf.md describes it.  `rN = message_offset`
    learns where in the data the message begins.
    """
    text = _input.read_text(file)
    if _OFFSET in text:
        wanted = strategy or ("probe" if pin is None else "ask")
        used = _offset.find_strategy() if wanted == "ask" else _offset.STRATEGIES[wanted]
        symbols = {_OFFSET: used.lines(), **symbols}
    try:
        if pin is not None:
            _pinning.pin(bpf.Program.load(text, name=name, **symbols), pin, mode, as_json)
            return
        code = bpf.assemble(text, **symbols)
    except AssemblyError as error:
        raise AssemblyError(f"{file}: {error}", error.line, error.column) from error
    if as_json:
        click.echo(json.dumps({"instructions": len(code) // 8, "bytes": code.hex()}))
        return
    _formats.write(_formats.Code(file, bpf.disassemble(code), code), format_)
