"""Settings by dotted names: `quiet`, `kernel.quiet`, `shell.timeout`, and IPython's own, `HistoryManager.hist_file`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from traitlets import ClassBasedTraitType, Container, Dict, HasTraits, Instance, TraitError, Unicode

from cobnut_kernel.errors import CobnutError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from traitlets import TraitType
    from traitlets.config import Config

_SHELLS = ("shell", "main_shell")
"""What begins the names of the settings of shells: they are made after the kernel."""


class SettingError(CobnutError, ValueError):
    """A setting does not exist, or cannot have that value."""


class Settings:
    """What was set, by whom ever; those of the shells, and of what is in them, wait until there are shells.

    Attributes:
        given: every setting by its name, without the `kernel.` that it may begin with.
    """

    def __init__(self) -> None:
        self.given: dict[str, Any] = {}
        self._of_shells: dict[str, Any] = {}
        self._of_classes: dict[str, dict[str, Any]] = {}

    def load(self, kernel: HasTraits, settings: Mapping[str, Any]) -> None:
        """Set what belongs to the kernel and keep the rest: all of it, or nothing.

        Args:
            kernel: whose traits are meant by names without a dot, and by `kernel.…`.
            settings: values by name; a text is read as the trait reads the command line, containers as JSON.

        Raises:
            SettingError: there is no such setting, or it cannot have that value; the text says which.
        """
        named = {_without_kernel(name): value for name, value in settings.items()}
        of_shells = {name.partition(".")[2]: value for name, value in named.items() if _first(name) in _SHELLS}
        of_classes = {name: value for name, value in named.items() if _first(name)[:1].isupper()}
        rest = {name: value for name, value in named.items() if _first(name) not in _SHELLS and name not in of_classes}
        sections = [_class_and_trait(name) for name in of_classes]
        self.given |= named | apply_settings(kernel, rest)
        self._of_shells |= of_shells
        for (section, trait), value in zip(sections, of_classes.values(), strict=True):
            self._of_classes.setdefault(section, {})[trait] = value

    def apply_to_shell(self, shell: HasTraits) -> None:
        """Set what belongs to shells in one that was just made.

        Raises:
            SettingError: as `load`.
        """
        apply_settings(shell, self._of_shells, prefix="shell.")

    def config(self) -> Config:
        """Return what was set for IPython's classes, as they take it when they are made."""
        from traitlets.config import Config
        from traitlets.config.loader import DeferredConfigString

        return Config(
            {
                section: {name: DeferredConfigString(v) if isinstance(v, str) else v for name, v in traits.items()}
                for section, traits in self._of_classes.items()
            }
        )


def apply_settings(target: HasTraits, settings: Mapping[str, Any], *, prefix: str = "") -> dict[str, Any]:
    """Set traits by their dotted names: all of them, or none.

    Args:
        target: the object whose traits are meant; a name with dots leads through its attributes.
        settings: values by name; a text is read as the trait reads it.
        prefix: what the names begin with where they are told.

    Returns:
        The values that were set, by name.

    Raises:
        SettingError: there is no such setting, or it cannot have that value; the text says which.
    """
    places = {name: _place(target, name if prefix else _without_kernel(name), prefix) for name in settings}
    values = {name: _value(prefix + name, places[name][1], value) for name, value in settings.items()}
    undo: list[tuple[HasTraits, str, Any]] = []
    for name, (owner, trait) in places.items():
        attribute = str(trait.name)
        try:
            before = getattr(owner, attribute)
            setattr(owner, attribute, values[name])
        except (TraitError, ValueError, TypeError) as error:
            for changed, changed_attribute, former in reversed(undo):
                setattr(changed, changed_attribute, former)
            raise SettingError(f"The setting {prefix + name!r} cannot be {settings[name]!r}: {error}") from error
        undo.append((owner, attribute, before))
    return values


def parse_setting(text: str) -> tuple[str, str]:
    """Split `name=value`.

    Raises:
        SettingError: there is no name, or no `=`.
    """
    name, equals, value = text.partition("=")
    if not equals or not all(part.isidentifier() for part in name.split(".")):
        raise SettingError(f"{text!r} is no setting: write NAME=VALUE, quiet=false say.")
    return name, value


def check_settings(kernel_class: type[HasTraits], settings: Mapping[str, Any]) -> None:
    """Refuse what no kernel of a class could be set to; what only shells know is not looked at.

    Raises:
        SettingError: there is no such setting, or it cannot have that value.
    """
    traits = kernel_class.class_traits()
    for name, value in settings.items():
        own = _without_kernel(name)
        if "." in own:
            continue
        if own not in traits or own.startswith("_"):
            raise SettingError(_unknown(own, own, "", traits))
        _value(own, traits[own], value)


def describe_settings(target: HasTraits | type[HasTraits], *, prefix: str = "") -> list[str]:
    """Describe in lines what can be set from texts: name, type, default and help.

    Args:
        target: an object, whose present values are told as defaults, or a class, of which only its own traits are.
        prefix: what the names begin with.
    """
    from textwrap import fill

    traits = target.class_own_traits() if isinstance(target, type) else target.traits()
    lines: list[str] = []
    for name, trait in sorted(traits.items()):
        is_object = isinstance(trait, ClassBasedTraitType) and not isinstance(trait, Container | Dict)
        if name.startswith("_") or trait.read_only or is_object:
            continue
        value = trait.default_value if isinstance(target, type) else getattr(target, name)
        lines.append(f"  {prefix}{name}  {trait.info()}; by default {value!r}")
        lines += [fill(trait.help, 110, initial_indent=" " * 6, subsequent_indent=" " * 6)] if trait.help else []
    return lines


def _without_kernel(name: str) -> str:
    first, _, rest = name.partition(".")
    return rest if rest and first in ("kernel", "Kernel") else name


def _first(name: str) -> str:
    return name.partition(".")[0] if "." in name else ""


def _class_and_trait(name: str) -> tuple[str, str]:
    section, _, trait = name.partition(".")
    if not trait.isidentifier():
        raise SettingError(f"The setting {name!r} must be a class and one of its traits, with a dot between them.")
    return section, trait


def _place(target: HasTraits, name: str, prefix: str) -> tuple[HasTraits, TraitType[Any, Any]]:
    """Find the trait that a name means, and the object that has it."""
    owner, path = target, prefix
    *way, last = name.split(".")
    for part in way:
        inner = _part_of(owner, part)
        if inner is None:
            raise SettingError(_unknown(prefix + name, part, path, [*owner.trait_names(), *_SHELLS]))
        owner, path = inner, f"{path}{part}."
    traits: dict[str, TraitType[Any, Any]] = owner.traits()
    if last.startswith("_") or last not in traits:
        raise SettingError(_unknown(prefix + name, last, path, traits))
    return owner, traits[last]


def _part_of(owner: HasTraits, name: str) -> HasTraits | None:
    """Return an object with traits that is an attribute of another; None where there is none, or not yet."""
    try:
        part = None if name.startswith("_") else getattr(owner, name, None)
    except RuntimeError:  # the kernel's shell, before it has one
        return None
    return part if isinstance(part, HasTraits) else None


def _value(name: str, trait: TraitType[Any, Any], value: Any) -> Any:
    """Read the value of a setting from a text; anything else is what it is."""
    if trait.read_only:
        raise SettingError(f"The setting {name!r} cannot be changed.")
    if not isinstance(value, str) or isinstance(trait, Unicode):
        return value
    try:
        if isinstance(trait, Instance):
            return _literal(value)
        validate: Callable[[None, Any], Any] = getattr(trait, "validate", lambda _, read: read)
        return validate(None, trait.from_string(value))
    except (TraitError, ValueError, TypeError, SyntaxError) as error:
        hint = " Write it as JSON." if isinstance(trait, Instance) else ""
        raise SettingError(f"The setting {name!r} must be {trait.info()}, not {value!r}.{hint}") from error


def _literal(text: str) -> Any:
    """Read a container, as JSON or as Python writes it."""
    import json
    from ast import literal_eval

    try:
        return json.loads(text)
    except ValueError:
        return literal_eval(text)


def _unknown(name: str, wrong: str, path: str, known: Iterable[str]) -> str:
    """Say that there is no such setting, and which one may be meant."""
    from difflib import get_close_matches

    close = get_close_matches(wrong, [each for each in known if not each.startswith("_")], n=1)
    hint = f"Did you mean {path + close[0]!r}?" if close else "See them all by `cobnut-kernel --help-all`."
    return f"There is no setting {name!r}. {hint}"
