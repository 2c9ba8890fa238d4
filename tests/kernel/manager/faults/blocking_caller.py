"""A program that blocks in a manager or a client until Ctrl-C: `blocking_caller.py LOG WISH`.

It says "begin" when it begins to block. When it was interrupted, and has cleared up, it says "done" where that was too
late, "untouched" where it was too early, and else "interrupted", with what it has more or less than before. On each
line of its stdin it begins again, until that ends. The kernels' log is LOG.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from tests.kernel.leftovers import Possessions, until
from tests.kernel.manager.conftest import Tiny
from tests.kernel.manager.faults.matrix import SLEEPER, has_spare_kernel
from traitlets.config import Config

from cobnut_kernel.kernelspec import KernelSpecManager, own_spec
from cobnut_kernel.manager.blocking import KernelManager, MultiKernelManager
from cobnut_kernel.manager.lifecycle import KernelState
from cobnut_kernel.provisioning.templates import Templates, can_fork

if TYPE_CHECKING:
    from collections.abc import Callable

    Wish = tuple[Callable[[], object], Callable[[], bool]]

RUNTIME = Path(os.environ["XDG_RUNTIME_DIR"])
PATIENT = Config({"KernelManager": {"startup_timeout": 3600.0, "shutdown_wait_time": 3600.0, "autorestart": False}})


def kernels(tiny: Tiny) -> KernelSpecManager:
    """Name the kernels: one is well and our own, the others make their managers and clients wait."""
    secretive = tiny.spec("mute")
    secretive.metadata = {
        "cobnut": {"registration": True},
        "kernel_provisioner": {"provisioner_name": "local-provisioner", "config": {"transport": "tcp"}},
    }
    specs = {
        "sleeper": SLEEPER,
        "own": own_spec(),
        "mute": tiny.spec("mute"),
        "secretive": secretive,
        "stubborn": tiny.spec("deaf", "sturdy"),
    }
    return KernelSpecManager(extra_specs=specs, kernel_dirs=[])


class Caller:
    """What the program can wish: each prepares something, and returns what will block and what clears up after it.

    That says whether the wish had an effect: a kernel that was to be stopped may run as if nothing had been asked.
    """

    def __init__(self, tiny: Tiny) -> None:
        self.specs = kernels(tiny)
        self.multi = MultiKernelManager(kernel_spec_manager=self.specs, config=PATIENT)

    def one(self, name: str) -> KernelManager:
        """Make the manager of one kernel."""
        return KernelManager(kernel_name=name, kernel_spec_manager=self.specs, config=PATIENT)

    def prepare(self, wish: str) -> Wish:
        """Prepare a wish by its name and that of a kernel."""
        action, _, name = wish.partition(" ")
        return getattr(self, f"_{action}")(name)

    def runs_all(self, act: Callable[[], object]) -> bool:
        """Say whether there are kernels of a wish, and all of them were started and not undone."""
        owner = getattr(act, "__self__", None)
        managers = (
            [owner]
            if isinstance(owner, KernelManager)
            else list(map(self.multi.get_kernel, self.multi.list_kernel_ids()))
        )
        return bool(managers) and all(map(_runs, managers))

    def _start(self, name: str) -> Wish:
        manager = self.one(name)
        return manager.start_kernel, partial(_has_stopped, manager)

    def _start_many(self, name: str) -> Wish:
        return partial(self.multi.start_kernel, kernel_name=name), self._is_empty

    def _restart(self, name: str) -> Wish:
        manager = self._started(self.one(name))
        return manager.restart_kernel, partial(_has_stopped, manager, _pid(manager))

    def _shutdown(self, name: str) -> Wish:
        manager = self._started(self.one(name))
        return manager.shutdown_kernel, partial(_has_stopped, manager, _pid(manager))

    def _shutdown_many(self, name: str) -> Wish:
        kernel_id = self._started_many(name)
        return partial(self.multi.shutdown_kernel, kernel_id), self._is_empty

    def _shutdown_all(self, name: str) -> Wish:
        for _ in range(3):
            self._started_many(name)
        return self.multi.shutdown_all, self._is_empty

    def _ready(self, name: str) -> Wish:
        manager = self.one(name)
        manager.start_kernel()
        client = manager.client()
        client.start_channels()

        def clear_up() -> bool:
            assert manager.is_alive()  # who waits no longer ends nothing
            client.stop_channels()
            manager.shutdown_kernel(now=True)
            return True

        return partial(client.wait_for_ready, timeout=None), clear_up

    def _started(self, manager: KernelManager) -> KernelManager:
        manager.start_kernel()
        manager.answered.result(timeout=20)
        return manager

    def _started_many(self, name: str) -> str:
        kernel_id = self.multi.start_kernel(kernel_name=name)
        self.multi.get_kernel(kernel_id).answered.result(timeout=20)
        return kernel_id

    def _is_empty(self) -> bool:
        until(lambda: not self.multi.list_kernel_ids(), "kernels are still listed")
        return True


def _runs(manager: KernelManager) -> bool:
    """Say whether a start has come to its end, at this moment, and nothing has undone it."""
    return manager.has_kernel and manager.ready.done() and manager.ready.exception() is None


def _has_stopped(manager: KernelManager, untouched: int = 0) -> bool:
    """Wait until a kernel has stopped, as it does after a second Ctrl-C; one that nobody has touched is stopped."""
    if manager.state is KernelState.READY and _pid(manager) == untouched:
        manager.shutdown_kernel(now=True)
        return False
    until(lambda: not manager.has_kernel, "the kernel is still there")
    return True


def _pid(manager: KernelManager) -> int:
    return getattr(manager.provisioner, "pid", None) or 0


def warm_up(caller: Caller, wish: str) -> None:
    """Have all there that serves every kernel."""
    manager = caller.one("sleeper")
    manager.start_kernel()
    manager.shutdown_kernel(now=True)
    if wish.startswith("ready"):  # and the threads of clients
        act, clear_up = caller.prepare("ready own")
        act()
        clear_up()
    if wish.endswith("own") and can_fork():
        Templates.warm()
        caller._started(caller.one("own")).shutdown_kernel(now=True)
        until(has_spare_kernel)


def interrupted_in(act: Callable[[], object]) -> bool:
    """Block until Ctrl-C, in what blocks or after it; says whether it came in time. Afterwards nobody hears another."""
    done: list[object] = []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        try:
            print("begin", flush=True)
            done.append(act())
            while True:
                time.sleep(0.01)
        finally:
            signal.signal(signal.SIGINT, not_heard)  # kernels would inherit it if it was ignored
    except KeyboardInterrupt:
        return not done


def not_heard(*_: object) -> None:
    """Take a signal and do nothing."""


def main(log: str, wish: str) -> None:
    """Wish the same for every line of stdin."""
    caller = Caller(Tiny(Path(log).parent))
    warm_up(caller, wish)
    for _ in iter(sys.stdin.readline, ""):
        gc.collect()
        before = Possessions.of_this_process(RUNTIME)
        act, clear_up = caller.prepare(wish)
        outcome = "interrupted" if interrupted_in(act) else "done"
        if wish.startswith(("start", "restart")) and caller.runs_all(act):
            outcome = "done"  # also where Ctrl-C came in the moment of its return
            caller.multi.shutdown_all(now=True)
            getattr(act, "__self__", caller.multi).__exit__()
        outcome = outcome if clear_up() else "untouched"
        del act, clear_up
        gc.collect()
        with suppress(AssertionError):
            until(lambda: not Possessions.of_this_process(RUNTIME).excess(before))  # noqa: B023 - it is called here
        excess = Possessions.of_this_process(RUNTIME).excess(before)
        print(outcome, excess, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
