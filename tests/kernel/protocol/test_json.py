"""What `protocol/json.py` promises: valid JSON for every value that has a form, and nothing unwritable read."""

from __future__ import annotations

import json
from array import array
from base64 import b64encode
from collections import OrderedDict, UserDict, deque, namedtuple
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag, IntEnum, StrEnum
from fractions import Fraction
from numbers import Integral
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cobnut_kernel.protocol.json import dumps, loads

MODERATE = settings(deadline=None, max_examples=200)


class Colour(Enum):
    RED = "red"
    PAIR = (1, float("nan"))


class Level(IntEnum):
    HIGH = 3


class Word(StrEnum):
    YES = "yes"


class Bits(Flag):
    A = 1
    B = 2


class LoudText(str):
    """Text of a class of its own, as translated strings are."""

    __slots__ = ()

    def __str__(self) -> str:
        return "!"


class LoudInt(int):
    def __repr__(self) -> str:
        return "!"

    __str__ = __repr__


@Integral.register
class Count:
    """An integer of another library, which `json` does not know."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __int__(self) -> int:
        return self.value


class Translated(dict[str, int]):
    """A dict that says its items in its own way, as lazy ones do."""

    def items(self) -> Any:
        """Give other items than are stored."""
        return {"said": 1}.items()


class Scalar:
    """A number of an array library: no number to Python, but `tolist` gives one."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def tolist(self) -> Any:
        """Give the plain value, as arrays do."""
        return self.value


@dataclass
class Point:
    x: int = 1


Named = namedtuple("Named", "x y")  # noqa: PYI024 - the untyped kind is what people have


def strict(data: bytes) -> Any:
    """Read JSON with the standard reader, which must find neither NaN nor an infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(data.decode("utf-8"), parse_constant=refuse)


def escaped(text: str) -> str:
    """Write each surrogate as the text of its escape."""
    return "".join(f"\\u{ord(c):04x}" if 0xD800 <= ord(c) <= 0xDFFF else c for c in text)


def nested(depth: int, core: Any) -> Any:
    """Put a value into that many lists."""
    for _ in range(depth):
        core = [core]
    return core


# --- plain data: what goes in comes out -------------------------------------------------------------------------------

plain_leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
plain_values = st.recursive(
    plain_leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@MODERATE
@given(plain_values)
def test_plain_data_comes_back_exactly(value: Any) -> None:
    """Whatever JSON can say is read as it was written: types, order, signs and digits."""
    assert repr(loads(dumps(value))) == repr(value)


@pytest.mark.parametrize("number", [-0.0, 5e-324, 1.7976931348623157e308, 2**53 + 1, -(2**63), 2**64 - 1])
def test_the_edges_of_numbers_come_back_exactly(number: float) -> None:
    """Neither a sign of zero nor the last digit is lost."""
    assert repr(loads(dumps(number))) == repr(number)


@MODERATE
@given(st.integers())
def test_integers_keep_every_digit_on_the_wire(number: int) -> None:
    """An integer of any size is written whole, as a value and as a key."""
    assert strict(dumps({number: number * 2**70})) == {str(number): number * 2**70}


@pytest.mark.parametrize("number", [2**64, -(2**63) - 1, 10**40 + 1])
def test_integers_beyond_64_bits_are_read_as_floats(number: int) -> None:
    """The reader takes the float next to a long integer, as its docstring says."""
    read = loads(dumps(number))
    assert type(read) is float
    assert read == float(number)


def test_an_integer_longer_than_python_writes_is_refused() -> None:
    """The limit of 4300 digits is Python's own, and its text says how to raise it."""
    with pytest.raises(ValueError, match="4300 digits"):
        dumps(10**5000)


# --- what JSON lacks --------------------------------------------------------------------------------------------------


def paired(strategy: st.SearchStrategy[Any], form: Any = None) -> st.SearchStrategy[tuple[Any, Any]]:
    """Give each value with the form that the docstring promises; without one, with itself."""
    return strategy.map(lambda value: (value, form(value) if form else value))


def base64(data: Any) -> str:
    """Write the bytes of a buffer as text."""
    return b64encode(bytes(data)).decode()


zones = st.none() | st.timezones() | st.just(timezone(timedelta(hours=-5, minutes=-30, seconds=-7)))
lone = st.text(st.characters(categories=("Cs", "L", "P")), min_size=1)
leaf_pairs = st.one_of(
    paired(plain_leaves),
    paired(st.integers()),
    paired(st.sampled_from([float("nan"), float("inf"), float("-inf"), Fraction(10**400)]), lambda _: None),
    paired(lone, escaped),
    paired(st.binary(), base64),
    paired(st.binary().map(bytearray), base64),
    paired(st.binary().map(memoryview), base64),
    paired(st.binary().map(lambda data: memoryview(data)[::2]), base64),
    paired(st.datetimes(timezones=zones), datetime.isoformat),
    paired(st.dates(), date.isoformat),
    paired(st.times(timezones=zones), time.isoformat),
    paired(st.uuids(), str),
    paired(st.fractions(), float),
    paired(st.integers().map(LoudInt), int),
    paired(st.integers().map(Count), int),
    paired(st.text().map(LoudText), lambda text: str.__str__(text)),
    paired(st.lists(st.integers(-9, 9)).map(lambda items: array("i", items)), list),
    paired(st.booleans().map(Scalar), Scalar.tolist),
    st.sampled_from(
        [
            (Colour.RED, "red"),
            (Colour.PAIR, [1, None]),
            (Level.HIGH, 3),
            (Word.YES, "yes"),
            (Bits.A | Bits.B, 3),
        ]
    ),
)
key_pairs = st.one_of(
    paired(st.text()),
    paired(lone, escaped),
    paired(st.integers(), str),
    paired(st.integers().map(LoudInt), lambda number: str(int(number))),
    paired(st.floats(allow_nan=False, allow_infinity=False), str),
    paired(st.dates(), str),
    paired(st.tuples(st.integers()), str),
    st.sampled_from(
        [(None, "null"), (True, "true"), (False, "false"), (float("nan"), "NaN"), (float("inf"), "Infinity")]
    ),
    st.sampled_from([(Colour.RED, "red"), (Level.HIGH, "3"), (Word.YES, "yes")]),
)


def sequences(pairs: list[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Give the values in each kind of iterable, with the list of their forms."""
    values, forms = [value for value, _ in pairs], [form for _, form in pairs]
    kinds = [
        list,
        tuple,
        deque,
        iter,
        lambda items: (item for item in items),
        lambda items: dict(enumerate(items)).values(),
    ]
    return st.sampled_from(kinds).map(lambda kind: (kind(values), forms))


def mappings(pairs: list[tuple[tuple[Any, Any], tuple[Any, Any]]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Give the items in each kind of mapping, with the dict of their forms."""
    values = {key: value for (key, _), (value, _) in pairs}
    forms = {name: form for (_, name), (_, form) in pairs}
    kinds = [dict, OrderedDict, UserDict, MappingProxyType]
    return st.sampled_from(kinds).map(lambda kind: (kind(values), forms))


def containers(inner: st.SearchStrategy[tuple[Any, Any]]) -> st.SearchStrategy[tuple[Any, Any]]:
    """Give containers of what `inner` gives, with their forms."""
    items = st.tuples(key_pairs, inner)
    different = st.lists(items, max_size=4, unique_by=(lambda item: item[0][0], lambda item: item[0][1]))
    return (
        st.lists(inner, max_size=4).flatmap(sequences)
        | different.flatmap(mappings)
        | paired(st.sets(st.integers()) | st.frozensets(st.text()), list)
    )


@settings(deadline=None, max_examples=250)
@given(st.recursive(leaf_pairs, containers, max_leaves=15))
def test_what_json_lacks_is_written_as_documented(pair: tuple[Any, Any]) -> None:
    """Every value of the documented kinds, in any mixture, gives strict JSON in UTF-8 with the promised form."""
    value, form = pair
    assert repr(strict(dumps(value))) == repr(form)


@MODERATE
@given(st.one_of(leaf_pairs, st.lists(leaf_pairs).map(lambda pairs: ([p[0] for p in pairs], None))))
def test_the_quick_and_the_thorough_writer_agree(pair: tuple[Any, Any]) -> None:
    """The form of a value does not depend on what stands beside it."""
    value = pair[0]
    assert strict(dumps([value])) == strict(dumps([value, b""]))[:1]


def test_a_mapping_is_asked_for_its_items() -> None:
    """What a dict of a class of its own stores is not written behind its back."""
    assert strict(dumps([Translated(stored=2)])) == strict(dumps([Translated(stored=2), b""]))[:1] == [{"said": 1}]


def test_a_named_tuple_is_a_list() -> None:
    """Names of a tuple's fields are not written, as `json` does."""
    assert strict(dumps([Named(1, 2), Named(1, b"")])) == [[1, 2], [1, ""]]


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (object(), "object"),
        (Point(), "Point"),
        (1j, "complex"),
        (Decimal(1), "Decimal"),
        (timedelta(1), "timedelta"),
        (len, "builtin_function_or_method"),
        (Scalar(1j), "complex"),
    ],
)
def test_a_value_without_a_form_is_refused_by_its_type(value: Any, name: str) -> None:
    """The error names the type, wherever in the value it stands."""
    with pytest.raises(TypeError, match=f"'{name}' has no JSON form"):
        dumps({"deep": [{"in": value}]})


@pytest.mark.parametrize(
    ("colliding", "name"),
    [({1: "a", "1": "b"}, "1"), ({None: 1, "null": 2}, "null"), ({"\udcff": 1, "\\udcff": 2}, r"\\\\udcff")],
)
def test_keys_that_become_the_same_are_refused(colliding: dict[Any, Any], name: str) -> None:
    """No value is lost in silence; the error names the key."""
    with pytest.raises(ValueError, match=f"both '{name}' in JSON"):
        dumps([colliding])


# --- depth ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("core", ["plain", b"bytes"])
def test_254_levels_are_written_and_no_more(core: Any) -> None:
    """Both writers draw the same line, so a value's neighbours do not decide whether it can be sent."""
    assert strict(dumps(nested(254, core)))
    with pytest.raises(ValueError, match="deeper than 254 levels"):
        dumps(nested(255, core))


def test_a_value_that_holds_itself_is_refused() -> None:
    """Lists, dicts, and objects whose `tolist` is themselves come to an end."""
    ring: list[Any] = []
    ring.extend([ring, ring])
    mirror = Scalar(None)
    mirror.value = mirror
    table: dict[str, Any] = {}
    table["self"] = table
    for endless in (ring, mirror, table):
        with pytest.raises(ValueError, match="holds itself"):
            dumps(endless)


def test_little_room_on_the_stack_is_an_error_like_too_much_depth() -> None:
    """Deep in a recursion of the user's the writer still raises what it promises."""

    def down() -> bytes:
        try:
            return down()
        except RecursionError:  # here the stack is nearly full
            return dumps(nested(200, b""))

    with pytest.raises(ValueError, match="call stack"):
        down()


@pytest.mark.parametrize("bracket", [b"[", b'{"a":', b'[{"a":'])
def test_endless_nesting_is_no_json(bracket: bytes) -> None:
    """100 000 open brackets are a ValueError, and the stack survives."""
    with pytest.raises(ValueError, match="nests too deep"):
        loads(bracket * 100_000)


# --- reading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "value"),
    [
        (b"[NaN, Infinity, -Infinity]", [float("nan"), float("inf"), float("-inf")]),
        (b"[1e400]", [float("inf")]),
        (rb'["\ud800", "\udcffx"]', [r"\ud800", r"\udcffx"]),
        (rb'{"\ud800": {"a": ["\ud800"]}}', {r"\ud800": {"a": [r"\ud800"]}}),
        (rb'["\ud83c\udf30"]', ["\N{CHESTNUT}"]),
        (b'["caf\xe9"]', [r"caf\udce9"]),
        (b'["\xed\xa0\x80"]', [r"\udced\udca0\udc80"]),
        (b'{"a": 1, "a": 2}', {"a": 2}),
    ],
)
def test_what_some_kernels_send_is_read(data: bytes, value: Any) -> None:
    """NaN, infinities, lone surrogates and undecodable bytes are read as the docstring says."""
    assert repr(loads(data)) == repr(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b"{}{}",
        b"{}\0",
        b'"\0"',
        b"'a'",
        b"\xff",
        b"1" * 5000,
        "{}".encode("utf-16"),
        b"\xef\xbb\xbf{}",
    ],
)
def test_what_is_no_json_is_a_value_error(data: bytes) -> None:
    """Broken JSON, other encodings and a byte order mark are refused."""
    with pytest.raises(ValueError):  # noqa: PT011 - the reader's own text
        loads(data)


json_like = st.text('[]{}",:\\u0d8fctrueNaN-19.eE \ud800', max_size=30).map(
    lambda t: t.encode("utf-8", "surrogatepass")
)
broken_text = st.binary().map(lambda data: json.dumps(["x"]).encode().replace(b"x", data))
surrogate_escapes = lone.map(lambda text: json.dumps({text: [text]}).encode())


@settings(deadline=None, max_examples=300)
@given(st.binary() | json_like | broken_text | surrogate_escapes)
def test_whatever_is_read_can_be_written(data: bytes) -> None:
    """Any bytes are refused by a ValueError, or read as a value that is strict JSON and UTF-8 again."""
    try:
        value = loads(data)
    except ValueError:
        return
    strict(dumps(value))


def test_the_header_of_a_user_with_an_undecodable_name_can_be_written() -> None:
    """A name from the environment may hold surrogates."""
    assert strict(dumps({"username": b"j\xf6rg".decode("utf-8", "surrogateescape")})) == {"username": r"j\udcf6rg"}


def test_dates_are_read_by_the_field(recwarn: pytest.WarningsRecorder) -> None:
    """jupyter_client's own reader of dates finds the same instant."""
    from jupyter_client.jsonutil import parse_date

    for moment in (
        datetime(2024, 2, 29, 1, 2, 3, tzinfo=UTC),
        datetime(2024, 2, 29, 1, 2, 3, 4, timezone(timedelta(hours=5))),
    ):
        assert parse_date(loads(dumps(moment))) == moment
    assert not recwarn.list


def test_uuids_are_their_text() -> None:
    """Beside plain data and beside bytes."""
    value = UUID(int=1)
    assert strict(dumps([value])) == strict(dumps([value, b""]))[:1] == [str(value)]
