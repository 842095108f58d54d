"""`kcm disasm`: the text of a program in a file, under a pin or in the kernel."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from pykcm import bpf
from pykcm.bpf import elf
from pykcm.bpf.disassembler import disassemble
from pykcm.cli import _attached, _formats, _input
from pykcm.errors import AssemblyError, BPFError

_ELF = b"\x7fELF"
_SOCKET_FILTER = 1


@click.command()
@click.argument("file", type=click.Path(), required=False)
@click.option("--pinned", type=click.Path(), metavar="PATH", help="The program pinned there.")
@click.option("--id", "id_", type=click.IntRange(1), help="The kernel's program with this id.")
@click.option(
    "--attached",
    metavar="ADDRESS:PORT",
    help="The program that finds the messages of the connection with this end, near or far.",
)
@click.option("--list", "list_", is_flag=True, help="List the socket filters in the kernel.")
@click.option("--section", help="The section of an object; by default 'socket'.")
@click.option(
    "--byteorder",
    type=click.Choice(["little", "big"]),
    default=sys.byteorder,
    show_default=True,
    help="Of a file of bare instructions.",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice(["text", "bytes", "c-array"]),
    default="text",
    show_default=True,
    help="How the program is written.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    file: str | None,
    pinned: str | None,
    id_: int | None,
    attached: str | None,
    list_: bool,
    section: str | None,
    byteorder: Any,
    format_: str,
    as_json: bool,
) -> None:
    """Disassemble a BPF program.

    FILE is an object that `clang -target bpf` wrote, or bare instructions; - is standard input.
    A program in the kernel is shown as the kernel rewrote it.  Which one is attached to a
    connection is told to root alone, as by kcm stat; --list has all that can be.
    """
    sources = (file is not None, pinned is not None, id_ is not None, attached is not None, list_)
    if sum(sources) != 1:
        raise click.UsageError("one of FILE, --pinned, --id, --attached and --list, please")
    if list_:
        _list(as_json)
        return
    if attached is not None:
        id_ = _attached.to(attached)
    found: dict[str, Any] = {}
    if file is not None:
        title, code = file, _from_file(file, section)
    else:
        title, code, found = _from_kernel(pinned, id_)
        byteorder = sys.byteorder
    try:
        text = disassemble(code, byteorder)
    except AssemblyError as error:
        raise AssemblyError(f"{title}: {error}") from error
    if as_json:
        click.echo(json.dumps({**found, "assembly": text, "bytes": code.hex()}))
    else:
        _formats.write(_formats.Code(title, text, code), format_)


def _from_file(path: str, section: str | None) -> bytes:
    code = _input.read(path)
    if code.startswith(_ELF):
        if path == "-":
            raise click.ClickException("an object must be a file, not standard input")
        return elf.read(path, section).code
    if section is not None:
        raise click.ClickException(f"{path}: not an object, so that it has no section {section!r}")
    return code


def _from_kernel(pinned: str | None, id_: int | None) -> tuple[str, bytes, dict[str, Any]]:
    """What to call it, its instructions, and what the kernel says of it."""
    opened = bpf.Program.from_pin(pinned) if pinned is not None else bpf.Program.from_id(id_ or 0)
    with opened as program:
        code, info = program.translated(), program.info
    if not code:
        raise click.ClickException("the kernel shows the instructions to nobody without CAP_BPF")
    return pinned or f"program {id_}", code, _described(info)


def _described(info: bpf.ProgramInfo) -> dict[str, Any]:
    return {"id": info.id, "type": info.type, "tag": info.tag, "name": info.name}


def _list(as_json: bool) -> None:
    """The socket filters, which alone can be attached to KCM."""
    infos = []
    for number in bpf.program_ids():
        try:
            with bpf.Program.from_id(number) as program:
                info = program.info
        except BPFError:
            continue  # it has gone meanwhile
        if info.type == _SOCKET_FILTER:
            infos.append(info)
    try:
        transports, note = _attached.transports(), ""
    except _attached.UntoldError as error:
        transports, note = [], str(error)
    users = {info.id: [row for row in transports if row.program == info.id] for info in infos}
    if as_json:
        programs = [
            {**_described(info), "transports": [row.plain() for row in users[info.id]]}
            for info in infos
        ]
        click.echo(json.dumps({"programs": programs, "note": note or None}))
        return
    click.echo(f"{'id':>10}  {'tag':16}  {'name':15}  transports")
    for info in infos:
        count = "?" if note else len(users[info.id]) or "-"
        click.echo(f"{info.id:10}  {info.tag:16}  {info.name:15}  {count:>10}")
    if note:
        click.echo(f"kcm disasm: {note}", err=True)
