"""Kernels that are given a registration file: what they write, whom they tell, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.leftovers import eventually

from cobnut_kernel.client.client import AsyncKernelClient
from cobnut_kernel.connection_files import load_connection_file
from cobnut_kernel.protocol.registration import RegistrationInfo

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

pytestmark = pytest.mark.anyio

KERNEL = [sys.executable, "-P", "-m", "cobnut_kernel", "-f"]
HASTY = """
import sys
from cobnut_kernel.runtime import registration
registration.ANSWER_TIME = 0.2
from cobnut_kernel.command_line import main
main(["-f", sys.argv[1]])
"""
"""A kernel that waits for its launcher no longer than a test does."""


class Launcher:
    """Foreign to us: it writes the documented file, and knows nothing of what else may stand in it."""

    def __init__(self, folder: Path, **more: Any) -> None:
        self.folder = folder
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.bind("tcp://127.0.0.1:*")
        self.fields = {
            "kernel_id": "some-id",
            "transport": "tcp",
            "registration_ip": "127.0.0.1",
            "registration_port": int(self.socket.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2]),
            "signature_scheme": "hmac-sha256",
            "key": "secret",
            **more,
        }
        self.file = folder / "registration.json"
        self.file.write_text(json.dumps(self.fields))
        self.info = RegistrationInfo.from_dict(self.fields)

    @contextmanager
    def running(self, *command: str) -> Generator[subprocess.Popen[str]]:
        """Run a kernel."""
        env = {**os.environ, "JUPYTER_RUNTIME_DIR": str(self.folder / "runtime"), "IPYTHONDIR": str(self.folder)}
        process = subprocess.Popen([*(command or KERNEL), str(self.file)], env=env, text=True, stderr=subprocess.PIPE)
        with process:
            try:
                yield process
            finally:
                process.kill()

    async def receive(self, process: subprocess.Popen[str]) -> list[bytes]:
        """Wait for the kernel's message."""
        await eventually(lambda: self.socket.poll(0) or process.poll() is not None, "the kernel did not register")
        return self.socket.recv_multipart(zmq.NOBLOCK)


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[Launcher]:
    """Be a launcher that waits."""
    tmp_path.chmod(0o700)
    launcher = Launcher(tmp_path)
    yield launcher
    launcher.context.destroy(0)


async def test_a_kernel_tells_any_launcher_where_it_listens(launcher: Launcher) -> None:
    """Its connection file lies where Jupyter looks, from before it tells until its end; the launcher's file stays."""
    with launcher.running() as process:
        received = await launcher.receive(process)
        told = launcher.info.read_registration(received)
        file = launcher.folder / "runtime" / "kernel-some-id.json"
        assert load_connection_file(file) == told
        assert file.stat().st_mode & 0o777 == 0o600
        launcher.socket.send_multipart(launcher.info.acknowledgement(received))
        async with AsyncKernelClient(told) as client:
            await client.wait_for_ready(30)
            assert (await client.run("6 * 7").reply()).content["status"] == "ok"
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.poll() is not None)
        assert process.returncode == 0
    assert not file.exists()
    assert json.loads(launcher.file.read_text()) == launcher.fields


async def test_a_kernel_that_nobody_acknowledges_ends_and_leaves_nothing(launcher: Launcher) -> None:
    """It says where it asked in vain; there is no file that would lead to it."""
    with launcher.running(sys.executable, "-P", "-c", HASTY) as process:
        await launcher.receive(process)
        await eventually(lambda: process.poll() is not None)
        assert process.stderr is not None
        text = process.stderr.read()
        assert process.returncode == 1
    assert f"The launcher at {launcher.info.url} did not acknowledge the kernel's registration within 0.2 sec" in text
    assert "Traceback" not in text
    assert os.listdir(launcher.folder / "runtime") == []  # noqa: PTH208


async def test_a_launcher_may_say_where_the_connection_file_is_to_be(launcher: Launcher) -> None:
    """In place of its own file, say: then whoever knows the one knows the other."""
    launcher.file.write_text(json.dumps({**launcher.fields, "connection_file": str(launcher.file), "kernel_name": "k"}))
    with launcher.running() as process:
        received = await launcher.receive(process)
        info = load_connection_file(launcher.file)
        assert (info.shell_port, info.kernel_name) == (launcher.info.read_registration(received).shell_port, "k")
        launcher.socket.send_multipart(launcher.info.acknowledgement(received))
        process.send_signal(signal.SIGTERM)
        await eventually(lambda: process.poll() is not None)
    assert not launcher.file.exists()
