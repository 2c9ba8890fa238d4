"""Settings by dotted names: read, checked, set together or not at all."""

from __future__ import annotations

from typing import Any

import pytest
from traitlets import Bool, CaselessStrEnum, Dict, Float, HasTraits, Instance, Int, List, Unicode, validate
from traitlets.config import Configurable

from cobnut_kernel.runtime.settings import SettingError, Settings, apply_settings, check_settings, parse_setting


class Part(HasTraits):
    timeout = Float(1.0)


class Root(HasTraits):
    quiet = Bool(True)
    anyio_backend = CaselessStrEnum(["asyncio", "trio"], default_value="asyncio")
    name = Unicode("n")
    ports = List(Int())
    options: Dict[str, Any] = Dict()
    limit = Int(5, min=1, max=10)
    ident = Unicode("fixed", read_only=True)
    part = Instance(Part, ())
    _hidden = Bool(False)

    @validate("name")
    def _checks_name(self, proposal: dict[str, Any]) -> str:
        if proposal["value"] == "bad":
            raise ValueError("that name is taken")
        return proposal["value"]

    @property
    def main_shell(self) -> object:
        """Be what a kernel's shell is before it has one."""
        raise RuntimeError("not yet")


@pytest.fixture
def root() -> Root:
    """Be an object with settings."""
    return Root()


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("quiet", "false", False),
        ("quiet", "0", False),
        ("anyio_backend", "TRIO", "trio"),
        ("name", "'x y'", "'x y'"),
        ("name", "~/x", "~/x"),
        ("ports", "[1, 2]", [1, 2]),
        ("ports", "(1, 2)", [1, 2]),
        ("options", '{"a": {"b": true}}', {"a": {"b": True}}),
        ("options", "{'a': None}", {"a": None}),
        ("limit", "10", 10),
        ("part.timeout", "0.1", 0.1),
        ("part.timeout", 3, 3),
        ("quiet", False, False),
    ],
)
def test_a_setting_is_read_as_its_trait_reads_it(root: Root, name: str, text: Any, value: Any) -> None:
    """Texts become what the trait holds, containers as JSON or Python writes them; other values are what they are."""
    read = apply_settings(root, {name: text})
    owner, _, attribute = f"root.{name}".rpartition(".")
    held = getattr(root.part if owner == "root.part" else root, attribute)
    assert held == value
    assert list(read) == [name]


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("quite", "1", "no setting 'quite'. Did you mean 'quiet'?"),
        ("part.timeuot", "1", "no setting 'part.timeuot'. Did you mean 'part.timeout'?"),
        ("prat.timeout", "1", "no setting 'prat.timeout'. Did you mean 'part'?"),
        ("shel.x", "1", "Did you mean 'shell'?"),
        ("zzz", "1", "--help-all"),
        ("_hidden", "1", "no setting '_hidden'"),
        ("part.__class__", "1", "no setting 'part.__class__'"),
        ("__dict__.x", "1", "no setting '__dict__.x'"),
        ("main_shell.x", "1", "no setting 'main_shell.x'"),
        ("quiet.x", "1", "no setting 'quiet.x'"),
        ("quiet", "maybe", "'quiet' must be a boolean, not 'maybe'"),
        ("quiet", 5, "'quiet' cannot be 5"),
        ("anyio_backend", "curio", "'anyio_backend' must be any of .*asyncio.*not 'curio'"),
        ("limit", "11", "'limit' must be an int, not '11'"),
        ("limit", 11, "'limit' cannot be 11: .*greater"),
        ("ports", "1", "'ports' cannot be '1'"),
        ("ports", "[", "'ports' must be a list, not '\\['. Write it as JSON."),
        ("ports", '["x"]', "'ports' cannot be"),
        ("ident", "x", "'ident' cannot be changed"),
        ("name", "bad", "'name' cannot be 'bad': that name is taken"),
    ],
)
def test_what_cannot_be_set_is_named(root: Root, name: str, value: Any, reason: str) -> None:
    """The error says which setting, what is wrong, and which one may be meant."""
    with pytest.raises(SettingError, match=reason):
        apply_settings(root, {name: value})
    assert root.quiet is True


def test_settings_are_set_together_or_not_at_all(root: Root) -> None:
    """Where one is wrong, whether it is unknown or refused, the others stay what they were."""
    for wrong in ({"nothing": "1"}, {"limit": "x"}, {"name": "bad"}):
        with pytest.raises(SettingError):
            apply_settings(root, {"quiet": "false", "part.timeout": "9", **wrong})
        assert (root.quiet, root.part.timeout) == (True, 1.0)


class Shell(Part):
    colors = Unicode("neutral")


class Store(Configurable):
    file = Unicode("x").tag(config=True)
    size = Int(1).tag(config=True)


def test_a_kernels_settings_are_its_own_its_shells_and_ipythons(root: Root) -> None:
    """`kernel.` may be left out; what is for shells waits for each of them, what is for classes for their making."""
    settings = Settings()
    settings.load(root, {"kernel.quiet": "false", "Kernel.limit": 7, "name": "m", "shell.timeout": "0.5"})
    settings.load(root, {"kernel.main_shell.colors": "x", "Store.file": ":memory:", "Store.size": 3})
    assert (root.quiet, root.limit, root.name) == (False, 7, "m")
    for _ in range(2):
        shell = Shell()
        settings.apply_to_shell(shell)
        assert (shell.timeout, shell.colors) == (0.5, "x")
    store = Store(config=settings.config())
    assert (store.file, store.size) == (":memory:", 3)
    assert settings.given == {
        "quiet": False,
        "limit": 7,
        "name": "m",
        "shell.timeout": "0.5",
        "main_shell.colors": "x",
        "Store.file": ":memory:",
        "Store.size": 3,
    }


def test_a_shells_setting_that_does_not_exist_is_named_when_there_is_a_shell(root: Root) -> None:
    """It cannot be known earlier; the name in the error is the one that was given."""
    settings = Settings()
    settings.load(root, {"shell.timeuot": "1"})
    with pytest.raises(SettingError, match=r"no setting 'shell.timeuot'. Did you mean 'shell.timeout'?"):
        settings.apply_to_shell(Shell())


def test_a_wrong_setting_of_a_kernel_sets_nothing(root: Root) -> None:
    """Neither the kernel nor what waits for the shell has changed."""
    settings = Settings()
    for wrong in ({"quiet": "perhaps"}, {"Store.file.x": "1"}):
        with pytest.raises(SettingError):
            settings.load(root, {"limit": "2", "shell.timeout": "9", **wrong})
    assert root.limit == 5
    assert settings.given == {}
    shell = Shell()
    settings.apply_to_shell(shell)
    assert shell.timeout == 1.0


def test_settings_can_be_checked_without_a_kernel() -> None:
    """The kernel's own are checked by its class; what only shells know is let through."""
    check_settings(Root, {"quiet": "false", "Kernel.limit": "3", "shell.anything": "x", "Store.file": "y"})
    for name, value in {"kernel.quite": "1", "limit": "many", "_hidden": "1", "limit_": "1"}.items():
        with pytest.raises(SettingError):
            check_settings(Root, {name: value})


@pytest.mark.parametrize(("text", "parsed"), [("a=b", ("a", "b")), ("a.b=c=d", ("a.b", "c=d")), ("a=", ("a", ""))])
def test_a_setting_is_written_with_an_equals_sign(text: str, parsed: tuple[str, str]) -> None:
    """What follows the first one is the value, as it stands."""
    assert parse_setting(text) == parsed


@pytest.mark.parametrize("text", ["a", "=b", "a b=c", "a..b=c", ""])
def test_what_is_no_setting_is_refused(text: str) -> None:
    """The error says how it is written."""
    with pytest.raises(SettingError, match="write NAME=VALUE"):
        parse_setting(text)
