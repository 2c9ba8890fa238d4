"""The user's variables as a tree, for front ends that ask while nothing is stopped: debugpy need not be there."""

from __future__ import annotations

import reprlib
from itertools import count, islice
from types import EllipsisType, ModuleType, NoneType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    Content = dict[str, Any]
    Item = tuple[str, Any, str]
    """Name and value of a variable, and the expression that gives it."""

_FIRST_REFERENCE = 1 << 30
"""Above what pydevd numbers: it counts from 1."""

_MOST = 1000
"""How many children are shown."""

_KEPT = 10_000
"""How many references stay valid."""

_HIDDEN = frozenset(
    {"In", "Out", "_", "__", "___", "_dh", "_ih", "_oh", "_i", "_ii", "_iii", "exit", "quit", "get_ipython", "open"}
    | {"__builtin__", "__builtins__", "__doc__", "__loader__", "__name__", "__package__", "__spec__"}
    | {"__annotations__", "__display__", "debugpy"}
)
"""Names in a namespace that are Python's and IPython's, not the user's."""


def is_shown(name: str) -> bool:
    """Tell whether a name of the user's namespace is his, and not IPython's."""
    return name not in _HIDDEN and not (name.startswith(("_i", "_")) and name.lstrip("_i").isdecimal())


class Explorer:
    """Gives variables references, by which their children can be asked for."""

    def __init__(self) -> None:
        self._numbers = count(_FIRST_REFERENCE)
        self._held: dict[int, tuple[Any, str]] = {}

    def clear(self) -> None:
        """Forget the references, and let go of the objects."""
        self._held.clear()

    def holds(self, reference: object) -> bool:
        """Tell whether a reference is one of ours, and valid."""
        return reference in self._held

    def variables(self, namespace: Mapping[str, Any]) -> list[Content]:
        """Describe the user's variables, as the protocol's type Variable; all references from before are void."""
        self.clear()
        held = [(name, value) for name, value in dict(namespace).items() if is_shown(name)]
        return [self._described((name, value, name)) for name, value in held]

    def children(self, reference: int, start: int = 0, limit: int = 0) -> list[Content]:
        """Describe the children of a variable, from one on, at most so many; 0 is as many as are shown.

        Raises:
            KeyError: there is no such reference.
        """
        value, expression = self._held[reference]
        items = islice(_items(value, expression), start, start + (min(limit, _MOST) if limit > 0 else _MOST))
        return [self._described(item) for item in items]

    def _described(self, item: Item) -> Content:
        name, value, expression = item
        reference = 0
        if _has_items(value) and len(self._held) < _KEPT:
            reference = next(self._numbers)
            self._held[reference] = (value, expression)
        return {
            "name": name,
            "value": short_repr(value),
            "type": type(value).__name__,
            "evaluateName": expression,
            "variablesReference": reference,
        }


def short_repr(value: Any) -> str:
    """Write a value in some hundred characters at most; what fails to write itself is told by its type."""
    try:
        return _REPR.repr(value)
    except Exception as error:
        return f"<{type(value).__name__} whose repr raises {type(error).__name__}>"


def _make_repr() -> reprlib.Repr:
    written = reprlib.Repr()
    written.maxlevel, written.maxstring, written.maxother, written.maxlong = 3, 300, 500, 100
    written.maxlist = written.maxtuple = written.maxdict = written.maxset = written.maxfrozenset = 20
    return written


_REPR = _make_repr()


def _has_items(value: Any) -> bool:
    return next(iter(_items(value, "")), None) is not None


def _items(value: Any, expression: str) -> Iterable[Item]:
    for kind, items in _CONTAINERS.items():
        if isinstance(value, kind):
            return items(value, expression)
    return () if isinstance(value, (type, *_PLAIN)) or callable(value) else _attributes(value, expression)


_PLAIN: tuple[Any, ...] = (str, bytes, bytearray, int, float, complex, range, ModuleType, NoneType, EllipsisType)


def _of_dict(value: Any, expression: str) -> Iterable[Item]:
    for key, held in list(value.items()):
        name = short_repr(key)
        yield name, held, f"{expression}[{name}]"


def _of_sequence(value: Any, expression: str) -> Iterable[Item]:
    for number, held in enumerate(value):
        yield str(number), held, f"{expression}[{number}]"


def _of_set(value: Any, expression: str) -> Iterable[Item]:
    for number, held in enumerate(list(value)):
        yield str(number), held, f"list({expression})[{number}]"


def _attributes(value: Any, expression: str) -> Iterable[Item]:
    held = cast("dict[str, Any]", getattr(value, "__dict__", {}))
    slots = (name for kind in type(value).__mro__ for name in _slots(kind))
    names = sorted({*held, *slots}, key=lambda name: (name.startswith("_"), name))
    for name in names:
        if name in held:
            yield name, held[name], f"{expression}.{name}"
        elif (found := getattr(value, name, _NOTHING)) is not _NOTHING:
            yield name, found, f"{expression}.{name}"


def _slots(kind: type) -> Iterable[str]:
    names = kind.__dict__.get("__slots__", ())
    names = (names,) if isinstance(names, str) else tuple(names)
    return (name for name in names if not name.startswith("__"))


_NOTHING = object()
_CONTAINERS: dict[Any, Callable[[Any, str], Iterable[Item]]] = {
    dict: _of_dict,
    list: _of_sequence,
    tuple: _of_sequence,
    set: _of_set,
    frozenset: _of_set,
}
