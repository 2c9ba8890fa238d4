r"""Values to JSON and back: always valid JSON, always UTF-8.

What JSON lacks is written so:

* NaN, infinities and numbers beyond a float: `null`.
* A lone surrogate (an undecodable byte of a file name, say): its escape as text, `\udcff`.
* Keys that are no text: as `json` writes them (`1` becomes `"1"`, None `"null"`), enums by their value, any other
  key by its `str`. Two keys that become the same text are refused: one value would be lost.
* bytes, bytearrays and memoryviews: base64 text.
* Dates and times: ISO 8601, as `isoformat` writes it: without a zone where they have none.
* Enums: their value. UUIDs: their text.
* Arrays and scalars of other libraries: what their `tolist` gives. Their numbers: by `int` or `float`.
* Mappings: objects. Tuples, sets, generators and other iterables: lists.

Integers of any size keep every digit, up to Python's own limit (4300 digits). An `orjson.Fragment` is taken as it
stands: who makes one answers for it. Anything else, a dataclass too, is a `TypeError` that names the type.
"""

from __future__ import annotations

import json
import math
from base64 import b64encode
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time
from enum import Enum
from numbers import Integral, Real
from types import NoneType
from typing import Any, Protocol, cast, runtime_checkable
from uuid import UUID

import orjson

_OPTIONS = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME

_DEPTH = 254
"""How deep a value may nest: what orjson writes, and a value that holds itself ends here."""


def dumps(value: Any) -> bytes:
    """Write a value as JSON; the quick way where it is plain data, else part by part.

    Raises:
        TypeError: a part has no JSON form; the text names its type.
        ValueError: the value nests deeper than 254 levels or holds itself, two of its keys are the same text, or an
            integer is longer than Python writes.
    """
    try:
        return orjson.dumps(value, option=_OPTIONS)
    except TypeError:
        return _dumps_by_parts(value)


def loads(data: bytes) -> Any:
    r"""Read JSON; what strict JSON refuses but some kernels send is read too.

    NaN and infinities become floats. Lone surrogates, and bytes that are no UTF-8 (jupyter_client sends an undecodable
    file name so), become the text of their escape, `\udcff`: no text is read that cannot be written.

    An integer beyond 64 bits is read as the float next to it, as a browser reads it; to look for one would cost more
    than the reading. Where its digits count, send it as text.

    Raises:
        ValueError: the data is no JSON, or nests too deep.
    """
    try:
        return orjson.loads(data)
    except orjson.JSONDecodeError:
        return _loads_leniently(data)


def loads_strictly(data: bytes) -> Any:
    """Read what is JSON as the standard has it, and UTF-8: bytes that may be sent on as they are.

    Raises:
        ValueError: the data is anything else.
    """
    return orjson.loads(data)


def _dumps_by_parts(value: Any) -> bytes:
    try:
        plain = _plain(value, _DEPTH)
        return json.dumps(plain, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except RecursionError as error:
        raise ValueError("The value nests too deep for what is left of the call stack.") from error


def _loads_leniently(data: bytes) -> Any:
    try:
        return _without_surrogates(json.loads(bytes(data).decode("utf-8", "surrogateescape")))
    except RecursionError as error:
        raise ValueError("it nests too deep") from error


def _without_surrogates(value: Any) -> Any:
    match value:
        case str():
            return _text(value)
        case list():
            return [_without_surrogates(item) for item in cast("list[Any]", value)]
        case dict():
            return {_text(key): _without_surrogates(item) for key, item in cast("dict[str, Any]", value).items()}
        case _:
            return value


def _plain(value: Any, depth: int) -> Any:
    """Turn a value into what `json` writes: the first row of `_FORMS` that fits decides."""
    for kind, form in _FORMS:
        if isinstance(value, kind):
            return form(value, depth)
    name = type(value).__name__
    raise TypeError(f"A value of type {name!r} has no JSON form: make it text, a number, a list or a dict.")


def _deeper(depth: int) -> int:
    if depth <= 0:
        raise ValueError(f"The value nests deeper than {_DEPTH} levels, or holds itself.")
    return depth - 1


def _object(value: Mapping[Any, Any], depth: int) -> dict[str, Any]:
    depth = _deeper(depth)
    plain: dict[str, Any] = {}
    for key, item in value.items():
        name = _key(key)
        if name in plain:
            raise ValueError(f"Two keys of a dict are both {name!r} in JSON, and one value would be lost: rename one.")
        plain[name] = _plain(item, depth)
    return plain


def _array(value: Iterable[Any], depth: int) -> list[Any]:
    depth = _deeper(depth)
    return [_plain(item, depth) for item in value]


def _number(value: Real) -> float | None:
    try:
        number = float(value)
    except OverflowError:  # a fraction of two long integers
        return None
    return number if math.isfinite(number) else None


def _key(key: Any) -> str:
    match key:
        case Enum():
            return _key(key.value)
        case str():
            return _text(key)
        case None | int() | float():
            return json.dumps(key)
        case _:
            return _text(str(key))


def _text(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


@runtime_checkable
class _Array(Protocol):
    """An array or scalar of numpy or its like."""

    def tolist(self) -> Any: ...


_FORMS: tuple[tuple[type | tuple[type, ...], Callable[[Any, int], Any]], ...] = (
    (Enum, lambda value, depth: _plain(value.value, _deeper(depth))),
    (str, lambda value, _: _text(value)),
    ((bool, NoneType), lambda value, _: value),
    (Mapping, _object),
    ((list, tuple), _array),
    ((bytes, bytearray, memoryview), lambda value, _: b64encode(bytes(value)).decode()),
    (Integral, lambda value, _: int(value)),
    (Real, lambda value, _: _number(value)),
    ((date, time), lambda value, _: value.isoformat()),
    (UUID, lambda value, _: str(value)),
    (_Array, lambda value, depth: _plain(value.tolist(), _deeper(depth))),
    (Iterable, _array),
)
"""What JSON makes of each kind of value, from the narrow to the wide."""
