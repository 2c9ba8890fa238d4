"""Whether a kernel's sockets are encrypted, and the keys for it (CURVE, JEP 145)."""

from __future__ import annotations

from dataclasses import replace
from enum import StrEnum
from typing import TYPE_CHECKING

from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.kernelspec import supports_curve

if TYPE_CHECKING:
    from cobnut_kernel.kernelspec import KernelSpec
    from cobnut_kernel.protocol.connection import ConnectionInfo


class Encryption(StrEnum):
    """What is encrypted, where the kernel can: nothing, its ports, or whatever it is reached by.

    Unix sockets lie in a folder that nobody else can enter; to encrypt them brings next to nothing.
    """

    DISABLED = "disabled"
    AUTO = "auto"
    REQUIRED = "required"

    def applies_to(self, transport: str) -> bool:
        """Say whether a transport is to be encrypted."""
        return self is Encryption.REQUIRED or (self is Encryption.AUTO and transport == "tcp")


def decide_encryption(policy: str, spec: KernelSpec) -> Encryption:
    """Decide what is encrypted of a kernel.

    Raises:
        KernelStartError: encryption is required, and the kernelspec does not declare that its kernel can, or zmq
            cannot; or the policy is none.
    """
    if policy not in tuple(Encryption):
        raise KernelStartError(f"The transport_encryption must be one of {', '.join(Encryption)}, not {policy!r}.")
    if supports_curve(spec):
        return Encryption(policy)
    if policy == Encryption.REQUIRED:
        raise KernelStartError(
            f"The kernel {spec.name!r} must be encrypted, and its kernelspec does not declare 'curve' in"
            " metadata.supported_encryption: use another kernel, or transport_encryption='auto'."
        )
    return Encryption.DISABLED


def with_keys(info: ConnectionInfo, encryption: Encryption) -> ConnectionInfo:
    """Give a connection a pair of keys where it is to be encrypted; it keeps those that it has.

    Raises:
        KernelStartError: zmq cannot encrypt.
    """
    if info.is_encrypted or not encryption.applies_to(info.transport):
        return info
    import zmq

    if not zmq.has("curve"):
        raise KernelStartError(
            f"transport_encryption={str(encryption)!r} needs a zmq that can: install pyzmq with CURVE, or disable it."
        )
    public, secret = zmq.curve_keypair()
    return replace(info, curve_publickey=public, curve_secretkey=secret)
