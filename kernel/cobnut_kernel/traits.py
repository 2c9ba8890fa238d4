"""What classes with traits share: a metaclass that lets them be abstract too, and have others registered with them."""

from __future__ import annotations

from abc import ABCMeta

from traitlets.config import LoggingConfigurable


class ABCMetaWithTraits(ABCMeta, type(LoggingConfigurable)):
    """What `abc.ABCMeta` is, for classes with traits, which have a metaclass of their own."""
