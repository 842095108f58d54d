"""How a command is told its framing: by name, field by field, or in a TOML file.

The same on every command: `@takes_framing()` adds the options, and hands over what they say.
"""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click
from click.shell_completion import CompletionItem

from pykcm.cli._escapes import to_bytes
from pykcm.cli._nearest import nearest

if TYPE_CHECKING:
    from pykcm.framing import Framing

# The class of each kind, and which argument a value without a name is.
_KINDS = {
    "length-field": ("LengthField", None),
    "fixed-length": ("FixedLength", "length"),
    "varint": ("Varint", None),
    "delimiter": ("Delimiter", "delimiter"),
}
_LAYOUT = "layout"
_ASSEMBLY = "assembly"
_HELP = {
    "length-field": "A length field: offset, size, byteorder, adjustment, mask, shift, "
    "multiplier, min_length, max_length, magic, magic_offset, multiple_of.",
    "fixed-length": "Messages of so many bytes.",
    "varint": "A LEB128 number before each message: max_bytes, offset, max_length.",
    "delimiter": r"What ends a message, as in '\r\n'; max_length.",
}
_LAYOUT_HELP = "Steps in TOML, as in '{field = 1, size = 4}, {add = 5}': docs/commands.md."
_WAYS = "name one of `kcm frame --list`, or give --length-field, --delimiter or --framing-file"


class Chosen(NamedTuple):
    """The framing that a command was told.

    Attributes:
        name: what to call it: a name of the catalogue, a kind, or the file's name.
        framing: the framing.
    """

    name: str
    framing: Framing


def takes_framing(
    argument: str | None = None,
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: options that tell a framing, handed over as `framing: Chosen | None`.

    Args:
        argument: what to call a positional argument that names one, in capitals; None for none.
    """

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            kinds = {kind: kwargs.pop(kind.replace("-", "_")) for kind in (*_KINDS, _LAYOUT)}
            names = [kwargs.pop("framing_name", None), kwargs.pop("framing_option")]
            file, max_length = kwargs.pop("framing_file"), kwargs.pop("max_length")
            chosen = _choose(names, kinds, file, max_length)
            return function(*args, framing=chosen, **kwargs)

        call = click.option(
            "--max-length",
            type=int,
            metavar="BYTES",
            help="The longest message, header included, instead of the framing's own.",
        )(call)
        call = click.option(
            "--framing-file",
            type=click.Path(),
            metavar="FILE",
            help="A TOML file with the framing: docs/commands.md.",
        )(call)
        call = click.option("--layout", metavar="STEPS", help=_LAYOUT_HELP)(call)
        for kind in reversed(_KINDS):
            call = click.option(f"--{kind}", metavar="FIELDS", help=_HELP[kind])(call)
        call = click.option(
            "--framing",
            "framing_option",
            metavar="NAME",
            shell_complete=_complete,
            help="A protocol's name: `kcm frame --list`.",
        )(call)
        if argument is None:
            return call
        return click.argument(
            "framing_name", metavar=f"[{argument}]", required=False, shell_complete=_complete
        )(call)

    return decorate


def require(framing: Chosen | None) -> Chosen:
    """The framing, or an error that says how one is given."""
    if framing is None:
        raise click.UsageError(f"which framing? {_WAYS}")
    return framing


def by_name(name: str) -> Chosen:
    """A framing of the catalogue; capitals and hyphens do not matter."""
    from pykcm import protocols

    known = name.upper().replace("-", "_")
    if known not in protocols.ALL:
        raise click.UsageError(
            f"there is no framing {name!r}{nearest(name.replace('-', '_'), protocols.ALL)}"
        )
    return Chosen(known, protocols.ALL[known].framing)


def _complete(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from pykcm import protocols

    lower = incomplete.islower()
    return [
        CompletionItem(name.lower() if lower else name, help=protocol.summary)
        for name, protocol in protocols.ALL.items()
        if name.startswith(incomplete.upper().replace("-", "_"))
    ]


def _choose(
    names: list[str | None],
    kinds: Mapping[str, str | None],
    file: str | None,
    max_length: int | None,
) -> Chosen | None:
    given = [name for name in names if name is not None]
    written = {kind: text for kind, text in kinds.items() if text is not None}
    if len(given) + len(written) + (file is not None) > 1:
        raise click.UsageError("one framing, please: by name, by its fields, or in a file")
    if given:
        chosen = by_name(given[0])
    elif file is not None:
        chosen = Chosen(Path(file).name, from_file(file))
    elif written:
        ((kind, text),) = written.items()
        try:
            made = _from_steps(text) if kind == _LAYOUT else _from_fields(kind, text)
            chosen = Chosen(kind, made)
        except ValueError as error:
            raise click.UsageError(f"--{kind}: {error}") from error
    else:
        return None
    if max_length is None:
        return chosen
    try:
        return chosen._replace(framing=_changed(chosen.framing, {"max_length": max_length}))
    except ValueError as error:
        raise click.UsageError(f"--max-length: {error}") from error


def _from_fields(kind: str, text: str) -> Framing:
    """A framing from "offset=2,size=2"."""
    class_name, unnamed = _KINDS[kind]
    values: dict[str, str] = {}
    for part in text.split(",") if text else ():
        name, equals, value = part.partition("=")
        if not equals:
            if unnamed is None or values:
                raise ValueError(f"{part!r} is not NAME=VALUE")
            name, value = unnamed, part
        name = name.strip().replace("-", "_")
        if name in values:
            raise ValueError(f"{name} is given twice")
        values[name] = value
    return _make(_class(class_name), values)


def _from_steps(text: str) -> Framing:
    """A framing from "{field = 1, size = 4}, {add = 5}"."""
    from pykcm.cli import _layout

    try:
        values = _toml().loads(f"rule = [{text}]")
        if len(values) > 1:
            raise ValueError("more than a list")
    except ValueError as error:
        raise ValueError(f"{text!r} is not TOML's tables, as in {{add = 5}}") from error
    return _layout.make(values)


def _toml() -> Any:
    return importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")


def from_file(path: str) -> Framing:
    """The framing of a TOML file.

    Raises:
        ClickException: the file is not TOML, or does not describe a framing.
        OSError: it can't be read.
    """
    content = Path(path).read_bytes()
    try:
        values = _toml().loads(content.decode())
        return _from_table(values)
    except UnicodeDecodeError as error:
        raise click.ClickException(f"{path}: not TOML, which is text in UTF-8") from error
    except ValueError as error:  # tomllib's error, and pykcm's of a framing, are ValueErrors
        raise click.ClickException(f"{path}: {error}") from error


def _from_table(values: dict[str, Any]) -> Framing:
    if "protocol" in values:
        name = values.pop("protocol")
        try:
            framing = by_name(str(name)).framing
        except click.UsageError as error:
            raise ValueError(error.message) from error
        return _changed(framing, values) if values else framing
    kind = values.pop("kind", None)
    kinds = [*_KINDS, _LAYOUT, _ASSEMBLY]
    if kind is None:
        unknown = next(iter(values), "")
        hint = nearest(unknown, ["kind", "protocol"])
        raise ValueError(f"a framing has a kind ({', '.join(kinds)}) or a protocol{hint}")
    if kind == _ASSEMBLY:
        return _by_hand(values)
    if kind == _LAYOUT:
        from pykcm.cli import _layout

        return _layout.make(values)
    if kind not in _KINDS:
        raise ValueError(
            f"there is no kind {kind!r}{nearest(str(kind), kinds) or ': ' + ', '.join(kinds)}"
        )
    return _make(_class(_KINDS[kind][0]), values)


def _by_hand(values: dict[str, Any]) -> Framing:
    from pykcm import CustomFraming

    _check_names(values, ["text", "max_length", "symbols"], ["text"])
    symbols = values.pop("symbols", {})
    if not isinstance(symbols, dict):
        raise ValueError("symbols: must be a table of numbers")
    for name in ("text", "max_length", "measure"):
        if name in symbols:
            raise ValueError(f"symbols: no {name!r} can be one")
    return CustomFraming(values.pop("text"), **values, **symbols)


def _class(name: str) -> type[Framing]:
    from pykcm import framing

    found: type[Framing] = getattr(framing, name)
    return found


def _make(cls: type[Framing], values: Mapping[str, Any]) -> Framing:
    import inspect

    parameters = inspect.signature(cls).parameters
    _check_names(
        values,
        list(parameters),
        [name for name, each in parameters.items() if each.default is each.empty],
    )
    return cls(**_converted(values, parameters))


def _changed(framing: Framing, values: Mapping[str, Any]) -> Framing:
    import inspect

    parameters = inspect.signature(type(framing)).parameters
    known = [name for name in parameters if name not in ("title", "rule", "text", "measure")]
    _check_names(values, known, [])
    return framing.replace(**_converted(values, parameters))


def _check_names(values: Mapping[str, Any], known: list[str], needed: list[str]) -> None:
    for name in values:
        if name not in known:
            hint = nearest(name, known) or f"; there are: {', '.join(known)}"
            raise ValueError(f"there is no {name!r}{hint}")
    for name in needed:
        if name not in values:
            raise ValueError(f"{name} is missing")


def _converted(values: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Text as numbers and bytes, where an argument is one; TOML has numbers already."""
    converted: dict[str, Any] = {}
    for name, value in values.items():
        wanted = str(parameters[name].annotation)
        try:
            if not isinstance(value, str) or wanted not in ("int", "bytes"):
                converted[name] = value
            else:
                converted[name] = int(value, 0) if wanted == "int" else to_bytes(value)
        except ValueError as error:
            why = f"{value!r} is not a number" if wanted == "int" else error
            raise ValueError(f"{name}: {why}") from error
    return converted
