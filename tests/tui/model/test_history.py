"""The way back to what was typed before."""

from __future__ import annotations

from cobnut.model.history import InputHistory


def test_walking_back_and_forth_ends_at_the_draft() -> None:
    """Going back gives the inputs, the latest first, and going forward gives them again and then the draft."""
    history = InputHistory(["a = 1", "b = 2"])
    assert history.older("") == "b = 2"
    assert history.older("b = 2") == "a = 1"
    assert history.older("a = 1") is None
    assert history.newer("a = 1") == "b = 2"
    assert history.newer("b = 2") == ""
    assert history.newer("") is None


def test_the_draft_selects_by_how_it_begins() -> None:
    """Only inputs that begin as the draft does are visited, and the draft comes back whole."""
    history = InputHistory(["import os", "x = 1", "import re", "y"])
    assert history.older("im") == "import re"
    assert history.older("import re") == "import os"
    assert history.older("import os") is None
    assert history.newer("import os") == "import re"
    assert history.newer("import re") == "im"


def test_an_edited_input_is_a_new_draft() -> None:
    """What was changed after a step is the draft of a new walk, and is not lost."""
    history = InputHistory(["first", "second"])
    assert history.older("") == "second"
    assert history.older("f") == "first"
    assert history.newer("first") == "f"


def test_newer_without_a_walk_gives_nothing() -> None:
    """Going forward from a draft that nobody left does nothing."""
    history = InputHistory(["a"])
    assert history.newer("draft") is None
    assert history.older("") == "a"


def test_repeated_and_blank_inputs_are_not_kept() -> None:
    """An input that equals the last one, or is blank, is not added; an earlier equal one does not matter."""
    history = InputHistory()
    for code in ("a", "a", "  \n", "b", "a"):
        history.add(code)
    assert history.entries == ["a", "b", "a"]


def test_equal_inputs_are_one_step() -> None:
    """A step never shows what is shown already."""
    history = InputHistory(["a", "b", "a"])
    assert history.older("a") is None
    assert history.older("") == "a"
    assert history.older("a") == "b"
    assert history.older("b") == "a"


def test_the_oldest_inputs_go_at_the_limit() -> None:
    """No more inputs are kept than the limit."""
    history = InputHistory([f"x{i}" for i in range(10)], limit=3)
    assert history.entries == ["x7", "x8", "x9"]


def test_adding_ends_a_walk() -> None:
    """After an input was entered the walk starts from the end again."""
    history = InputHistory(["a", "b"])
    assert history.older("") == "b"
    assert history.older("b") == "a"
    history.add("c")
    assert history.older("") == "c"
