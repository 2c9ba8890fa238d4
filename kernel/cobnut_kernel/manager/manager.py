"""AsyncKernelManager: start, watch, interrupt, restart and stop one kernel."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from cobnut_kernel.errors import KernelError
from cobnut_kernel.manager.known import KnownKernel
from cobnut_kernel.manager.restarter import Decision
from cobnut_kernel.portal import Portal, PortalTask, join, settled

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping
    from concurrent.futures import Future
    from types import TracebackType

    from cobnut_kernel.manager.life import KernelLife
    from cobnut_kernel.manager.lifecycle import DeathReport, Ready
    from cobnut_kernel.manager.start_queue import StartQueue
    from cobnut_kernel.provisioning.base import KernelProvisionerBase


class AsyncKernelManager(KnownKernel):
    """The manager of one kernel.

    Its methods may be awaited on asyncio or trio, from any thread; what they do happens on the portal's thread and
    goes on when nobody waits. Cancelling who awaits a start undoes it; cancelling who awaits a stop ends the kernel
    by force. A kernel can be started again after it was stopped or has died.

    While a start or a restart is on its way (the kernel is pending) `restart_kernel` and `interrupt_kernel` raise
    `PendingKernelError`, and `shutdown_kernel` does what `pending_shutdown` says. A restart that nobody asked for,
    after a death, holds nobody up: a stop cancels it, and `restart_kernel` waits for it.

    A kernel of somebody else's (`owns_kernel` false) is attached to, never started, stopped or restarted.

    Attributes:
        start_queue: where starts wait for their turn; None for starts at once.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._lock = threading.RLock()
        self._rise: PortalTask[None] | None = None
        self._fall: PortalTask[None] | None = None
        self._promise: Ready | None = None
        self.start_queue: StartQueue | None = None
        self._restarts_itself: bool = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.shutdown_kernel()

    # ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────

    async def start_kernel(self, **options: Any) -> None:
        """Start the kernel, and wait until its process runs and its connection is known.

        Args:
            options: `kernel_name`, `kernel_id`, `cwd`, `env` (in place of ours, not added to it),
                `extra_arguments` for the kernel's command, `transport_encryption` in place of the trait, and what
                `subprocess.Popen` takes.

        Raises:
            NoSuchKernel: there is no kernelspec of that name.
            KernelStartError: it could not be started; nothing of the attempt is left.
            KernelStartCancelled: somebody stopped it meanwhile.
            PendingKernelError: it is starting, restarting or stopping already.
            KernelError: it runs already, or belongs to somebody else.
        """
        await self.join_start(self.begin_start(**options))

    def begin_start(self, **options: Any) -> PortalTask[None]:
        """Begin what `start_kernel` does, and return at once; needs no loop. Raises as it does."""
        self._require_ours("started")
        with self._lock:
            self._lifecycle.require_startable()
            self._name_kernel(options.pop("kernel_id", None), options.pop("kernel_name", None))
            if not self._choices.file_is_ours:
                self.forget_connection()
            self._launch_args = options
            ready = self._announce_start()
            turn = self._turn = self.start_queue.join(str(self.kernel_id)) if self.start_queue is not None else None
            self._rise = self._carry_out(ready, lambda life: life.start(ready, options, turn))
            return self._rise

    async def restart_kernel(self, now: bool = False, newports: bool = False, **options: Any) -> None:
        """Stop the kernel and start it again, with the same id, key and connection; a dead one too.

        Args:
            now: kill it at once, rather than ask it to end.
            newports: give it another connection. Without, its clients find it again by themselves.
            options: replace those of the start.

        Raises:
            PendingKernelError: it is starting, restarting or stopping.
            KernelError: it was never started, or belongs to somebody else.
            Exception: what `start_kernel` raises.
        """
        task, is_ours = self.begin_restart(now=now, newports=newports, **options)
        if is_ours:
            await self.join_start(task)
        else:  # it came back by itself before it was asked to
            await settled(task)
            task.result()

    async def join_start(self, start: PortalTask[None]) -> None:
        """Wait for a start or a restart; cancelling that undoes it, in the moment in which it has succeeded too.

        Raises:
            Exception: why it failed.
        """
        try:
            await join(start)
        except BaseException:
            if not start.cancelled() and start.exception() is None and self.owns_kernel:
                await self._undo_start()
            raise

    async def _undo_start(self) -> None:
        import anyio  # late: who imports a manager need not wait for it

        with anyio.CancelScope(shield=True):
            await settled(self.begin_stop(now=True, pending="cancel")[0])

    def begin_restart(
        self, *, now: bool = False, newports: bool = False, **options: Any
    ) -> tuple[PortalTask[None], bool]:
        """Begin what `restart_kernel` does, and return at once; needs no loop. Raises as it does.

        Returns:
            The restart, and whether this call began it.
        """
        self._require_ours("restarted")
        with self._lock:
            if self._rise is not None and self._is_restarting_itself and not (newports or options):
                return self._rise, False
            ready = self._lifecycle.begin_restart()
            self._expect_deaths()
            self._launch_args = {**self._launch_args, **options}
            self._rise = self._begin_restart(ready, now=now, newports=newports)
            return self._rise, True

    def cancel_start(self) -> None:
        """Cancel the start or restart that is on its way; what it did is undone. Nothing happens where none is."""
        with self._lock:
            if self._lifecycle.is_beginning and self._rise is not None:
                self._rise.cancel()

    async def provisioner_info(self) -> dict[str, Any]:
        """Return what another process needs to `adopt` the running kernel, as JSON has it; the key is in it.

        Raises:
            KernelError: no kernel is running.
        """
        info = await self._work.run(lambda life: life.provisioner_info())
        return {"kernel_name": self.kernel_name, **info}

    async def adopt(self, info: Mapping[str, Any]) -> None:
        """Take over a running kernel that `provisioner_info` of another manager, or another process, has told of.

        With `owns_kernel` it is this manager's from now on, to stop, to restart and to clear up after.

        Raises:
            KernelError: it is no more, or there is a kernel here already.
            NoSuchKernel: its kernelspec is not known here.
        """
        with self._lock:
            self._lifecycle.require_startable()
            self._name_kernel(info.get("kernel_id"), info.get("kernel_name"))
            ready = self._announce_start()
            self._rise = self._carry_out(ready, lambda life: life.adopt(ready, info))
        await join(self._rise)

    def attach(self) -> None:
        """Take a kernel of somebody else's, whose connection was loaded, for one that runs and answers."""
        self._lifecycle.attach()

    # ── while it runs ───────────────────────────────────────────────────────────────────────────────────────────────

    async def is_alive(self) -> bool:
        """Say whether the process runs; of a stranger's kernel that no provisioner knows it is taken for granted."""
        if self.provisioner is None:
            return not self.owns_kernel
        return self.has_kernel and await self._work.run(lambda life: life.is_alive())

    async def interrupt_kernel(self) -> None:
        """Interrupt what the kernel does, by a signal or a message as its spec says; wait for its first answer before.

        Raises:
            PendingKernelError: it is starting, restarting or stopping.
            KernelError: no kernel is running, or it died before it answered, or does not answer the request.
        """
        self._lifecycle.require_settled("interrupt")
        await self._work.run(lambda life: life.interrupt())

    async def signal_kernel(self, signum: int) -> None:
        """Send a signal to the kernel's process group.

        Raises:
            KernelError: no kernel is running.
        """
        await self._work.run(lambda life: life.signal(signum))

    # ── stop ────────────────────────────────────────────────────────────────────────────────────────────────────────

    async def shutdown_kernel(self, now: bool = False, restart: bool = False) -> None:
        """Stop the kernel: interrupt it, ask it to end, then SIGTERM, then SIGKILL to its group.

        While a stop runs this waits for that one, and with `now` kills at once. Nothing happens where no kernel is, or
        where it belongs to somebody else.

        Args:
            now: kill it at once.
            restart: tell the kernel that another start follows, and keep its connection file.

        Raises:
            PendingKernelError: it is starting, and `pending_shutdown` is "raise".
        """
        task, is_ours = self.begin_stop(now=now, restart=restart)
        await (join(task) if is_ours else settled(task))

    async def kill_kernel(self) -> None:
        """Stop the kernel by SIGKILL to its group. Raises as `shutdown_kernel` does."""
        await self.shutdown_kernel(now=True)

    async def request_shutdown(self, restart: bool = False) -> None:
        """Ask the kernel to end, and do not wait for it; `finish_shutdown` does.

        The stop is on its way from here on, and over when the process has ended, whoever waits.

        Args:
            restart: tell the kernel that another start follows, and keep its connection file.

        Raises:
            PendingKernelError: it is starting or restarting.
        """
        if self._begin_phases():
            await settled(self._work.begin(lambda life: life.request_stop(restart=restart)))

    async def finish_shutdown(
        self, waittime: float | None = None, pollinterval: float = 0.1, restart: bool = False
    ) -> None:
        """Wait until the kernel has ended: after half the time it gets SIGTERM, after all of it SIGKILL.

        Args:
            waittime: in seconds, in place of `shutdown_wait_time`; the provisioner may want more.
            pollinterval: not needed: the end is noticed when it comes.
            restart: tell the provisioner that another start follows, and keep the connection file.

        Raises:
            PendingKernelError: the kernel is starting or restarting.
        """
        del pollinterval
        if self._begin_phases():
            await join(self._work.begin(lambda life: life.finish_stop(waittime, restart=restart)))

    async def cleanup_resources(self, restart: bool = False) -> None:
        """Release what a kernel that has ended used; again does nothing, nor does it while the kernel runs."""
        if self.owns_kernel and self._work.life is not None and self._lifecycle.is_at_rest:
            await self._work.run(lambda life: life.clean_up(restart=restart))

    def begin_stop(
        self, *, now: bool = False, restart: bool = False, pending: str | None = None
    ) -> tuple[PortalTask[None], bool]:
        """Begin what `shutdown_kernel` does, and return at once; needs no loop. Raises as it does.

        Args:
            now: kill it at once.
            restart: tell the kernel that another start follows.
            pending: in place of the trait `pending_shutdown`.

        Returns:
            The stop, and whether this call began it.
        """
        if not self.owns_kernel:
            return Portal.shared().start_soon(_nothing), True
        policy = pending or self.pending_shutdown
        with self._lock:
            if self._is_restarting_itself:
                policy = "cancel"
            if self._lifecycle.is_beginning:
                if policy == "raise":
                    self._lifecycle.require_settled("stop")
                if policy == "cancel":
                    self.cancel_start()
            self.stop_restarter()
            if self._fall is not None and self._lifecycle.ready is self._promise and not self.ready.done():
                if now and self._work.life is not None:
                    self._work.call_soon(self._work.life.hurry)
                return self._fall, False
            waits = self._lifecycle.is_beginning and policy == "wait"
            promise = self._promise = self._lifecycle.await_stop() if waits else self._lifecycle.begin_stop()
            self._fall = self._carry_out(promise, lambda life: life.stop(promise, now=now, restart=restart))
            return self._fall, True

    # ── for the life ────────────────────────────────────────────────────────────────────────────────────────────────

    def create_provisioner(self) -> KernelProvisionerBase:
        """Make the provisioner that the kernelspec names.

        Raises:
            NoSuchKernel: there is no kernelspec.
            ModuleNotFoundError: the provisioner is not installed.
        """
        from cobnut_kernel.provisioning.factory import KernelProvisionerFactory

        factory = KernelProvisionerFactory.instance(parent=self.parent)
        return factory.create_provisioner_instance(str(self.kernel_id), self.kernel_spec, parent=self)

    # ── after a death ───────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _is_restarting_itself(self) -> bool:
        return self._restarts_itself and self._lifecycle.is_beginning

    def judge(self, death: DeathReport, provisioner: KernelProvisionerBase) -> Decision:
        """Decide whether the kernel is restarted."""
        if not (self.autorestart and self.owns_kernel):
            return Decision(restarts=False, reason="nobody asked for it", death=death)
        stable_start_time = self.restarter.stable_start_time
        try:
            stable_start_time = provisioner.get_stable_start_time(stable_start_time)
        except Exception:  # a provisioner of somebody else's must not keep a death from being told
            self.log.exception("The provisioner of kernel %s does not say when a start is stable", self.kernel_id)
        return self.restarter.judge(death, stable_start_time)

    def note_death(self, death: DeathReport, decision: Decision) -> None:
        """Take note of a death, restart the kernel if that was decided, and say what happens; on the portal."""
        with self._lock:
            if not self._lifecycle.die(death) or self._work.is_over:  # it is stopped or restarted, or all ends
                return
            if decision.restarts:
                ready = self._lifecycle.begin_restart()
                self._restarts_itself = True
                self._rise = self._begin_restart(ready, now=True, newports=decision.newports)
                self._rise.add_done_callback(self.restarter.note_outcome)
        self.restarter.announce(decision)

    def _expect_deaths(self) -> None:
        """Begin to watch over a kernel that somebody has asked for."""
        self._restarts_itself = False
        self.restarter.forget()
        self.start_restarter()

    # ── how it begins ───────────────────────────────────────────────────────────────────────────────────────────────

    def _name_kernel(self, kernel_id: str | None, kernel_name: str | None) -> None:
        """Take over the id and the name that a start is given; they may be of no use, so nothing is announced yet."""
        self.kernel_id = kernel_id or self.kernel_id or str(uuid4())
        self.kernel_name = kernel_name or self.kernel_name

    def _announce_start(self) -> Ready:
        self._work.enter()
        ready = self._lifecycle.begin_start()
        self._expect_deaths()
        return ready

    def _begin_restart(self, ready: Ready, *, now: bool, newports: bool) -> PortalTask[None]:
        self._work.enter()
        options = self._launch_args
        return self._carry_out(ready, lambda life: life.restart(ready, options, now=now, newports=newports))

    def _carry_out(self, ready: Ready, work: Callable[[KernelLife], Coroutine[Any, Any, None]]) -> PortalTask[None]:
        """Begin the work of a transition; where the portal breaks before it can, `ready` says so."""
        try:
            task = self._work.begin(work)
        except BaseException as error:
            self._lifecycle.abandon(ready, error)
            raise
        task.add_done_callback(lambda over: self._lifecycle.abandon(ready, _failure(over)))
        return task

    def _begin_phases(self) -> bool:
        """Begin a stop that is carried out phase by phase; False where there is nothing to stop."""
        with self._lock:
            if not self.owns_kernel or self._lifecycle.is_at_rest:
                return False
            if self._lifecycle.is_beginning:
                self._lifecycle.require_settled("stop")
            self.stop_restarter()
            self._lifecycle.begin_stop()
            return True

    def _require_ours(self, wish: str) -> None:
        if not self.owns_kernel:
            raise KernelError(f"The kernel cannot be {wish}: it belongs to somebody else.")


def _failure(task: Future[None]) -> BaseException | None:
    """Return what made a task fail; None where it was cancelled, or did not fail."""
    return None if task.cancelled() else task.exception()


async def _nothing() -> None: ...
