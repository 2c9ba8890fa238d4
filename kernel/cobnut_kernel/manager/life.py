"""How a kernel is started, watched, restarted and stopped: what carries out the decisions of its lifecycle.

All of it runs on the portal's thread, one start, restart or stop after the other. Whatever was made is undone in
reverse order when a start fails or is cancelled, under a shield.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from cobnut_kernel.errors import KernelDiedError, KernelError, KernelStartCancelled
from cobnut_kernel.manager.answering import Answering, own_client
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.manager.memory import MemoryWatch
from cobnut_kernel.manager.reports import as_start_error, report_end, report_failure
from cobnut_kernel.manager.stopping import KILL_TIME, Stopping, going_on
from cobnut_kernel.portal import finish
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel, MessageType

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

    from cobnut_kernel.manager.lifecycle import DeathReport, Lifecycle, Ready
    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.manager.start_queue import Turn
    from cobnut_kernel.portal import Portal
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

INTERRUPT_TIME = 5.0
"""How long a kernel may take to answer an interrupt_request, in seconds."""


class KernelLife:
    """The one kernel of a manager, from its first start to its last end.

    Attributes:
        provisioner: what provides the process; the same through all restarts.
        connection: where the kernel is, or was, reached.
        portal: whose thread it lives on.
    """

    def __init__(self, manager: AsyncKernelManager, lifecycle: Lifecycle, portal: Portal) -> None:
        self.provisioner: KernelProvisionerBase | None = None
        self.connection: ConnectionInfo | None = None
        self.portal: Portal = portal
        self._manager = manager
        self._lifecycle = lifecycle
        self._answering = Answering(manager, portal)
        self._stopping = Stopping(manager, self._answering)
        self._turn = asyncio.Lock()
        self._exit: asyncio.Task[int | None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._requested: bool | None = None

    # ── start and restart ───────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, ready: Ready, options: dict[str, Any], turn: Turn | None) -> None:
        """Start the kernel; resolves `ready`.

        Args:
            ready: the start's future.
            options: those of `AsyncKernelManager.start_kernel`.
            turn: in the queue of those who start; None where there is no queue.

        Raises:
            KernelStartCancelled: it was cancelled, by whoever asked for it or by a stop.
            Exception: why it could not be started.
        """
        await self._rise(self._start(options, turn), ready)

    async def restart(self, ready: Ready, options: dict[str, Any], *, now: bool, newports: bool) -> None:
        """Stop the kernel and start it where it was; resolves `ready`. Raises what `start` does."""
        await self._rise(self._restart(options, now=now, newports=newports), ready)

    async def adopt(self, ready: Ready, info: Mapping[str, Any]) -> None:
        """Take over a kernel that runs already; resolves `ready`. Raises what `start` does."""
        await self._rise(self._adopt(info), ready)

    async def _rise(self, way: Coroutine[Any, Any, None], ready: Ready) -> None:
        try:
            async with self._turn:
                await way
        except asyncio.CancelledError:
            way.close()
            self._lifecycle.cancel()
            cancelled = KernelStartCancelled("The start of the kernel was cancelled.")
            ready.resolve(cancelled)
            raise cancelled from None
        except Exception as error:
            failure = as_start_error(error)
            report = await report_failure(self.provisioner, self._lifecycle.state, failure)
            self._lifecycle.fail(report, failure)
            ready.resolve(failure)
            if failure is error:
                raise
            raise failure from error
        ready.resolve()

    async def _start(self, options: dict[str, Any], turn: Turn | None) -> None:
        await asyncio.sleep(0)  # a cancellation that was asked for meanwhile
        if turn is not None:
            await asyncio.wrap_future(turn.came)
            asyncio.get_running_loop().call_later(turn.limit, turn.end)
        _require(wanted=self._lifecycle.provision())
        self.provisioner = None  # what the last one said is no longer of interest
        self.provisioner = self._manager.create_provisioner()
        await self._launch(self.provisioner, options)

    async def _restart(self, options: dict[str, Any], *, now: bool, newports: bool) -> None:
        try:
            await self._take_down(now=now, restart=True)
        except asyncio.CancelledError:
            await finish(self._take_down(now=True, restart=False))
            raise
        self._manager.clients.tell_died("restarted")
        _require(wanted=self._lifecycle.provision())
        provisioner = self.provisioner = self.provisioner or self._manager.create_provisioner()
        if newports:
            provisioner.connection_info = {}
            self._manager.forget_connection()
        await self._launch(provisioner, options)
        self._manager.clients.tell_started(self.connection)

    async def _launch(self, provisioner: KernelProvisionerBase, options: dict[str, Any]) -> None:
        try:
            arguments = await provisioner.pre_launch(**options)
            info = await provisioner.launch_kernel(arguments.pop("cmd"), **arguments)
            self._note_connection(provisioner, info)
            await provisioner.post_launch(**arguments)
            self._begin_watch(provisioner)
        except BaseException:
            await finish(self._clear(provisioner))
            raise

    async def _adopt(self, info: Mapping[str, Any]) -> None:
        _require(wanted=self._lifecycle.provision())
        provisioner = self.provisioner = self._manager.create_provisioner()
        try:
            await self._take_over(provisioner, info)
        except BaseException:  # it stays whose it was
            provisioner.let_go()
            self.provisioner = None
            raise

    async def _take_over(self, provisioner: KernelProvisionerBase, info: Mapping[str, Any]) -> None:
        await provisioner.load_provisioner_info(info)
        if not provisioner.has_process:
            raise KernelDiedError("The kernel that was to be adopted has ended: start another one.")
        self._note_connection(provisioner, provisioner.connection_info)
        self._begin_watch(provisioner)

    def _note_connection(self, provisioner: KernelProvisionerBase, info: dict[str, Any]) -> None:
        self.connection = ConnectionInfo.from_dict(info)
        self._manager.adopt_connection(self.connection, str(getattr(provisioner, "connection_file", "") or ""))

    def _begin_watch(self, provisioner: KernelProvisionerBase) -> None:
        self._answering.heard.clear()
        _require(wanted=self._lifecycle.launched())
        self._requested = None
        self._exit = asyncio.ensure_future(provisioner.wait())
        self._watch = self.portal.create_task(self._watch_over(provisioner, self._exit))

    async def _clear(self, provisioner: KernelProvisionerBase) -> None:
        """Undo a launch, whatever there is of it."""
        try:
            if provisioner.has_process:
                await provisioner.kill()
                await asyncio.wait_for(provisioner.wait(), KILL_TIME)
        except Exception:
            self._manager.log.exception("The process of kernel %s could not be ended", self._manager.kernel_id)
        await self._release(provisioner, restart=False)

    async def _leave(self, provisioner: KernelProvisionerBase) -> None:
        """Clear up where all ends: a kernel that is to be kept goes on, any other is ended."""
        await self._stopping.lets_go(provisioner, restart=False)
        await self._clear(provisioner)

    async def _release(self, provisioner: KernelProvisionerBase, *, restart: bool) -> None:
        """Release what the kernel used besides its process; with `restart` only what the next one does not use."""
        with going_on(self._manager, "clean up"):
            await provisioner.cleanup(restart)
            if not restart:
                self._manager.cleanup_connection_file()

    # ── while it lives ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch_over(self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None]) -> None:
        """See the kernel's first answer and its end, and clear up after an end that nobody waits for."""
        try:
            memory = MemoryWatch(_local_pid(provisioner))
            reason = await self._first_answer(provisioner, ended)
            while (again := await self._launched_again(provisioner, ended)) is not None:
                ended, memory = again, MemoryWatch(_local_pid(provisioner))
                reason = await self._first_answer(provisioner, ended)
            await asyncio.wait({ended})
        except asyncio.CancelledError:  # the portal ends
            if self._manager.owns_kernel and not getattr(provisioner, "independent", False):
                await finish(self._leave(provisioner))
            else:
                provisioner.let_go()
            self._lifecycle.begin_stop().resolve()
            self._lifecycle.stopped()
            raise
        if self._lifecycle.is_running:
            report = report_end(provisioner, self._lifecycle.state, self._exit_code(ended), reason, memory)
            await self._follow_death(provisioner, report)
        elif self._requested is not None:  # it was asked to end; or whoever took it down clears up
            await self._conclude_request(restart=self._requested)

    async def _first_answer(self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None]) -> str:
        """Wait for the first answer or the end; return why the kernel was ended for its silence, or nothing."""
        reason = await self._answering.first(ended, self._manager.startup_timeout)
        if self._answering.heard.is_set():
            self._tell_answer(provisioner, answered=True)
            self._lifecycle.answer()
            return ""
        if self._lifecycle.state is KernelState.STARTING:  # a stop says nothing of the kernel
            self._tell_answer(provisioner, answered=False)
        if ended.done():
            return ""
        if self._manager.owns_kernel:
            with going_on(self._manager, "kill it"):
                await provisioner.kill()
        return reason

    def _tell_answer(self, provisioner: KernelProvisionerBase, *, answered: bool) -> None:
        with going_on(self._manager, "note whether it answers"):
            provisioner.note_answer(answered=answered)

    async def _launched_again(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None]
    ) -> asyncio.Task[int | None] | None:
        """Launch a kernel once more that has ended before it answered, where its provisioner knows why (#487).

        Returns:
            The end of the new process; None where there is none.
        """
        if not ended.done() or self._answering.heard.is_set() or self._lifecycle.state is not KernelState.STARTING:
            return None
        try:
            info = await provisioner.launch_again()
        except Exception:
            self._manager.log.exception("Kernel %s could not be launched again", self._manager.kernel_id)
            return None
        if info is None:
            return None
        if self._lifecycle.state is not KernelState.STARTING:  # it was stopped meanwhile
            await self._clear(provisioner)
            return None
        self._note_connection(provisioner, info)
        self._manager.clients.tell_started(self.connection)
        self._exit = asyncio.ensure_future(provisioner.wait())
        return self._exit

    def _exit_code(self, ended: asyncio.Task[int | None]) -> int | None:
        """Return the exit code; None where it is not known, or the provisioner has failed to wait for it."""
        with going_on(self._manager, "learn how it ended"), suppress(asyncio.CancelledError):
            return ended.result()
        return None

    async def _follow_death(self, provisioner: KernelProvisionerBase, report: DeathReport) -> None:
        """Clear up after an end that nobody asked for; the manager says what follows."""
        decision = self._manager.judge(report, provisioner)
        if self._manager.owns_kernel:
            await self._release(provisioner, restart=decision.restarts)
        self._manager.clients.tell_died(str(report))
        self._manager.note_death(report, decision)

    async def interrupt(self) -> None:
        """Interrupt what runs, in the way that the kernelspec names; one that has not answered yet is waited for.

        Raises:
            KernelError: it died before it answered, or does not answer the request.
        """
        if self._manager.owns_kernel or self.provisioner is not None:  # a stranger has no process of ours to signal
            self._running_provisioner("interrupt")
            await self._lifecycle.answered  # a signal would kill a kernel that is still importing
            provisioner = self._running_provisioner("interrupt")
            if self._manager.kernel_spec.interrupt_mode == "signal":
                await provisioner.send_signal(signal.SIGINT)
                return
        with own_client(self._manager) as client:
            await client.request(MessageType.INTERRUPT_REQUEST, {}, channel=Channel.CONTROL, timeout=INTERRUPT_TIME)

    async def signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group."""
        await self._running_provisioner("signal").send_signal(signum)

    async def is_alive(self) -> bool:
        """Ask the provisioner whether the process runs."""
        return self.provisioner is not None and self.provisioner.has_process and await self.provisioner.poll() is None

    async def provisioner_info(self) -> dict[str, Any]:
        """Ask the provisioner what another process needs to adopt the kernel."""
        return await self._running_provisioner("describe").get_provisioner_info()

    def _running_provisioner(self, wish: str) -> KernelProvisionerBase:
        if self.provisioner is None or not self._lifecycle.is_running:
            raise KernelError(f"Cannot {wish} the kernel: no kernel is running.")
        return self.provisioner

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def stop(self, ready: Ready, *, now: bool, restart: bool) -> None:
        """Stop the kernel, when its running start is over; resolves `ready`. Cancelled, it stops it by force."""
        try:
            await self._stop(ready, now=now, restart=restart)
        except asyncio.CancelledError:
            self._manager.cancel_start()
            await finish(self._stop(ready, now=True, restart=False))
            raise

    def hurry(self) -> None:
        """Go on to the kill, in the stop that runs or waits for its turn."""
        if not self._lifecycle.is_at_rest:
            self._stopping.hurry()

    async def request_stop(self, *, restart: bool) -> None:
        """Ask the kernel to end; whenever it does, it is cleared up after it."""
        async with self._turn:
            self._requested = restart
            if self.provisioner is not None and self._exit is not None and not self._exit.done():
                with going_on(self._manager, "ask it to end"):
                    await self._stopping.request(self.provisioner, self._exit, restart=restart)
            if self._watch is None or self._watch.done():  # it had ended before it could be asked
                await self._conclude_request(restart=restart)

    async def finish_stop(self, waittime: float | None, *, restart: bool) -> None:
        """Wait until a kernel that was asked to end has ended, and end it by force if it has not in time."""
        async with self._turn:
            self._requested = restart
            if self.provisioner is not None and self._exit is not None and self._watch is not None:
                if not self._exit.done():
                    await self._stopping.finish(self.provisioner, self._exit, waittime, restart=restart)
                await asyncio.wait({self._watch})
                self._stopping.calm()
            await self._conclude_request(restart=restart)

    async def clean_up(self, *, restart: bool) -> None:
        """Release what a kernel that has ended used; nothing happens while it runs."""
        async with self._turn:
            if self.provisioner is not None and not self.provisioner.has_process:
                await self._release(self.provisioner, restart=restart)

    async def _stop(self, ready: Ready, *, now: bool, restart: bool) -> None:
        async with self._turn:
            self._requested = None
            self._lifecycle.begin_stop(ready)
            await self._take_down(now=now, restart=restart)
            self._conclude(ready)

    async def _take_down(self, *, now: bool, restart: bool) -> None:
        """End the process, by kindness first, and release what it used; nothing happens where none is."""
        provisioner, ended, watch = self.provisioner, self._exit, self._watch
        if provisioner is None or ended is None or watch is None:
            return
        if not ended.done():
            await self._stopping.end(provisioner, ended, now=now, restart=restart)
        await asyncio.wait({watch})
        self._exit = self._watch = None
        self._stopping.calm()
        await self._release(provisioner, restart=restart)

    async def _conclude_request(self, *, restart: bool) -> None:
        """Clear up after a kernel that was asked to end; nothing happens where its watch has done so."""
        if self._lifecycle.state is KernelState.STOPPING and self.provisioner is not None:
            await self._release(self.provisioner, restart=restart)
            self._conclude(self._lifecycle.ready)

    def _conclude(self, ready: Ready) -> None:
        self._manager.clients.tell_died("stopped")
        self._lifecycle.stopped()
        ready.resolve()


def _require(*, wanted: bool) -> None:
    """Go no further with a start that a stop has made unwanted."""
    if not wanted:
        raise asyncio.CancelledError


def _local_pid(provisioner: KernelProvisionerBase) -> int | None:
    """Return the id of the kernel's process where that runs on this machine."""
    from cobnut_kernel.provisioning.local import LocalProvisioner  # it is there where it is wanted

    return provisioner.pid if isinstance(provisioner, LocalProvisioner) else None
