"""Which kernels are encrypted, and by which keys."""

from __future__ import annotations

from typing import Any

import pytest
import zmq

from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.kernelspec import KernelSpec, own_spec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.provisioning.encryption import Encryption, decide_encryption, with_keys

TCP = ConnectionInfo("tcp", "127.0.0.1", 1001, 1002, 1003, 1004, 1005)
IPC = ConnectionInfo("ipc", "/run/k", 1, 2, 3, 4, 5)


def spec(supported: Any) -> KernelSpec:
    """Make a spec that declares what is supported."""
    return KernelSpec(name="k", argv=["x"], metadata={} if supported is None else {"supported_encryption": supported})


@pytest.mark.parametrize(
    ("policy", "supported", "tcp", "ipc"),
    [
        ("disabled", ["curve"], False, False),
        ("auto", ["curve"], True, False),
        ("auto", ["plain", " CURVE "], True, False),
        ("auto", "Curve", True, False),
        ("auto", None, False, False),
        ("auto", ["tls", 5], False, False),
        ("auto", {"curve": 1}, False, False),
        ("required", ["curve"], True, True),
        ("disabled", None, False, False),
    ],
)
def test_what_is_encrypted_is_the_policys_and_the_specs_to_say(
    policy: str, supported: Any, tcp: bool, ipc: bool
) -> None:
    """`auto` encrypts ports where the kernel can, `required` unix sockets too; what it can its spec declares."""
    encryption = decide_encryption(policy, spec(supported))
    assert (encryption.applies_to("tcp"), encryption.applies_to("ipc")) == (tcp, ipc)


def test_our_own_kernel_declares_that_it_can() -> None:
    """As jupyter_client reads it."""
    assert decide_encryption("required", own_spec()) is Encryption.REQUIRED


def test_a_kernel_that_cannot_is_not_started_where_it_must() -> None:
    """Rather than to go on in the clear the start fails, and says what to do; a policy that is none is named."""
    with pytest.raises(KernelStartError, match=r"'k' must be encrypted.*use another kernel"):
        decide_encryption("required", spec(None))
    with pytest.raises(KernelStartError, match="one of disabled, auto, required, not 'always'"):
        decide_encryption("always", spec(["curve"]))


def test_each_connection_gets_keys_of_its_own_and_keeps_them() -> None:
    """A pair is made once; a restart uses it again, so that clients that have it are heard."""
    first, second = (with_keys(TCP, Encryption.AUTO) for _ in range(2))
    assert first.is_encrypted
    assert first.curve_publickey != second.curve_publickey
    assert zmq.curve_public(first.curve_secretkey) == first.curve_publickey
    assert with_keys(first, Encryption.AUTO) is first
    assert with_keys(TCP, Encryption.DISABLED) is TCP
    assert with_keys(IPC, Encryption.AUTO) is IPC
    assert with_keys(IPC, Encryption.REQUIRED).is_encrypted


def test_a_zmq_that_cannot_encrypt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is started in the clear that was meant to be encrypted."""
    monkeypatch.setattr(zmq, "has", {"curve": False}.__getitem__)
    with pytest.raises(KernelStartError, match="install pyzmq with CURVE"):
        with_keys(TCP, Encryption.AUTO)
    assert with_keys(IPC, Encryption.AUTO) is IPC
