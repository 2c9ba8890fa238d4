"""How the end of a kernel, or the failure of its start, is reported."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from cobnut_kernel.errors import CobnutError, KernelDiedError, KernelStartError
from cobnut_kernel.manager.lifecycle import DeathReport
from cobnut_kernel.provisioning.process import signal_name

if TYPE_CHECKING:
    from cobnut_kernel.manager.lifecycle import KernelState
    from cobnut_kernel.manager.memory import MemoryWatch
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

REPORTED_LINES = 40
"""How many lines of the kernel's stderr a report of its death holds."""


def report_end(
    provisioner: KernelProvisionerBase | None,
    phase: KernelState,
    code: int | None,
    reason: str = "",
    memory: MemoryWatch | None = None,
) -> DeathReport:
    """Report how a kernel's process ended.

    Args:
        provisioner: of the process; knows its last words.
        phase: in which it ended.
        code: its exit code, or the negative number of the signal; None where there is none.
        reason: why it was ended, if cobnut did it.
        memory: knows whether the system killed it for want of memory.
    """
    tail = provisioner.stderr_tail() if provisioner is not None else ""
    is_killed = code == -signal.SIGKILL and not reason
    return DeathReport(
        exit_code=code if code is None or code >= 0 else None,
        signal=signal_name(-code) if code is not None and code < 0 else None,
        stderr_tail="\n".join(tail.splitlines()[-REPORTED_LINES:]),
        phase=phase,
        reason=reason,
        out_of_memory=memory.evidence() if memory is not None and is_killed else "",
    )


async def report_failure(
    provisioner: KernelProvisionerBase | None, phase: KernelState, failure: Exception
) -> DeathReport:
    """Report a failed start: by how its process ended, if that is why it failed, else by the reason."""
    if isinstance(failure, KernelDiedError) and provisioner is not None:
        with suppress(Exception):  # one that does not know does not keep the failure from being told
            return report_end(provisioner, phase, await provisioner.poll())
    return report_end(provisioner, phase, None, str(failure))


def as_start_error(error: Exception) -> Exception:
    """Return an error of ours as it is, and any other as a failed start that says so."""
    if isinstance(error, (CobnutError, ModuleNotFoundError)):
        return error
    return KernelStartError(f"The kernel could not be started: {error or type(error).__name__}")
