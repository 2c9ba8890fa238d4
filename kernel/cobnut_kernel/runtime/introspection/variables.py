"""The user's variables as a table: what they are, how large, and what can be said of them without running his code."""

from __future__ import annotations

import sys
from itertools import islice
from types import BuiltinFunctionType, FunctionType, MethodDescriptorType, MethodType, ModuleType
from typing import TYPE_CHECKING, Any

from cobnut_kernel.runtime.introspection.members import (
    class_of,
    is_class,
    is_module,
    lookup,
    own_dict,
    type_module,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

LIMIT = 500
"""How many variables a reply names, where the request does not say."""

_ROOM = 80
"""How many characters a summary has at most."""

_SHOWN = 20
"""How many items of a container are looked at."""

_DEEP = 3
"""How many containers in containers are drawn."""

_IPYTHONS = frozenset({"exit", "quit", "get_ipython", "open", "display"})
"""Names that IPython puts into the namespace, where they still stand for what is its own."""

_HOLDERS: tuple[Any, ...] = (dict, list, tuple, set, frozenset, str, bytes, bytearray, range)
_WRITTEN: tuple[Any, ...] = (bool, float, complex, type(None), type(Ellipsis), type(NotImplemented), range)
"""Types whose `repr` is Python's own, through and through, and short."""

_WRITTEN_TOO = (("decimal", "Decimal"), ("fractions", "Fraction"), ("datetime", "date"), ("datetime", "timedelta"))
"""More of them, by their modules, which need not be imported."""


def variables(namespace: Mapping[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """List the variables of a namespace: the user's, in the order of their making, modules last.

    Args:
        namespace: the user's own.
        content: of the request; `limit` is how many variables to name.

    Returns:
        The content of a variables_reply: `variables`, and `cut`, how many more there are. Each has a `name`, a `type`,
        the `module` of the type, a `shape` (a list, or None), a `size` in bytes (or None), and a `summary`, a line of
        text; arrays have a `dtype` too, containers a `length`.

    Raises:
        TypeError: the limit is no number.
    """
    limit = content.get("limit", LIMIT)
    if not isinstance(limit, int):
        raise TypeError(f"The 'limit' of variables must be a whole number, not {limit!r}.")
    held = dict(namespace)
    shown = [(name, value) for name, value in held.items() if _is_the_users(name, value, held)]
    shown.sort(key=lambda item: is_module(item[1]))
    kept = shown[: max(0, limit)]
    return {
        "status": "ok",
        "variables": [_described(name, value) for name, value in kept],
        "cut": len(shown) - len(kept),
    }


def _is_the_users(name: Any, value: Any, namespace: dict[str, Any]) -> bool:
    if type(name) is not str or name.startswith("_"):
        return False
    if name in {"In", "Out"}:
        return value is not namespace.get("_ih" if name == "In" else "_oh")
    if name not in _IPYTHONS:
        return True
    function = value.__func__ if type(value) is MethodType else value
    home = function.__globals__.get("__name__") if type(function) is FunctionType else type_module(value)
    return not str(home).startswith(("IPython.", "cobnut_kernel."))


def _described(name: str, value: Any) -> dict[str, Any]:
    described: dict[str, Any] = {
        "name": name,
        "type": type_name(value),
        "module": type_module(value),
        "shape": None,
        "size": _size(value),
        "summary": "",
    }
    try:
        described |= _known(value)
    except Exception:  # a library's object that is half made, or changes meanwhile, has no more to say
        pass
    else:
        described["summary"] = described["summary"] or summary(value)
    length = _length(value)
    return described if length is None else described | {"length": length}


# ── sizes ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def _length(value: Any) -> int | None:
    """Return how many items a container of Python's has; a class of the user's that counts otherwise has none."""
    kind = class_of(value)
    for base in _HOLDERS:
        if issubclass(kind, base) and lookup(kind, "__len__") is lookup(base, "__len__"):
            return base.__len__(value)
    return None


def _size(value: Any) -> int | None:
    """Return the bytes of the object itself; None where a class of the user's would count them."""
    method = lookup(class_of(value), "__sizeof__")
    if type(method) is MethodDescriptorType:
        return int(method(value))
    return int(type.__sizeof__(value)) if is_class(value) else None


# ── summaries ───────────────────────────────────────────────────────────────────────────────────────────────────────


def summary(value: Any, depth: int = 0) -> str:
    """Write a value in a line, as far as Python's own types go; of other objects the type is told."""
    return _cut(_summary(value, depth))


def _summary(value: Any, depth: int) -> str:
    kind = class_of(value)
    if kind is int:
        return repr(value) if value.bit_length() < 256 else f"<int of {value.bit_length()} bits>"
    if _is_one_of(kind, _WRITTEN) or _is_written(kind):
        return repr(value)
    if _is_one_of(kind, (str, bytes, bytearray)):
        return repr(value[: _ROOM + 1])
    if _is_one_of(kind, (dict, list, tuple, set, frozenset)):
        return _container(value, depth) if depth < _DEEP else "…"
    return _definition(value) or f"<{type_name(value)}>"


def _is_one_of(kind: Any, kinds: tuple[Any, ...]) -> bool:
    """Whether a class is among others; `in` would ask its metaclass."""
    return any(kind is each for each in kinds)


def _is_written(kind: Any) -> bool:
    return any(vars(sys.modules[module]).get(name) is kind for module, name in _WRITTEN_TOO if module in sys.modules)


def _definition(value: Any) -> str:
    if is_module(value):
        held = own_dict(value)
        return " ".join(text for name in ("__name__", "__version__") if type(text := held.get(name)) is str)
    if type(value) is FunctionType:
        code = value.__code__
        return f"{value.__qualname__}({', '.join(code.co_varnames[: code.co_argcount + code.co_kwonlyargcount])})"
    if type(value) is BuiltinFunctionType:
        return f"{value.__qualname__}(…)"
    return f"class {vars(type)['__qualname__'].__get__(value)}" if is_class(value) else ""


def _container(value: Any, depth: int) -> str:
    kind = class_of(value)
    try:
        items: list[Any] = list(islice(value.items() if kind is dict else value, _SHOWN))
    except RuntimeError:  # it is changed by a cell in this moment
        return f"<{type_name(value)}>"
    if kind is dict:
        written = [f"{summary(key, depth + 1)}: {summary(held, depth + 1)}" for key, held in items]
    else:
        written = [summary(item, depth + 1) for item in items]
    count = len(value)
    joined = ", ".join([*written, "…"] if count > len(items) else written)
    if kind is tuple:
        return f"({joined},)" if count == 1 else f"({joined})"
    if kind is list:
        return f"[{joined}]"
    if kind is dict or (kind is set and joined):
        return f"{{{joined}}}"
    return "set()" if kind is set else f"frozenset({{{joined}}})" if joined else "frozenset()"


def _cut(text: str) -> str:
    line = " ".join(text.splitlines())
    return line if len(line) <= _ROOM else line[: _ROOM - 1] + "…"


# ── arrays and tables ───────────────────────────────────────────────────────────────────────────────────────────────


def _known(value: Any) -> dict[str, Any]:
    """Say what the well-known libraries' own objects say of themselves; {} of any other."""
    library = sys.modules.get(type_module(value).partition(".")[0])
    describe = _LIBRARIES.get(type_module(value).partition(".")[0])
    return describe(library, value) if describe is not None and type(library) is ModuleType else {}


def _numpy(numpy: Any, value: Any) -> dict[str, Any]:
    if type(value) is numpy.ndarray:
        first: list[Any] = value.flat[:8].tolist() if value.dtype.kind in "biufcSU" else []
        text = _container(first, 0)[:-1] + (", …]" if value.size > 8 else "]") if first else ""
        return _array(value.shape, value.dtype, value.nbytes, text)
    if issubclass(type(value), numpy.generic):
        return {"dtype": str(value.dtype), "summary": summary(value.item())}
    return {}


def _pandas(pandas: Any, value: Any) -> dict[str, Any]:
    if type(value) is pandas.DataFrame:
        columns = [str(label) if type(label) is str else summary(label) for label in islice(value.columns, _SHOWN)]
        used = int(value.memory_usage(index=True).sum())
        return _array(value.shape, "", used, ", ".join(columns))
    if type(value) is pandas.Series or type(value) is pandas.Index:
        return _array(value.shape, value.dtype, int(value.nbytes), "")
    return {}


def _polars(polars: Any, value: Any) -> dict[str, Any]:
    if type(value) is polars.DataFrame:
        return _array(value.shape, "", int(value.estimated_size()), ", ".join(value.columns[:_SHOWN]))
    if type(value) is polars.Series:
        return _array((value.len(),), value.dtype, int(value.estimated_size()), "")
    return {}


def _torch(torch: Any, value: Any) -> dict[str, Any]:
    if type(value) is torch.Tensor or type(value) is torch.nn.Parameter:
        text = f"on {value.device}" if value.device.type != "cpu" else ""
        return _array(tuple(value.shape), value.dtype, value.numel() * value.element_size(), text)
    return {}


def _array(shape: Iterable[Any], dtype: object, size: int, text: str) -> dict[str, Any]:
    described = {"shape": [int(count) for count in shape], "size": int(size), "summary": _cut(text)}
    return {**described, "dtype": str(dtype)} if dtype != "" else described


_LIBRARIES: dict[str, Callable[[Any, Any], dict[str, Any]]] = {
    "numpy": _numpy,
    "pandas": _pandas,
    "polars": _polars,
    "torch": _torch,
}
