"""The namespaces of subshells, without a shell (R43)."""

from __future__ import annotations

from types import ModuleType

import pytest

from cobnut_kernel.runtime.shells.namespace import NamespaceKind, make_namespace


@pytest.fixture
def main() -> ModuleType:
    """The main shell's module, with two names in it."""
    module = ModuleType("__main__")
    module.__dict__.update(x=5, sum="shadowed")
    return module


def run(module: ModuleType, code: str) -> dict[str, object]:
    """Run code as a cell of the namespace."""
    exec(code, module.__dict__)
    return module.__dict__


def test_a_shared_namespace_is_the_main_one(main: ModuleType) -> None:
    """What one assigns, the other sees."""
    assert make_namespace(NamespaceKind.SHARED, main) is main


def test_a_private_namespace_reads_through_in_every_scope(main: ModuleType) -> None:
    """Functions, classes, comprehensions, lambdas, generators and eval see the main names."""
    private = make_namespace(NamespaceKind.PRIVATE, main)
    names = run(
        private,
        "y = 2\n"
        "def f(): return x + y\n"
        "class A:\n    z = x\n    w = [x for _ in range(2)]\n    def m(self): return x\n"
        "result = f(), A.z, A.w, A().m(), [x for _ in range(2)], (lambda: x)(), list(x for _ in 'a'), eval('x')",
    )
    assert names["result"] == (7, 5, [5, 5], 5, [5, 5], 5, [5], 5)


def test_what_a_private_namespace_writes_stays_there(main: ModuleType) -> None:
    """Assignments, `global`, imports and deletions leave the main names alone."""
    private = make_namespace(NamespaceKind.PRIVATE, main)
    run(private, "import math\nx = 6\ndef f():\n    global q\n    q = x\nf()")
    assert (private.x, private.q) == (6, 6)
    assert main.x == 5
    assert "math" not in main.__dict__
    assert "q" not in main.__dict__
    run(private, "del x\ncopy = x")
    assert private.copy == 5


def test_a_private_namespace_sees_what_changes_in_the_main_one(main: ModuleType) -> None:
    """It is a view, not a copy; a main name that shadows a builtin shadows it here too."""
    private = make_namespace(NamespaceKind.PRIVATE, main)
    run(main, "x = 9")
    assert run(private, "seen = x, sum")["seen"] == (9, "shadowed")


def test_an_unknown_name_has_pythons_own_error(main: ModuleType) -> None:
    """The text names what is missing."""
    private = make_namespace(NamespaceKind.PRIVATE, main)
    with pytest.raises(NameError, match="name 'nothing' is not defined"):
        run(private, "nothing")


def test_a_snapshot_is_a_copy_of_the_names(main: ModuleType) -> None:
    """What is assigned later on either side stays there."""
    copy = make_namespace(NamespaceKind.SNAPSHOT, main)
    run(main, "x = 9")
    run(copy, "y = x")
    assert copy.y == 5
    assert "y" not in main.__dict__
