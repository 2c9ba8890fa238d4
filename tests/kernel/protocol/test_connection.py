"""What `protocol/connection.py` promises of the content of connection files."""

from __future__ import annotations

import json
import pickle
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from jupyter_client.connect import ConnectionFileMixin, write_connection_file

from cobnut_kernel.errors import ConnectionFileError
from cobnut_kernel.protocol.connection import SOCKET_PATH_BYTES, ConnectionInfo
from cobnut_kernel.protocol.messages import Channel

if TYPE_CHECKING:
    from pathlib import Path

TCP = ConnectionInfo("tcp", "127.0.0.1", 5001, 5002, 5003, 5004, 5005, b"secret-key", kernel_name="cobnut")
IPC = ConnectionInfo("ipc", "/run/user/1/kernel", 1, 2, 3, 4, 5, b"secret-key")
CURVE = ("b{E{TUJ[Zxl1)]<>W(c*bEff[.[K]BGJE&4iF=oM", "<dQ^&)<Lp#8IUJrWoOpOZ5+xjs]UV$ShhdqSEW))")
ENCRYPTED = replace(TCP, curve_publickey=CURVE[0].encode(), curve_secretkey=CURVE[1].encode())

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ports = st.integers(0, 65535)
readable = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20)
infos = st.builds(
    ConnectionInfo,
    st.sampled_from(["tcp", "ipc"]),
    readable,
    ports,
    ports,
    ports,
    ports,
    ports,
    key=st.text().map(str.encode),
    kernel_name=st.text(),
    extra=st.dictionaries(st.text().map("x-".__add__), json_values, max_size=3),
)


# --- with jupyter_client ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("transport", ["tcp", "ipc"])
def test_the_file_of_jupyter_client_is_read_and_written_alike(tmp_path: Path, transport: str) -> None:
    """Every field that the field's own writer puts into a file is understood, kept, and written as it was."""
    name, fields = write_connection_file(
        str(tmp_path / "kernel.json"),
        ip="127.0.0.1" if transport == "tcp" else "kernel-ipc",
        key="clé".encode(),
        transport=transport,
        kernel_name="python3",
        jupyter_session="notebook.ipynb",
    )
    with open(name, encoding="utf-8") as file:  # noqa: PTH123 - a name is what the writer gives
        read = json.load(file)
    info = ConnectionInfo.from_dict(read)
    assert info.as_dict() == read == fields
    assert (info.transport, info.key, info.kernel_name) == (transport, "clé".encode(), "python3")
    assert info.extra == {"jupyter_session": "notebook.ipynb"}
    assert [info.port(channel) for channel in Channel] == [fields[f"{channel}_port"] for channel in Channel]


@pytest.mark.parametrize("info", [TCP, IPC])
def test_jupyter_client_connects_where_we_say(info: ConnectionInfo) -> None:
    """The stock client makes of our dict the same key and the same five endpoints."""
    with zmq.Context() as context:
        stock = ConnectionFileMixin(context=context)
        stock.load_connection_info(json.loads(json.dumps(info.as_dict())))
        assert stock.session.key == info.key
        for channel in Channel:
            with getattr(stock, f"connect_{channel}")() as socket:
                assert socket.get(zmq.LAST_ENDPOINT).decode() == info.url(channel)
                socket.linger = 0


def test_jupyter_clients_curve_keys_are_read_and_written_alike(tmp_path: Path) -> None:
    """The keys that its writer puts into a file are ours, and the keys of our dict are the stock client's."""
    public, secret = zmq.curve_keypair()
    name, fields = write_connection_file(
        str(tmp_path / "kernel.json"), key=b"k", curve_publickey=public, curve_secretkey=secret
    )
    with open(name, encoding="utf-8") as file:  # noqa: PTH123 - a name is what the writer gives
        info = ConnectionInfo.from_dict(json.load(file))
    assert (info.curve_publickey, info.curve_secretkey, info.is_encrypted, info.extra) == (public, secret, True, {})
    assert info.as_dict() == fields
    stock = ConnectionFileMixin()
    stock.load_connection_info(json.loads(json.dumps(info.as_dict())))
    assert (stock.curve_publickey, stock.curve_secretkey) == (public, secret)


def test_without_curve_keys_there_are_no_fields_for_them() -> None:
    """A plain connection file is what it was; keys that are null or empty are none."""
    assert not any(name.startswith("curve") for name in TCP.as_dict())
    assert not TCP.is_encrypted
    assert ConnectionInfo.from_dict({**TCP.as_dict(), "curve_publickey": None, "curve_secretkey": ""}) == TCP


# --- the dict ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=150)
@given(infos)
def test_an_info_comes_back_from_its_file(info: ConnectionInfo) -> None:
    """Writing as JSON and reading loses nothing, unknown fields included."""
    assert ConnectionInfo.from_dict(json.loads(json.dumps(info.as_dict()))) == info


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_dict_is_an_info_or_refused(data: st.DataObject) -> None:
    """Whatever JSON stands in a connection file: it is of use, or the error is a ConnectionFileError."""
    fields = TCP.as_dict()
    for name in data.draw(st.sets(st.sampled_from(sorted(fields)), min_size=1, max_size=3)):
        fields[name] = data.draw(
            json_values | st.sampled_from(["tcp", "ipc", "*", 10**30, float("nan"), "8888", "9" * 5000])
        )
    try:
        info = ConnectionInfo.from_dict(fields)
    except ConnectionFileError:
        return
    for channel in Channel:
        if info.port(channel):
            assert info.url(channel).startswith(f"{info.transport}://")
    json.dumps(info.as_dict()).encode()


@pytest.mark.parametrize("content", [None, [], "text", 5])
def test_what_is_no_object_is_refused(content: Any) -> None:
    """A file may hold any JSON; the error says what it held."""
    with pytest.raises(ConnectionFileError, match=f"no JSON object, but of type {type(content).__name__}"):
        ConnectionInfo.from_dict(content)


@pytest.mark.parametrize("name", ["ip", "shell_port", "iopub_port", "stdin_port", "control_port", "hb_port"])
def test_a_missing_field_is_named(name: str) -> None:
    """Without an address or a port there is nothing to connect to."""
    fields = TCP.as_dict()
    del fields[name]
    with pytest.raises(ConnectionFileError, match=f"names no '{name}'"):
        ConnectionInfo.from_dict(fields)


def test_the_other_fields_have_defaults() -> None:
    """Transport, key, scheme and kernel name may be absent or null, as in small launchers' files."""
    bare = {name: value for name, value in TCP.as_dict().items() if name == "ip" or name.endswith("_port")}
    expected = replace(TCP, key=b"", kernel_name="")
    assert ConnectionInfo.from_dict(bare) == expected
    absent = dict.fromkeys(("transport", "key", "signature_scheme", "kernel_name"))
    assert ConnectionInfo.from_dict({**bare, **absent}) == expected


def test_ports_may_be_text() -> None:
    """The handshake pattern sends ports as text (JEP 66)."""
    assert ConnectionInfo.from_dict({**TCP.as_dict(), "shell_port": "5001"}) == TCP


deep: list[Any] = []
for _ in range(2000):
    deep = [deep]


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"transport": "udp"}, "transport must be 'tcp' or 'ipc', not 'udp'"),
        ({"transport": 5}, "'transport' of the connection must be text, not int"),
        ({"transport": deep}, "'transport' of the connection must be text, not list"),
        ({"ip": ""}, "names no usable 'ip'"),
        ({"ip": "/tmp/a\0b"}, "names no usable 'ip'"),
        ({"ip": ["127.0.0.1"]}, "'ip' of the connection must be text, not list"),
        ({"ip": "\udcff"}, "no UTF-8: choose another"),
        ({"signature_scheme": "hmac-md5"}, "'hmac-md5' are not supported: use 'hmac-sha256'"),
        ({"shell_port": -1}, "shell_port must lie between 0 and 65535"),
        ({"hb_port": 65536}, "hb_port must lie between 0 and 65535"),
        ({"hb_port": "65536"}, "hb_port must lie between 0 and 65535"),
        ({"hb_port": 10**5000}, "hb_port must lie between 0 and 65535"),
        ({"iopub_port": 5.0}, "'iopub_port' of the connection must be a whole number, not float"),
        ({"iopub_port": float("inf")}, "must be a whole number, not float"),
        ({"iopub_port": True}, "must be a whole number, not bool"),
        ({"stdin_port": "5_0"}, "must be a whole number, not '5_0'"),
        ({"stdin_port": "٥"}, "must be a whole number, not '٥'"),
        ({"stdin_port": "9" * 5000}, "must be a whole number, not '99999999999999999999'"),
        ({"control_port": deep}, "must be a whole number, not list"),
        ({"key": 5}, "'key' of the connection must be text, not int"),
        ({"key": "\ud800"}, "'key' of the connection has lone surrogates"),
        ({"key": b"\xff\xfe"}, "key is no UTF-8"),
        ({"kernel_name": {}}, "'kernel_name' of the connection must be text, not dict"),
        ({"curve_publickey": CURVE[0]}, "no 'curve_secretkey' beside its other CURVE key: give both"),
        ({"curve_secretkey": CURVE[1]}, "no 'curve_publickey' beside its other CURVE key: give both"),
        (
            {"curve_publickey": CURVE[0], "curve_secretkey": "short"},
            "'curve_secretkey' of the connection is no CURVE key",
        ),
        ({"curve_publickey": "é" * 40, "curve_secretkey": CURVE[1]}, "'curve_publickey' of the connection is no CURVE"),
        (
            {"curve_publickey": 5, "curve_secretkey": CURVE[1]},
            "'curve_publickey' of the connection must be text, not int",
        ),
    ],
)
def test_what_is_of_no_use_is_refused(fields: dict[str, Any], complaint: str) -> None:
    """The error names the field and what it should be."""
    with pytest.raises(ConnectionFileError, match=complaint):
        ConnectionInfo.from_dict({**TCP.as_dict(), **fields})


def test_unknown_fields_cannot_replace_known_ones() -> None:
    """`extra` is kept beside the fields, never over them."""
    info = replace(TCP, extra={"key": "other", "jupyter_session": "book"})
    assert info.as_dict() == {**TCP.as_dict(), "jupyter_session": "book"}


def test_the_keys_are_not_shown() -> None:
    """A log or a traceback that shows the info does not open the kernel to its readers: any of the keys would."""
    info = replace(ENCRYPTED, extra={"token": "hidden-too"})
    assert "127.0.0.1" in repr(info)
    for hidden in ("secret-key", "hidden-too", *CURVE):
        assert hidden not in repr(info)


def test_an_info_is_a_plain_value() -> None:
    """It can be a key, be pickled to another process, and be taken apart."""
    info = replace(TCP, extra={"list": [1]})
    assert {info: 1}[replace(TCP, extra={"list": [1]})] == 1
    assert pickle.loads(pickle.dumps(info)) == info
    assert ConnectionInfo(**asdict(info)) == info


# --- urls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ip", "port", "url"),
    [
        ("127.0.0.1", 8888, "tcp://127.0.0.1:8888"),
        ("localhost", 0, "tcp://localhost:*"),
        ("*", 0, "tcp://*:*"),
        ("::1", 8888, "tcp://[::1]:8888"),
        ("[::1]", 8888, "tcp://[::1]:8888"),
        ("fe80::1%eth0", 0, "tcp://[fe80::1%eth0]:*"),
    ],
)
def test_a_tcp_url_has_address_and_port(ip: str, port: int, url: str) -> None:
    """Version 6 addresses are put into brackets once; port 0 is a wildcard."""
    assert replace(TCP, ip=ip, shell_port=port).url(Channel.SHELL) == url


def test_each_channel_has_its_own_port() -> None:
    """No two channels are mixed up, for either transport."""
    assert [TCP.url(channel).rpartition(":")[2] for channel in Channel] == ["5001", "5004", "5002", "5003", "5005"]
    assert [IPC.url(channel).rpartition("-")[2] for channel in Channel] == ["1", "4", "2", "3", "5"]
    assert TCP.port(Channel.HEARTBEAT) == TCP.hb_port


def test_an_ipc_url_is_a_path() -> None:
    """The socket files are those of the urls; tcp has none."""
    assert IPC.url(Channel.SHELL) == "ipc:///run/user/1/kernel-1"
    assert [f"ipc://{path}" for path in IPC.ipc_paths()] == [IPC.url(channel) for channel in Channel]
    assert TCP.ipc_paths() == []


def test_an_ipc_port_of_0_is_no_file() -> None:
    """With unix sockets nobody chooses at `bind`: a number is asked for, and no file is listed."""
    info = replace(IPC, hb_port=0)
    assert len(info.ipc_paths()) == 4
    with pytest.raises(ConnectionFileError, match="hb_port must be chosen before"):
        info.url(Channel.HEARTBEAT)


def test_the_longest_path_that_is_accepted_can_be_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is that of the system: libzmq binds the longest path, and one byte more is refused by it and by us."""
    monkeypatch.chdir(tmp_path)  # a relative path, so that the length does not depend on where tests run
    longest = replace(IPC, ip="é" * ((SOCKET_PATH_BYTES - 3) // 2) + "s")
    assert len(longest.ipc_paths()[0].encode()) == SOCKET_PATH_BYTES
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(longest.url(Channel.SHELL))
        with pytest.raises(zmq.ZMQError, match=f"longer than {SOCKET_PATH_BYTES}"):
            socket.bind(longest.url(Channel.SHELL) + "1")
    with pytest.raises(ConnectionFileError, match=f"{SOCKET_PATH_BYTES + 1} bytes.*choose a shorter directory"):
        replace(longest, hb_port=10)
    assert replace(longest, transport="tcp", ip="x" * 200).url(Channel.SHELL)
