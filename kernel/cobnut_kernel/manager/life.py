"""How a kernel is started, watched, restarted and stopped: what carries out the decisions of its lifecycle.

All of it runs on the portal's thread, one start, restart or stop after the other. Whatever was made is undone in
reverse order when a start fails or is cancelled, under a shield.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import contextmanager, suppress
from itertools import cycle
from typing import TYPE_CHECKING, Any

from cobnut_kernel.errors import CobnutError, KernelDiedError, KernelError, KernelStartCancelled, KernelStartError
from cobnut_kernel.manager.lifecycle import DeathReport, Lifecycle, Ready
from cobnut_kernel.portal import finish
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.provisioning.process import signal_name

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from cobnut_kernel.client.client import AsyncKernelClient
    from cobnut_kernel.manager.manager import AsyncKernelManager
    from cobnut_kernel.portal import Portal
    from cobnut_kernel.protocol.messages import Message
    from cobnut_kernel.provisioning.base import KernelProvisionerBase

KILL_TIME = 5.0
"""How long a killed process may take to end, in seconds: it may hang in the system."""

ASK_AGAIN = 1.0
"""After how many seconds without an answer a starting kernel is asked again."""

ANSWER_TIME = 0.1
"""How long a kernel that is stopped while it starts may take to show that it is up, in seconds."""

INTERRUPT_TIME = 5.0
"""How long a kernel may take to answer an interrupt_request, in seconds."""

REPORTED_LINES = 40
"""How many lines of the kernel's stderr a report of its death holds."""


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
        self._turn = asyncio.Lock()
        self._hurry = asyncio.Event()
        self._exit: asyncio.Task[int | None] | None = None
        self._watch: asyncio.Task[None] | None = None
        self._heard = asyncio.Event()

    # ── start and restart ───────────────────────────────────────────────────────────────────────────────────────────

    async def start(self, ready: Ready, options: dict[str, Any]) -> None:
        """Start the kernel; resolves `ready`.

        Raises:
            KernelStartCancelled: it was cancelled, by whoever asked for it or by a stop.
            Exception: why it could not be started.
        """
        await self._rise(self._start(options), ready)

    async def restart(self, ready: Ready, options: dict[str, Any], *, now: bool, newports: bool) -> None:
        """Stop the kernel and start it where it was; resolves `ready`. Raises what `start` does."""
        await self._rise(self._restart(options, now=now, newports=newports), ready)

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
            failure = _start_error(error)
            self._lifecycle.fail(await self._report_failure(failure), failure)
            ready.resolve(failure)
            if failure is error:
                raise
            raise failure from error
        ready.resolve()

    async def _start(self, options: dict[str, Any]) -> None:
        await asyncio.sleep(0)  # a cancellation that was asked for meanwhile
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
        self._tell_clients_of_death("restarted")
        _require(wanted=self._lifecycle.provision())
        provisioner = self.provisioner = self.provisioner or self._manager.create_provisioner()
        if newports:
            provisioner.connection_info = {}
        await self._launch(provisioner, options)
        for client in self._manager.known_clients():
            client.kernel_started(self.connection)

    async def _launch(self, provisioner: KernelProvisionerBase, options: dict[str, Any]) -> None:
        try:
            arguments = await provisioner.pre_launch(**options)
            info = await provisioner.launch_kernel(arguments.pop("cmd"), **arguments)
            self.connection = ConnectionInfo.from_dict(info)
            await provisioner.post_launch(**arguments)
            self._heard.clear()
            _require(wanted=self._lifecycle.launched())
        except BaseException:
            await finish(self._clear(provisioner))
            raise
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
        with self._logged("clean up"):
            await provisioner.cleanup(restart=False)

    # ── while it lives ──────────────────────────────────────────────────────────────────────────────────────────────

    async def _watch_over(self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None]) -> None:
        """See the kernel's first answer and its end, and clear up after an end that nobody asked for."""
        try:
            reason = await self._first_answer(provisioner, ended)
            await asyncio.wait({ended})
        except asyncio.CancelledError:  # the portal ends
            await finish(self._clear(provisioner))
            self._lifecycle.begin_stop().resolve()
            self._lifecycle.stopped()
            raise
        if self._lifecycle.is_running:  # or whoever took it down clears up
            report = self._report(_exit_code(ended), reason)
            with self._logged("clean up"):
                await provisioner.cleanup(restart=False)
            self._tell_clients_of_death(str(report))
            self._lifecycle.die(report)

    async def _first_answer(self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None]) -> str:
        """Wait for the first answer or the end; return why the kernel was ended for its silence, or nothing."""
        try:
            await self._until_ended(self._answer(), ended)
        except TimeoutError:
            reason = f"it did not answer within {self._manager.startup_timeout:g} seconds"
        except Exception as error:
            reason = f"it cannot be reached: {error}"
            self._manager.log.exception("Kernel %s cannot be reached", self._manager.kernel_id)
        else:
            return ""
        if ended.done():
            return ""
        await provisioner.kill()
        return reason

    async def _answer(self) -> None:
        """Ask the kernel until it answers us, or anybody: it may be busy with another client's cell already."""

        def hear(_: Channel, message: Message) -> None:
            if message.parent is not None:  # a welcome, or a status of its own, is no answer
                self.portal.call_soon(self._heard.set)

        with self._own_client() as client:
            client.listen(hear)
            await asyncio.wait_for(self._ask(client), self._manager.startup_timeout)
        self._lifecycle.answer()

    async def _ask(self, client: AsyncKernelClient) -> None:
        for channel in cycle((Channel.SHELL, Channel.CONTROL)):  # who is busy on the one may answer on the other
            asking = asyncio.ensure_future(client.request(MessageType.KERNEL_INFO_REQUEST, {}, channel=channel))
            asking.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
            try:
                await asyncio.wait_for(self._heard.wait(), ASK_AGAIN)
            except TimeoutError:
                continue
            else:
                return
            finally:
                asking.cancel()
                await asyncio.wait({asking})

    async def _until_ended(self, work: Coroutine[Any, Any, None], ended: asyncio.Task[int | None]) -> None:
        """Do some work unless the process ends before."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()

    async def interrupt(self) -> None:
        """Interrupt what runs, in the way that the kernelspec names; one that has not answered yet is waited for.

        Raises:
            KernelError: it died before it answered, or does not answer the request.
        """
        self._running_provisioner("interrupt")
        await self._lifecycle.answered  # a signal would kill a kernel that is still importing
        provisioner = self._running_provisioner("interrupt")
        if self._manager.kernel_spec.interrupt_mode == "signal":
            await provisioner.send_signal(signal.SIGINT)
            return
        with self._own_client() as client:
            await client.request(MessageType.INTERRUPT_REQUEST, {}, channel=Channel.CONTROL, timeout=INTERRUPT_TIME)

    async def signal(self, signum: int) -> None:
        """Send a signal to the kernel's process group."""
        await self._running_provisioner("signal").send_signal(signum)

    async def is_alive(self) -> bool:
        """Ask the provisioner whether the process runs."""
        return self.provisioner is not None and self.provisioner.has_process and await self.provisioner.poll() is None

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
            self._hurry.set()

    async def _stop(self, ready: Ready, *, now: bool, restart: bool) -> None:
        async with self._turn:
            self._lifecycle.begin_stop(ready)
            await self._take_down(now=now, restart=restart)
            self._tell_clients_of_death("stopped")
            self._lifecycle.stopped()
            ready.resolve()

    async def _take_down(self, *, now: bool, restart: bool) -> None:
        """End the process, by kindness first, and release what it used; nothing happens where none is."""
        provisioner, ended, watch = self.provisioner, self._exit, self._watch
        if provisioner is None or ended is None or watch is None:
            return
        if not ended.done():
            await self._end_process(provisioner, ended, now=now, restart=restart)
        await asyncio.wait({watch})
        self._exit = self._watch = None
        self._hurry.clear()
        with self._logged("clean up"):
            await provisioner.cleanup(restart)

    async def _end_process(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], *, now: bool, restart: bool
    ) -> None:
        patience = provisioner.get_shutdown_wait_time(max(self._manager.shutdown_wait_time, 0)) / 2
        asks = not now and await self._answers_soon(ended)
        if asks and await self._ask_to_end(provisioner, ended, patience, restart=restart):
            return
        if not now:
            await provisioner.terminate(restart)
            if await self._ended_within(ended, patience):
                return
        await provisioner.kill(restart)
        if not (await asyncio.wait({ended}, timeout=KILL_TIME))[0]:
            self._manager.log.warning("Kernel %s does not end although it was killed", self._manager.kernel_id)
            ended.cancel()  # nobody waits for it any longer

    async def _ask_to_end(
        self, provisioner: KernelProvisionerBase, ended: asyncio.Task[int | None], patience: float, *, restart: bool
    ) -> bool:
        """Interrupt the kernel and ask it to end; False where it has not in time, or is in no state to be asked."""
        with self._logged("ask to end"), self._own_client() as client:
            if self._manager.kernel_spec.interrupt_mode == "signal":
                await provisioner.send_signal(signal.SIGINT)
            else:
                client.interrupt()
            client.shutdown(restart=restart)
            await provisioner.shutdown_requested(restart)
            return await self._ended_within(ended, patience)
        return False

    async def _answers_soon(self, ended: asyncio.Task[int | None]) -> bool:
        """Say whether the kernel can be asked to end; one that is still importing has nothing to save."""
        heard = asyncio.ensure_future(self._heard.wait())
        await asyncio.wait({heard, ended}, timeout=ANSWER_TIME, return_when=asyncio.FIRST_COMPLETED)
        heard.cancel()
        return self._heard.is_set()

    async def _ended_within(self, ended: asyncio.Task[int | None], seconds: float) -> bool:
        """Wait for the end of the process; not for so long when there is a hurry."""
        hurry = asyncio.ensure_future(self._hurry.wait())
        try:
            await asyncio.wait({ended, hurry}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            hurry.cancel()
        return ended.done()

    # ── what all of them need ───────────────────────────────────────────────────────────────────────────────────────

    @contextmanager
    def _own_client(self) -> Generator[AsyncKernelClient]:
        """Talk to the kernel for a while, as a party of our own."""
        client = self._manager.create_client()
        client.start_channels()
        try:
            yield client
        finally:
            client.stop_channels()

    @contextmanager
    def _logged(self, purpose: str) -> Generator[None]:
        """Go on after an error: an end must come to its end."""
        try:
            yield
        except Exception:
            self._manager.log.exception("Kernel %s: failed to %s", self._manager.kernel_id, purpose)

    def _tell_clients_of_death(self, reason: str) -> None:
        for client in self._manager.known_clients():
            client.kernel_died(reason)

    async def _report_failure(self, failure: Exception) -> DeathReport:
        """Report a failed start: by how its process ended, if that is why it failed, else by the reason."""
        if isinstance(failure, KernelDiedError) and self.provisioner is not None:
            return self._report(await self.provisioner.poll())
        return self._report(None, str(failure))

    def _report(self, code: int | None, reason: str = "") -> DeathReport:
        tail = self.provisioner.stderr_tail() if self.provisioner is not None else ""
        return DeathReport(
            exit_code=code if code is None or code >= 0 else None,
            signal=signal_name(-code) if code is not None and code < 0 else None,
            stderr_tail="\n".join(tail.splitlines()[-REPORTED_LINES:]),
            phase=self._lifecycle.state,
            reason=reason,
        )


def _require(*, wanted: bool) -> None:
    """Go no further with a start that a stop has made unwanted."""
    if not wanted:
        raise asyncio.CancelledError


def _exit_code(ended: asyncio.Task[int | None]) -> int | None:
    with suppress(asyncio.CancelledError, Exception):
        return ended.result()
    return None


def _start_error(error: Exception) -> Exception:
    """Return an error of ours as it is, and any other as a failed start that says so."""
    if isinstance(error, (CobnutError, ModuleNotFoundError)):
        return error
    return KernelStartError(f"The kernel could not be started: {error or type(error).__name__}")
