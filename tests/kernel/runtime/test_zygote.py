"""The fork server: kernels that are as if started cold, whose end is told, and that end with their owner."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tests.kernel.forks import ForkedKernel, ForkServer
from tests.kernel.leftovers import is_running, until
from tests.kernel.wire import KernelProcess, WireClient

from cobnut_kernel.connection_files import start_time
from cobnut_kernel.protocol.fork import (
    MAX_PACKET,
    MODULE,
    Ask,
    Exited,
    Fork,
    Forked,
    Guard,
    GuardFolder,
    RefusalReason,
    Refused,
    Retire,
    Signal,
    State,
    Unguard,
    decode_answer,
)
from cobnut_kernel.protocol.messages import Channel, MessageType
from cobnut_kernel.runtime.zygote import __main__ as program
from cobnut_kernel.runtime.zygote.owner import Owner
from cobnut_kernel.runtime.zygote.server import Zygote
from cobnut_kernel.runtime.zygote.wards import Ward, Wards

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Serve = Callable[..., ForkServer]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are forked on Linux only")

STATE = Path(__file__).with_name("process_state.py").read_text()


@pytest.fixture(scope="module")
def shared_server() -> Iterator[ForkServer]:
    """The template of the tests that leave it as it was."""
    server = ForkServer()
    yield server
    server.end()


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Start templates that only this test knows; the options are those of `ForkServer`."""
    servers: list[ForkServer] = []

    def start(*arguments: Any, **options: Any) -> ForkServer:
        servers.append(ForkServer(*arguments, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.end()


def value(client: WireClient, expression: str) -> Any:
    """Return the value of an expression that has a JSON form."""
    cell = client.execute(f"import json; print(json.dumps({expression}))")
    assert cell.content["status"] == "ok", cell.content
    return json.loads(cell.text())


def shut_down(client: WireClient) -> None:
    """Ask a kernel to end."""
    client.request(MessageType.SHUTDOWN_REQUEST, {"restart": False}, Channel.CONTROL)


# ── a forked kernel ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("transport", ["ipc", "tcp"])
def test_a_forked_kernel_runs_cells_and_ends(shared_server: ForkServer, transport: str) -> None:
    """It answers, ends when asked, its code is told, and nothing of it is left."""
    kernel = shared_server.fork(transport)
    client = kernel.connect()
    assert client.execute("6 * 7").result == "42"
    client.beat()
    shut_down(client)
    assert shared_server.exit_code(kernel) == 0
    assert kernel.left_over == []
    assert not is_running(kernel.process.pid)
    assert kernel.stderr == ""


def test_many_kernels_at_once(shared_server: ForkServer) -> None:
    """Eight that are asked for together all run, each for itself, and leave nothing in the template."""
    opened = Path(f"/proc/{shared_server.process.pid}/fd")
    until(lambda: psutil.Process(shared_server.process.pid).children(), "it has no spare kernel")
    before = sorted(path.name for path in opened.iterdir())
    kernels = [ForkedKernel(shared_server, "ipc") for _ in range(8)]
    for kernel in kernels:
        shared_server.ask_for(kernel)
    clients = [shared_server.forked(kernel).connect() for kernel in kernels]
    cells = [client.send_code(f"mine = {number}; mine") for number, client in enumerate(clients)]
    results = [client.finish(cell).result for client, cell in zip(clients, cells, strict=True)]
    assert results == [str(number) for number in range(8)]
    assert [client.execute("mine, In[1]").result for client in clients] == [
        f"({number}, 'mine = {number}; mine')" for number in range(8)
    ]
    assert len({kernel.process.pid for kernel in kernels}) == 8
    for client in clients:
        shut_down(client)
    assert [shared_server.exit_code(kernel) for kernel in kernels] == [0] * 8
    until(
        lambda: sorted(path.name for path in opened.iterdir()) == before, "it has more open, or no spare kernel again"
    )


def states(server: ForkServer, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what a cell sees of its process, in a forked kernel and in a cold one."""
    cold = KernelProcess(**arguments)
    try:
        expected = cold.connect().execute(STATE).text()
        file = str(cold.connection_file)
    finally:
        cold.end()
    umask = os.umask(0)
    os.umask(umask)
    kernel = server.fork(**{**arguments, "cwd": str(arguments["cwd"])}, umask=umask)
    seen = kernel.connect().execute(STATE).text()
    forked, cold_state = json.loads(seen), json.loads(expected.replace(file, str(kernel.connection_file)))
    different = {name for name in forked if forked[name] != cold_state[name]}
    return {name: forked[name] for name in different}, {name: cold_state[name] for name in different}


def test_a_forked_kernel_is_as_if_started_cold(shared_server: ForkServer, tmp_path: Path) -> None:
    """What a cell can see of its process is the same, but for numbers and times."""
    env = {**shared_server.env, "TZ": "Asia/Tokyo", "MPLBACKEND": "agg", "NAME": "Ada"}
    forked, cold = states(shared_server, env=env, cwd=tmp_path)
    assert forked == cold


def test_a_profiles_configuration_holds_in_a_forked_kernel(serve: Serve, tmp_path: Path) -> None:
    """What the user has configured since the template was made is as in a cold kernel, in the shell and its parts."""
    profile = tmp_path / "profile_default"
    server = serve({"IPYTHONDIR": str(tmp_path)})
    (profile / "ipython_config.py").write_text(
        "c = get_config()\n"
        "c.InteractiveShell.colors = 'nocolor'\n"
        "c.InteractiveShell.ast_node_interactivity = 'all'\n"
        "c.HistoryManager.enabled = False\n"
        "c.PlainTextFormatter.max_width = 33\n"
    )
    forked, cold = states(server, env=server.env, cwd=tmp_path)
    assert forked == cold
    client = server.fork().connect()
    shell = "get_ipython()"
    widths = f"{shell}.display_formatter.formatters['text/plain'].max_width"
    assert value(client, f"[{shell}.colors, {shell}.history_manager.enabled, {widths}]") == ["nocolor", False, 33]


def test_nothing_is_to_be_imported_for_the_first_result_and_error(shared_server: ForkServer) -> None:
    """A cell, a result, an error and its colours find all they need."""
    client = shared_server.fork().connect()
    before = set(value(client, "list(__import__('sys').modules)"))
    client.execute("6 * 7")
    assert client.execute("1 / 0").error["ename"] == "ZeroDivisionError"
    client.execute("def f(:")
    assert set(value(client, "list(__import__('sys').modules)")) - before == set()


def test_kernels_do_not_share_their_random_numbers(shared_server: ForkServer) -> None:
    """Each is seeded anew, and so are the names of temporary files."""
    drawn = "[__import__('random').random(), __import__('tempfile').mktemp(), str(__import__('uuid').uuid4())]"
    first, second = (value(shared_server.fork().connect(), drawn) for _ in range(2))
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_kernel_has_its_own_environment_and_arguments(serve: Serve, tmp_path: Path) -> None:
    """Of the template's variables, arguments, folder and umask none is the kernel's; `ps` shows its own command."""
    server = serve({"ONLY_THE_TEMPLATE": "1", "BOTH": "template"})
    env = {**server.env, "BOTH": "kernel", "ONLY_THE_KERNEL": "2"}
    del env["ONLY_THE_TEMPLATE"]
    kernel = server.fork(env=env, cwd=str(tmp_path), umask=0o027)
    client = kernel.connect()
    pictures = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}  # the kernel's own, where the user has none
    assert value(client, "dict(__import__('os').environ)") == env | pictures
    inherited = client.execute("import subprocess; print(subprocess.getoutput('env'))").text()
    assert "ONLY_THE_KERNEL=2" in inherited
    assert "ONLY_THE_TEMPLATE" not in inherited
    assert value(client, "[__import__('os').getcwd(), __import__('os').umask(0)]") == [str(tmp_path), 0o027]
    command = Path(f"/proc/{kernel.process.pid}/cmdline").read_bytes().rstrip(b"\0").decode().replace("\0", " ")
    assert command == f"{sys.executable} -P -m cobnut_kernel -f {kernel.connection_file}"
    assert Path(f"/proc/{kernel.process.pid}/comm").read_text() == "cobnut-kernel\n"


def test_what_python_sets_at_its_start_is_set_in_a_kernel_too(serve: Serve) -> None:
    """Without a locale Python takes C.UTF-8 and puts it into the environment, where programs find it (PEP 538)."""
    nothing = dict.fromkeys(name for name in os.environ if name.startswith(("LC_", "LANG")))
    server = serve({**nothing, "LC_CTYPE": None})
    assert "LC_CTYPE" not in server.env
    client = server.fork().connect()
    seen = value(client, "[__import__('os').environ.get('LC_CTYPE'), __import__('subprocess').getoutput('env')]")
    assert seen[0] == "C.UTF-8"
    assert "LC_CTYPE=C.UTF-8" in seen[1].splitlines()


def test_a_kernel_inherits_nothing_but_its_streams(serve: Serve) -> None:
    """No descriptor of the template, of its owner's socket above all, is open in a kernel."""
    server = serve()
    first, second = server.fork(), server.fork()
    client = second.connect()
    client.execute("1")

    def links(pid: int) -> set[str]:
        found = [path.readlink() for path in Path(f"/proc/{pid}/fd").iterdir() if path.is_symlink()]
        return {str(link) for link in found if str(link).startswith(("socket:", "pipe:"))}

    templates = links(server.process.pid)
    assert templates
    assert templates & links(second.process.pid) == set()
    assert links(first.process.pid) & links(second.process.pid) == set()
    code = "import os, subprocess; print(subprocess.getoutput('ls /proc/self/fd | wc -l'))"
    assert int(client.execute(code).text()) <= 5


def test_a_kernel_gets_the_descriptors_it_was_sent(serve: Serve) -> None:
    """A stream may have any number; beyond the three, its children do not inherit it."""
    server = serve()
    kernel = ForkedKernel(server, "ipc")
    reading, writing = os.pipe()
    output, theirs = os.pipe()
    try:
        with (kernel.folder / "stderr").open("wb") as stderr:
            arguments = ("-f", str(kernel.connection_file))
            request = Fork(kernel.folder.name, arguments, server.env, "/", streams=(9, 1, 2))
            server.send(request, writing, theirs, stderr.fileno())
        client = server.forked(kernel).connect()
        client.execute("import os, subprocess; os.write(9, b'nine'); os.write(1, b'one')")
        assert (os.read(reading, 100), os.read(output, 100)) == (b"nine", b"one")
        assert client.execute("subprocess.getoutput('ls -l /proc/self/fd/9')").result.count("cannot access") == 1
    finally:
        for descriptor in (reading, writing, output, theirs):
            os.close(descriptor)


def test_each_kernel_keeps_its_own_history(serve: Serve, tmp_path: Path) -> None:
    """The database is opened after the fork: inputs of two kernels are kept in two sessions."""
    server = serve({"IPYTHONDIR": str(tmp_path)})
    for code in ("first = 1", "second = 2"):
        kernel = server.fork()
        client = kernel.connect()
        client.execute(code)
        shut_down(client)
        assert server.exit_code(kernel) == 0
    client = server.fork().connect()
    tail = "[list(row) for row in get_ipython().history_manager.get_tail(2)]"
    (session, _, first), (following, _, second) = value(client, tail)
    assert (first, second) == ("first = 1", "second = 2")
    assert following == session + 1


# ── the template ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_the_template_has_nothing_that_does_not_survive_a_fork(serve: Serve) -> None:
    """One thread; of descriptors its streams, its bell, the sockets to its owner and its spare kernel: no database."""
    server = serve()
    server.fork().connect().execute("1")
    pid = server.process.pid
    assert len(list(Path(f"/proc/{pid}/task").iterdir())) == 1
    until(lambda: len(psutil.Process(pid).children()) == 2, "it has no spare kernel")
    links = sorted(str(path.readlink()).partition(":")[0] for path in Path(f"/proc/{pid}/fd").iterdir())
    assert links == ["/dev/null", *2 * [str(server.folder / "stderr")], "pipe", "pipe", "socket", "socket"]


def test_a_template_says_what_it_is(serve: Serve) -> None:
    """Its interpreter, its kernels, and the variables that count: none that differs from kernel to kernel does."""
    server = serve({"PYTHONUNBUFFERED": "1", "LC_TIME": "C"})
    kernel = server.fork()
    server.send(Ask())
    state = server.receive(State)
    assert (state.pid, state.executable, state.prefix) == (server.process.pid, sys.executable, sys.prefix)
    assert state.kernels == (kernel.process.pid,)
    assert state.stale == ""
    assert state.variables["PYTHONUNBUFFERED"] == "1"
    assert state.variables["LC_TIME"] == "C"
    assert state.variables["IPYTHONDIR"] == server.env["IPYTHONDIR"]
    assert not {name for name in state.variables if name.startswith("JPY_")}
    assert not {"PATH", "PWD", "TZ", "MPLBACKEND"} & state.variables.keys()


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"IPYTHONDIR": "/elsewhere"}, "IPYTHONDIR"),
        ({"HOME": None}, "HOME"),
        ({"PYTHONPATH": "/lib/mine", "LD_PRELOAD": "/lib/x.so"}, "LD_PRELOAD, PYTHONPATH"),
        ({"LC_ALL": "C"}, "LC_ALL"),
    ],
)
def test_another_environment_is_refused(
    shared_server: ForkServer, variables: dict[str, str | None], named: str
) -> None:
    """What the template was made with, or what takes effect when a process starts, must be the same."""
    env = {name: value for name, value in {**shared_server.env, **variables}.items() if value is not None}
    kernel = ForkedKernel(shared_server, "ipc")
    request = shared_server.ask_for(kernel, env=env)
    refused = shared_server.receive(Refused, id=request)
    assert (refused.reason, refused.text) == (RefusalReason.DIFFERENT, f"Other values than the template's: {named}.")


def test_a_folder_that_is_not_there_is_refused(shared_server: ForkServer) -> None:
    """Nothing is forked, and the text names the folder."""
    kernel = ForkedKernel(shared_server, "ipc")
    request = shared_server.ask_for(kernel, cwd="/no/such/folder")
    refused = shared_server.receive(Refused, id=request)
    assert refused.reason is RefusalReason.FAILED
    assert refused.text == "The kernel cannot start in /no/such/folder: No such file or directory."
    shared_server.send(Ask())
    assert kernel.process.pid not in shared_server.receive(State).kernels


@pytest.mark.parametrize(
    "packet",
    [
        b"no json",
        b'{"type": "fork", "id": "broken"}',
        b'{"type": "dance", "id": "broken"}',
        b'{"type": "signal", "pid": -1, "signum": 9, "id": "broken"}',
        b"\xff" * 1000,
    ],
)
def test_a_broken_request_is_answered_and_the_template_lives_on(shared_server: ForkServer, packet: bytes) -> None:
    """It is refused as malformed, with its id where it has one, and the next kernel is forked."""
    shared_server.send(packet)
    refused = shared_server.receive(Refused)
    assert refused.reason is RefusalReason.MALFORMED
    assert refused.id == ("broken" if b"broken" in packet else "")
    assert shared_server.fork().connect().execute("1").result == "1"


def test_streams_without_descriptors_are_refused(shared_server: ForkServer) -> None:
    """As many descriptors must come as there are streams, each for another one."""
    opened = Path(f"/proc/{shared_server.process.pid}/fd")
    shared_server.send(Ask())
    shared_server.receive(State)
    before = sorted(path.name for path in opened.iterdir())
    kernel = ForkedKernel(shared_server, "ipc")
    for streams in ((1,), (1, 2, 3), (1, 1)):
        request = shared_server.ask_for(kernel, streams=streams)
        assert shared_server.receive(Refused, id=request).reason is RefusalReason.MALFORMED
    until(lambda: sorted(path.name for path in opened.iterdir()) == before)


def test_an_owner_who_does_not_read_holds_up_nobody(serve: Serve) -> None:
    """What he was told waits for him, as much as it is; his requests are carried out meanwhile."""
    server = serve()
    number = 3000
    for _ in range(number):
        server.send(Ask())
    kernel = ForkedKernel(server, "ipc")
    server.ask_for(kernel)
    until(lambda: (kernel.folder / "socket-1").exists())
    for _ in range(number):
        server.receive(State)
    assert server.forked(kernel).connect().execute("1").result == "1"


def test_a_fault_of_the_server_is_the_requests_end_alone() -> None:
    """Whatever goes wrong in it, the kernels that run keep their parent."""

    class Broken:
        def stale(self) -> str:
            raise ZeroDivisionError("oops")

    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        zygote = Zygote(Owner.at(theirs.detach()), Broken(), None)  # pyright: ignore[reportArgumentType] - broken
        ours.send(Fork("7", (), {}, "/").encode())
        assert zygote._hear() is None
        refused = decode_answer(ours.recv(MAX_PACKET))
        zygote._owner.close()
    assert isinstance(refused, Refused)
    assert (refused.id, refused.reason) == ("7", RefusalReason.FAILED)
    assert "ZeroDivisionError: oops" in refused.text


def test_a_template_with_threads_forks_nothing(serve: Serve, tmp_path: Path) -> None:
    """Something that runs at every start of Python may begin a thread: kernels are refused then, and it is named."""
    (tmp_path / "sitecustomize.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, name='spy', daemon=True).start()\n"
    )
    server = serve({"PYTHONPATH": str(tmp_path)})
    request = server.ask_for(ForkedKernel(server, "ipc"))
    refused = server.receive(Refused, id=request)
    assert refused.reason is RefusalReason.FAILED
    assert "threads" in refused.text
    assert "spy" in refused.text


@pytest.mark.parametrize("change", ["a file that was loaded", "the folder of such a file"])
def test_a_template_that_is_older_than_its_files_forks_nothing(serve: Serve, tmp_path: Path, change: str) -> None:
    """After an installation, or an edit of a module that the template has loaded, it says that it is stale."""
    module = tmp_path / "sitecustomize.py"
    module.write_text("")
    server = serve({"PYTHONPATH": str(tmp_path)})
    server.fork().connect().execute("1")
    if change == "a file that was loaded":
        os.utime(module, ns=(1, 1))
    else:
        (tmp_path / "new.pth").write_text("")
    request = server.ask_for(ForkedKernel(server, "ipc"))
    refused = server.receive(Refused, id=request)
    assert (refused.reason, str(tmp_path) in refused.text) == (RefusalReason.STALE, True)
    server.send(Ask())
    assert "has changed" in server.receive(State).stale


def test_a_retired_template_forks_no_more_and_ends_after_its_last_kernel(serve: Serve) -> None:
    """Until then it tells the ends of its kernels."""
    server = serve()
    kernel = server.fork()
    server.send(Retire())
    request = server.ask_for(ForkedKernel(server, "ipc"))
    assert server.receive(Refused, id=request).reason is RefusalReason.RETIRED
    client = kernel.connect()
    assert client.execute("1").result == "1"
    shut_down(client)
    assert server.exit_code(kernel) == 0
    assert server.process.wait(10) == 0


# ── ends ────────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_killed_kernel_is_told_and_its_children_are_killed(shared_server: ForkServer) -> None:
    """The owner hears the signal's number; what was left in its group is gone before."""
    kernel = shared_server.fork()
    child = int(kernel.connect().execute("import subprocess; subprocess.Popen(['sleep', '60']).pid").result)
    os.kill(kernel.process.pid, signal.SIGKILL)
    assert shared_server.exit_code(kernel) == -signal.SIGKILL
    until(lambda: not is_running(child))


def test_signals_go_to_a_kernels_group_and_to_no_other(shared_server: ForkServer) -> None:
    """SIGINT ends a cell and its child process; a number that is none of our kernels' is left alone."""
    bystander = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        kernel = shared_server.fork()
        client = kernel.connect()
        cell = client.send_code("import subprocess; print('runs'); subprocess.run(['sleep', '60'])")
        client.wait_for_text(cell, "runs")
        shared_server.send(Signal(bystander.pid, signal.SIGKILL))
        shared_server.send(Signal(kernel.process.pid, signal.SIGINT))
        assert client.finish(cell).error["ename"] == "KeyboardInterrupt"
        shared_server.send(Signal(kernel.process.pid, signal.SIGTERM))
        assert shared_server.exit_code(kernel) == 0
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_signal_that_comes_before_the_kernel_leads_its_group_arrives(shared_server: ForkServer) -> None:
    """It is sent in the moment of the fork, and ends the process all the same."""
    for _ in range(10):
        kernel = ForkedKernel(shared_server, "ipc")
        shared_server.ask_for(kernel)
        answer = shared_server.receive(Forked, id=kernel.folder.name)
        shared_server.send(Signal(answer.pid, signal.SIGKILL))
        os.close(shared_server.pidfds.pop(0))
        assert shared_server.receive(Exited, pid=answer.pid).status == -signal.SIGKILL


def test_kernels_end_with_their_owner(serve: Serve, tmp_path: Path) -> None:
    """At the end of the owner's socket kernels end, deaf ones of other makes too, and all files go; then the template.

    A kernel that is to outlive him stays, with its files, and the template as its parent.
    """
    folder = tmp_path / "owner"
    folder.mkdir()
    (folder / "owner.json").write_text("{}")
    server = serve()
    server.send(GuardFolder(str(folder)))
    dying, staying = server.fork(), server.fork(outlives=True)
    clients = [dying.connect(), staying.connect()]
    deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE, start_new_session=True)
    saved = subprocess.Popen(["sleep", "60"], start_new_session=True)
    reused = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        assert other.stdout is not None
        other.stdout.readline()
        connection_file = tmp_path / "other.json"
        connection_file.write_text("{}")
        server.send(Guard(other.pid, start_time(other.pid) or 0, (str(connection_file),)))
        server.send(Guard(saved.pid, start_time(saved.pid) or 0))
        server.send(Unguard(saved.pid))
        server.send(Guard(reused.pid, 1))
        server.leave()
        dying.process.wait()
        assert other.wait(10) == -signal.SIGKILL
        until(lambda: dying.left_over == [] and not connection_file.exists() and not folder.exists())
        assert saved.poll() is None
        assert reused.poll() is None
        assert clients[1].execute("6 * 7").result == "42"
        assert server.process.poll() is None
        assert "kernel.json" in staying.left_over
        shut_down(clients[1])
        assert server.process.wait(10) == 0
        assert staying.left_over == []
    finally:
        for process in (other, saved, reused):
            process.kill()
            process.wait()
        if other.stdout is not None:
            other.stdout.close()


def test_an_owner_who_leaves_while_the_template_is_made_leaves_nothing(serve: Serve, tmp_path: Path) -> None:
    """What he said before is done: the process that he wanted guarded is ended."""
    server = serve(ready=False)
    other = subprocess.Popen(["sleep", "60"], start_new_session=True)
    try:
        server.send(Guard(other.pid, start_time(other.pid) or 0))
        server.leave()
        assert other.wait(20) == -signal.SIGTERM
        assert server.process.wait(20) == 0
    finally:
        other.kill()
        other.wait()


def test_kernels_outlive_their_template_and_end_with_their_owner(serve: Serve) -> None:
    """A template that is killed takes no kernel with it: each watches its owner itself, by JPY_PARENT_PID."""
    with subprocess.Popen(["sleep", "60"]) as owner:
        server = serve({"JPY_PARENT_PID": str(owner.pid)})
        kernel = server.fork()
        client = kernel.connect()
        server.process.kill()
        server.process.wait()
        assert client.execute("6 * 7").result == "42"
        owner.kill()
        kernel.process.wait()
        assert kernel.left_over == []


def test_a_template_does_not_hear_the_signals_of_a_terminal(serve: Serve) -> None:
    """SIGINT, SIGTERM and SIGHUP end no template; its kernels do hear them."""
    server = serve()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        server.process.send_signal(number)
    kernel = server.fork()
    assert kernel.connect().execute("1").result == "1"
    os.kill(kernel.process.pid, signal.SIGTERM)
    assert server.exit_code(kernel) == 0


# ── beginnings that cannot be ───────────────────────────────────────────────────────────────────────────────────────


def test_elsewhere_than_on_linux_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends at once with a line that says what to do."""
    monkeypatch.setattr(sys, "platform", "darwin")
    with pytest.raises(SystemExit, match="forked on Linux only: start them cold"):
        program.main(["3"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "started by its owner"),
        (["--help"], "started by its owner"),
        (["0"], "is no socket"),
        (["999"], "is no socket"),
    ],
)
def test_without_an_owner_nothing_begins(arguments: list[str], said: str) -> None:
    """Somebody who runs it by hand is told what it is."""
    run = subprocess.run([sys.executable, "-m", MODULE, *arguments], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert said in run.stderr


def test_a_socket_of_another_kind_is_refused() -> None:
    """A stream has no packets."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = [sys.executable, "-m", MODULE, str(theirs.fileno())]
        run = subprocess.run(command, pass_fds=[theirs.fileno()], capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "not of the family AF_UNIX and the type SOCK_SEQPACKET" in run.stderr


# ── wards ───────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_a_number_that_came_round_again_is_somebody_else() -> None:
    """The leader's start time tells; where it is not known, or the leader has ended, the group is meant."""
    ours = start_time(os.getpid()) or 0
    assert Ward(os.getpid(), ours).is_same
    assert Ward(os.getpid(), 0).is_same
    assert not Ward(os.getpid(), ours + 1).is_same


def test_a_folder_keeps_what_goes_on(tmp_path: Path) -> None:
    """The files of a kernel that outlives its owner stay in his folder; without him, it is none of ours to empty."""
    for name in ("kept", "left"):
        (tmp_path / name).write_text("")
    wards = Wards()
    wards.folder = str(tmp_path)
    wards.children[os.getpid()] = Ward(os.getpid(), 0, (str(tmp_path / "kept"),), outlives=True)
    wards.end()
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
