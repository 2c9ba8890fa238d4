"""The kernel's five sockets: where they are, who may reach them, and what a subscriber hears."""

from __future__ import annotations

import json
import socket
import stat
import struct
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from tests.kernel.wire import wait_until

from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.codec import DELIMITER, Codec
from cobnut_kernel.protocol.connection import ConnectionInfo
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.sockets import curve_options

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.kernel.wire import KernelProcess, WireClient

    Start = Callable[..., KernelProcess]


FAILED = (
    zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_DISCONNECTED
)  # fmt: skip
"""What a socket's monitor says of a connection that came to nothing."""


def mode(path: Path) -> int:
    """Return the permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


# ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unix_sockets_are_for_their_owner_alone(start_kernel: Start) -> None:
    """The five socket files and the connection file are 0600, whatever the umask would allow."""
    kernel = start_kernel()
    kernel.connect().beat()
    assert kernel.left_over == ["kernel.json", *(f"socket-{number}" for number in range(1, 6))]
    assert {mode(kernel.folder / name) for name in kernel.left_over} == {0o600}


def test_the_kernel_chooses_tcp_ports_and_writes_them_down(start_kernel: Start) -> None:
    """Ports of 0 become ports in use; the file is written anew, 0600, with all else that was in it."""
    kernel = start_kernel(transport="tcp")
    client = kernel.connect()
    assert client.execute("'over tcp'").result == "'over tcp'"
    client.beat()
    fields = json.loads(kernel.connection_file.read_text())
    ports = [fields[f"{channel}_port"] for channel in Channel]
    assert len(set(ports)) == 5
    assert all(ports)
    assert fields["key"].encode() == kernel.info.key
    assert fields["transport"] == "tcp"
    assert mode(kernel.connection_file) == 0o600


def test_tcp_is_not_open_to_other_machines(start_kernel: Start) -> None:
    """The sockets are bound to the address that the file names, not to every one of the machine."""
    kernel = start_kernel(transport="tcp")
    kernel.connect()
    with socket.socket() as other, pytest.raises(ConnectionRefusedError):
        other.connect(("127.0.0.2", kernel.info.shell_port))


@pytest.mark.parametrize("channel", Channel)
def test_a_port_in_use_is_said_and_nothing_is_left(start_kernel: Start, channel: Channel) -> None:
    """A kernel that cannot listen ends with a sentence, without a traceback, and closes what it had opened."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        ports = {f"{name}_port": taken.getsockname()[1] if name is channel else 0 for name in Channel}
        kernel = start_kernel(info={"ip": "127.0.0.1", "transport": "tcp", "key": "k", **ports})
        assert kernel.wait() == 1
    assert "in use" in kernel.stderr
    assert "Traceback" not in kernel.stderr


def test_the_heartbeat_answers_while_the_gil_is_held(client: WireClient) -> None:
    """A beat comes back while C code lets no Python run: the echo is C, too (R7)."""
    cell = client.send_code(
        "import time, ctypes; print('holding'); time.sleep(0.1); ctypes.PyDLL(None).usleep(700_000)"
    )
    client.wait_for_text(cell, "holding")
    for _ in range(20):
        client.beat()
    assert client.finish(cell).content["status"] == "ok"


# ── encryption ──────────────────────────────────────────────────────────────────────────────────────────────────────


def encrypted(info: ConnectionInfo) -> ConnectionInfo:
    """Give a connection CURVE keys."""
    public, secret = zmq.curve_keypair()
    return replace(info, curve_publickey=public, curve_secretkey=secret)


@pytest.fixture(params=["tcp", "ipc"])
def curve_kernel(start_kernel: Start, request: pytest.FixtureRequest, tmp_path: Path) -> KernelProcess:
    """A kernel whose connection file has CURVE keys."""
    info = ConnectionInfo("tcp", "127.0.0.1", key=b"k")
    if request.param == "ipc":
        info = ConnectionInfo("ipc", str(tmp_path / "s"), *range(1, 6), key=b"k")
    kernel = start_kernel(info=encrypted(info).as_dict())
    wait_until(lambda: kernel.left_over and (request.param == "ipc" or kernel._has_ports()), "the ports")
    return kernel


def test_a_stock_client_with_the_keys_is_served(curve_kernel: KernelProcess) -> None:
    """jupyter_client's own client reads the keys from the file: all five sockets answer it, tcp and ipc."""
    from jupyter_client.blocking.client import BlockingKernelClient

    client = BlockingKernelClient(connection_file=str(curve_kernel.connection_file))
    client.load_connection_file()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=20)
        texts: list[str] = []

        def hear(message: dict[str, Any]) -> None:
            texts.append(message["content"].get("text", ""))

        def answer(_message: dict[str, Any]) -> None:
            client.input("encrypted")

        reply = client.execute_interactive(
            "print(input('?'))", allow_stdin=True, timeout=20, stdin_hook=answer, output_hook=hear
        )
        assert reply["content"]["status"] == "ok"
        assert "".join(texts) == "encrypted\n"
        wait_until(client.hb_channel.is_beating, "the heart")
        assert client.hb_channel.is_alive()
        message_id = client.shutdown()
        assert client.get_control_msg(timeout=20)["parent_header"]["msg_id"] == message_id
    finally:
        client.stop_channels()
    assert curve_kernel.wait() == 0


@pytest.mark.parametrize("channel", Channel)
@pytest.mark.parametrize("keys", ["none", "another server's"])
def test_without_the_keys_no_socket_answers(curve_kernel: KernelProcess, channel: Channel, keys: str) -> None:
    """Who speaks in the clear, or trusts another key, gets no connection, on none of the five sockets."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    stranger = context.socket(zmq.SUB if channel is Channel.IOPUB else zmq.DEALER)
    listening = context.socket(zmq.PAIR)
    try:
        listening.connect("inproc://events")
        stranger.monitor("inproc://events", zmq.EVENT_HANDSHAKE_SUCCEEDED | FAILED)
        if keys != "none":
            stranger.curve_publickey, stranger.curve_secretkey = zmq.curve_keypair()
            stranger.curve_serverkey, _ = zmq.curve_keypair()
        if channel is Channel.IOPUB:
            stranger.setsockopt(zmq.SUBSCRIBE, b"")
        stranger.connect(curve_kernel.info.url(channel))
        assert listening.poll(20_000)
        [event, _] = struct.unpack("=hi", listening.recv_multipart()[0])
        assert event & FAILED
    finally:
        stranger.disable_monitor()
        stranger.close(0)
        listening.close(0)
        context.term()


@pytest.mark.parametrize("fault", ["one is missing", "no pair", "no key"])
def test_keys_of_no_use_are_said(start_kernel: Start, fault: str) -> None:
    """A kernel with half a pair, keys that do not belong together, or none at all ends with a sentence."""
    info = encrypted(ConnectionInfo("tcp", "127.0.0.1", key=b"k")).as_dict()
    faults: dict[str, dict[str, str]] = {
        "one is missing": {"curve_secretkey": ""},
        "no pair": {"curve_publickey": zmq.curve_keypair()[0].decode()},
        "no key": {"curve_secretkey": "%" * 40},
    }
    kernel = start_kernel()
    kernel.connect()
    kernel.connection_file.write_text(json.dumps({**info, **faults[fault]}))
    command = [sys.executable, "-m", "cobnut_kernel", "-f", str(kernel.connection_file)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=25, check=False)
    assert run.returncode == 1
    assert "curve_" in run.stderr
    assert "Traceback" not in run.stderr
    assert info["curve_secretkey"] not in run.stderr


def test_a_zmq_that_cannot_encrypt_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rather than to listen in the clear the kernel does not start."""
    monkeypatch.setattr(zmq, "has", {"curve": False}.__getitem__)
    info = ConnectionInfo("tcp", "127.0.0.1", key=b"k")
    assert curve_options(info) == {}
    with pytest.raises(ConnectionFileError, match="install pyzmq with CURVE"):
        curve_options(encrypted(info))


# ── subscribers ─────────────────────────────────────────────────────────────────────────────────────────────────────


def subscribe(client: WireClient, topic: bytes) -> zmq.Socket[bytes]:
    """Open another subscription beside the client's own."""
    subscriber = client.another_socket(zmq.SUB, Channel.IOPUB)
    subscriber.setsockopt(zmq.SUBSCRIBE, topic)
    return subscriber


def test_every_subscriber_is_welcomed_first(client: WireClient) -> None:
    """The first message of each new subscription is the welcome, with no parent and its own topic (R5)."""
    client.execute("print('before')")
    for topic in (b"", b"", b"kernel.", "é".encode()):
        frames = subscribe(client, topic).recv_multipart()
        message = Codec(client.kernel.info.key).decode(frames)
        assert message.msg_type == "iopub_welcome"
        assert message.content == {"subscription": topic.decode()}
        assert frames[0].startswith(topic)
        assert frames[frames.index(DELIMITER) + 3] == b"{}"


def test_a_subscription_that_is_no_text_is_not_welcomed(client: WireClient) -> None:
    """It hurts nobody: the next subscriber is welcomed, and cells run (JEP 65)."""
    subscribe(client, b"\xff\xfe")
    frames = subscribe(client, b"").recv_multipart()
    assert Codec(client.kernel.info.key).decode(frames).content == {"subscription": ""}
    assert client.execute("1").result == "1"


def test_whatever_a_subscriber_sends_is_ignored(client: WireClient) -> None:
    """Unsubscribing, and frames that are no subscription, change nothing for anybody."""
    talker = client.another_socket(zmq.XSUB, Channel.IOPUB)
    for frame in (b"\x00", b"\x01", b"", b"\x02what", b"garbage", b"\x00\x00"):
        talker.send(frame)
    talker.recv_multipart()
    assert client.execute("1").result == "1"


def test_topics_name_what_is_published(client: WireClient) -> None:
    """Who subscribes to a topic gets those messages alone."""
    everything = subscribe(client, b"")
    everything.recv_multipart()
    client.execute("print('text')")
    topics: dict[str, str] = {}
    while "stream" not in topics:
        topic, *frames = everything.recv_multipart()
        topics[json.loads(frames[2])["msg_type"]] = topic.decode()
    prefix = topics["stream"].removesuffix(".stream")
    assert topics == {name: f"{prefix}.{name}" for name in ("status", "execute_input", "stream")}
    chosen = subscribe(client, topics["stream"].encode())
    chosen.recv_multipart()  # the welcome
    client.execute("print('chosen')")
    assert json.loads(chosen.recv_multipart()[3])["msg_type"] == "stream"


def test_a_client_that_goes_away_without_a_word_disturbs_nobody(kernel: KernelProcess, client: WireClient) -> None:
    """Requests of a client that is gone before the answer, many times over, cost the others nothing."""
    for _ in range(20):
        leaver = kernel.connect()
        leaver.send_code("print('for nobody')")
        leaver.request(MessageType.KERNEL_INFO_REQUEST)
        kernel.clients.remove(leaver)
        leaver.close()
    assert client.execute("'fine'").result == "'fine'"
