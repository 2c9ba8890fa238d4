"""Classes with traits that are abstract."""

from __future__ import annotations

from abc import abstractmethod

import pytest
from traitlets import Int, TraitError
from traitlets.config import Config, LoggingConfigurable

from cobnut_kernel.traits import ABCMetaWithTraits


class Nut(LoggingConfigurable, metaclass=ABCMetaWithTraits):
    """Something with a trait, and with something that is left to others."""

    weight = Int(1).tag(config=True)

    @abstractmethod
    def crack(self) -> None:
        """Do what each nut does in its own way."""


class Hazel(Nut):
    """A nut that can be had."""

    def crack(self) -> None:
        """Do nothing."""


def test_it_is_abstract() -> None:
    """What lacks an abstract method cannot be made, and says which."""
    with pytest.raises(TypeError, match="crack"):
        Nut()  # pyright: ignore[reportAbstractUsage] - the claim


def test_it_has_traits() -> None:
    """What has them all has traits, which are checked, and configured by the name of the abstract class too."""
    hazel = Hazel(config=Config({"Nut": {"weight": 3}}))
    assert hazel.weight == 3
    with pytest.raises(TraitError):
        hazel.weight = "heavy"  # pyright: ignore[reportAttributeAccessIssue] - the claim


def test_others_can_be_registered() -> None:
    """A class of another descent counts as one where it is registered."""

    class Walnut:
        pass

    assert not isinstance(Walnut(), Nut)
    Nut.register(Walnut)
    assert isinstance(Walnut(), Nut)
