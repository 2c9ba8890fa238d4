"""Every error of this package, named for what the caller now knows.

```
CobnutError
├── ProtocolError                 what arrived is not a message to trust
│   ├── MalformedMessageError       it cannot be read
│   ├── SignatureError              it was not signed with our key
│   └── ReplayedMessageError        it was received before
├── ConnectionFileError           the connection file or its content is of no use
├── TransportClosedError          the sockets were closed on our side
├── TunnelError                   ssh could not reach a kernel on another machine
├── NoSuchKernel                  no kernelspec has that name
├── DuplicateKernelError          the kernel id is taken
├── UnknownSubshellError          the kernel has no subshell of that id
├── KernelInterruptError          a call to the kernel was interrupted
└── KernelError                   a kernel did not do what was asked
    ├── KernelStartError            it could not be started
    ├── KernelStartCancelled        its start was cancelled, and undone
    ├── KernelDiedError             its process has ended
    ├── KernelNotReadyError         it did not answer in time (a TimeoutError too)
    └── PendingKernelError          it is still starting or stopping
```
"""

from __future__ import annotations


class CobnutError(Exception):
    """The root of every error that cobnut raises itself."""


class ProtocolError(CobnutError):
    """What arrived is not a message to trust."""


class MalformedMessageError(ProtocolError):
    """A message cannot be read."""


class SignatureError(ProtocolError):
    """A message was not signed with our key."""


class ReplayedMessageError(ProtocolError):
    """A message was received before."""


class ConnectionFileError(CobnutError, ValueError):
    """A connection file, or its content, is of no use."""


class TransportClosedError(CobnutError):
    """The sockets were closed on our side."""


class TunnelError(CobnutError):
    """ssh could not open a tunnel to a kernel on another machine; the text has its own words."""


class NoSuchKernel(CobnutError, KeyError):  # noqa: N818 - the field's name
    """No kernelspec has that name."""

    def __init__(self, name: str, hint: str = "") -> None:
        super().__init__(name)
        self.name = name
        self.hint = hint

    def __str__(self) -> str:
        return f"There is no kernel named {self.name!r}." + (f" {self.hint}" if self.hint else "")


class DuplicateKernelError(CobnutError, ValueError):
    """A kernel id is taken."""


class UnknownSubshellError(CobnutError, KeyError):
    """The kernel has no subshell of that id."""

    def __init__(self, subshell_id: str) -> None:
        super().__init__(subshell_id)
        self.subshell_id = subshell_id

    def __str__(self) -> str:
        return f"Unknown subshell_id {self.subshell_id!r}"


class KernelInterruptError(CobnutError):
    """A call to the kernel was interrupted; code that a cell runs sees `KeyboardInterrupt`."""


class KernelError(CobnutError, RuntimeError):
    """A kernel did not do what was asked."""


class KernelStartError(KernelError):
    """A kernel could not be started."""


class KernelStartCancelled(KernelError):  # noqa: N818 - it is no failure
    """The start of a kernel was cancelled, and undone."""


class KernelDiedError(KernelError):
    """The process of a kernel has ended."""


class KernelNotReadyError(KernelError, TimeoutError):
    """A kernel did not answer in time; a `TimeoutError` too, which is what the field's clients raise."""


class PendingKernelError(KernelError):
    """A kernel is still starting or stopping."""
