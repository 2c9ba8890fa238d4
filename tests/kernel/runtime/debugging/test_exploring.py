"""Variables as a tree: what is shown, how it is written, and what its children are."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from cobnut_kernel.runtime.debugging.exploring import Explorer, is_shown, short_repr


class Slotted:
    """An object without a dict."""

    __slots__ = ("_hidden", "empty", "shown")

    def __init__(self) -> None:
        self.shown = 1
        self._hidden = 2

    def __repr__(self) -> str:
        return "Slotted()"  # a test's name must be the same in every process


class Broken:
    """An object that cannot be written."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


@pytest.fixture
def explorer() -> Explorer:
    """An explorer that knows nothing yet."""
    return Explorer()


def tree(explorer: Explorer, value: Any) -> list[tuple[str, str, str]]:
    """Return name, value and expression of a variable's children."""
    [variable] = explorer.variables({"v": value})
    if not variable["variablesReference"]:
        return []
    children = explorer.children(variable["variablesReference"])
    return [(child["name"], child["value"], child["evaluateName"]) for child in children]


@pytest.mark.parametrize("name", ["In", "Out", "_", "__", "_i", "_i12", "_12", "__builtins__", "get_ipython", "exit"])
def test_what_is_ipythons_is_not_shown(name: str) -> None:
    """Names that Python and IPython keep in the namespace are none of the user's."""
    assert not is_shown(name)


@pytest.mark.parametrize("name", ["x", "_x", "_init", "i1", "__all__", "_1a"])
def test_what_is_the_users_is_shown(name: str) -> None:
    """Any other name is shown, also one that only looks like IPython's."""
    assert is_shown(name)


@pytest.mark.parametrize(
    ("value", "children"),
    [
        ([1, "a"], [("0", "1", "v[0]"), ("1", "'a'", "v[1]")]),
        ((1,), [("0", "1", "v[0]")]),
        ({"k": 1, 2: 3}, [("'k'", "1", "v['k']"), ("2", "3", "v[2]")]),
        ({5}, [("0", "5", "list(v)[0]")]),
        (SimpleNamespace(b=1, _a=2), [("b", "1", "v.b"), ("_a", "2", "v._a")]),
        (Slotted(), [("shown", "1", "v.shown"), ("_hidden", "2", "v._hidden")]),
        ([], []),
        ("text", []),
        (7, []),
        (len, []),
        (Slotted, []),
        (pytest, []),
    ],
    ids=repr,
)
def test_children_can_be_asked_for(explorer: Explorer, value: Any, children: list[tuple[str, str, str]]) -> None:
    """Containers have their items, objects their attributes, and what has none cannot be opened."""
    assert tree(explorer, value) == children


def test_the_expressions_of_deep_children_give_their_values(explorer: Explorer) -> None:
    """What a front end evaluates for a child of a child is that child."""
    value = {"a": [SimpleNamespace(x=(1, 2))]}
    [variable] = explorer.variables({"v": value})
    while reference := variable["variablesReference"]:
        variable = explorer.children(reference)[-1]
    assert variable["evaluateName"] == "v['a'][0].x[1]"
    assert eval(variable["evaluateName"], {"v": value}) == 2


def test_a_page_of_children(explorer: Explorer) -> None:
    """A front end may ask for a part, and never gets more than a thousand."""
    [variable] = explorer.variables({"v": list(range(5000))})
    reference = variable["variablesReference"]
    assert [child["name"] for child in explorer.children(reference, 10, 3)] == ["10", "11", "12"]
    assert len(explorer.children(reference)) == 1000
    assert len(explorer.children(reference, 0, 4000)) == 1000


def test_what_cannot_be_written_is_told_by_its_type() -> None:
    """A repr that raises does not keep the other variables from being shown."""
    assert "Broken" in short_repr(Broken())


def test_large_values_are_cut() -> None:
    """No value is written in more than some hundred characters."""
    assert len(short_repr("x" * 100_000)) < 600
    assert len(short_repr([list(range(1000))] * 1000)) < 2000


def test_references_of_before_are_void(explorer: Explorer) -> None:
    """Asking again lets go of the objects of the last time."""
    [variable] = explorer.variables({"v": [1]})
    explorer.variables({})
    assert not explorer.holds(variable["variablesReference"])
