"""Which kernels are ended because nobody uses them, and what is known of their use; off unless it is asked for.

A kernel is never ended while requests of users are open in it, while it is kept or while a client is attached to it.
Before it is ended it is asked: an empty cell waits behind whatever runs, whoever began that.
"""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cobnut_kernel.errors import PendingKernelError
from cobnut_kernel.manager.lifecycle import RUNNING, KernelState
from cobnut_kernel.protocol.messages import MessageType

if TYPE_CHECKING:
    from collections.abc import Callable

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.manager.traits import MultiManagerTraits
    from cobnut_kernel.portal import Portal
    from cobnut_kernel.protocol.messages import Channel, Message

ANSWER_TIME = 5.0
"""How long a kernel that looks idle may take to run an empty cell, in seconds."""

WORK = frozenset({MessageType.EXECUTE_REQUEST, MessageType.COMM_OPEN, MessageType.COMM_MSG, MessageType.COMM_CLOSE})
"""Requests that make a kernel busy: they run what users wrote."""

USE = WORK | {
    MessageType.COMPLETE_REQUEST,
    MessageType.INSPECT_REQUEST,
    MessageType.IS_COMPLETE_REQUEST,
    MessageType.HISTORY_REQUEST,
    MessageType.CREATE_SUBSHELL_REQUEST,
}
"""Requests that show that somebody uses a kernel."""


# ── decisions ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class CullingPolicy:
    """When a kernel is ended.

    Attributes:
        idle_timeout: after how many seconds without use; 0 or less is never.
        culls_busy: whether even what runs something, in silence for so long.
        culls_connected: whether even what clients are attached to.
    """

    idle_timeout: float = 0.0
    culls_busy: bool = False
    culls_connected: bool = False


@dataclass(frozen=True)
class Standing:
    """What speaks for a kernel, and against it.

    Attributes:
        idle_seconds: for how long it was not used.
        is_pending: whether it is about to start or to stop.
        is_busy: whether a request of a user is open.
        is_kept: whether somebody wants it to stay.
        connections: how many clients are attached to it.
    """

    idle_seconds: float
    is_pending: bool = False
    is_busy: bool = False
    is_kept: bool = False
    connections: int = 0


def is_culled(standing: Standing, policy: CullingPolicy) -> bool:
    """Decide whether a kernel is to be ended."""
    if policy.idle_timeout <= 0 or standing.idle_seconds < policy.idle_timeout:
        return False
    if standing.is_pending or standing.is_kept:
        return False
    if standing.is_busy and not policy.culls_busy:
        return False
    return not standing.connections or policy.culls_connected


def policy_for(manager: AsyncKernelManager, traits: MultiManagerTraits) -> CullingPolicy:
    """Return what holds for a kernel: its kernelspec may name another time."""
    wanted = manager.kernel_spec.metadata.get("cull_idle_timeout")
    idle_timeout = wanted if isinstance(wanted, (int, float)) else traits.cull_idle_timeout
    return CullingPolicy(idle_timeout, culls_busy=traits.cull_busy, culls_connected=traits.cull_connected)


class Activity:
    """How one kernel is used, told by the messages that it publishes.

    It is busy while requests that run something are open: those of all subshells, each judged by its own id. What is
    printed after a cell has ended, by a task in the background say, is use as well.

    Attributes:
        last_activity: when it was used last, in seconds since the epoch.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: set[str] = set()
        self._since: float = clock()
        self.last_activity: float = time.time()

    @property
    def execution_state(self) -> str:
        """What the field calls it: "busy" or "idle"."""
        return "busy" if self._open else "idle"

    @property
    def is_busy(self) -> bool:
        """Whether a request that runs something is open."""
        return bool(self._open)

    @property
    def idle_seconds(self) -> float:
        """For how long the kernel was not used; a time in which the machine slept may not count."""
        return 0.0 if self._open else self._clock() - self._since

    @property
    def silent_seconds(self) -> float:
        """For how long the kernel published nothing, busy or not."""
        return self._clock() - self._since

    def note(self) -> None:
        """The kernel was used."""
        self._since, self.last_activity = self._clock(), time.time()

    def begin_anew(self) -> None:
        """Another process takes over, or none: what was open will never be closed (#1395)."""
        self._open.clear()
        self.note()

    def hear(self, message: Message) -> None:
        """Take in what the kernel published."""
        if message.parent is None or message.parent.msg_type not in USE:
            return
        if message.msg_type == MessageType.STATUS and message.parent.msg_type in WORK:
            if message.content.get("execution_state") == "idle":
                self._open.discard(message.parent.msg_id)
            else:
                self._open.add(message.parent.msg_id)
        self.note()


# ── carried out ─────────────────────────────────────────────────────────────────────────────────────────────────────


class Listener:
    """Listens to one kernel, through its restarts; it lives on the portal's thread."""

    def __init__(self, manager: AsyncKernelManager) -> None:
        self.activity: Activity = Activity()
        self.manager: AsyncKernelManager = manager
        self._client: AsyncKernelClient | None = None
        self._undo = manager.add_state_callback(self._follow)
        self._follow(manager, manager.state)

    def close(self) -> None:
        """Listen no longer."""
        self._undo()
        self._hang_up()

    def standing(self) -> Standing:
        """Say what speaks for the kernel, and against it."""
        state = self.manager.state
        return Standing(
            idle_seconds=self.activity.silent_seconds,
            is_pending=state not in {KernelState.READY, KernelState.DEAD},
            is_busy=self.activity.is_busy,
            is_kept=self.manager.keep,
            connections=self.manager.clients.attached,
        )

    async def is_idle(self) -> bool:
        """Ask the kernel: whether an empty cell is run at once. One that is dead does nothing more."""
        if self._client is None:
            return True
        nothing = {"code": "", "silent": True, "store_history": False, "allow_stdin": False, "stop_on_error": False}
        try:
            await self._client.request(MessageType.EXECUTE_REQUEST, nothing, timeout=ANSWER_TIME)
        except Exception as error:
            self.manager.log.debug("Kernel %s is not culled: %s", self.manager.kernel_id, error)
            self.activity.note()
            return False
        return True

    def _follow(self, _: AsyncKernelManager, state: KernelState) -> None:
        if state not in RUNNING:
            self._hang_up()
            self.activity.begin_anew()
        elif self._client is None:
            self.activity.begin_anew()
            client = self._client = self._make_client()
            client.listen(self._hear)
            client.start_channels()
        else:
            self.activity.note()  # it has answered: its use begins

    def _make_client(self) -> AsyncKernelClient:
        from cobnut_kernel.client.client import AsyncKernelClient  # late: most managers cull nothing

        return self.manager.create_client(AsyncKernelClient)

    def _hear(self, channel: Channel, message: Message) -> None:
        """Take in a message, in the I/O thread; what we ask ourselves is no use."""
        client = self._client
        if client is None or message.parent is None or message.parent.session != client.session_id:
            self.activity.hear(message)

    def _hang_up(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.stop_channels()


class Culler:
    """Ends the kernels that nobody uses: one task for all of them, on the portal's thread.

    Args:
        traits: say what holds at the moment, and how often the kernels are looked at.
        stop: ends a kernel.
    """

    def __init__(self, traits: MultiManagerTraits, stop: Callable[[str], object]) -> None:
        self._traits = traits
        self._stop = stop
        self._listeners: dict[str, Listener] = {}
        self._is_running: bool = False

    def activity(self, kernel_id: str) -> Activity | None:
        """Return how a kernel is used; None where nobody listens to it."""
        listener = self._listeners.get(kernel_id)
        return listener.activity if listener is not None else None

    def attend(self, portal: Portal, kernel_id: str, manager: AsyncKernelManager) -> None:
        """Listen to a kernel from now on; where its id was another's, to this one."""
        known = self._listeners.get(kernel_id)
        if known is not None and known.manager is manager:
            return
        if known is not None:
            self.dismiss(kernel_id, known.manager)
        self._listeners[kernel_id] = Listener(manager)
        if not self._is_running:
            self._is_running = True
            portal.create_task(self._run())

    def dismiss(self, kernel_id: str, manager: AsyncKernelManager) -> None:
        """Listen to a kernel no longer; another one that has its id by now is left alone."""
        listener = self._listeners.get(kernel_id)
        if listener is not None and listener.manager is manager:
            del self._listeners[kernel_id]
            listener.close()

    async def _run(self) -> None:
        """Look at the kernels again and again, as long as there are any."""
        import asyncio

        try:
            while self._listeners:
                await asyncio.sleep(self._traits.cull_interval)
                for kernel_id, listener in tuple(self._listeners.items()):
                    await self._consider_safely(kernel_id, listener)
        finally:
            self._is_running = False
            for kernel_id, listener in tuple(self._listeners.items()):  # the portal ends
                self.dismiss(kernel_id, listener.manager)

    async def _consider_safely(self, kernel_id: str, listener: Listener) -> None:
        """Consider a kernel; one that cannot be, or could not be stopped, is no reason to spare the others."""
        try:
            await self._consider(kernel_id, listener)
        except Exception:
            listener.manager.log.exception("Kernel %s could not be culled", kernel_id)

    async def _consider(self, kernel_id: str, listener: Listener) -> None:
        """End a kernel if it is to be ended, and says itself that it does nothing."""
        policy = policy_for(listener.manager, self._traits)
        if not is_culled(listener.standing(), policy):
            return
        if not policy.culls_busy and not (await listener.is_idle() and is_culled(listener.standing(), policy)):
            return
        idle = listener.standing().idle_seconds
        listener.manager.log.warning("Kernel %s is ended: nobody used it for %.0f seconds", kernel_id, idle)
        with suppress(KeyError, PendingKernelError):  # it was removed, or began to restart by itself
            self._stop(kernel_id)
