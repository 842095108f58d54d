"""A `Layout`'s rule as it is written in TOML: a list of tables, a step each.

A step's name is that of its main argument: `{field = 2, size = 2}` adds the field at byte 2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pykcm.cli._escapes import to_bytes
from pykcm.cli._nearest import nearest
from pykcm.framing import Layout
from pykcm.framing.field import LARGEST_HEADER, Field, check_integer
from pykcm.framing.search import LARGEST_SEARCH, Find
from pykcm.framing.steps import Add, Case, Divisible, Match, RoundUp, Step, Switch, Times, Within
from pykcm.framing.variable import ber_length, decimal, leb128

Table = Mapping[str, Any]

_FIELD = ("size", "byteorder", "mask", "shift")


def make(values: Mapping[str, Any]) -> Layout:
    """The framing of a table's `rule`, `title`, `min_length` and `max_length`.

    Raises:
        ValueError: it describes none; the text says where.
    """
    known = ("rule", "title", "min_length", "max_length")
    _check("a layout", values, known, known[:1])
    rest = {name: value for name, value in values.items() if name != "rule"}
    return Layout(**{"title": "message", **rest, "rule": _rule(values["rule"], "rule")})


def _rule(steps: object, where: str) -> tuple[Step, ...]:
    if not isinstance(steps, list):
        raise ValueError(f"{where}: must be a list of tables, not {steps!r}")
    made: tuple[Step, ...] = ()
    for number, table in enumerate(steps, 1):
        made += _step(table, f"{where}: step {number}")
    return made


def _step(table: object, where: str) -> tuple[Step, ...]:
    if not isinstance(table, dict):
        raise ValueError(f"{where}: must be a table, not {table!r}")
    names = [name for name in _STEPS if name in table]
    if len(names) != 1:
        unknown = next((name for name in table if name not in _STEPS), "")
        hint = nearest(unknown, _STEPS) or f"; a step has one of {', '.join(_STEPS)}"
        raise ValueError(f"{where}: which step is it?{hint}")
    known, needed, build = _STEPS[names[0]]
    _check(where, table, (names[0], *known), needed)
    try:
        # The steps of a switch's cases say where they are themselves.
        return build(table, where)
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(where) else f"{where}: {text}") from error


def _check(where: str, table: Table, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    for name in table:
        if name not in known:
            hint = nearest(name, known) or f"; there are: {', '.join(known)}"
            raise ValueError(f"{where}: there is no {name!r}{hint}")
    for name in needed:
        if name not in table:
            raise ValueError(f"{where}: {name} is missing")


def _some(table: Table, *names: str) -> dict[str, Any]:
    return {name: table[name] for name in names if name in table}


def _at(table: Table, name: str) -> int:
    return check_integer(name, table.get(name, 0), 0, LARGEST_HEADER)


def _most(table: Table, name: str, most: int, default: int | None = None) -> int:
    return check_integer(name, table.get(name, default or most), 1, most)


def _bytes(table: Table, name: str) -> bytes:
    if not isinstance(table[name], str):
        raise ValueError(f"{name}: must be text, not {table[name]!r}")
    return to_bytes(table[name])


def _field(table: Table, name: str) -> Field:
    if table.get("byteorder", "big") not in ("big", "little"):
        raise ValueError(f"byteorder: must be big or little, not {table['byteorder']!r}")
    return Field(table[name], **_some(table, *_FIELD))


def _add_field(table: Table, _where: str) -> tuple[Step, ...]:
    return (Add(_field(table, "field"), **_some(table, "multiplier")),)


def _within(table: Table, _where: str) -> tuple[Step, ...]:
    pair = table["within"]
    if not isinstance(pair, list) or len(pair) != 2:
        raise ValueError(f"within: must be [least, most], not {pair!r}")
    return (Within(*pair),)


def _find(table: Table, _where: str) -> tuple[Step, ...]:
    return (Find(_bytes(table, "find"), table.get("limit", LARGEST_SEARCH)),)


def _decimal(table: Table, _where: str) -> tuple[Step, ...]:
    end = _bytes(table, "decimal")
    if len(end) != 1:
        raise ValueError(f"decimal: must be the byte that ends the number, not {end!r}")
    return decimal(end, _most(table, "max_digits", 10), _at(table, "offset"))


def _switch(table: Table, where: str) -> tuple[Step, ...]:
    if not isinstance(table["cases"], list):
        raise ValueError(f"cases: must be a list of tables, not {table['cases']!r}")
    cases = []
    for number, case in enumerate(table["cases"], 1):
        place = f"{where}: case {number}"
        if not isinstance(case, dict):
            raise ValueError(f"{place}: must be a table, not {case!r}")
        _check(place, case, ("values", "rule"), ("values",))
        cases.append(Case(_values(case["values"], place), _rule(case.get("rule", []), place)))
    return (Switch(_field(table, "switch"), tuple(cases)),)


def _values(values: object, where: str) -> tuple[tuple[int, int], ...]:
    """[1, [4, 7]]: 1, and 4 to 7."""
    made: list[tuple[int, int]] = []
    for value in values if isinstance(values, list) else [None]:
        ends: list[Any] = value if isinstance(value, list) else [value, value]
        if len(ends) != 2 or not all(type(end) is int for end in ends):
            raise ValueError(f"{where}: values: must be numbers and [first, last], not {values!r}")
        first, last = ends
        made.append((first, last))
    return tuple(made)


# Of each step what else its table may have, what it must, and how it is made.
_Build = Callable[[Table, str], "tuple[Step, ...]"]
_STEPS: dict[str, tuple[tuple[str, ...], tuple[str, ...], _Build]] = {
    "add": ((), (), lambda table, _: (Add(table["add"]),)),
    "field": ((*_FIELD, "multiplier"), (), _add_field),
    "times": ((), (), lambda table, _: (Times(table["times"]),)),
    "round_up": ((), (), lambda table, _: (RoundUp(table["round_up"]),)),
    "match": (
        ("offset",),
        (),
        lambda table, _: (Match(_bytes(table, "match"), **_some(table, "offset")),),
    ),
    "switch": ((*_FIELD, "cases"), ("cases",), _switch),
    "within": ((), (), _within),
    "divisible": ((), (), lambda table, _: (Divisible(table["divisible"]),)),
    "find": (("limit",), (), _find),
    "leb128": (
        ("max_bytes",),
        (),
        lambda table, _: leb128(_at(table, "leb128"), _most(table, "max_bytes", 9, 5)),
    ),
    "ber_length": (
        ("max_bytes",),
        (),
        lambda table, _: ber_length(_at(table, "ber_length"), _most(table, "max_bytes", 8)),
    ),
    "decimal": (("max_digits", "offset"), (), _decimal),
}
