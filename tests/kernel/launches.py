"""Kernels that a provisioner launches, as a manager does it, and over the wire; no class of manager and client."""

from __future__ import annotations

import os
import select
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.kernel.leftovers import until
from tests.kernel.wire import WireClient

from cobnut_kernel.kernelspec import own_spec
from cobnut_kernel.portal import Portal
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.provisioning.fork import ForkProvisioner
from cobnut_kernel.provisioning.forked_process import ForkedProcess
from cobnut_kernel.provisioning.templates import Templates

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Mapping

    from cobnut_kernel.provisioning.fork_server import ForkServer
    from cobnut_kernel.provisioning.local import LocalProvisioner


def do(function: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **options: Any) -> Any:
    """Do something where provisioners live."""
    return Portal.shared().call(lambda: function(*args, **options))


def on_portal(function: Callable[[], Any]) -> Any:
    """Call a plain function where provisioners live."""

    async def call() -> Any:
        return function()

    return Portal.shared().call(call)


class Launched:
    """One kernel, launched by a provisioner; with what `WireClient` asks of a kernel."""

    def __init__(self, provisioner: LocalProvisioner | None = None, **options: Any) -> None:
        self.provisioner = provisioner or ForkProvisioner(kernel_id=os.urandom(4).hex(), kernel_spec=own_spec())
        self.clients: list[WireClient] = []
        self.options: dict[str, Any] = {"cwd": "/", **options}
        self.info: ConnectionInfo = self.launch()
        self.process = self  # for the client

    def launch(self) -> ConnectionInfo:
        """Do what a manager does for a start."""

        async def begin() -> dict[str, Any]:
            arguments = await self.provisioner.pre_launch(**self.options)
            info = await self.provisioner.launch_kernel(arguments.pop("cmd"), **arguments)
            await self.provisioner.post_launch(**arguments)
            return info

        return ConnectionInfo.from_dict(do(begin))

    @property
    def is_forked(self) -> bool:
        """Whether it is a child of a fork server."""
        return isinstance(self.provisioner.process, ForkedProcess)

    @property
    def pid(self) -> int:
        """Its process."""
        assert self.provisioner.pid is not None
        return self.provisioner.pid

    def poll(self) -> int | None:
        """Return its exit code, None while it runs."""
        return do(self.provisioner.poll)

    def describe(self) -> str:
        """Say how it is."""
        return f"Process {self.provisioner.pid}: {self.poll()}. It wrote: {self.provisioner.output_tail()[-2000:]}"

    def connect(self) -> WireClient:
        """Return a new client, welcomed by iopub."""
        client = WireClient(self)  # pyright: ignore[reportArgumentType] - it has what a client needs
        self.clients.append(client)
        client.wait(lambda: client.welcomes, "the iopub_welcome")
        return client

    def value(self, expression: str) -> str:
        """Return the text of an expression's value, asked for by a client of its own."""
        client = self.connect()
        try:
            return client.execute(expression).result
        finally:
            self.clients.remove(client)
            client.close()

    def restart(self, *, now: bool = True) -> None:
        """Do what a manager does for a restart."""
        self.stop(now=now, restart=True)
        self.info = self.launch()

    def stop(self, *, now: bool = False, restart: bool = False) -> int | None:
        """Do what a manager does for a stop; returns the exit code."""
        if not now and self.provisioner.has_process:
            client = self.connect()
            client.request(MessageType.SHUTDOWN_REQUEST, {"restart": restart}, Channel.CONTROL)
            until(lambda: not self.provisioner.has_process, "it does not end")
        while self.clients:
            self.clients.pop().close()

        async def finish() -> int | None:
            await self.provisioner.kill(restart)
            code = await self.provisioner.wait()
            await self.provisioner.cleanup(restart)
            return code

        return do(finish)


def warm(env: Mapping[str, str] | None = None) -> ForkServer:
    """Have a fork server ready for kernels of this process, and return it."""
    Templates.warm(env)
    on_portal(lambda: None)  # that was before
    until(lambda: servers() and servers()[-1].is_ready, "the fork server does not get ready")
    return servers()[-1]


def servers() -> list[ForkServer]:
    """List the fork servers."""
    templates = Templates._of_this_process
    return list(templates._servers) if templates is not None else []


def open_files() -> Counter[str]:
    """Count what this process has open, by kind, without what each is called."""
    kinds: Counter[str] = Counter()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            kinds[str(entry.readlink()).partition(":")[0]] += 1
        except OSError:  # that of the listing
            continue
    return kinds


def wait_for_end(pid: int) -> float:
    """Wait until a process has ended; returns how many seconds that took."""
    began = time.monotonic()
    try:
        pidfd = os.pidfd_open(pid)
    except ProcessLookupError:
        return 0.0
    try:
        assert select.select([pidfd], [], [], 20)[0], f"the process {pid} does not end"
    finally:
        os.close(pidfd)
    return time.monotonic() - began
