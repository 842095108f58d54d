"""Framings and steps as values, and what importing them costs."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys

import pytest

import pykcm
from pykcm import protocols
from pykcm.framing import LengthField
from pykcm.framing.field import Field
from pykcm.framing.steps import Add, Path, Switch
from pykcm.framing.value import Value


class Point(Value):
    """A value of two fields."""

    x: int
    y: int = 5


def test_a_value() -> None:
    point = Point(1)
    assert repr(point) == "Point(x=1, y=5)"
    assert point == Point(x=1, y=5) == point.replace(y=5) == copy.deepcopy(point)
    assert hash(point) == hash(Point(1, 5))
    assert point != Point(1, 6)
    assert point != (1, 5)
    assert pickle.loads(pickle.dumps(point)) == point
    with pytest.raises(AttributeError, match="immutable"):
        point.x = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        del point.x


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({}, "needs the argument 'x'"),
        ({"x": 1, "z": 2}, "unexpected argument 'z'"),
        ({"args": (1, 2, 3)}, "takes 2 arguments, not 3"),
        ({"args": (1,), "x": 1}, "twice the argument 'x'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, object], named: str) -> None:
    args = arguments.pop("args", ())
    assert isinstance(args, tuple)
    with pytest.raises(TypeError, match=rf"Point\(\).*{named}"):
        Point(*args, **arguments)  # type: ignore[arg-type]


def test_values_of_other_classes_differ() -> None:
    class Other(Value):
        x: int
        y: int = 5

    assert Other(1) != Point(1)


def test_help_shows_the_arguments() -> None:
    names = list(inspect.signature(LengthField).parameters)
    assert names[:3] == ["offset", "size", "byteorder"]
    assert inspect.signature(LengthField).parameters["size"].default == 4
    assert inspect.signature(Point).parameters["x"].default is inspect.Parameter.empty
    assert str(inspect.signature(pykcm.CustomFraming)).startswith("(text: 'str', *")


def test_every_part_of_a_rule_is_a_value() -> None:
    for part in (Field(0), Add(1), Path(), protocols.RESP, protocols.GRPC.rule[0]):
        assert isinstance(part, Value)
        assert pickle.loads(pickle.dumps(part)) == part
    assert isinstance(protocols.GRPC.rule[0], Switch)


# Without pykcm/__init__.py, which is measured on its own.
ALONE = f"""
import sys, types
package = types.ModuleType("pykcm")
package.__path__ = {[*pykcm.__path__]!r}
sys.modules["pykcm"] = package
"""
DEAR = ("dataclasses", "inspect", "pykcm.bpf", "pykcm._offset")


@pytest.mark.parametrize(
    "statement",
    [
        "import pykcm.framing; pykcm.framing.LengthField(size=2)",
        "from pykcm import protocols; protocols.THRIFT_FRAMED",
    ],
)
def test_importing_framings_is_cheap(statement: str) -> None:
    script = f"{ALONE}\n{statement}\nprint([name for name in {DEAR} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-I", "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert result.stdout.strip() == "[]"


def test_the_catalogue_is_made_when_it_is_asked_for() -> None:
    script = f"""{ALONE}
from pykcm import protocols
assert "DNS" not in vars(protocols) and "DNS" in dir(protocols)
assert protocols.DNS is protocols.DNS is protocols.ALL["DNS"].framing
assert "DNS" in vars(protocols) and "RESP" not in vars(protocols)
"""
    subprocess.run([sys.executable, "-I", "-c", script], check=True, timeout=60)
    with pytest.raises(AttributeError, match="no attribute 'SMTP'"):
        protocols.SMTP  # type: ignore[attr-defined] # noqa: B018


def test_type_checkers_know_every_framing() -> None:
    assert {name for name in protocols.__annotations__ if name in protocols.ALL} == set(
        protocols.ALL
    )
