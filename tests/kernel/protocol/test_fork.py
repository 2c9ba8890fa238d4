"""The packets of the fork server: what is sent can be read, and what cannot be read says why."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cobnut_kernel.errors import MalformedMessageError
from cobnut_kernel.protocol.fork import (
    MAX_PACKET,
    Answer,
    Ask,
    Exited,
    Fork,
    Forked,
    Guard,
    GuardFolder,
    RefusalReason,
    Refused,
    Request,
    Retire,
    Signal,
    State,
    Unguard,
    decode_answer,
    decode_request,
    differing_variables,
    kernel_arguments,
    request_id,
)

FORK = Fork(
    "7", ("-f", "/run/kernel.json"), {"HOME": "/home/ada", "EMPTY": ""}, "/home/ada", 0o022, (1, 2), ("/f",), True
)


@pytest.mark.parametrize(
    "request_",
    [
        FORK,
        Fork("", (), {}, "/"),
        Signal(4711, 2),
        Guard(4711, 99, ("/a", "/b")),
        Unguard(4711),
        GuardFolder("/run/owner"),
        Retire(),
        Ask(),
    ],
    ids=lambda request: request.type,
)
def test_a_request_is_read_as_it_was_sent(request_: Request) -> None:
    """Every kind of request comes back equal from its bytes, tuples as tuples."""
    assert decode_request(request_.encode()) == request_


@pytest.mark.parametrize(
    "answer",
    [
        State(1, "/usr/bin/python", "/usr", {"HOME": "/root", "TERM": None}, (5, 6), "old"),
        Forked("7", 4711, 123456789),
        Refused("7", RefusalReason.STALE, "site-packages has changed."),
        Exited(4711, -9),
    ],
    ids=lambda answer: answer.type,
)
def test_an_answer_is_read_as_it_was_sent(answer: Answer) -> None:
    """Every kind of answer comes back equal from its bytes, the reason as an enum's member."""
    decoded = decode_answer(answer.encode())
    assert decoded == answer
    assert type(decoded) is type(answer)
    if isinstance(decoded, Refused):
        assert decoded.reason is RefusalReason.STALE


def test_what_a_newer_owner_adds_is_no_fault() -> None:
    """A field that is not known is left out."""
    assert decode_request(b'{"type": "ask", "colour": "blue"}') == Ask()


def test_an_environment_need_not_be_unicode() -> None:
    """Bytes that are no UTF-8 come through, as Python shows them."""
    fork = Fork("1", (), {"NAME": b"caf\xe9".decode("utf-8", "surrogateescape")}, "/")
    assert decode_request(fork.encode()) == fork


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"type": "fry"}, "type is 'fry', not one of fork, signal"),
        ({"type": ["fork"]}, "type is"),
        ({"env": ["A=B"]}, "'env' of a fork packet is no object"),
        ({"env": {"A": 1}}, "'env' of a fork packet is no text"),
        ({"env": {"": "x"}}, "without a name"),
        ({"env": {"A=B": "x"}}, "'='"),
        ({"env": {"A": "x\0y"}}, "zero byte"),
        ({"env": {"A": "\ud900"}}, "has no bytes"),
        ({"cwd": None}, "'cwd' of a fork packet is no text"),
        ({"cwd": "/a\0b"}, "zero byte"),
        ({"arguments": "-f"}, "'arguments' of a fork packet is no list"),
        ({"arguments": ["-f", 3]}, "is no text"),
        ({"umask": -1}, "not between 0 and 511"),
        ({"umask": True}, "no whole number"),
        ({"umask": 1.5}, "no whole number"),
        ({"streams": [1, 256]}, "is 256, not between"),
        ({"outlives": "yes"}, "neither true nor false"),
    ],
)
def test_a_broken_request_is_refused_with_its_fault(changes: dict[str, Any], complaint: str) -> None:
    """The text names the field and what is wrong; nothing that the system's calls would choke on gets through."""
    content = {**json.loads(FORK.encode()), **changes}
    with pytest.raises(MalformedMessageError, match=complaint):
        decode_request(json.dumps(content).encode())


@pytest.mark.parametrize("pid", [-1, 0, 1, 2**40])
def test_no_number_that_means_other_processes_gets_through(pid: int) -> None:
    """kill() takes 0 and -1 for whole groups and everybody, and 1 is the system's."""
    with pytest.raises(MalformedMessageError, match="'pid' of a signal packet is"):
        decode_request(json.dumps({"type": "signal", "pid": pid, "signum": 9}).encode())


def test_a_request_without_what_it_needs_is_refused() -> None:
    """What is missing is named."""
    with pytest.raises(MalformedMessageError, match=r"fork packet is not complete.*'cwd'"):
        decode_request(b'{"type": "fork", "id": "1", "arguments": [], "env": {}}')


def test_an_answer_is_no_request() -> None:
    """Neither side takes what only the other one says."""
    with pytest.raises(MalformedMessageError):
        decode_request(Exited(4711, 0).encode())
    with pytest.raises(MalformedMessageError):
        decode_answer(Ask().encode())


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever comes, nothing but the one error is raised, and an id can be asked for."""
    try:
        decode_request(data)
    except MalformedMessageError:
        assert isinstance(request_id(data), str)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=6,
    ),
    st.sampled_from(["id", "arguments", "env", "cwd", "umask", "streams", "files", "outlives"]),
)
def test_any_value_in_a_field_is_read_or_refused(value: object, field: str) -> None:
    """A field of another type is an error of ours, never one of Python's."""
    content = {**json.loads(FORK.encode()), field: value}
    complaint = ""
    try:
        decode_request(json.dumps(content).encode())
    except MalformedMessageError as error:
        complaint = str(error)
    assert not complaint or repr(field) in complaint


def test_the_id_of_a_broken_request_is_found() -> None:
    """So that the refusal can name it."""
    assert request_id(b'{"type": "fork", "id": "7", "env": 3}') == "7"
    assert request_id(b'{"type": "fork", "id": 7}') == "7"
    assert request_id(b"[1, 2]") == ""


def test_a_packet_that_is_too_large_is_never_sent() -> None:
    """An environment of megabytes is for a cold start; the error says so."""
    with pytest.raises(MalformedMessageError, match="start this kernel cold"):
        Fork("1", (), {"LONG": "x" * MAX_PACKET}, "/").encode()


@pytest.mark.parametrize(
    ("cmd", "arguments"),
    [
        (["/venv/bin/python", "-P", "-m", "cobnut_kernel", "-f", "k.json"], ("-f", "k.json")),
        (["/venv/bin/python", "-P", "-m", "cobnut_kernel"], ()),
        (["/usr/bin/python", "-P", "-m", "cobnut_kernel", "-f", "k.json"], None),
        (["/venv/bin/python", "-m", "cobnut_kernel", "-f", "k.json"], None),
        (["/venv/bin/python", "-P", "-O", "-m", "cobnut_kernel", "-f", "k.json"], None),
        (["/venv/bin/python", "-P", "-m", "ipykernel_launcher", "-f", "k.json"], None),
        (["/venv/bin/python"], None),
        ([], None),
    ],
)
def test_a_fork_stands_for_one_command_only(cmd: list[str], arguments: tuple[str, ...] | None) -> None:
    """The same interpreter with the same options and our module; everything else is started cold."""
    assert kernel_arguments(cmd, "/venv/bin/python") == arguments


def test_variables_that_do_not_fit_are_named() -> None:
    """Those that the template has read, and those that take effect when a process starts; no other."""
    template = {"HOME": "/root", "TERM": None, "PYTHONPATH": "/lib"}
    assert differing_variables(template, {"HOME": "/root", "PYTHONPATH": "/lib", "PATH": "/bin", "X": "1"}) == []
    assert differing_variables(template, {"HOME": "/home", "TERM": "xterm", "LC_ALL": "C"}) == [
        "HOME",
        "LC_ALL",
        "PYTHONPATH",
        "TERM",
    ]
