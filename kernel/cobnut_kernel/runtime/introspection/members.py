"""What an object has, told without running its code: names, kinds and values of its attributes.

`dir` and `getattr` ask the object, which may answer anything, or never. Here the dictionaries of its classes and its
own are read instead, past whatever they override.
"""

from __future__ import annotations

import types
from functools import cached_property
from typing import Any, cast

_MRO: Any = vars(type)["__mro__"]
_CLASS_DICT: Any = vars(type)["__dict__"]
_MODULE_DICT: Any = vars(types.ModuleType)["__dict__"]

MISSING = object()
"""Stands for no value."""

_FUNCTIONS = (
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.MethodDescriptorType,
    types.WrapperDescriptorType,
    types.MethodWrapperType,
    types.ClassMethodDescriptorType,
    classmethod,
    staticmethod,
)
_BOUND_WITHOUT_RUNNING = frozenset({*_FUNCTIONS} - {types.MethodType, types.BuiltinFunctionType})
_PROPERTIES = (property, cached_property)


def class_of(value: object) -> Any:
    """Return the class of a value, whatever its `__class__` says."""
    return type(value)


def is_class(value: object) -> bool:
    """Whether a value is a class, whatever its `__class__` says."""
    return issubclass(type(value), type)


def is_module(value: object) -> bool:
    """Whether a value is a module, whatever its `__class__` says."""
    return issubclass(type(value), types.ModuleType)


def lookup(cls: Any, name: str) -> Any:
    """Return what a class, or the first of its bases that has it, holds under a name; MISSING if none does."""
    return next((held[name] for each in _MRO.__get__(cls) if name in (held := _CLASS_DICT.__get__(each))), MISSING)


def type_name(value: object) -> str:
    """Return the name of a value's class, whatever its metaclass says."""
    return str(vars(type)["__name__"].__get__(type(value)))


def type_module(value: object) -> str:
    """Return the module of a value's class, whatever its metaclass says."""
    module = vars(type)["__module__"].__get__(type(value))
    return module if type(module) is str else ""


def own_dict(value: Any) -> dict[str, Any]:
    """Return the attributes that an object keeps itself; {} where it has no plain dictionary."""
    if is_module(value):
        return _MODULE_DICT.__get__(value)
    held = lookup(class_of(value), "__dict__")
    kept = held.__get__(value) if type(held) is types.GetSetDescriptorType else None
    return cast("dict[str, Any]", kept) if type(kept) is dict else {}


def members(value: Any) -> dict[str, Any]:
    """Return all attributes by name, as they stand in the dictionaries: descriptors are not asked for their values."""
    found: dict[str, Any] = {}
    for cls in reversed(_MRO.__get__(type(value))):
        found.update(_CLASS_DICT.__get__(cls))
    if is_class(value):
        for cls in reversed(_MRO.__get__(value)):
            found.update(_CLASS_DICT.__get__(cls))
    else:
        found.update(own_dict(value))
    return {name: held for name, held in found.items() if type(name) is str}


def attribute(value: Any, name: str) -> Any:
    """Return an attribute that needs no code to be run, or MISSING."""
    held = members(value).get(name, MISSING)
    if type(held) in _BOUND_WITHOUT_RUNNING:
        return bound(held, value)
    return MISSING if _is_descriptor(held) and not is_module(value) else held


def _is_descriptor(held: Any) -> bool:
    """Whether what stands in a dictionary is asked for the value, by code of its own; functions and classes are not."""
    return not is_class(held) and lookup(class_of(held), "__get__") is not MISSING


def bound(held: Any, value: Any) -> Any:
    """Return a function of a class as the attribute of an object that it is."""
    if type(held) not in _BOUND_WITHOUT_RUNNING or is_module(value):
        return held
    return held.__get__(None, value) if is_class(value) else held.__get__(value, type(value))


def kind(held: Any) -> str:
    """Name what an attribute is, in the words of completions."""
    if is_module(held):
        return "module"
    if is_class(held):
        return "class"
    if issubclass(type(held), _PROPERTIES):
        return "property"
    if issubclass(type(held), _FUNCTIONS):
        return "function"
    # What is asked for the value and cannot be set is a method of some making, as numpy's and Cython's functions are.
    return "function" if _is_descriptor(held) and lookup(class_of(held), "__set__") is MISSING else "instance"
