"""The two colours have the same words, and these are the documented ones: names, parameters, defaults."""

from __future__ import annotations

import inspect
from typing import Any

import jupyter_client
import pytest
from traitlets import HasTraits, TraitType
from traitlets.config import LoggingConfigurable

import cobnut_kernel as ours

TWINS = {
    "AsyncKernelManager": "KernelManager",
    "AsyncMultiKernelManager": "MultiKernelManager",
    "AsyncKernelClient": "BlockingKernelClient",
}
"""The async classes, and their blocking twins."""

DOCUMENTED = [*TWINS, *TWINS.values()]
"""Classes of jupyter_client, whose names ours have."""

FUNCTIONS = ["start_new_kernel", "start_new_async_kernel", "run_kernel"]

ONLY_ASYNC = {
    "AsyncKernelManager": {
        "add_client": "for the manager itself, of both colours",
        "begin_restart": "needs no loop and no second colour: `asynchronous.begin_restart`",
        "begin_start": "needs no loop and no second colour: `asynchronous.begin_start`",
        "begin_stop": "needs no loop and no second colour: `asynchronous.begin_stop`",
        "clients": "for the manager itself, of both colours",
        "create_provisioner": "for who derives a manager: there is one, the async one",
        "join_start": "what `start_kernel` waits by",
        "judge": "for the kernel's life",
        "note_death": "for the kernel's life",
        "start_queue": "set by a multi-kernel manager, on the manager inside",
    },
    "AsyncMultiKernelManager": {},
    "AsyncKernelClient": {"wait_for_answer": "what the blocking one waits for"},
}
"""What the blocking twin does not have, and why."""

ONLY_BLOCKING = {
    "AsyncKernelManager": {
        "asynchronous": "the manager inside",
        "asynchronous_class": "the class of the manager inside",
        "of": "makes the blocking twin of an async manager",
    },
    "AsyncMultiKernelManager": {"asynchronous": "the manager inside"},
    "AsyncKernelClient": {"asynchronous": "the client inside"},
}
"""What the async twin does not have, and why."""

OTHER_PARAMETERS = {
    "AsyncKernelManager.create_client": "the blocking one gives its own factory to the manager inside",
}
"""Methods of ours whose parameters differ between the colours, and why."""

LEFT_OUT: dict[str, dict[str, str]] = {
    "KernelManager": {
        "pre_start_kernel": "the steps of a start are the provisioner's, which may be derived: pre_launch",
        "post_start_kernel": "the steps of a start are the provisioner's, which may be derived: post_launch",
    },
    "MultiKernelManager": {},
    "BlockingKernelClient": {
        **dict.fromkeys(
            ["shell_channel_class", "iopub_channel_class", "stdin_channel_class", "control_channel_class"],
            "the channels are queues of one router: there is no class to put in their place",
        ),
        "hb_channel_class": "the heart is one of our own, without a thread",
        "blocking_class": "a client makes no clients: `asynchronous` and `BlockingKernelClient` are the two colours",
        "blocking_client": "a client makes no clients: `asynchronous` and `BlockingKernelClient` are the two colours",
        **dict.fromkeys(
            ["write_connection_file", "cleanup_connection_file", "cleanup_ipc_files", "cleanup_random_ports"],
            "the file belongs to whoever starts the kernel",
        ),
        **dict.fromkeys(
            ["connect_shell", "connect_iopub", "connect_stdin", "connect_control", "connect_hb", "context"],
            "the sockets of a client are on its I/O thread; raw ones are a manager's to give",
        ),
        **dict.fromkeys(
            ["ip", "transport", "ports", "shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"],
            "a client reads its connection whole: `connection_info`",
        ),
        **dict.fromkeys(
            ["curve_publickey", "curve_secretkey", "kernel_name"],
            "a client reads its connection whole: `connection_info`",
        ),
        "data_dir": "a client looks for no files",
        "ioloop": "it has no loop of tornado's",
    },
}
"""Documented names that ours do not have, and why; for both colours."""

OTHER_DEFAULTS = {
    "transport": "'auto': unix sockets for the kernels that can, ports for all others",
    "autorestart": "a single kernel's user watches over it himself; among many it is as documented",
    "ip": "as documented, but for unix sockets, whose folder is chosen at the launch",
    "kernel_id": "'' where the documented one has None",
    "client_class": "of this package",
    "client_factory": "of this package",
    "blocking_class": "of this package",
    "kernel_manager_class": "of this package; a restarter needs no other class",
    "kernel_manager_factory": "of this package",
    "kernel_spec_manager": "of this package",
    "session": "of this package",
    "context": "the process's, never destroyed",
}
"""Documented traits whose default differs, and why."""

OTHER_DOCUMENTED_PARAMETERS = {
    "wait_for_ready.timeout": "60 seconds, not for ever: None is for ever here too",
}
"""Documented parameters that ours have otherwise, and why."""


def members(cls: type) -> dict[str, Any]:
    """Return what is public in a class, beyond what every configurable class has; attributes of instances too."""
    names = set(dir(cls)) | set(_instance_attributes(cls))
    return {
        name: inspect.getattr_static(cls, name, None)
        for name in sorted(names - set(dir(LoggingConfigurable)))
        if not name.startswith("_")
    }


def _instance_attributes(cls: type) -> set[str]:
    """Read the annotated attributes that the constructors of a class of ours assign."""
    found: set[str] = set()
    for each in cls.__mro__:
        if each.__module__.startswith("cobnut_kernel") and "__init__" in vars(each):
            for line in inspect.getsource(vars(each)["__init__"]).splitlines():
                name, colon, _ = line.strip().removeprefix("self.").partition(":")
                if line.strip().startswith("self.") and colon and name.isidentifier():
                    found.add(name)
    return found


def is_async(member: Any) -> bool:
    """Whether a method's result is awaited."""
    return inspect.iscoroutinefunction(member) or inspect.isasyncgenfunction(member)


def parameters(member: Any) -> list[tuple[str, Any, Any]]:
    """List the names, kinds and defaults of a method's parameters; how the rest of them is called does not matter."""
    member = getattr(member, "__func__", member)
    rest = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    found = inspect.signature(member).parameters.values()
    return [("" if each.kind in rest else each.name, each.kind, each.default) for each in found]


def is_trait(member: Any) -> bool:
    """Whether it is set, not called."""
    return isinstance(member, TraitType)


# ── the two colours ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", TWINS)
def test_both_colours_have_the_same_names(name: str) -> None:
    """What the one has and the other has not is on the lists above, with its reason; nothing else is."""
    asynchronous, blocking = members(getattr(ours, name)), members(getattr(ours, TWINS[name]))
    assert set(asynchronous) - set(blocking) == set(ONLY_ASYNC[name])
    assert set(blocking) - set(asynchronous) == set(ONLY_BLOCKING[name])


@pytest.mark.parametrize("name", TWINS)
def test_both_colours_have_the_same_signatures(name: str) -> None:
    """Same parameters, in the same order, of the same kind, with the same defaults."""
    asynchronous, blocking = members(getattr(ours, name)), members(getattr(ours, TWINS[name]))
    for member in set(asynchronous) & set(blocking):
        if inspect.isfunction(asynchronous[member]) and f"{name}.{member}" not in OTHER_PARAMETERS:
            assert parameters(asynchronous[member]) == parameters(blocking[member]), member
        else:
            assert is_trait(asynchronous[member]) == is_trait(blocking[member]), member


@pytest.mark.parametrize("name", TWINS)
def test_one_colour_per_method(name: str) -> None:
    """Nothing of the blocking twin is awaited; what is a plain function in the async one neither is nor blocks."""
    asynchronous, blocking = members(getattr(ours, name)), members(getattr(ours, TWINS[name]))
    assert [member for member in blocking if is_async(blocking[member])] == []
    for member in set(asynchronous) & set(blocking):
        if inspect.isfunction(asynchronous[member]) and not is_async(asynchronous[member]):
            own = inspect.getsource(blocking[member])
            blocks = any(word in own for word in ("Portal.shared().call(", "wait_for("))
            assert not blocks, f"{member} blocks, and its twin is not awaited"


@pytest.mark.parametrize("name", TWINS)
def test_both_colours_can_be_used_in_a_with(name: str) -> None:
    """`async with` and `with` are offered everywhere, and needed nowhere."""
    assert hasattr(getattr(ours, name), "__aexit__")
    assert hasattr(getattr(ours, TWINS[name]), "__exit__")


@pytest.mark.parametrize("name", TWINS)
def test_both_colours_have_the_same_traits(name: str) -> None:
    """The same ones can be configured, with the same defaults but for the classes of their colour."""
    asynchronous, blocking = getattr(ours, name), getattr(ours, TWINS[name])
    assert asynchronous.class_trait_names() == blocking.class_trait_names()
    assert asynchronous.class_trait_names(config=True) == blocking.class_trait_names(config=True)
    own = {"client_class", "kernel_manager_class"}
    for trait in set(asynchronous.class_trait_names()) - own:
        assert asynchronous.class_traits()[trait].default_value == blocking.class_traits()[trait].default_value, trait


# ── the documented ones ─────────────────────────────────────────────────────────────────────────────────────────────


def left_out(name: str) -> dict[str, str]:
    """The documented names that a class of ours does not have; its colour makes no difference."""
    return LEFT_OUT[TWINS.get(name, name)]


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_name_is_there(name: str) -> None:
    """What is not is on the list above, with its reason; nothing is there needlessly."""
    theirs, mine = members(getattr(jupyter_client, name)), members(getattr(ours, name))
    assert set(theirs) - set(mine) <= set(left_out(name))
    assert set(left_out(name)) & set(mine) == set()


@pytest.mark.parametrize("name", DOCUMENTED)
def test_every_documented_parameter_is_there(name: str) -> None:
    """With the documented default, and where it is passed by position there at the same place."""
    theirs, mine = members(getattr(jupyter_client, name)), members(getattr(ours, name))
    for member in set(theirs) & set(mine):
        method = inspect.unwrap(theirs[member]) if inspect.isfunction(theirs[member]) else None
        if method is None or not inspect.isfunction(mine[member]):
            continue
        known = parameters(mine[member])
        takes_any = any(kind is inspect.Parameter.VAR_KEYWORD for _, kind, _ in known)
        for place, (parameter, kind, value) in enumerate(_documented_parameters(name, member, method)):
            if f"{member}.{parameter}" not in OTHER_DOCUMENTED_PARAMETERS:
                assert _has(known, place, parameter, kind, value) or takes_any, f"{name}.{member}: {parameter}"


def _documented_parameters(name: str, member: str, method: Any) -> list[tuple[str, Any, Any]]:
    """List the parameters of a method of theirs; those of a synchronous wrapper are those of what it wraps."""
    owner = getattr(jupyter_client, name)
    source = getattr(owner, f"_async_{member}", method)
    return [each for each in parameters(source) if each[0] not in ("self", "")]


def _has(known: list[tuple[str, Any, Any]], place: int, name: str, kind: Any, value: Any) -> bool:
    for index, (mine, my_kind, my_value) in enumerate(known):
        if mine == name:
            by_position = kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
            is_there = not by_position or (my_kind is kind and index == place + 1)  # the first is self
            return is_there and my_value == value
    return False


@pytest.mark.parametrize("name", DOCUMENTED[:2] + DOCUMENTED[3:5])
def test_every_documented_trait_is_there(name: str) -> None:
    """It can be set, and configured where the documented one can; its default is the documented one, or on the list."""
    theirs, mine = getattr(jupyter_client, name), getattr(ours, name)
    with_config = set(theirs.class_trait_names(config=True))
    assert set(_public(theirs)) - set(_public(mine)) <= set(left_out(name))
    assert with_config <= set(mine.class_trait_names(config=True))
    for trait in set(_public(theirs)) & set(_public(mine)) - set(OTHER_DEFAULTS):
        assert getattr(mine(), trait) == getattr(theirs(), trait), trait


def _public(cls: type[HasTraits]) -> list[str]:
    return [
        name for name in cls.class_trait_names() if not name.startswith("_") and name not in ("parent", "log", "config")
    ]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_functions_have_the_documented_parameters(name: str) -> None:
    """Names, order and defaults."""
    theirs = {"run_kernel": jupyter_client.run_kernel}.get(name) or getattr(jupyter_client.manager, name)
    assert _names(getattr(ours, name)) == _names(theirs)
    assert is_async(getattr(ours, name)) == is_async(theirs)


def _names(function: Any) -> list[tuple[str, Any]]:
    return [(name, value) for name, _, value in parameters(inspect.unwrap(function))]


def test_what_is_documented_is_exported() -> None:
    """From the package itself, under the documented name."""
    documented = {
        *DOCUMENTED,
        *FUNCTIONS,
        "KernelClient",
        "KernelProvisionerBase",
        "KernelProvisionerFactory",
        "LocalProvisioner",
        "find_connection_file",
        "write_connection_file",
    }
    assert documented <= set(ours.__all__)
    for name in ours.__all__:
        assert getattr(ours, name) is not None
