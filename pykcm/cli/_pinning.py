"""`--pin PATH --mode OCTAL`: a program that others may use is loaded by who may load it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from pykcm import bpf


def _octal(ctx: click.Context, param: click.Parameter, value: str) -> int:
    try:
        mode = int(value, 8)
    except ValueError:
        mode = -1
    if not 0 <= mode <= 0o777:
        raise click.BadParameter(f"{value!r} is not 000 to 777, in octal", ctx, param)
    return mode


def pins(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator: the options, handed over as `pin: str | None` and `mode: int`."""
    function = click.option(
        "--mode",
        callback=_octal,
        default="600",
        show_default=True,
        metavar="OCTAL",
        help="Who may use it, by reading and writing: 660 is for a group too.",
    )(function)
    return click.option(
        "--pin",
        type=click.Path(),
        metavar="PATH",
        help="Load the program and keep it there, below /sys/fs/bpf.",
    )(function)


def pin(program: bpf.Program, path: str, mode: int, as_json: bool) -> None:
    """Keep a program under a path, and say so.

    Raises:
        BPFError, CapabilityError: as of `Program.pin`.
        OSError: its mode can't be set; it is not kept then.
    """
    with program:
        program.pin(path)
        try:
            Path(path).chmod(mode)
        except BaseException:
            Path(path).unlink()
            raise
        info = program.info
    if as_json:
        click.echo(json.dumps({"pin": path, "mode": f"{mode:03o}", "id": info.id, "tag": info.tag}))
    else:
        click.echo(f"{path}: program {info.id}, tag {info.tag}, mode {mode:03o}")
