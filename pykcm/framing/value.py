"""What framings and the parts of a rule are: immutable, equal by their fields.

This does what a frozen dataclass does, for a tenth of its start-up: importing `dataclasses` costs
three times what `import socket` does, and each decorated class compiles its methods.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect
    from typing import Any, ClassVar, TypeVar

    from typing_extensions import dataclass_transform

    _Self = TypeVar("_Self", bound="Value")
else:

    def dataclass_transform(**_: object) -> object:
        return lambda cls: cls


_REQUIRED = object()


class _Signature:
    """What `help` shows: made when it is asked for."""

    def __get__(self, _instance: object, owner: type[Value]) -> inspect.Signature:
        import inspect

        kind, empty = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.empty
        return inspect.Signature(
            [
                inspect.Parameter(
                    name,
                    kind,
                    default=empty if default is _REQUIRED else default,
                    annotation=owner._annotations[name],
                )
                for name, default in owner._fields.items()
            ]
        )


@dataclass_transform(frozen_default=True)
class Value:
    """The base of immutable classes.

    A subclass's annotations name its fields, in the order of the constructor's arguments, with
    their defaults; `__post_init__` checks them.
    """

    _fields: ClassVar[dict[str, Any]] = {}
    _annotations: ClassVar[dict[str, Any]] = {}

    def __init_subclass__(cls) -> None:
        own = {name: hint for name, hint in cls.__annotations__.items() if not name.startswith("_")}
        cls._annotations = {**cls._annotations, **own}
        cls._fields = {**cls._fields, **{name: cls.__dict__.get(name, _REQUIRED) for name in own}}
        if "__init__" not in cls.__dict__:
            type.__setattr__(cls, "__signature__", _Signature())

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        name = type(self).__name__
        if len(args) > len(self._fields):
            raise TypeError(f"{name}() takes {len(self._fields)} arguments, not {len(args)}")
        given = dict(zip(self._fields, args, strict=False))
        for argument in kwargs:
            if argument in given or argument not in self._fields:
                twice = "twice the" if argument in given else "an unexpected"
                raise TypeError(f"{name}() got {twice} argument {argument!r}")
        values = {**self._fields, **given, **kwargs}
        missing = [argument for argument, value in values.items() if value is _REQUIRED]
        if missing:
            raise TypeError(f"{name}() needs the argument {missing[0]!r}")
        self.__dict__.update(values)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Checks the fields."""

    def _arguments(self) -> dict[str, Any]:
        """What the constructor was given, defaults included."""
        return {name: self.__dict__[name] for name in self._fields}

    def replace(self: _Self, **changes: Any) -> _Self:
        """A copy with other arguments."""
        return type(self)(**{**self._arguments(), **changes})

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable; `replace` makes another")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"{type(self).__name__} is immutable")

    def __eq__(self, other: object) -> bool:
        if type(self) is not type(other):
            return NotImplemented
        return self._arguments() == other._arguments()

    def __hash__(self) -> int:
        return hash((type(self), *(self.__dict__[name] for name in self._fields)))

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={value!r}" for name, value in self._arguments().items())
        return f"{type(self).__name__}({shown})"

    def __getstate__(self) -> dict[str, Any]:
        return {name: self.__dict__[name] for name in self._fields}
