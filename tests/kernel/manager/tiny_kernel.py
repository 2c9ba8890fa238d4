"""A kernel that starts quickly and misbehaves as it is told: `tiny_kernel.py FILE LOG HABIT…`.

It answers kernel_info, and runs two kinds of code: `sleep` until it is interrupted, and anything else at once. What
happens to it it writes into the log, a line each.

Habits: `deaf` (to a shutdown_request), `sturdy` (to SIGTERM), `mute` (never answers), `slow` (binds when the file
LOG.go is there), `broken` (fails at import, loudly), `parent` (has a child in the background), `shy` and `selfish`
(leave kernel_info unanswered on shell, and everywhere). Of one that registers: `forged` (signs with another key),
`twice` (tells other ports afterwards).
"""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

SIGNALLED, WAKER = socket.socketpair()
FILE, LOG, HABITS = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]

if "broken" in HABITS:
    print("\n".join(f"line {number}" for number in range(100)), file=sys.stderr)
    raise SystemExit("ModuleNotFoundError: No module named 'kernel_of_the_day'")

from dataclasses import replace  # noqa: E402 - a broken kernel does not get here

import zmq  # noqa: E402

from cobnut_kernel.connection_files import load_kernel_file, write_connection_file  # noqa: E402
from cobnut_kernel.protocol.codec import Codec  # noqa: E402
from cobnut_kernel.protocol.connection import ConnectionInfo  # noqa: E402
from cobnut_kernel.protocol.messages import Channel, Message  # noqa: E402
from cobnut_kernel.runtime.registration import Registration  # noqa: E402


def log(text: str) -> None:
    """Write a line for the test."""
    with LOG.open("a") as file:
        file.write(f"{text}\n")


def on_signal(signum: int, _: object) -> None:
    """Note a signal, and end where it is SIGTERM."""
    log(signal.Signals(signum).name)
    if signum == signal.SIGTERM and "sturdy" not in HABITS:
        sys.exit(0)


class TinyKernel:
    """Five sockets and hardly anything behind them."""

    def __init__(self) -> None:
        given = load_kernel_file(FILE)
        self.registration = None if isinstance(given, ConnectionInfo) else given
        self.info = given if isinstance(given, ConnectionInfo) else given.wanted
        self.codec = Codec(self.info.key)
        self.context = zmq.Context()
        self.sockets: dict[Channel, zmq.Socket[bytes]] = {}
        self.sleeping: Message | None = None

    def bind(self) -> None:
        """Open the sockets."""
        for channel in (Channel.SHELL, Channel.CONTROL, Channel.STDIN, Channel.IOPUB, Channel.HEARTBEAT):
            kind = {Channel.IOPUB: zmq.PUB, Channel.HEARTBEAT: zmq.REP}.get(channel, zmq.ROUTER)
            self.sockets[channel] = self.context.socket(kind)
            self.sockets[channel].bind(self.info.url(channel))

    def register(self) -> None:
        """Tell the launcher the ports, if it wants to know."""
        if self.registration is None:
            return
        ports = {
            f"{channel}_port": int(bound.getsockopt_string(zmq.LAST_ENDPOINT).rpartition(":")[2])
            for channel, bound in self.sockets.items()
        }
        self.info = replace(self.info, **ports)
        write_connection_file(FILE, self.info)
        wanted = replace(self.info, key=b"another") if "forged" in HABITS else self.info
        handshake = Registration(replace(self.registration, wanted=wanted))
        handshake.send(self.info)
        if "twice" in HABITS:
            handshake.send(replace(self.info, shell_port=1))
        handshake.confirm(0.3 if "forged" in HABITS else 20)

    def serve(self) -> None:
        """Answer requests, for ever."""
        poller = zmq.Poller()
        for channel in (Channel.CONTROL, Channel.SHELL):
            poller.register(self.sockets[channel], zmq.POLLIN)
        poller.register(SIGNALLED, zmq.POLLIN)
        while True:
            for source, _ in poller.poll():
                if isinstance(source, zmq.Socket):
                    self.handle(source, self.codec.decode(source.recv_multipart()))
                else:
                    SIGNALLED.recv(100)
                    self.wake()

    def handle(self, origin: zmq.Socket[bytes], request: Message) -> None:
        """Do what a request asks for."""
        log(f"{request.msg_type} {request.content}")
        is_control = origin is self.sockets[Channel.CONTROL]
        if request.msg_type == "kernel_info_request" and ("selfish" in HABITS or ("shy" in HABITS and not is_control)):
            return
        self.status("busy", request)
        if request.content.get("code") == "sleep":
            self.sleeping = request
            return
        if request.msg_type == "interrupt_request":
            self.wake()
        self.reply(origin, request, "ok")
        if request.msg_type == "shutdown_request" and "deaf" not in HABITS:
            sys.exit(0)

    def wake(self) -> None:
        """Interrupt the cell that sleeps."""
        if self.sleeping is not None:
            sleeping, self.sleeping = self.sleeping, None
            self.reply(self.sockets[Channel.SHELL], sleeping, "error")

    def reply(self, target: zmq.Socket[bytes], request: Message, status: str) -> None:
        """Answer a request."""
        msg_type = request.msg_type.replace("_request", "_reply")
        content = {"status": status, "ename": "KeyboardInterrupt", "evalue": "", "traceback": []}
        reply = self.codec.message(msg_type, content, parent=request.header)
        target.send_multipart([*request.identities, *self.codec.encode(reply)])
        self.status("idle", request)

    def status(self, state: str, request: Message) -> None:
        """Publish what the kernel does."""
        message = self.codec.message("status", {"execution_state": state}, parent=request.header)
        self.sockets[Channel.IOPUB].send_multipart([b"status", *self.codec.encode(message)])


def main() -> None:
    """Be a kernel."""
    WAKER.setblocking(False)
    signal.set_wakeup_fd(WAKER.fileno())
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, on_signal)
    if "parent" in HABITS:
        child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
        log(f"child {child.pid}")
    log("up")
    kernel = TinyKernel()
    while "mute" in HABITS or ("slow" in HABITS and not LOG.with_suffix(".go").exists()):
        time.sleep(0.002)
    kernel.bind()
    kernel.register()
    print("bound", flush=True)
    kernel.serve()


main()
