"""An sshd of the test's own: it runs as the user of the tests, on a free port of this machine, with its own keys."""

from __future__ import annotations

import getpass
import os
import shlex
import shutil
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.kernel.packages import require_program

if TYPE_CHECKING:
    from collections.abc import Generator

HOST = "cobnut-test-host"
"""The name under which the ssh of the tests knows the server."""

PATIENCE = 20.0
"""Seconds that the server may take to listen."""

_SERVER = """
ListenAddress 127.0.0.1
Port {port}
HostKey {folder}/host_key
PidFile none
AuthorizedKeysFile {folder}/key.pub
AuthenticationMethods publickey
StrictModes no
UsePAM no
UseDNS no
AcceptEnv *
PrintMotd no
LogLevel VERBOSE
MaxSessions 100
MaxStartups 100
Subsystem sftp internal-sftp
"""

_CLIENT = """
Host {host}
  HostName 127.0.0.1
  Port {port}
  User {user}
  IdentityFile {folder}/key
  IdentitiesOnly yes
  IdentityAgent none
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
  StrictHostKeyChecking accept-new
  LogLevel ERROR
"""


@dataclass(frozen=True)
class Sshd:
    """A server that runs.

    Attributes:
        folder: where its keys, its settings and its log lie; removed at the end.
        port: where it listens on 127.0.0.1.
        config: a configuration for ssh (`-F`), in which the server is named `HOST`.
        bin: a folder with an `ssh` that uses this configuration, to be put in front of PATH.
        process: the server's.
    """

    folder: Path
    port: int
    config: Path
    bin: Path
    process: subprocess.Popen[bytes]

    @property
    def log(self) -> str:
        """What the server has written."""
        return (self.folder / "log").read_text(errors="replace")

    def clients(self) -> list[int]:
        """List the processes that serve a connection of a client."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]


@contextmanager
def running_sshd() -> Generator[Sshd]:
    """Run a server; skips the test where Debian's openssh-server is not installed."""
    sshd = require_program("sshd", package="openssh-server")
    require_program("ssh", package="openssh-client")
    folder = Path(tempfile.mkdtemp(prefix="cobnut-sshd-"))
    try:
        for name in ("host_key", "key"):
            keygen = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
            subprocess.run(keygen, check=True)
        process, port = _start(sshd, folder)
        try:
            yield Sshd(folder, port, *_client(folder, port), process)
        finally:
            process.terminate()
            process.wait(PATIENCE)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(sshd: str, folder: Path) -> tuple[subprocess.Popen[bytes], int]:
    """Start the server; another process may take the free port before, so try a few."""
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where it locks its children in; Debian makes it at boot
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port: int = probe.getsockname()[1]
        (folder / "sshd_config").write_text(_SERVER.format(port=port, folder=folder))
        with (folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        if _listens(process, port):
            return process, port
    pytest.fail(f"sshd did not start: {(folder / 'log').read_text()}")


def _listens(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return True
        time.sleep(0.01)
    process.kill()
    process.wait()
    return False


def _client(folder: Path, port: int) -> tuple[Path, Path]:
    """Write a configuration for ssh, and an ssh that uses it."""
    config = folder / "ssh_config"
    config.write_text(_CLIENT.format(host=HOST, port=port, user=getpass.getuser(), folder=folder))
    programs = folder / "bin"
    programs.mkdir()
    for name in ("ssh", "scp", "sftp"):
        program = shutil.which(name)
        if program is not None:
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.quote(program)} -F {shlex.quote(str(config))} "$@"\n')
            (programs / name).chmod(0o755)
    return config, programs
