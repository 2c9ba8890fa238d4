"""Ports of this machine for kernels that do not choose theirs by themselves."""

from __future__ import annotations

import errno
import socket
import sys
from typing import TYPE_CHECKING, ClassVar

from cobnut_kernel.errors import KernelStartError
from cobnut_kernel.portal import Portal

if TYPE_CHECKING:
    from collections.abc import Sequence

HOLDS = sys.platform == "linux"
"""Whether a port can be bound by us and then by a kernel: both reuse the address, and only the kernel listens."""

promised: set[int] = set()
"""The ports of our kernels: one that is just not bound, between two starts say, is given to nobody else."""


class Ports:
    """The ports of one kernel, from its first start to its last end.

    Where the system can (`HOLDS`) they are bound all that time, so that no other process is given them either: there
    is no moment in which a port that was found to be free can become somebody else's.

    Attributes:
        numbers: the ports.
    """

    _with_promises: ClassVar[set[Ports]] = set()
    _portal: ClassVar[Portal | None] = None

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self._held: list[socket.socket] = []

    @property
    def are_held(self) -> bool:
        """Whether nobody else can be given them."""
        return bool(self._held)

    def find(self, ip: str, wanted: Sequence[int], *, hold: bool = True) -> list[int]:
        """Find ports of an address in place of those that the kernel had.

        Args:
            ip: the address.
            wanted: the ports, 0 for any that is free.
            hold: whether to keep them bound; a kernel that does not reuse addresses could not listen otherwise.

        Raises:
            KernelStartError: a port is in use, or the address is not one of this machine.
        """
        self.give_back()
        bound: list[socket.socket] = []
        try:
            for number in wanted:
                bound.append(_bound(ip, number))
                self.numbers.append(bound[-1].getsockname()[1])
        except BaseException:
            self.numbers.clear()
            _close(bound)
            raise
        if hold and HOLDS:
            self._held = bound
        else:
            _close(bound)
        self._promise()
        return list(self.numbers)

    def note(self, numbers: Sequence[int]) -> None:
        """Take note of ports that the kernel has chosen."""
        if self.numbers != list(numbers):
            self.give_back()
            self.numbers = list(numbers)
        self._promise()

    def give_back(self) -> None:
        """Let others have them."""
        held, self._held = self._held, []
        _close(held)
        promised.difference_update(self.numbers)
        self.numbers = []
        self._with_promises.discard(self)

    def _promise(self) -> None:
        promised.update(self.numbers)
        portal = Portal.shared()
        if Ports._portal is not portal:
            Ports._portal = portal
            portal.at_end(Ports._give_all_back)
        self._with_promises.add(self)

    @classmethod
    def _give_all_back(cls) -> None:
        """Give back what nobody has cleaned up after, at the end of the portal."""
        cls._portal = None
        while cls._with_promises:
            cls._with_promises.pop().give_back()


def require_own_address(ip: str) -> None:
    """See that a kernel of this machine can listen on an address.

    Raises:
        KernelStartError: it cannot.
    """
    _bound(ip, 0).close()


def _bound(ip: str, number: int) -> socket.socket:
    """Bind a port, or one that is promised to nobody."""
    refused: list[socket.socket] = []
    try:
        while True:
            bound = _bind(ip, number)
            if number or bound.getsockname()[1] not in promised:
                return bound
            refused.append(bound)  # or the system would offer it again
    finally:
        _close(refused)


def _bind(ip: str, number: int) -> socket.socket:
    made = socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET)
    try:
        if HOLDS:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ip, number))
    except (OSError, OverflowError) as error:
        made.close()
        raise KernelStartError(_explanation(ip, number, error)) from error
    return made


def _explanation(ip: str, number: int, error: OSError | OverflowError) -> str:
    match error:
        case OSError(errno=errno.EADDRINUSE) if number:
            return f"The port {number} of {ip} is in use: choose another one, or 0 for any that is free."
        case OSError(errno=errno.EACCES) if number:
            return f"The port {number} of {ip} needs more rights than we have: choose one above 1023, or 0 for any."
        case OSError(errno=errno.EADDRNOTAVAIL) | socket.gaierror():
            return (
                f"A kernel can only be launched on a local interface, and {ip!r} is no address of this machine: choose"
                " 127.0.0.1, or * for all of them."
            )
        case _:
            return f"There is no port {number} for the kernel on {ip}: {error}"


def _close(sockets: Sequence[socket.socket]) -> None:
    for each in sockets:
        each.close()
