"""`kcm frame`: the program that finds a framing's messages, and what it finds in a capture."""

from __future__ import annotations

import json
from typing import Any

import click

from pykcm import _offset, bpf
from pykcm.cli import _check, _formats, _framings, _pinning
from pykcm.framing.search import function_argument

_EXIT_STATUS = """\b
Exit status:
  0  done; with --check, every byte belongs to a whole message
  1  it failed
  2  a mistake in the command line
  3  --check found something: a header that is refused, a message that is cut,
     bytes that the capture has lost"""


@click.command(epilog=_EXIT_STATUS)
@_framings.takes_framing("NAME")
@click.option("--list", "list_", is_flag=True, help="List the framings that have a name.")
@click.option(
    "--format",
    "format_",
    type=click.Choice(_formats.FORMATS),
    default="text",
    show_default=True,
    help="How the program is written; c is a source that loads and pins it.",
)
@click.option(
    "--batch",
    type=click.IntRange(1, 256),
    default=1,
    show_default=True,
    help="How many messages the kernel may hand over as one.",
)
@click.option(
    "--strategy",
    type=click.Choice([*_offset.STRATEGIES, "ask"]),
    help="How the program learns where a message begins: probe is for Linux 5.19 and later, ask "
    "tries the running kernel.  [default: probe; ask with --pin]",
)
@_pinning.pins
@click.option(
    "--check",
    "capture",
    type=click.Path(),
    metavar="CAPTURE",
    help="Measure a captured stream: raw, pcap or pcapng; - is standard input.",
)
@click.option("--port", type=click.IntRange(1, 65535), help="Of a pcap only streams of this port.")
@click.option("--raw", is_flag=True, help="The capture is raw, however it begins.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    framing: _framings.Chosen | None,
    list_: bool,
    format_: str,
    batch: int,
    strategy: str | None,
    pin: str | None,
    mode: int,
    capture: str | None,
    port: int | None,
    raw: bool,
    as_json: bool,
) -> int:
    """Show a framing's program, pin it, or try the framing on a capture.

    NAME is one of `kcm frame --list`; the options describe a framing that has none.  Without
    --check or --pin the program that finds the messages is written to standard output.
    """
    if list_:
        _list(as_json)
        return 0
    chosen = _framings.require(framing)
    if capture is not None:
        return _check.run(chosen, capture, port=port, raw=raw, as_json=as_json)
    name = strategy or ("probe" if pin is None else "ask")
    if name == "ask" and batch == 1 and not _needs_offset(chosen):
        name = "none"
    used = _offset.find_strategy() if name == "ask" else _offset.STRATEGIES[name]
    if pin is not None:
        _pinning.pin(chosen.framing.load(used, batch), pin, mode, as_json)
        return 0
    title = chosen.name + (f", up to {batch} messages at once" if batch > 1 else "")
    text = chosen.framing.assembly(used, batch)
    functions_take = function_argument(used.far_loads)
    program = _formats.Code(title, text, bpf.assemble(text), functions_take)
    if as_json:
        click.echo(json.dumps(_described(chosen, program, used.name, batch)))
    else:
        _formats.write(program, format_)
    return 0


def _needs_offset(chosen: _framings.Chosen) -> bool:
    from pykcm.framing import FixedLength

    return not isinstance(chosen.framing, FixedLength)


def _described(
    chosen: _framings.Chosen, program: _formats.Code, strategy: str, batch: int
) -> dict[str, Any]:
    return {
        "name": chosen.name,
        "framing": repr(chosen.framing),
        "max_length": chosen.framing.max_length,
        "batch": batch,
        "strategy": strategy,
        "assembly": program.text,
        "bytes": program.code.hex(),
    }


def _list(as_json: bool) -> None:
    """The catalogue, and what is not in it."""
    from pykcm import protocols

    if as_json:
        framings = [
            {
                "name": each.name,
                "summary": each.summary,
                "reference": each.reference,
                "max_length": each.framing.max_length,
                "maximum": each.maximum,
                "note": each.note,
                "connections": each.connections,
                "reason": each.reason,
            }
            for each in protocols.ALL.values()
        ]
        click.echo(json.dumps({"framings": framings, "left_out": dict(protocols.LEFT_OUT)}))
        return
    formatter = click.get_current_context().make_formatter()
    formatter.write_text(
        "A message does not say which connection it came by, and a send cannot choose one."
    )
    for heading, connections in (
        ("Many connections can share a multiplexor:", "many"),
        ("Each connection needs a multiplexor of its own:", "one"),
    ):
        formatter.write_paragraph()
        formatter.write_text(heading)
        formatter.write_paragraph()
        formatter.write_dl(
            [
                (each.name, each.summary)
                for each in protocols.ALL.values()
                if each.connections == connections
            ]
        )
    formatter.write_paragraph()
    formatter.write_text("Without a framing, and why:")
    formatter.write_paragraph()
    formatter.write_dl(list(protocols.LEFT_OUT.items()))
    click.echo(formatter.getvalue(), nl=False)
